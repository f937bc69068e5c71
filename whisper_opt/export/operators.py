"""Operators of this library, defined in the graph that has them.

Each is a function of ordinary operators (ONNX model-local functions): what ONNX Runtime runs as it
stands, and what says exactly what is meant. Where :mod:`whisper_opt.native` can be loaded, ONNX
Runtime calls its kernel of the same name instead, which does the same in fewer passes over memory:
same integers, same sums, for :data:`LINEAR` and its kin; for attention 8 bits instead of float32.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Callable

import numpy as np

from whisper_opt.dims import HEAD_DIM
from whisper_opt.export.builder import MICROSOFT, OWN, GraphBuilder

__all__ = [
    "COUNTED",
    "GELU_LINEAR_ADD",
    "GELU_LOW",
    "GELU_STEPS",
    "GELU_ZERO",
    "LEAST",
    "LINEAR",
    "LINEAR_ADD",
    "NORM_LINEAR",
    "Operator",
    "counted_keys",
    "counting_queries",
    "encoder_attention",
    "encoder_attention_at",
]

COUNTED = HEAD_DIM + 1
"""Rows of keys whose last one says how often they count."""

GELU_LOW = 0.17
"""A GELU is nowhere less than minus this."""
GELU_ZERO = 16
"""The integer that stands for zero after a GELU."""
GELU_STEPS = 255 - GELU_ZERO
LEAST = 1e-20
"""Rows smaller than this are taken to be this large: no division by zero."""


@dataclasses.dataclass(frozen=True)
class Operator:
    """An operator of domain ``whisper_opt``.

    Attributes:
        name: of the operator.
        inputs: names of its inputs.
        body: builds what it computes of inputs of these names, and returns the outputs.
        attributes: names of its attributes, which the kernel reads and ``body`` need not.
    """

    name: str
    inputs: tuple[str, ...]
    body: Callable[[GraphBuilder], Sequence[str]]
    attributes: tuple[str, ...] = ()

    def __call__(self, builder: GraphBuilder, *inputs: str, **attributes: Any) -> str:
        """Add a node, and the definition if the graph has none yet; returns the output's name."""
        return self.nodes(builder, inputs, 1, **attributes)[0]

    def nodes(
        self, builder: GraphBuilder, inputs: Sequence[str], n_outputs: int, **attributes: Any
    ) -> list[str]:
        """As calling it, for operators with several outputs; returns their names."""
        builder.define(self.name, self.inputs, self.body, self.attributes)
        return builder.nodes(self.name, inputs, n_outputs, OWN, **attributes)


def _number(builder: GraphBuilder, value: float) -> str:
    return builder.constant(np.array(value, np.float32))


def _product(builder: GraphBuilder, value: str, *, after_gelu: bool = False) -> str:
    """``value @ weight * scale + bias``, of the value rounded row by row."""
    steps, zero, least = 127, 128, LEAST
    sizes = value
    if after_gelu:  # so large that the least value of a GELU is no less than integer 0
        steps, zero, least = GELU_STEPS, GELU_ZERO, GELU_LOW * GELU_STEPS / GELU_ZERO
    else:
        sizes = builder.node("Abs", value)
    loudest = builder.node("ReduceMax", sizes, builder.constant([-1]), keepdims=1)
    loudest = builder.node("Max", loudest, _number(builder, least))
    even = builder.node("Div", value, loudest)
    step, middle = _number(builder, 1 / steps), builder.constant(np.array(zero, np.uint8))
    integers = builder.node("QuantizeLinear", even, step, middle)
    factors = [integers, "weight", step, "scale", middle]
    product = builder.node("MatMulIntegerToFloat", *factors, domain=MICROSOFT)
    return builder.node("Add", builder.node("Mul", product, loudest), "bias")


def _linear(builder: GraphBuilder) -> list[str]:
    return [_product(builder, "x")]


def _norm_linear(builder: GraphBuilder) -> list[str]:
    normed = builder.node("LayerNormalization", "x", "gain", "shift", axis=-1, epsilon=1e-5)
    return [_product(builder, normed)]


