"""Attention in single operators computes the same as the operator ``Attention``."""

from __future__ import annotations

import collections
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto

from tests.support.engines import random_engine, require, sharp_checkpoint
from tests.support.models import random_dims
from whisper_opt.core.arrays import NDArray
from whisper_opt.core.errors import EngineError
from whisper_opt.export.graphs.dialects import make_dialect
from whisper_opt.export.graphs.graph import build_decoder, build_encoder
from whisper_opt.export.graphs.precision import FP16, FP32, Precision
from whisper_opt.export.tensorrt.operators import with_attention
from whisper_opt.export.verification.verify import noise_mel
from whisper_opt.export.writer import write_graph
from whisper_opt.runtime.engine import Engine

DIMS = random_dims(n_vocab=2000)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    require("standard")
    folder = tmp_path_factory.mktemp("standard") / "engine"
    return random_engine(folder, DIMS, "standard")


def load(engine: Engine, stem: str) -> ModelProto:
    return load_from(engine.path, stem)


def written(stem: str, types: Precision, folder: Path | None = None) -> ModelProto:
    """A graph of the same weights in the given types; its data file is in ``folder``."""
    make = build_encoder if stem == "encoder" else build_decoder
    checkpoint = sharp_checkpoint(DIMS)
    graph, _ = make(DIMS, checkpoint.tensors, make_dialect("standard"), types=types)
    if folder is not None:
        write_graph(graph, folder, stem, lambda _: None)
    return graph.model


def load_from(folder: Path, stem: str) -> ModelProto:
    return onnx.load(str(folder / f"{stem}.onnx"), load_external_data=False)


def ops(model: ModelProto) -> collections.Counter[str]:
    return collections.Counter(node.op_type for node in model.graph.node)


def run(model: ModelProto, folder: Path, feeds: dict[str, NDArray]) -> dict[str, NDArray]:
    import onnxruntime

    path = folder / "exchanged.onnx"
    path.write_bytes(model.SerializeToString())
    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        names = [value.name for value in session.get_outputs()]
        return dict(zip(names, session.run(names, feeds)))
    finally:
        path.unlink()


def decoder_feeds(dtype: type[np.floating[Any]]) -> dict[str, NDArray]:
    """Inputs for two rows with a past, except cross-attention keys and values."""
    rng = np.random.default_rng(0)
    cache = (2, DIMS.n_text_head, 64, 64)
    feeds: dict[str, NDArray] = {
        "tokens": rng.integers(0, 2000, (2, 5)),
        "start": np.array([0, 7]),
        "at": np.array([[1, 4], [0, 3]]),
        "aligned": np.array([2]),
    }
    for kind in "kv":
        for layer in range(DIMS.n_text_layer):
            feeds[f"self_{kind}_{layer}"] = rng.standard_normal(cache, np.float32).astype(dtype)
    return feeds


def mel() -> NDArray:
    return np.stack([noise_mel(DIMS, seed)[:, :400] for seed in (1, 2)])


@pytest.mark.parametrize("stem", ["encoder", "decoder"])
def test_single_operators_become_attention(stem: str) -> None:
    before = written(stem, FP16)
    after = with_attention(before)
    assert before == written(stem, FP16)  # a copy was changed
    assert ops(after) == ops(written(stem, dataclasses.replace(FP16, fused=True)))
    assert ops(after)["Attention"] == 2
    assert ops(after)["Softmax"] == (0 if stem == "encoder" else 2)  # cross-attention stays
    onnx.shape_inference.infer_shapes(after, check_type=True, strict_mode=True)
    for node in after.graph.node:
        if node.op_type == "Attention":
            assert len(node.input) == (3 if stem == "encoder" else 4)
    assert with_attention(after) == after


@pytest.mark.parametrize("stem", ["encoder", "decoder"])
def test_graphs_with_the_operator_stay_as_they_are(stem: str) -> None:
    plain = written(stem, FP32)
    assert with_attention(plain) == plain


def test_single_operators_in_float32_equal_attention(engine: Engine, tmp_path: Path) -> None:
    """Scale, mask and softmax, without the rounding of float16."""
    feeds = decoder_feeds(np.float32)
    for stem in ("encoder", "decoder"):
        given = {"mel": mel()} if stem == "encoder" else feeds
        expected = run(load(engine, stem), engine.path, given)
        model = written(stem, dataclasses.replace(FP32, fused=False), tmp_path)
        found = run(load_from(tmp_path, stem), tmp_path, given)
        assert "Attention" not in ops(model)
        for name, values in expected.items():
            np.testing.assert_allclose(found[name], values, rtol=0, atol=2e-5, err_msg=name)
        feeds.update(expected if stem == "encoder" else {})


def test_graphs_for_tensorrt_compute_the_same(tmp_path: Path) -> None:
    """In float16: equal but for the scores, which ONNX Runtime's operator rounds."""
    require("standard")
    feeds = decoder_feeds(np.float16)
    for stem in ("encoder", "decoder"):
        given = {"mel": mel()} if stem == "encoder" else feeds
        written(stem, FP16, tmp_path)
        model = load_from(tmp_path, stem)
        expected = run(model, tmp_path, given)
        found = run(with_attention(model), tmp_path, given)
        for name, values in expected.items():
            error = np.square(values.astype(np.float64) - found[name]).mean() ** 0.5
            scale = np.square(values.astype(np.float64)).mean() ** 0.5
            assert error < 5e-3 * scale, name
        feeds.update(expected if stem == "encoder" else {})


@pytest.mark.parametrize(
    ("stem", "op", "other"), [("encoder", "Mul", "Add"), ("decoder", "Where", "Max")]
)
def test_another_softmax_is_refused(stem: str, op: str, other: str) -> None:
    """It is neither dropped nor misinterpreted."""
    model = written(stem, FP16)
    next(node for node in model.graph.node if node.op_type == op).op_type = other
    with pytest.raises(EngineError, match=r"softmax before .*blocks\.0.*export the engine again"):
        with_attention(model)
