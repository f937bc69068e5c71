"""Strongly typed graphs: the inputs of every node have one type, and casts are explicit."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Callable

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, TensorProto

from tests.conftest import ROOT
from tests.support.engines import require, sharp_checkpoint
from tests.support.models import as_tensor, random_checkpoint, random_dims
from whisper_opt.core.arrays import F32, NDArray
from whisper_opt.core.dims import ModelDims
from whisper_opt.core.errors import CheckpointError, OptionError, VerificationError
from whisper_opt.export import build, export
from whisper_opt.export.checkpoints import Checkpoint
from whisper_opt.export.checkpoints.checkpoint import EMBEDDING
from whisper_opt.export.graphs.builder import GraphBuilder
from whisper_opt.export.graphs.dialects import make_dialect
from whisper_opt.export.graphs.graph import build_decoder, build_encoder
from whisper_opt.export.graphs.head import LIFT, embed, exact_head
from whisper_opt.export.graphs.precision import FP16, PRECISIONS, make_precision
from whisper_opt.export.verification.verify import noise_mel
from whisper_opt.export.writer import write_graph
from whisper_opt.runtime.onnxruntime.backend import OrtBackend

DIMS = random_dims(n_vocab=2000)
CHECKPOINT = sharp_checkpoint(DIMS)
HALF, SINGLE = TensorProto.FLOAT16, TensorProto.FLOAT


def graph_of(stem: str, dialect: str, precision: str) -> ModelProto:
    """The encoder or decoder, without locations of weights."""
    make = build_encoder if stem == "encoder" else build_decoder
    types = make_precision(precision)
    graph, _ = make(DIMS, CHECKPOINT.tensors, make_dialect(dialect), types=types)
    return graph.model


def types_of(model: ModelProto) -> dict[str, int]:
    """Element type of every value, by strict shape inference."""
    found = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    values = [*found.graph.input, *found.graph.output, *found.graph.value_info]
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    return {**types, **{tensor.name: tensor.data_type for tensor in model.graph.initializer}}


@pytest.mark.parametrize("precision", [name for name, t in PRECISIONS.items() if t.bits is None])
@pytest.mark.parametrize("stem", ["encoder", "decoder"])
def test_every_operator_gets_values_of_one_type(stem: str, precision: str) -> None:
    model = graph_of(stem, "standard", precision)
    types = types_of(model)
    assert all(output in types for node in model.graph.node for output in node.output)
    for node in model.graph.node:
        floats = {types[name] for name in node.input if name and types[name] in (HALF, SINGLE)}
        assert len(floats) <= 1, (node.name, node.op_type)


@pytest.mark.parametrize("dialect", ["contrib", "standard"])
def test_types_of_inputs_and_outputs(dialect: str) -> None:
    for stem in ("encoder", "decoder"):
        graph = graph_of(stem, dialect, "fp16").graph
        for value in (*graph.input, *graph.output):
            kind = value.type.tensor_type.elem_type
            if value.name.startswith(("self_", "cross_")):
                assert kind == HALF, value.name
            elif value.name.startswith(("mel", "logits", "attention_")):
                assert kind == SINGLE, value.name


@pytest.mark.parametrize("stem", ["encoder", "decoder"])
def test_normalization_and_stream_are_float32_and_products_float16(stem: str) -> None:
    model = graph_of(stem, "standard", "fp16")
    types = types_of(model)
    norms = [node for node in model.graph.node if node.op_type == "LayerNormalization"]
    assert len(norms) == (5 if stem == "encoder" else 7)
    assert {types[name] for node in norms for name in (*node.input, *node.output)} == {SINGLE}
    heavy = [node for node in model.graph.node if node.op_type in ("MatMul", "Gemm", "Conv")]
    assert {types[node.input[0]] for node in heavy} == {HALF}
    stored = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    of_norms = ("ln.weight", "ln.bias", "ln_post.weight", "ln_post.bias")
    sums = ("positional_embedding", ".out.bias", "mlp.2.bias")
    for name, kind in stored.items():
        if name.startswith(("encoder.", "decoder.")):
            assert kind == (SINGLE if name.endswith((*of_norms, *sums)) else HALF), name


@pytest.mark.parametrize("stem", ["encoder", "decoder"])
def test_softmax_of_self_attention_is_float32(stem: str) -> None:
    model = graph_of(stem, "standard", "fp16")
    types = types_of(model)
    softmax = [types[node.output[0]] for node in model.graph.node if node.op_type == "Softmax"]
    assert softmax == ([SINGLE] * 2 if stem == "encoder" else [SINGLE, HALF] * 2)  # HALF: cross
    assert "Attention" not in {node.op_type for node in model.graph.node}
    plain = [node.op_type for node in graph_of(stem, "standard", "fp32").graph.node]
    assert plain.count("Attention") == 2


def head_scores(hidden: F32, folder: Path, change: Callable[[ModelProto], ModelProto]) -> F32:
    """Scores [N, P, n_vocab] of the output head alone in fp16, after ``change`` of its graph."""
    dialect = make_dialect("contrib")
    builder = GraphBuilder("head")
    tokens = builder.input("tokens", TensorProto.INT64, ["n", "s"])
    given = builder.input("hidden", SINGLE, ["n", "p", DIMS.n_text_state])
    found = embed(builder, tokens, CHECKPOINT.tensors, FP16)
    scores = exact_head(builder, given, DIMS, CHECKPOINT.tensors, FP16)
    builder.output(found, "embedded", FP16.kv, ["n", "s", DIMS.n_text_state])
    builder.output(scores, "logits", SINGLE, ["n", "p", DIMS.n_vocab])
    graph = builder.finish(dialect.opset, dialect.ir_version)
    folder.mkdir()
    write_graph(graph, folder, "head", lambda _: None)
    path = folder / "head.onnx"
    path.write_bytes(change(onnx.load(str(path), load_external_data=False)).SerializeToString())
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    feeds = {"tokens": np.zeros((1, 1), np.int64), "hidden": hidden}
    logits: F32 = session.run(["logits"], feeds)[0]
    return logits


@pytest.mark.parametrize("product", ["of ONNX Runtime", "rounded"])
def test_the_input_of_the_head_is_not_rounded(
    product: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The CPU provider does not round the product; GPUs and benchmarks/rounded.py do."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from rounded import rounded

    weights = CHECKPOINT.tensors[EMBEDDING].read().astype(np.float16).astype(np.float64)
    length = np.linalg.norm(weights) / weights.shape[0] ** 0.5
    drawn = np.random.default_rng(5).standard_normal((3, 40, weights.shape[1]))
    hidden = (drawn * 5 / length).astype(np.float32)  # the best scores are about the guess
    exact = hidden.astype(np.float64) @ weights.T
    one_row = hidden.astype(np.float16).astype(np.float64) @ weights.T
    near = np.abs(exact - exact.mean(axis=-1, keepdims=True) - LIFT) < 1
    assert near.sum() > 100

    def error(scores: NDArray) -> float:
        return float(np.sqrt(np.mean((scores - exact)[near] ** 2)))

    change = rounded if product == "rounded" else lambda model: model
    found = head_scores(hidden, tmp_path / "head", change)
    assert 0 < error(found) < error(one_row) / (3 if product == "rounded" else 100)
    assert head_scores(hidden[:, :0], tmp_path / "nothing", change).shape == (3, 0, DIMS.n_vocab)


def test_the_decoder_has_no_pad() -> None:
    """ONNX Runtime's CUDA provider has no Pad of opset 19 to 23 (microsoft/onnxruntime#26393)."""
    nodes = graph_of("decoder", "contrib", "fp16").graph.node
    assert "Pad" not in {node.op_type for node in nodes}


