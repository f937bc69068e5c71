"""Engines with integer weights: their arithmetic against numpy, and their properties."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from tests.conftest import Engines
from tests.support.engines import sharp_checkpoint
from tests.support.exports import change_weight, snapshot
from tests.support.golden import clip, clip_pcm
from tests.support.models import as_tensor, random_checkpoint, random_dims
from whisper_opt.core.arrays import F32, Int
from whisper_opt.core.backend import TokenMask
from whisper_opt.core.errors import OptionError, VerificationError
from whisper_opt.export import export
from whisper_opt.export.checkpoints import Checkpoint
from whisper_opt.export.checkpoints.checkpoint import expected_shapes
from whisper_opt.export.graphs.dialects import make_dialect
from whisper_opt.export.graphs.graph import build_decoder
from whisper_opt.export.graphs.precision import INT4
from whisper_opt.export.quantization.activation_stats import (
    ActivationStats,
    collect_stats,
    synthetic_samples,
)
from whisper_opt.export.quantization.int4 import BLOCK, N_SPECIAL
from whisper_opt.export.quantization.int8 import FOUR_LIMIT, largest_fours
from whisper_opt.export.verification.verify import noise_mel
from whisper_opt.runtime.engine import Engine
from whisper_opt.runtime.onnxruntime.backend import OrtBackend
from whisper_opt.runtime.onnxruntime.graph import sums_overflow

DIMS = random_dims(n_vocab=2000, n_audio_state=64, n_text_state=64, n_audio_layer=1, n_text_layer=1)
INTEGERS = ("int8", "int4")


@pytest.fixture(scope="module")
def small() -> Checkpoint:
    return sharp_checkpoint(DIMS)


@pytest.fixture(scope="module")
def integers(small: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Engine]:
    folder = tmp_path_factory.mktemp("integers")
    return {name: export(small, folder / name, precision=name) for name in INTEGERS}


# --- whole engines --------------------------------------------------------------------------------


def decode(engine: Engine, mels: F32, rows: list[int], tokens: Int) -> tuple[Any, list[F32]]:
    """Cross keys and values, and scores of a prompt and of steps, of hypotheses of some audios."""
    backend = OrtBackend(engine, threads=1)
    encoded = backend.encode(mels)
    session = backend.open(encoded)
    session.gather(np.array(rows))
    scores = [session.extend(tokens[:, :6]).numpy()[:, -1]]
    scores += [session.extend(tokens[:, i : i + 1]).numpy()[:, -1] for i in range(6, 10)]
    session.close()
    return encoded.cross, scores


@pytest.mark.parametrize("precision", INTEGERS)
def test_a_batch_is_the_same_bits_as_single_runs(
    precision: str, integers: dict[str, Engine]
) -> None:
    mels = np.stack([noise_mel(DIMS, seed)[:, :800] * (seed + 1) for seed in range(3)])
    mels[2] = -1  # silence beside noise
    # without VNNI, ONNX Runtime's 4-bit products add up in another order for one row
    tolerance = 1e-5 if precision == "int4" and sums_overflow() else 0
    tokens = np.random.default_rng(1).integers(0, 2000, (3, 10)).astype(np.int64)
    cross, scores = decode(integers[precision], mels, [0, 1, 2], tokens)
    for i in range(3):
        alone, single = decode(integers[precision], mels[i : i + 1], [0], tokens[i : i + 1])
        for one, all_ in zip(alone, cross):
            np.testing.assert_array_equal(one[0], all_[i])
        for one, all_ in zip(single, scores):
            np.testing.assert_allclose(one[0], all_[i], rtol=0, atol=tolerance)


@pytest.mark.parametrize("precision", INTEGERS)
def test_hypotheses_do_not_affect_each_other(precision: str, integers: dict[str, Engine]) -> None:
    mels = noise_mel(DIMS)[None, :, :800]
    tokens = np.random.default_rng(2).integers(0, 2000, (4, 10)).astype(np.int64)
    tokens[3] = 0
    _, scores = decode(integers[precision], mels, [0, 0, 0, 0], tokens)
    for i in range(4):
        _, single = decode(integers[precision], mels, [0], tokens[i : i + 1])
        for one, all_ in zip(single, scores):  # attention sums in another order
            np.testing.assert_allclose(one[0], all_[i], rtol=0, atol=2e-2)


def test_sizes(integers: dict[str, Engine], small: Checkpoint) -> None:
    weights = sum(int(np.prod(tensor.shape)) for tensor in small.tensors.values())

    def size(engine: Engine) -> int:
        return sum(engine.manifest.files[f"{s}.data"].size for s in ("encoder", "decoder"))

    pages = 4096 * 80  # each tensor begins on a new page, and few are large here
    assert size(integers["int8"]) < 2 * weights + pages


def test_products_for_avx2(small: Checkpoint, tmp_path: Path) -> None:
    """Sums of four products of every weight but the head's fit 16 bits; those of int8 do not."""
    engines = {
        name: export(small, tmp_path / name, precision=name) for name in ("int8", "int8-avx2")
    }
    largest = {name: largest_sums(engine) for name, engine in engines.items()}
    assert len(largest["int8"]) == 12
    assert min(largest["int8"].values()) > FOUR_LIMIT
    assert 120 < max(largest["int8-avx2"].values()) <= FOUR_LIMIT
    assert {engine.manifest.precision for engine in engines.values()} == set(engines)


