"""Costs of quantization: numpy against the graphs, the selection of groups, and exports."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest
import soundfile

from tests.support.engines import sharp_checkpoint
from tests.support.models import random_dims
from whisper_opt.cli.main import main
from whisper_opt.core.arrays import F32
from whisper_opt.core.errors import AudioError, EngineError, OptionError
from whisper_opt.export import build, export
from whisper_opt.export.checkpoints import Checkpoint
from whisper_opt.export.checkpoints.checkpoint import Tensor
from whisper_opt.export.graphs.convolutions import round_columns
from whisper_opt.export.graphs.groups import CROSS, HEAD, group_of, groups_of, matches, products_of
from whisper_opt.export.graphs.precision import INT4, INT8, Precision
from whisper_opt.export.quantization import sensitivity as module
from whisper_opt.export.quantization.activation_stats import collect_stats, synthetic_samples
from whisper_opt.export.quantization.rounding import QuantizedReference
from whisper_opt.export.quantization.sensitivity import (
    Cost,
    calibrate,
    find_recordings,
    select_groups,
)
from whisper_opt.export.verification.partitioned import PartitionedGraph
from whisper_opt.export.verification.reference import Reference
from whisper_opt.export.verification.verify import noise_mel
from whisper_opt.runtime.engine import Engine, read_engine
from whisper_opt.runtime.padding import EncoderInput

DIMS = random_dims(n_vocab=8000, n_audio_state=64, n_text_state=64, n_audio_layer=2, n_text_layer=1)
TOKENS = np.random.default_rng(5).integers(0, 8000, 12).astype(np.int64)


@pytest.fixture(scope="module")
def small() -> Checkpoint:
    return sharp_checkpoint(DIMS)


@pytest.fixture
def speech(tmp_path: Path) -> Path:
    folder = tmp_path / "speech"
    folder.mkdir()
    draw = np.random.default_rng(0)
    for name in ("a.wav", "b.flac"):
        soundfile.write(folder / name, 0.1 * draw.standard_normal(20000), 16000)
    (folder / "notes.txt").write_text("no sound")
    return folder


# --- groups ---------------------------------------------------------------------------------------


def test_every_matrix_is_in_one_group(small: Checkpoint) -> None:
    found = [name for group in groups_of(DIMS) for name in products_of(group, DIMS)]
    products = [
        name[:-7]
        for name, tensor in small.tensors.items()
        if name.endswith(".weight") and len(tensor.shape) == 2
    ]
    assert sorted(found) == sorted(products)
    for group in groups_of(DIMS):
        for name in products_of(group, DIMS):
            assert group == HEAD or group_of(name) == group


def test_a_normalization_belongs_to_what_reads_it() -> None:
    assert group_of("decoder.blocks.0.attn_ln") == "decoder.blocks.0.attn.qkv"
    assert group_of("decoder.blocks.0.cross_attn_ln") == "decoder.blocks.0.cross_attn.query"
    assert group_of("encoder.blocks.1.mlp_ln") == "encoder.blocks.1.mlp.0"
    assert group_of("encoder.ln_post") == CROSS


def test_patterns_of_groups() -> None:
    assert matches("decoder.blocks.3.attn.out", INT4.kept)
    assert not matches("decoder.blocks.3.cross_attn.out", INT4.kept)
    assert not matches("encoder.blocks.3.attn.out", INT4.kept)


# --- the quantized reference ----------------------------------------------------------------------


def scores_of(engine: Engine, mel: F32) -> tuple[F32, F32]:
    """First layer's cross keys, and scores of all tokens, of an engine's graphs."""
    import onnx

    from whisper_opt.export.graphs.builder import OnnxGraph

    def graph(stem: str) -> PartitionedGraph:
        model = onnx.load(str(engine.file(f"{stem}.onnx")), load_external_data=False)
        return PartitionedGraph(OnnxGraph(model, ()), [], engine.path, stem)

    cross = graph("encoder").run(
        EncoderInput.uncompressed(mel[None], DIMS.frames_per_position).feeds()
    )
    cache = {
        f"self_{kind}_0": np.zeros((1, DIMS.n_text_head, 64, 64), np.float32) for kind in ("k", "v")
    }
    out = graph("decoder").run(
        {
            "tokens": TOKENS[None],
            "start": np.zeros(1, np.int64),
            "at": np.arange(len(TOKENS))[None],
            "aligned": np.zeros(0, np.int64),
            **cross,
            **cache,
        }
    )
    return cross["cross_k_0"][0, :, :64], out["logits"][0]


def relative_error(found: F32, expected: F32) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


ENCODER = tuple(group for group in groups_of(DIMS) if group.startswith("encoder."))
ALONE = [
    (INT8, "encoder.blocks.0.attn.qkv"),
    (INT8, "encoder.blocks.1.attn.qkv"),
    (INT8, "encoder.blocks.1.attn.out"),
    (INT8, "encoder.blocks.1.mlp.2"),
    (INT8, CROSS),
    (INT8, "decoder.blocks.0.cross_attn.query"),
    (INT8, HEAD),
    (INT4, "decoder.blocks.0.mlp.0"),
    (INT4, HEAD),
]


@pytest.mark.parametrize(
    ("types", "group"), ALONE, ids=[f"{types.name}-{group}" for types, group in ALONE]
)
def test_the_quantized_reference_equals_the_engine(
    types: Precision,
    group: str,
    small: Checkpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    narrow = {
        name: dataclasses.replace(tensor, read=halved(tensor)) if len(tensor.shape) > 1 else tensor
        for name, tensor in small.tensors.items()
    }
    checkpoint = dataclasses.replace(small, tensors=narrow)
    types = dataclasses.replace(types, kept=frozenset(groups_of(DIMS)) - {group})
    monkeypatch.setattr(build, "make_precision", lambda name: types)
    engine = export(checkpoint, tmp_path / "engine", precision=types.name)
    mel = noise_mel(DIMS)[:, :600]
    keys, scores = scores_of(engine, mel)
    # kept groups of an int4 decoder have 8 bits
    rounded = [group] if types.bits == 8 else [g for g in groups_of(DIMS) if g not in ENCODER]
    stats = collect_stats(checkpoint, synthetic_samples(checkpoint))
    checkpoint = with_convolutions_of_engines(checkpoint)
    model = QuantizedReference(checkpoint, stats, types, rounded)
    audio = model.encode(mel)
    emulated = model.cross(audio, 0)[0].transpose(1, 2, 0), model.logits(audio, [TOKENS])[0]
    exact = Reference(checkpoint)
    audio = exact.encode(mel)
    wanted = exact.cross(audio, 0)[0].transpose(1, 2, 0), exact.logits(audio, [TOKENS])[0]
    assert relative_error(scores, wanted[1]) > 1e-4
    for found, like, real in zip((keys, scores), emulated, wanted):
        # a value between two integers may be rounded either way
        assert relative_error(found, like) < max(0.2 * relative_error(found, real), 2e-5)


def with_convolutions_of_engines(checkpoint: Checkpoint) -> Checkpoint:
    """Whose weights an engine rounds to 16 bits, whatever the groups."""

    def stored(tensor: Tensor) -> Tensor:
        taps = tensor.read().transpose(2, 1, 0)
        integers, scale = round_columns(taps.reshape(-1, taps.shape[-1]))
        values = (integers * scale).reshape(taps.shape).transpose(2, 1, 0)
        return dataclasses.replace(tensor, read=lambda: values)

    names = ("encoder.conv1.weight", "encoder.conv2.weight")
    changed = {name: stored(checkpoint.tensors[name]) for name in names}
    return dataclasses.replace(checkpoint, tensors={**checkpoint.tensors, **changed})


def halved(tensor: Tensor) -> Callable[[], F32]:
    """Reads a tensor as float16 stores it."""
    return lambda: tensor.read().astype(np.float16).astype(np.float32)


def test_without_groups_it_is_the_reference(small: Checkpoint) -> None:
    mel = noise_mel(DIMS)[:, :600]
    model, exact = QuantizedReference(small, {}, INT8), Reference(small)
    np.testing.assert_array_equal(model.encode(mel), exact.encode(mel))


# --- the selection --------------------------------------------------------------------------------


def test_the_costliest_for_their_size_are_kept() -> None:
    costs = [
        Cost("large", 100, 0, 5e-3),
        Cost("costly", 10, 0, 4e-3),
        Cost("cheap", 10, 0, 1e-4),
        Cost("better without", 1, 0, -1e-5),
        Cost("too large", 1000, 0, 1.0),
    ]
    assert select_groups(costs, 115) == {"costly", "large"}
    assert select_groups(costs, 25) == {"costly", "cheap"}
    assert select_groups(costs, 0) == frozenset()


def coarse(checkpoint: Checkpoint, name: str) -> Checkpoint:
    """A product whose weights are coarse in 8 bits: one per column is 300 times the others."""
    tensors = dict(checkpoint.tensors)
    weight = tensors[f"{name}.weight"].read()
    weight[:, 7] *= 300
    tensors[f"{name}.weight"] = dataclasses.replace(tensors[f"{name}.weight"], read=weight.copy)
    return dataclasses.replace(checkpoint, tensors=tensors)


@pytest.mark.parametrize("name", ["encoder.blocks.1.mlp.2", "decoder.blocks.0.mlp.2"])
def test_a_product_that_rounds_badly_is_found_and_kept(
    name: str, small: Checkpoint, speech: Path
) -> None:
    checkpoint = coarse(small, name)
    size = int(np.prod(checkpoint.tensors[f"{name}.weight"].shape))
    found = calibrate(checkpoint, INT8, speech, size)
    costs = found.report["groups"]
    assert found.precision.kept == {name}
    assert costs[name]["kept"]
    assert costs[name]["divergence"] == max(c["divergence"] for c in costs.values())
    assert found.report["kept_divergence"] < 0.7 * found.report["divergence"]
    decoder = {g: c["cross_error"] for g, c in costs.items() if g.startswith("decoder")}
    assert not any(decoder.values())
    assert all(c["cross_error"] > 0 for g, c in costs.items() if g not in decoder)


def test_without_a_budget_nothing_changes(small: Checkpoint, speech: Path) -> None:
    found = calibrate(small, INT8, speech, 0)
    assert found.precision == INT8
    assert found.report["divergence"] == found.report["kept_divergence"]


def test_groups_that_int4_keeps_are_not_candidates(small: Checkpoint, speech: Path) -> None:
    found = calibrate(small, INT4, speech, 10**9)
    assert "decoder.blocks.0.attn.qkv" not in found.report["groups"]
    assert found.precision.kept > INT4.kept
    assert found.report["kept_divergence"] < found.report["divergence"]


def test_recordings_are_taken_at_equal_distances(
    small: Checkpoint, speech: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_RECORDINGS", 1)
    seen: list[tuple[float, float]] = []
    found = calibrate(small, INT8, speech, 0, lambda done, total: seen.append((done, total)))
    assert found.report["recordings"] == ["a.wav"]
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1][0] == seen[-1][1]


# --- exports --------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_an_engine_of_a_calibration(precision: str, small: Checkpoint, speech: Path) -> None:
    plain = export(small, speech.parent / "plain", precision=precision)
    engine = export(
        small, speech.parent / "engine", precision=precision, calibrate_on=speech, keep=0.5
    )
    assert plain.manifest.calibration == {}
    assert "calibration" not in json.loads(plain.manifest.to_json())
    found = engine.manifest.calibration
    assert found["recordings"] == ["a.wav", "b.flac"]
    kept = [name for name, cost in found["groups"].items() if cost["kept"]]
    assert kept
    assert sum(found["groups"][name]["more_bytes"] for name in kept) <= found["budget_bytes"]
    size, more = (sum(f.size for f in e.manifest.files.values()) for e in (plain, engine))
    assert size < more < 1.6 * size
    # and its errors are smaller
    assert error(engine) < error(plain)


def error(engine: Engine) -> float:
    parity: Any = engine.manifest.parity
    return float(parity["cross_error"] + parity["logits_error"])


@pytest.mark.parametrize("group", [CROSS, HEAD, "encoder.blocks.0.attn.qkv"])
@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_any_group_can_be_kept(
    group: str,
    precision: str,
    small: Checkpoint,
    speech: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "select_groups", lambda costs, budget: frozenset({group}))
    engine = export(small, speech.parent / "engine", precision=precision, calibrate_on=speech)
    assert engine.manifest.calibration["groups"][group]["kept"]


def test_only_for_integer_precisions(small: Checkpoint, speech: Path) -> None:
    with pytest.raises(OptionError, match="precision is 'fp32', expected int8 or int4"):
        export(small, speech.parent / "engine", calibrate_on=speech)
    with pytest.raises(OptionError, match=r"keep is 2; expected a fraction of the size"):
        export(small, speech.parent / "e", precision="int8", calibrate_on=speech, keep=2)
    assert not list(speech.parent.glob("e*"))


def test_no_recordings(tmp_path: Path, small: Checkpoint) -> None:
    with pytest.raises(OptionError, match="is not a folder"):
        find_recordings(tmp_path / "nowhere")
    (tmp_path / "text.txt").write_text("text")
    with pytest.raises(OptionError, match=r"there are no recordings in .*; looked for .*\.wav"):
        export(small, tmp_path / "engine", precision="int8", calibrate_on=tmp_path)
    assert not (tmp_path / "engine").exists()


def test_a_file_that_is_no_recording(small: Checkpoint, speech: Path) -> None:
    (speech / "a.wav").write_bytes(b"RIFF but nothing else")
    with pytest.raises(AudioError, match=r"a\.wav"):
        export(small, speech.parent / "engine", precision="int8", calibrate_on=speech)
    assert not (speech.parent / "engine").exists()


def test_an_interrupted_calibration_leaves_nothing(small: Checkpoint, speech: Path) -> None:
    def stop(stage: str, done: float, total: float) -> None:
        if stage == "calibrate" and done > 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(
            small,
            speech.parent / "engine",
            precision="int8",
            calibrate_on=speech,
            on_progress=stop,
        )
    assert [path.name for path in speech.parent.iterdir()] == ["speech"]


def test_the_command(
    small: Checkpoint,
    speech: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(build, "load_checkpoint", lambda *args, **kwargs: small)
    target = speech.parent / "engine"
    command = ["export", "model", str(target), "--precision", "int8"]
    assert main([*command, "--keep", "5"]) == 2
    assert "give --calibrate DIR too" in capsys.readouterr().err
    assert main([*command, "--calibrate", str(speech), "--keep", "20"]) == 0
    printed = capsys.readouterr().out
    assert "only this group" in printed
    assert "decoder.head" in printed
    assert "kept" in printed
    assert "2 recordings" in printed
    assert main(["inspect", str(target)]) == 0
    assert "calibrated   on 2 recordings" in capsys.readouterr().out


def test_calibration_in_the_manifest(small: Checkpoint, speech: Path) -> None:
    engine = export(small, speech.parent / "engine", precision="int8", calibrate_on=speech)
    assert read_engine(engine.path).manifest == engine.manifest
    path = engine.path / "manifest.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "calibration": 3}))
    with pytest.raises(EngineError, match="malformed"):
        read_engine(engine.path)
