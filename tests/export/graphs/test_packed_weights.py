"""Weights in the kernels' order, and the graphs that restore them."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto

from whisper_opt.core.arrays import NDArray
from whisper_opt.export.graphs.builder import GraphBuilder
from whisper_opt.export.graphs.packed_weights import (
    PANEL,
    gather_columns,
    pack_weight,
    packed_shape,
    unpack_weight,
)

SIZES = ((16, 64), (16, 1), (48, 130), (64, 63), (80, 128))


def weight(n_in: int, n_out: int) -> NDArray:
    rng = np.random.default_rng([n_in, n_out])
    return rng.integers(-127, 128, (n_in, n_out)).astype(np.int8)


def run(builder: GraphBuilder, **inputs: NDArray) -> NDArray:
    model = builder.finish(20, 10).model.SerializeToString()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    found: NDArray = session.run(None, inputs)[0]
    return found


@pytest.mark.parametrize(("n_in", "n_out"), SIZES)
def test_every_weight_has_its_place(n_in: int, n_out: int) -> None:
    given = weight(n_in, n_out)
    packed = pack_weight(given)
    assert packed.shape == packed_shape(n_in, n_out)
    for row in range(n_in):
        for column in range(packed.shape[0] * PANEL):
            expected = given[row, column] if column < n_out else 0
            assert packed[column // PANEL, row // 4, column % PANEL, row % 4] == expected


@pytest.mark.parametrize(("n_in", "n_out"), SIZES)
def test_a_graph_restores_the_matrix(n_in: int, n_out: int) -> None:
    given = weight(n_in, n_out)
    builder = GraphBuilder("unpack")
    scale = builder.input("scale", TensorProto.FLOAT, ["n"])
    packed = builder.constant(pack_weight(given))
    builder.output(unpack_weight(builder, packed, scale), "y", TensorProto.INT8, ["a", "b"])
    np.testing.assert_array_equal(run(builder, scale=np.ones(n_out, np.float32)), given)


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (1, 0), (0, 2)])
def test_columns(shape: tuple[int, int]) -> None:
    given = weight(48, 130)
    columns = np.random.default_rng(0).integers(0, 130, shape)
    builder = GraphBuilder("gather")
    chosen = builder.input("columns", TensorProto.INT64, ["n", "s"])
    packed = builder.constant(pack_weight(given))
    found = gather_columns(builder, packed, chosen, 48)
    builder.output(found, "y", TensorProto.FLOAT, ["n", "s", 48])
    expected = given.T[columns].astype(np.float32)
    np.testing.assert_array_equal(run(builder, columns=columns), expected)
