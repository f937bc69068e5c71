"""The whole export: what it leaves, what it refuses, and what verification notices."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any, Callable

import numpy as np
import onnx
import pytest

from tests.support.engines import DIALECTS, require, sharp_checkpoint
from tests.support.exports import SMALL, change_weight, half, nan_first, snapshot
from tests.support.models import random_dims
from tests.support.models_write import write_huggingface, write_openai_pt
from whisper_opt import Whisper
from whisper_opt.core.arrays import F32
from whisper_opt.core.errors import EngineError, OptionError, VerificationError
from whisper_opt.export import export
from whisper_opt.export.checkpoints import Checkpoint
from whisper_opt.export.verification.reference import Reference
from whisper_opt.runtime.engine import ENGINE_FILES, MANIFEST, Engine, Manifest, read_engine
from whisper_opt.runtime.head_bounds import HeadBounds

FULL = random_dims()

# --- what an export leaves ------------------------------------------------------------------------


@pytest.fixture(scope="module", params=DIALECTS)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """The multilingual vocabulary, two layers of width 128."""
    require(request.param)
    target = tmp_path_factory.mktemp("deep") / "not" / "there" / "yet" / "engine"
    return export(sharp_checkpoint(FULL), target, dialect=request.param)


def test_files(exported: Engine) -> None:
    files = {*ENGINE_FILES}
    if exported.manifest.dialect == "standard":
        files |= {"choose.onnx", "advance.onnx", "reorder.onnx"}
    assert {path.name for path in exported.path.iterdir()} == {*files, MANIFEST}
    assert [path.name for path in exported.path.parent.iterdir()] == ["engine"]
    assert read_engine(exported.path, verify=True) == exported
    assert set(exported.manifest.files) == files
    assert exported.tokenizer_json() == sharp_checkpoint(FULL).tokenizer_json


def test_manifest(exported: Engine) -> None:
    manifest, checkpoint = exported.manifest, sharp_checkpoint(FULL)
    assert manifest.dims == FULL
    assert manifest.precision == "fp32"
    assert manifest.dialect in DIALECTS
    assert manifest.alignment_heads == checkpoint.alignment_heads == ((1, 0), (1, 1))
    assert manifest.suppress_tokens == checkpoint.suppress_tokens
    assert manifest.begin_suppress_tokens == checkpoint.begin_suppress_tokens
    assert manifest.source == dataclasses.asdict(checkpoint.source)
    assert set(manifest.tools) == {"whisper_opt", "python", "numpy", "onnx", "onnxruntime"}
    assert manifest.tools["onnx"] == onnx.__version__
    text = exported.file(MANIFEST).read_text(encoding="utf-8")
    assert Manifest.from_json(text, "here") == manifest
    assert Manifest.from_json(manifest.to_json(), "here") == manifest


def test_parity_is_measured(exported: Engine) -> None:
    parity = exported.manifest.parity
    for what, tolerance in (("cross", 1e-3), ("logits", 1e-4)):
        assert parity[f"{what}_tolerance"] == tolerance
        assert parity[f"{what}_scale"] > 0.5
        assert 0 < parity[f"{what}_error"] <= tolerance * parity[f"{what}_scale"]
    assert parity["reference"] == "numpy fp32"
    assert "noise" in parity["input"]


def test_verification_is_left_out_only_when_asked_and_the_manifest_says_so(
    place: Path, small: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise VerificationError("verified")

    monkeypatch.setattr("whisper_opt.export.build.verify", refuse)
    engine = export(small, place / "engine", verified=False)
    assert engine.manifest.parity == {"input": "none: not verified"}
    with pytest.raises(VerificationError, match=r"^verified$"):
        export(small, place / "other")


def test_graphs_are_valid_onnx_with_external_weights(exported: Engine) -> None:
    for stem, data in (("encoder", "encoder.data"), ("decoder", "decoder.data")):
        path = exported.file(f"{stem}.onnx")
        if exported.manifest.dialect == "standard":
            onnx.checker.check_model(str(path))  # contrib operators have no schema there
        model = onnx.load(str(path), load_external_data=False)
        size = exported.file(data).stat().st_size
        ends = [0]
        for tensor in model.graph.initializer:
            if tensor.data_location != onnx.TensorProto.EXTERNAL:
                assert len(tensor.raw_data) < 1024, tensor.name
                continue
            where = {entry.key: entry.value for entry in tensor.external_data}
            assert where["location"] == data
            offset, length = int(where["offset"]), int(where["length"])
            assert offset % 4096 == 0
            assert offset >= ends[-1]  # in file order, nothing overlaps
            stored = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
            assert length == stored.itemsize * np.prod(tensor.dims)
            ends.append(offset + length)
        # what the runtime reads itself lies among the weights, or behind them
        own = [entry for entry in exported.manifest.tensors.values() if entry.file == data]
        last = max([ends[-1], *(x.offset + 4 * int(np.prod(x.shape)) for x in own)])
        assert last == size


def test_the_runtime_reads_its_own_tensors(exported: Engine) -> None:
    if exported.manifest.dialect == "standard":
        assert not exported.manifest.tensors
        assert exported.manifest.parity["screen_share"] is None
        return
    assert 0 < exported.manifest.parity["screen_share"] < 1
    dims = exported.manifest.dims
    head = HeadBounds.from_tensors(exported.tensor)
    assert head.embedding.shape == (dims.n_vocab, dims.n_text_state)
    model = onnx.load(str(exported.file("decoder.onnx")))
    (held,) = (t for t in model.graph.initializer if t.name == "decoder.token_embedding.weight")
    np.testing.assert_array_equal(head.embedding, onnx.numpy_helper.to_array(held))
    np.testing.assert_allclose(head.embedding.mean(axis=0), head.mean, atol=1e-6)


def test_the_engine_transcribes(exported: Engine) -> None:
    with Whisper.load(exported.path, threads=1) as model:
        noise = np.random.default_rng(0).standard_normal(16_000).astype(np.float32)
        options: Any = {"max_new_tokens": 5, "no_speech_threshold": None, "vad": "off"}
        found = model.transcribe(noise, language="de", **options)
    assert found.language == "de"
    assert len(found.segments) >= 1


def test_exporting_twice_gives_the_same_bytes(place: Path, small: Checkpoint) -> None:
    first = export(small, place / "a")
    second = export(small, place / "b")
    assert first.manifest == second.manifest
    assert snapshot(first.path) == snapshot(second.path)


def test_what_the_checkpoint_does_not_say_stays_unsaid(place: Path, small: Checkpoint) -> None:
    bare = dataclasses.replace(
        small, alignment_heads=None, suppress_tokens=None, begin_suppress_tokens=None
    )
    manifest = export(bare, place / "engine").manifest
    assert manifest.alignment_heads is None
    assert manifest.suppress_tokens is None
    assert manifest.begin_suppress_tokens is None


def test_a_path_is_loaded(place: Path, small: Checkpoint) -> None:
    source = write_huggingface(small, place / "source", dtype="float32")
    by_path = export(str(source), str(place / "engine"))
    by_hand = export(small, place / "other")
    assert by_path.manifest.source["format"] == "huggingface"
    assert by_path.manifest.source["name"] == "source"
    assert set(by_path.manifest.source["sha256"]) == {"model.safetensors"}
    for name in ENGINE_FILES:
        if name != "tokenizer.json":
            assert by_path.manifest.files[name] == by_hand.manifest.files[name], name


def test_a_tokenizer_can_be_given(place: Path, small: Checkpoint) -> None:
    source = write_openai_pt(small, place / "tiny.pt", dtype="float32")
    words = place / "words"
    words.mkdir()
    (words / "tokenizer.json").write_text(small.tokenizer_json, encoding="utf-8")
    engine = export(source, place / "engine", tokenizer=words)
    assert json.loads(engine.tokenizer_json()) == json.loads(small.tokenizer_json)
    assert engine.manifest.source["format"] == "openai"


def test_progress_goes_from_start_to_end(place: Path, small: Checkpoint) -> None:
    seen: list[tuple[str, float, float]] = []
    export(small, place / "engine", on_progress=lambda *event: seen.append(event))
    stages = [stage for stage, _, _ in seen]
    assert list(dict.fromkeys(stages)) == ["write", "verify"]
    for stage in ("write", "verify"):
        done = [(d, total) for name, d, total in seen if name == stage]
        assert [d for d, _ in done] == sorted(d for d, _ in done)
        assert {total for _, total in done} == {done[-1][0]}
    floats = sum(int(np.prod(tensor.shape)) for tensor in small.tensors.values())
    key_biases = (SMALL.n_audio_layer + SMALL.n_text_layer) * SMALL.n_text_state
    state, vocab = SMALL.n_text_state, SMALL.n_vocab
    screen = state * vocab + 4 * (2 * state + 2 * vocab + 1)
    assert seen[stages.index("verify") - 1][1] == 4 * (floats + key_biases) + screen


# --- what is refused ------------------------------------------------------------------------------


def test_an_existing_target_is_refused(place: Path, small: Checkpoint) -> None:
    export(small, place / "engine")
    before = snapshot(place)
    with pytest.raises(EngineError, match=r"engine already exists; pass --overwrite"):
        export(sharp_checkpoint(SMALL, seed=1), place / "engine")
    assert snapshot(place) == before


def test_an_engine_is_overwritten_when_asked(place: Path, small: Checkpoint) -> None:
    before = export(small, place / "engine")
    (place / "engine" / "leftover.txt").write_text("of the old engine")
    after = export(sharp_checkpoint(SMALL, seed=1), place / "engine", overwrite=True)
    assert after.manifest.source["name"] == "random-1"
    assert after.manifest.files["decoder.data"] != before.manifest.files["decoder.data"]
    assert sorted(path.name for path in after.path.iterdir()) == sorted([*ENGINE_FILES, MANIFEST])
    assert os.listdir(place) == ["engine"]


def test_an_empty_directory_is_overwritten_when_asked(place: Path, small: Checkpoint) -> None:
    (place / "engine").mkdir()
    with pytest.raises(EngineError, match="already exists"):
        export(small, place / "engine")
    assert read_engine(export(small, place / "engine", overwrite=True).path, verify=True)


def test_anything_but_an_engine_is_never_overwritten(place: Path, small: Checkpoint) -> None:
    (place / "thesis").mkdir()
    (place / "thesis" / "chapter1.tex").write_text("years of work")
    with pytest.raises(EngineError, match="is not an engine; it will not be overwritten"):
        export(small, place / "thesis", overwrite=True)
    assert snapshot(place) == {"thesis/chapter1.tex": b"years of work"}


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_is_never_overwritten(place: Path, small: Checkpoint, overwrite: bool) -> None:
    (place / "tiny.pt").write_bytes(b"weights")
    with pytest.raises(EngineError, match=r"tiny\.pt is a file; an engine is a directory"):
        export(small, place / "tiny.pt", overwrite=overwrite)
    assert snapshot(place) == {"tiny.pt": b"weights"}


def test_a_link_to_an_engine_stays_a_link(place: Path, small: Checkpoint) -> None:
    export(small, place / "real")
    (place / "link").symlink_to("real")
    export(sharp_checkpoint(SMALL, seed=1), place / "link", overwrite=True)
    assert (place / "link").is_symlink()
    assert read_engine(place / "real", verify=True).manifest.source["name"] == "random-1"
    assert sorted(os.listdir(place)) == ["link", "real"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"precision": "fp7"}, "precision is 'fp7'; expected one of fp32"),
        ({"dialect": "klingon"}, "unknown dialect 'klingon'; expected one of contrib, standard"),
    ],
)
def test_unknown_options_are_refused(
    place: Path, small: Checkpoint, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(OptionError, match=said):
        export(small, place / "engine", **options)
    assert os.listdir(place) == []


def test_a_tokenizer_of_another_model_is_refused(place: Path, small: Checkpoint) -> None:
    other = dataclasses.replace(small, tokenizer_json=sharp_checkpoint(FULL).tokenizer_json)
    with pytest.raises(EngineError, match="it belongs to another model"):
        export(other, place / "engine")
    assert os.listdir(place) == []


# --- an engine that would compute something else --------------------------------------------------


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("encoder.conv2.weight", half, "cross-attention keys and values"),
        ("encoder.blocks.0.attn.qkv.weight", half, "cross-attention keys and values"),
        ("encoder.ln_post.bias", half, "cross-attention keys and values"),
        ("decoder.blocks.0.cross_attn.value.bias", np.negative, "cross-attention keys and values"),
        ("decoder.positional_embedding", np.negative, "decoder scores"),
        ("decoder.blocks.0.attn.qkv.bias", np.negative, "decoder scores"),
        ("decoder.blocks.0.cross_attn.query.weight", half, "decoder scores"),
        ("decoder.blocks.0.mlp.2.weight", np.negative, "decoder scores"),
        ("decoder.ln.weight", half, "decoder scores"),
        ("decoder.token_embedding.weight", nan_first, "decoder scores"),
    ],
)
@pytest.mark.parametrize("precision", ["fp32", "fp16", "fp16-storage"])
def test_another_weight_fails_verification(
    place: Path,
    small: Checkpoint,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    change: Callable[[F32], F32],
    said: str,
    precision: str,
) -> None:
    change_weight(monkeypatch, name, change)
    with pytest.raises(VerificationError, match=said) as caught:
        export(small, place / "engine", precision=precision)
    assert "No engine was written" in str(caught.value)
    assert os.listdir(place) == []


def test_a_failed_verification_keeps_the_engine_that_was_there(
    place: Path, small: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(small, place / "engine")
    before = snapshot(place)
    change_weight(monkeypatch, "encoder.ln_post.bias", half)
    with pytest.raises(VerificationError):
        export(small, place / "engine", overwrite=True)
    assert snapshot(place) == before
    assert os.listdir(place) == ["engine"]


def test_a_checkpoint_that_is_not_finite_fails_verification(place: Path, small: Checkpoint) -> None:
    name = "encoder.blocks.0.mlp.0.bias"
    broken = np.full(small.tensors[name].shape, np.nan, np.float32)
    tensor = dataclasses.replace(small.tensors[name], read=lambda: broken)
    bad = dataclasses.replace(small, tensors={**small.tensors, name: tensor})
    with pytest.raises(VerificationError, match="cross-attention keys and values"):
        export(bad, place / "engine")
    assert os.listdir(place) == []


def test_a_reference_that_is_not_finite_fails_verification(
    place: Path, small: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = Reference.logits

    def broken(self: Reference, audio: F32, sequences: list[Any]) -> list[F32]:
        return [nan_first(scores) for scores in logits(self, audio, sequences)]

    monkeypatch.setattr(Reference, "logits", broken)
    with pytest.raises(VerificationError, match="decoder scores"):
        export(small, place / "engine")
    assert os.listdir(place) == []


def test_a_weight_of_another_shape_is_an_error(
    place: Path, small: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_weight(monkeypatch, "decoder.ln.bias", lambda values: values[:-1])
    with pytest.raises(EngineError, match=r"decoder\.ln\.bias has shape \[63\].*\[64\]"):
        export(small, place / "engine")
    assert os.listdir(place) == []