def largest_sums(engine: Engine) -> dict[str, int]:
    """Largest sum of four weights of one sign of each product but the head, by its name."""
    found = {}
    for graph in ("encoder", "decoder"):
        model = onnx.load(str(engine.path / f"{graph}.onnx"))
        for tensor in model.graph.initializer:
            if tensor.data_type == TensorProto.INT8 and ".blocks." in tensor.name:
                panels = onnx.numpy_helper.to_array(tensor).astype(np.int64)
                rows = panels.transpose(1, 3, 0, 2).reshape(panels.shape[1] * 4, -1)
                found[tensor.name] = int(largest_fours(rows).max())
    return found


def test_int4_takes_five_eighths_of_a_byte_where_it_has_4_bits() -> None:
    dims = random_dims()
    state, layers = dims.n_text_state, dims.n_text_layer
    tensors = random_checkpoint(dims).tensors
    stats = {
        name[:-7]: ActivationStats(np.zeros(shape[-1], np.float32), np.ones(shape[-1], np.float32))
        for name, shape in expected_shapes(dims).items()
        if name.endswith(".weight")
    }
    graph, _ = build_decoder(dims, tensors, make_dialect("contrib"), None, INT4, stats)
    bytes_per_weight = 4 / 8 + 2 / BLOCK  # a scale of two bytes per block
    words = (dims.n_vocab - N_SPECIAL) * state * bytes_per_weight + N_SPECIAL * state * 2
    products = layers * state**2 * (4 + 10 * bytes_per_weight)  # self-attention keeps 8 bits
    positions = dims.n_text_ctx * state * 2
    found = sum(weight.nbytes for weight in graph.weights)
    assert found - words - products - positions < 100 * state * layers  # vectors


BY_NUMBER = {"Add", "Cast", "Less", "Min", "Mod", "Neg", "Sub"}
MOVES = {
    *("Concat", "Expand", "Gather", "GatherND", "Pad", "Range", "Reshape", "Shape", "Slice"),
    *("Squeeze", "Transpose", "Unsqueeze"),
}
SUMS = {"ReduceSum"}
"""Of numbers of positions, which are exact."""


@pytest.mark.parametrize("stem", ["encoder", "decoder"])
@pytest.mark.parametrize("precision", INTEGERS)
def test_kernels_compute_the_sums(stem: str, precision: str, integers: dict[str, Engine]) -> None:
    """And functions: those of ONNX Runtime have other bits on other processors."""
    model = onnx.load(integers[precision].file(f"{stem}.packed.onnx"), load_external_data=False)
    found = {node.op_type for node in model.graph.node if node.domain != "whisper_opt"}
    assert found <= BY_NUMBER | MOVES | (SUMS if stem == "encoder" else set())


def test_a_number_of_mel_bins_that_the_kernels_do_not_have(tmp_path: Path) -> None:
    """Its convolutions stay those of ONNX Runtime."""
    dims = dataclasses.replace(DIMS, n_mels=24)
    engine = export(sharp_checkpoint(dims), tmp_path / "engine", precision="int8")
    model = onnx.load(engine.file("encoder.packed.onnx"), load_external_data=False)
    assert [node.op_type for node in model.graph.node].count("Conv") == 2
    assert np.isfinite(OrtBackend(engine, threads=1).encode(noise_mel(dims)[None]).cross[0]).all()


@pytest.mark.parametrize("precision", INTEGERS)
def test_the_embedding_is_stored_once(precision: str, integers: dict[str, Engine]) -> None:
    """Embeddings are looked up in the head's matrix, and the runtime has no other copy."""
    assert integers[precision].manifest.tensors == {}
    assert integers[precision].manifest.precision == precision


