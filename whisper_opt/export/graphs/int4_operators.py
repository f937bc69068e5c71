"""Products with 4-bit weights, in blocks that share a scale, as functions (``operators.py``).

``MatMulNBits`` of ONNX Runtime quantizes each block of an input row to 8 bits, so rows do not
affect each other. With blocks of 32 its results are bit-identical for any number of rows. The
kernels compute the same integers, and add the blocks in another order.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto

from whisper_opt.export.graphs.builder import MICROSOFT, GraphBuilder
from whisper_opt.export.graphs.operators import Operator, linears

__all__ = [
    "BLOCK",
    "LINEARS4",
    "embed4",
    "head4",
]

BLOCK = 32
"""Weights that share a scale, along the input."""


def _product(builder: GraphBuilder, value: str, **sizes: Any) -> str:
    """``value`` [.., n_in] times packed ``weight`` [n_out, n_in], whose ``steps`` are float16."""
    # a constant expression: ONNX Runtime evaluates it once, when it loads the graph
    steps = builder.reshape(builder.cast("steps", np.float16, np.float32), [-1])
    attributes = {"bits": 4, "block_size": BLOCK, "accuracy_level": 4, **sizes}
    inputs = (value, "weight", steps)
    return builder.node("MatMulNBits", *inputs, domain=MICROSOFT, **attributes)


def _biased(builder: GraphBuilder, value: str, *, after_gelu: bool = False) -> str:
    product = _product(builder, value)
    builder.refer(K="n_in", N="n_out")
    return builder.node("Add", product, "bias")


LINEARS4 = linears(4, _biased, ("weight", "steps", "bias"), ("n_in", "n_out"))
"""Products with the results of ``pack_int4``, the scales in float16, and bias [n_out]."""


def head4(n_state: int, n_words: int) -> Operator:
    """The head of 4-bit engines: hidden [N, P, n_state] -> scores [N, P, n_words + n_special].

    The other inputs are those of :class:`whisper_opt.export.quantization.int4.Int4Head`; ``steps``
    and ``special`` are float16.
    """

    def body(builder: GraphBuilder) -> list[str]:
        shrunk = builder.node("Mul", "hidden", "shrink")
        scores = _product(builder, shrunk, K=n_state, N=n_words)
        column = builder.node("Unsqueeze", "mean", builder.constant([1]))
        words = builder.node("Add", scores, builder.node("MatMul", "hidden", column))
        special = builder.transpose(builder.cast("special", np.float16, np.float32), [1, 0])
        return [builder.node("Concat", words, builder.node("MatMul", "hidden", special), axis=2)]

    inputs = ("hidden", "shrink", "weight", "steps", "mean", "special")
    return Operator("Head4", inputs, body)


def embed4(n_state: int, n_words: int) -> Operator:
    """Embeddings [N, S, n_state] of tokens i64 [N, S], from the inputs of :func:`head4`."""

    def body(builder: GraphBuilder) -> list[str]:
        last, first = builder.constant(n_words - 1), builder.constant(n_words)
        rows = _rows(builder, builder.node("Min", "tokens", last), n_state)
        beyond = builder.node("Max", builder.node("Sub", "tokens", first), builder.constant(0))
        special = builder.node("Gather", "special", beyond)
        special = builder.cast(special, np.float16, np.float32)
        is_word = builder.node("Less", "tokens", first)
        is_word = builder.node("Unsqueeze", is_word, builder.constant([2]))
        return [builder.node("Where", is_word, rows, special)]

    return Operator("Embed4", ("tokens", "weight", "steps", "shrink", "mean", "special"), body)


def _rows(builder: GraphBuilder, tokens: str, n_state: int) -> str:
    """Embeddings [N, S, n_state] of tokens with 4-bit rows."""
    pairs = builder.node("Cast", builder.node("Gather", "weight", tokens), to=TensorProto.INT32)
    sixteen = builder.constant(np.array(16, np.int32))
    high = builder.node("Div", pairs, sixteen)
    low = builder.node("Sub", pairs, builder.node("Mul", high, sixteen))
    axis = builder.constant([4])
    both = [builder.node("Unsqueeze", half, axis) for half in (low, high)]
    integers = builder.node("Concat", *both, axis=4)
    integers = builder.node("Cast", integers, to=TensorProto.FLOAT)
    integers = builder.reshape(integers, [0, 0, n_state // BLOCK, BLOCK])
    centred = builder.node("Sub", integers, builder.constant(np.array(8, np.float32)))
    scale = builder.cast(builder.node("Gather", "steps", tokens), np.float16, np.float32)
    scale = builder.node("Unsqueeze", scale, builder.constant([3]))
    rows = builder.reshape(builder.node("Mul", centred, scale), [0, 0, n_state])
    return builder.node("Add", builder.node("Mul", rows, "shrink"), "mean")
