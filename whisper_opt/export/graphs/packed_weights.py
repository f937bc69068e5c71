"""8-bit weights in the order in which the kernels read them.

Weights int8 [n_in, n_out] are stored as [ceil(n_out / 64), n_in / 4, 64, 4]: panels of 64 columns,
in which four rows of a column lie together. Columns beyond n_out are 0. The kernels
(``runtime/native``) use them where the file is mapped into memory, without a copy. Graphs of
ordinary operators restore the matrix by a constant expression, which ONNX Runtime evaluates once,
when it loads the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from onnx import TensorProto

from whisper_opt.core.arrays import NDArray
from whisper_opt.export.graphs.builder import GraphBuilder

__all__ = [
    "PANEL",
    "gather_columns",
    "pack_weight",
    "packed_shape",
    "packed_weight",
    "unpack_weight",
]

PANEL = 64
"""Columns per panel of packed weights, and keys per panel of packed keys."""
_QUAD = 4


def packed_shape(n_in: int, n_out: int) -> tuple[int, int, int, int]:
    """Shape of packed weights [n_in, n_out]; ``n_in`` is a multiple of 4."""
    return -(-n_out // PANEL), n_in // _QUAD, PANEL, _QUAD


def pack_weight(weight: NDArray) -> NDArray:
    """Weights int8 [n_in, n_out] in packed order, of :func:`packed_shape`."""
    n_in, n_out = weight.shape
    n_panels, n_quads, _, _ = packed_shape(n_in, n_out)
    packed = np.zeros((n_panels, n_quads, PANEL, _QUAD), np.int8)
    for panel in range(n_panels):  # one at a time: the copy of all columns would double the memory
        columns = weight[:, panel * PANEL : (panel + 1) * PANEL]
        quads = columns.reshape(n_quads, _QUAD, -1).transpose(0, 2, 1)
        packed[panel, :, : columns.shape[1]] = quads
    return packed


def packed_weight(
    builder: GraphBuilder, name: str, shape: Sequence[int], read: Callable[[], NDArray]
) -> str:
    """Declare a weight of ``shape`` [n_in, n_out] in packed order; ``read`` returns the matrix."""
    n_in, n_out = shape
    return builder.weight(name, packed_shape(n_in, n_out), lambda: pack_weight(read()), np.int8)


def unpack_weight(builder: GraphBuilder, weight: str, of_columns: str) -> str:
    """The matrix int8 [n_in, n_out] of packed weights; ``of_columns``: a value [n_out]."""
    quads = builder.transpose(weight, [1, 3, 0, 2])
    padded = builder.node("Flatten", quads, axis=2)
    zero, one = builder.constant([0]), builder.constant([1])
    return builder.node("Slice", padded, zero, builder.node("Shape", of_columns), one)


def gather_columns(builder: GraphBuilder, weight: str, columns: str, n_in: int) -> str:
    """Columns i64 [N, S] of packed weights [n_in, n_out] as float32 [N, S, n_in]."""
    size = builder.constant(PANEL)
    panels = builder.node("Gather", weight, builder.node("Div", columns, size), axis=0)
    by_column = builder.transpose(panels, [0, 1, 3, 2, 4])  # [N, S, 64, n_in / 4, 4]
    within = builder.node("Mod", columns, size)
    index = builder.node("Unsqueeze", within, builder.constant([2]))
    found = builder.node("GatherND", by_column, index, batch_dims=2)
    return builder.node("Cast", builder.reshape(found, [0, 0, n_in]), to=TensorProto.FLOAT)