def test_the_head_reads_its_weights_once() -> None:
    nodes = graph_of("decoder", "standard", "fp16").graph.node
    assert sorted(n.op_type for n in nodes if EMBEDDING in n.input) == ["Gather", "Gemm"]


def test_the_residual_stream_of_the_encoder_begins_in_float32() -> None:
    model = graph_of("encoder", "standard", "fp16")
    types = types_of(model)
    gelus = [node for node in model.graph.node if node.op_type == "Gelu"]
    assert [types[node.output[0]] for node in gelus] == [HALF, SINGLE, HALF, HALF]  # conv1, conv2


@pytest.mark.parametrize("dialect", ["contrib", "standard"])
def test_fp32_graphs_have_no_casts_between_floats(dialect: str) -> None:
    for stem in ("encoder", "decoder"):
        nodes = graph_of(stem, dialect, "fp32").graph.node
        casts = [node for node in nodes if node.op_type == "Cast"]
        assert all(node.attribute[0].i not in (HALF, SINGLE) for node in casts)


def test_a_weight_that_float16_cannot_hold_is_refused(tmp_path: Path) -> None:
    builder = GraphBuilder("one")
    large = np.full((2, 2), 7e4, np.float32)
    builder.weight("heavy", (2, 2), lambda: large, np.float16)
    with pytest.raises(CheckpointError, match=r"heavy reaches 7e\+04.*--precision fp32"):
        write_graph(builder.finish(20, 10), tmp_path, "one", lambda _: None)