def _linear_add(builder: GraphBuilder) -> list[str]:
    return [builder.node("Add", "residual", _product(builder, "x"))]


def _gelu_linear_add(builder: GraphBuilder) -> list[str]:
    after = builder.node("Gelu", "x", domain=MICROSOFT)
    return [builder.node("Add", "residual", _product(builder, after, after_gelu=True))]


_WEIGHTS: Sequence[str] = ("weight", "scale", "bias")

LINEAR = Operator("Linear8", ("x", *_WEIGHTS), _linear)
"""x [.., n_in], weight int8 [n_in, n_out], scale and bias [n_out] -> [.., n_out]."""
NORM_LINEAR = Operator("NormLinear8", ("x", "gain", "shift", *_WEIGHTS), _norm_linear)
"""The same after a layer normalization."""
LINEAR_ADD = Operator("Linear8Add", ("x", *_WEIGHTS, "residual"), _linear_add)
"""The same, added to residual [.., n_out]."""
GELU_LINEAR_ADD = Operator("GeluLinear8Add", ("x", *_WEIGHTS, "residual"), _gelu_linear_add)
"""The same after a GELU."""


def encoder_attention(n_head: int) -> Operator:
    """Every position attends to all: qkv [A, n, 3 * n_state] -> [A, n, n_state].

    Inputs ``added`` [n], what is added to the scores of a key, and ``by_parts``, a bool scalar:
    whether anything is.
    """

    def body(builder: GraphBuilder) -> list[str]:
        query, key, val = builder.nodes("Split", ["qkv"], 3, axis=-1, num_outputs=3)

        def counting() -> str:
            wide = [0, 0, n_head * COUNTED]
            heads = [builder.reshape(part, [0, 0, n_head, HEAD_DIM]) for part in (query, key)]
            queries = builder.reshape(counting_queries(builder, heads[0], 1.0), wide)
            keys = builder.reshape(counted_keys(builder, heads[1], "added", n_head), wide)
            return _attend(builder, n_head, queries, keys, val)

        return [
            builder.either("by_parts", counting, lambda: _attend(builder, n_head, query, key, val))
        ]

    return Operator("EncoderAttention", ("qkv", "added", "by_parts"), body, ("num_heads",))


def encoder_attention_at(n_head: int) -> Operator:
    """Positions i64 [m] attend to all: qkv [A, n, 3 * n_state] -> [A, m, n_state]."""

    def body(builder: GraphBuilder) -> list[str]:
        query, key, val = builder.nodes("Split", ["qkv"], 3, axis=-1, num_outputs=3)
        query = builder.node("Gather", query, "positions", axis=1)
        return [_attend(builder, n_head, query, key, val)]

    return Operator("EncoderAttentionAt", ("qkv", "positions"), body, ("num_heads",))


def _attend(builder: GraphBuilder, n_head: int, *qkv: str) -> str:
    attributes = {"num_heads": n_head, "scale": HEAD_DIM**-0.5}
    return builder.node("MultiHeadAttention", *qkv, domain=MICROSOFT, **attributes)


def counted_keys(builder: GraphBuilder, heads: str, added: str, n_head: int) -> str:
    """Keys [A, n, H, 64] with what is added to a scaled score, [n]: [A, n, H, 65]."""
    unscaled = builder.node("Mul", added, _number(builder, HEAD_DIM**0.5))
    column = builder.node("Unsqueeze", unscaled, builder.constant([1, 2]))
    n_audio, n_heard = builder.dim(heads, 0), builder.dim(heads, 1)
    shape = builder.node("Concat", n_audio, n_heard, builder.constant([n_head, 1]), axis=0)
    return builder.node("Concat", heads, builder.node("Expand", column, shape), axis=3)


def counting_queries(builder: GraphBuilder, query: str, one: float) -> str:
    """Queries [a, b, c, 64] for keys that count: [a, b, c, 65]; scaled ones end in a scaled one."""
    ending = builder.constant(np.array(one, np.float32))
    return builder.node("Pad", query, builder.constant([0, 1]), ending, builder.constant([3]))