@pytest.mark.parametrize("precision", INTEGERS)
def test_exporting_twice_gives_the_same_bytes(
    precision: str, small: Checkpoint, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        export(small, tmp_path / name, precision=precision)
    assert snapshot(tmp_path / "a") == snapshot(tmp_path / "b")


def test_activation_stats(small: Checkpoint) -> None:
    samples = synthetic_samples(small)
    stats = collect_stats(small, samples)
    assert len(samples) == 3
    one = collect_stats(small, samples[:1])["encoder.blocks.0.mlp.0"]
    for input_stats in (stats["encoder.blocks.0.mlp.0"], one):
        assert (input_stats.peak > 0).all()
    all_samples = stats["encoder.blocks.0.mlp.0"]
    assert ((all_samples.mean + all_samples.peak) >= (one.mean + one.peak) * 0.5).all()
    assert set(stats) == {n[:-7] for n in small.tensors if n.endswith(".weight") and _linear(n)}


def _linear(name: str) -> bool:
    return not any(part in name for part in ("ln", "conv", "embedding"))


@pytest.mark.parametrize("dialect", ["standard"])
@pytest.mark.parametrize("precision", INTEGERS)
def test_integers_are_for_the_contrib_dialect(
    precision: str, dialect: str, small: Checkpoint, tmp_path: Path
) -> None:
    with pytest.raises(OptionError, match=f"{precision} is for CPUs and the contrib dialect"):
        export(small, tmp_path / "engine", precision=precision, dialect=dialect)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("precision", "name"),
    [
        ("int8", "encoder.blocks.0.mlp.0.scale"),
        ("int8", "encoder.blocks.0.mlp_ln.weight"),
        ("int8", "decoder.blocks.0.attn.qkv.scale"),
        ("int8", "decoder.blocks.0.cross_attn.value.scale"),
        ("int8", "decoder.head.scale"),
        ("int4", "decoder.blocks.0.mlp.2.steps"),
        ("int4", "decoder.head.steps"),
    ],
)
def test_another_weight_fails_verification(
    precision: str,
    name: str,
    small: Checkpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    change_weight(monkeypatch, name, lambda values: values * np.float32(-1))
    with pytest.raises(VerificationError, match="differ from the checkpoint's"):
        export(small, tmp_path / "engine", precision=precision)
    assert not list(tmp_path.iterdir())


# --- float16 as a way to store --------------------------------------------------------------------


def test_storage_in_float16_computes_as_fp32(small: Checkpoint, tmp_path: Path) -> None:
    def rounded(tensor: Any) -> Any:
        values = tensor.read().astype(np.float16).astype(np.float32)
        return as_tensor(values)

    narrow = {
        name: rounded(tensor) if len(tensor.shape) > 1 else tensor
        for name, tensor in small.tensors.items()
    }
    checkpoint = dataclasses.replace(small, tensors=narrow)
    full = export(checkpoint, tmp_path / "full")
    stored = export(checkpoint, tmp_path / "stored", precision="fp16-storage")
    mels = noise_mel(DIMS)[None, :, :800]
    tokens = np.random.default_rng(2).integers(0, 2000, (1, 10)).astype(np.int64)
    (a, scores_a), (b, scores_b) = (decode(e, mels, [0], tokens) for e in (full, stored))
    for one, other in zip((*a, *scores_a), (*b, *scores_b)):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)
    sizes = [sum(f.size for f in e.manifest.files.values()) for e in (full, stored)]
    assert sizes[1] < 0.65 * sizes[0]


def test_the_best_tokens_of_storage_in_float16(small: Checkpoint, tmp_path: Path) -> None:
    engine = export(small, tmp_path / "engine", precision="fp16-storage")
    backend = OrtBackend(engine, threads=1)
    encoded = backend.encode(noise_mel(DIMS)[None, :, :800])
    tokens = np.random.default_rng(2).integers(0, 2000, (1, 6)).astype(np.int64)
    best = []
    for method in ("top", "numpy"):
        session = backend.open(encoded)
        scores = session.extend(tokens)
        if method == "top":
            mask = TokenMask(np.zeros((1, 2000), np.bool_), np.array([2000]))
            best.append(scores.top(5, mask).tokens[0].tolist())
        else:
            best.append(np.argsort(-scores.numpy()[0, -1])[:5].tolist())
        session.close()
    assert best[0] == best[1]


def test_storage_in_float16_refuses_what_does_not_fit(small: Checkpoint, tmp_path: Path) -> None:
    from whisper_opt.core.errors import CheckpointError

    name = "encoder.blocks.0.mlp.0.weight"
    large = {**small.tensors, name: as_tensor(small.tensors[name].read() * np.float32(1e6))}
    with pytest.raises(CheckpointError, match=r"mlp\.0\.weight reaches .*--precision fp32"):
        export(dataclasses.replace(small, tensors=large), tmp_path / "e", precision="fp16-storage")


# --- real weights ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_int8_of_tiny_en_transcribes_speech(engines: Engines) -> None:
    engine = engines.engine("tiny.en", precision="int8")
    checkpoint_parameters = 37_760_640  # openai-whisper's count
    assert sum(f.size for f in engine.manifest.files.values()) < 1.15 * checkpoint_parameters
    text = (
        engines.model("tiny.en", precision="int8")
        .transcribe(clip_pcm("en-jfk"), sample_rate=16000)
        .text
    )
    words = "".join(c for c in text.lower() if c.isalpha() or c == " ").split()
    spoken = "".join(c for c in clip("en-jfk").text.lower() if c.isalpha() or c == " ").split()
    assert words == spoken