def test_unknown_precision() -> None:
    with pytest.raises(OptionError, match="'fp8'; expected one of fp32, fp16"):
        make_precision("fp8")


@pytest.mark.parametrize("dialect", ["contrib", "standard"])
def test_fp16_engine_decodes_as_fp32(dialect: str, tmp_path: Path) -> None:
    require(dialect)
    tokens = np.random.default_rng(1).integers(0, 1864, (2, 70)).astype(np.int64)
    found = []
    for precision in ("fp32", "fp16"):
        engine = export(CHECKPOINT, tmp_path / precision, dialect=dialect, precision=precision)
        backend = OrtBackend(engine, threads=1)
        mel = np.stack([noise_mel(DIMS, seed)[:, :600] for seed in (1, 2)])
        session = backend.open(backend.encode(mel))
        session.extend(tokens[:, :60])
        session.gather(np.array([1, 0, 1]))
        session.extend(tokens[[1, 0, 1], 60:65])  # after a past, beyond the first capacity
        session.append(backend.open(backend.encode(mel[:1])))
        session.gather(np.array([0, 1, 2]))
        found.append(session.extend(tokens[[1, 0, 1], 65:66]).numpy())
        session.close()
    error = np.abs(found[0] - found[1]).max() / np.abs(found[0]).max()
    assert 0 < error < 2e-2


# --- large values ---------------------------------------------------------------------------------

PEAK = 4e4
"""Added to two channels of the residual stream per layer: two layers exceed float16."""


def checkpoint_with_large_channels(dims: ModelDims, peak: float) -> Checkpoint:
    """Two channels of the residual stream grow by ``peak`` per layer; norms correct the others.

    Real models have such channels, but smaller ones: tiny.en reaches 650, base 570.
    """
    plain = random_checkpoint(dims)
    tensors = dict(plain.tensors)

    def change(name: str, edit: Callable[[F32], None]) -> None:
        values = tensors[name].read().copy()
        edit(values)
        tensors[name] = as_tensor(values)

    def add(values: F32) -> None:
        values[:2] = peak, -peak

    for side, last in (("encoder", "ln_post"), ("decoder", "ln")):
        norms = ["attn_ln", "mlp_ln"] + (["cross_attn_ln"] if side == "decoder" else [])
        for layer in range(2):
            change(f"{side}.blocks.{layer}.mlp.2.bias", add)
        width = tensors[f"{side}.{last}.weight"].shape[0]
        after = {1: [f"{side}.blocks.1.{norm}" for norm in norms], 2: [f"{side}.{last}"]}
        for n, names in after.items():
            deviation = n * peak * (2 / width) ** 0.5

            def undo(values: F32, deviation: float = deviation) -> None:
                values[2:] *= deviation

            for name in names:
                change(f"{name}.weight", undo)
    return dataclasses.replace(plain, tensors=tensors)


@pytest.mark.parametrize("dialect", ["contrib", "standard"])
@pytest.mark.parametrize("peak", [1e3, PEAK])
def test_large_residual_streams_agree(peak: float, dialect: str, tmp_path: Path) -> None:
    """Beyond 255, squares exceed float16; beyond 65504, sums do.

    The numpy reference is float32, as an fp32 engine, but more exact: ONNX Runtime's layer
    normalization in float32 loses three digits here.
    """
    require(dialect)
    checkpoint = checkpoint_with_large_channels(DIMS, peak)
    engine = export(checkpoint, tmp_path / "engine", precision="fp16", dialect=dialect)
    parity = engine.manifest.parity
    for name in ("cross", "logits", "attention"):
        assert 0 < parity[f"{name}_error"] < 2e-3 * parity[f"{name}_scale"]
    encoder = OrtBackend(engine, threads=1)
    found = encoder.encode(noise_mel(DIMS)[None]).cross
    assert all(np.isfinite(array).all() for array in found)


def test_a_float16_stream_would_overflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    narrow = dataclasses.replace(FP16, residual=np.dtype(np.float16))
    monkeypatch.setattr(build, "make_precision", lambda _: narrow)
    with pytest.raises(VerificationError, match="differ from the checkpoint's by inf"):
        export(checkpoint_with_large_channels(DIMS, PEAK), tmp_path / "engine", precision="fp16")
