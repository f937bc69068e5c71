"""Fused operators, defined in the graphs as ONNX model-local functions.

Each is a function of ordinary operators, which ONNX Runtime can run and which define the operator
exactly. If :mod:`whisper_opt.runtime.native` is loaded, ONNX Runtime calls the kernel of the same
name instead, which needs fewer passes over memory. Kernels of :data:`LINEARS` compute the
same integers and the same sums. Kernels of attention compute in 8 bits instead of float32.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Callable, NamedTuple, Protocol

import numpy as np
from onnx import TensorProto

from whisper_opt.core.dims import HEAD_DIM
from whisper_opt.export.graphs.builder import MICROSOFT, OWN, GraphBuilder
from whisper_opt.export.graphs.packed_weights import PANEL, unpack_weight
from whisper_opt.runtime.padding import BLOCK

__all__ = [
    "COUNTED_HEAD_DIM",
    "GELU_MIN",
    "GELU_STEPS",
    "GELU_ZERO_POINT",
    "LAYER_NORM",
    "LINEARS",
    "MIN_ABSMAX",
    "Linears",
    "Operator",
    "append_log_counts",
    "append_ones",
    "cross_attention",
    "cross_scores",
    "encoder_attention",
    "encoder_attention_at",
    "grouped_attention",
    "linears",
    "number",
    "pack_keys",
    "pack_values",
    "self_attention",
]

COUNTED_HEAD_DIM = HEAD_DIM + 1
"""Components of a key with its log-count appended (:func:`append_log_counts`)."""

GELU_MIN = 0.17
"""Minus the least value of a GELU, rounded up."""
GELU_ZERO_POINT = 16
"""Zero point of quantized rows after a GELU."""
GELU_STEPS = 255 - GELU_ZERO_POINT
MIN_ABSMAX = 1e-20
"""Least scale basis of a row: prevents division by zero."""


Body = Callable[[GraphBuilder], Sequence[str]]
"""Builds the function of an operator and returns its outputs."""


class Product(Protocol):
    """Builds a product with its bias; the input is the output of a GELU or any value."""

    def __call__(self, builder: GraphBuilder, value: str, *, after_gelu: bool = ...) -> str: ...


@dataclasses.dataclass(frozen=True)
class Operator:
    """An operator of domain ``whisper_opt``.

    Attributes:
        name: name of the operator.
        inputs: names of its inputs.
        body: builds the function of inputs of these names and returns the outputs.
        attributes: names of its attributes. The kernel reads them; ``body`` may ignore them.
    """

    name: str
    inputs: tuple[str, ...]
    body: Body
    attributes: tuple[str, ...] = ()

    def __call__(self, builder: GraphBuilder, *inputs: str, **attributes: Any) -> str:
        """Add a node, and the function if the graph lacks it; returns the name of the output."""
        return self.nodes(builder, inputs, 1, **attributes)[0]

    def nodes(
        self, builder: GraphBuilder, inputs: Sequence[str], n_outputs: int, **attributes: Any
    ) -> list[str]:
        """As :meth:`__call__`, for operators with several outputs; returns their names."""
        builder.define(self.name, self.inputs, self.body, self.attributes)
        return builder.nodes(self.name, inputs, n_outputs, OWN, **attributes)


def number(builder: GraphBuilder, value: float) -> str:
    """A constant float32 scalar."""
    return builder.constant(np.array(value, np.float32))


def _int8_product(builder: GraphBuilder, value: str, *, after_gelu: bool = False) -> str:
    """``value @ weight * scale + bias``, with ``value`` quantized row by row."""
    steps, zero, least = 127, 128, MIN_ABSMAX
    sizes = value
    if after_gelu:  # the scale is large enough for the least value of a GELU to fit
        steps, zero, least = GELU_STEPS, GELU_ZERO_POINT, GELU_MIN * GELU_STEPS / GELU_ZERO_POINT
    else:
        sizes = builder.node("Abs", value)
    absmax = builder.node("ReduceMax", sizes, builder.constant([-1]), keepdims=1)
    absmax = builder.node("Max", absmax, number(builder, least))
    normalized = builder.node("Div", value, absmax)
    step, middle = number(builder, 1 / steps), builder.constant(np.array(zero, np.uint8))
    integers = builder.node("QuantizeLinear", normalized, step, middle)
    weight = unpack_weight(builder, "weight", "scale")
    factors = [integers, weight, step, "scale", middle]
    product = builder.node("MatMulIntegerToFloat", *factors, domain=MICROSOFT)
    return builder.node("Add", builder.node("Mul", product, absmax), "bias")


class Linears(NamedTuple):
    """The operators of products with one kind of weights: x [.., n_in] -> [.., n_out].

    ``norm``: after a layer normalization with ``gain`` and ``shift``. ``add``: added to
    ``residual`` [.., n_out]. ``gelu_add``: the same after a GELU.
    """

    plain: Operator
    norm: Operator
    add: Operator
    gelu_add: Operator


def linears(
    bits: int, product: Product, weights: Sequence[str], attributes: tuple[str, ...] = ()
) -> Linears:
    """The operators of a product.

    Args:
        bits: of the weights; a part of the names.
        product: builds it, with its bias.
        weights: names of its inputs besides ``x``: weights, scales and bias.
        attributes: of :class:`Operator`.
    """

    def plain(builder: GraphBuilder) -> list[str]:
        return [product(builder, "x")]

    def norm(builder: GraphBuilder) -> list[str]:
        return [product(builder, *_layer_norm(builder))]

    def add(builder: GraphBuilder) -> list[str]:
        return [builder.node("Add", "residual", product(builder, "x"))]

    def gelu_add(builder: GraphBuilder) -> list[str]:
        after = builder.node("Gelu", "x", domain=MICROSOFT)
        return [builder.node("Add", "residual", product(builder, after, after_gelu=True))]

    def named(name: str, inputs: Sequence[str], body: Body) -> Operator:
        return Operator(name.format(bits), tuple(inputs), body, attributes)

    return Linears(
        named("Linear{}", ["x", *weights], plain),
        named("NormLinear{}", ["x", "gain", "shift", *weights], norm),
        named("Linear{}Add", ["x", *weights, "residual"], add),
        named("GeluLinear{}Add", ["x", *weights, "residual"], gelu_add),
    )


LINEARS = linears(8, _int8_product, ("weight", "scale", "bias"))
"""Products with packed weights of [n_in, n_out], scale and bias [n_out]."""


def _layer_norm(builder: GraphBuilder) -> list[str]:
    return [builder.node("LayerNormalization", "x", "gain", "shift", axis=-1, epsilon=1e-5)]


LAYER_NORM = Operator("LayerNorm", ("x", "gain", "shift"), _layer_norm)
"""Layer normalization x [.., n] -> [.., n] where no product follows that fuses it.

ONNX Runtime's own differs in the last bits between processors.
"""


def encoder_attention(n_head: int) -> Operator:
    """Every position attends to all: qkv [A, n, 3 * n_state] -> [A, n, n_state].

    Inputs ``added`` [n] (values added to the scores of each key) and ``by_parts`` (a bool scalar:
    whether to add them).
    """

    def body(builder: GraphBuilder) -> list[str]:
        query, key, val = builder.nodes("Split", ["qkv"], 3, axis=-1, num_outputs=3)

        def with_counts() -> str:
            wide = [0, 0, n_head * COUNTED_HEAD_DIM]
            heads = [builder.reshape(part, [0, 0, n_head, HEAD_DIM]) for part in (query, key)]
            queries = builder.reshape(append_ones(builder, heads[0], 1.0), wide)
            keys = builder.reshape(append_log_counts(builder, heads[1], "added", n_head), wide)
            return _attend(builder, n_head, queries, keys, val)

        return [
            builder.if_else(
                "by_parts", with_counts, lambda: _attend(builder, n_head, query, key, val)
            )
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


def grouped_attention(
    builder: GraphBuilder, qkv: str, cache: tuple[str, str], seqlens: str, total: str, n_head: int
) -> list[str]:
    """ONNX Runtime's self-attention of a decoder: the result, and the updated cache."""
    inputs = [qkv, "", "", *cache, seqlens, total]
    heads = {"num_heads": n_head, "kv_num_heads": n_head}
    return builder.nodes("GroupQueryAttention", inputs, 3, MICROSOFT, **heads)


def self_attention(n_head: int) -> Operator:
    """Append qkv [N, S, 3 * n_state] to a cache and attend -> (mix [N, S, n_state], key', value').

    Inputs ``key`` and ``value`` [N, H, capacity, 64], and ``start`` i64 [N]. All tokens of a row
    count as real. Those after its last are padding, whose results are never read.
    """

    def body(builder: GraphBuilder) -> list[str]:
        n_new = builder.dim("qkv", 1)
        ends = builder.node("Add", "start", n_new)
        newest = builder.node("Sub", ends, builder.constant([1]))
        seqlens = builder.node("Cast", newest, to=TensorProto.INT32)
        total = builder.node("ReduceMax", ends, keepdims=0)
        total = builder.node("Cast", total, to=TensorProto.INT32)
        return grouped_attention(builder, "qkv", ("key", "value"), seqlens, total, n_head)

    return Operator("SelfAttention", ("qkv", "key", "value", "start"), body, ("num_heads",))


def append_log_counts(builder: GraphBuilder, heads: str, added: str, n_head: int) -> str:
    """Append ``added`` [n], which is added to scaled scores, to keys [A, n, H, 64]: [A, n, H, 65].

    The appended component is ``added`` times 8, as scores are divided by 8.
    """
    unscaled = builder.node("Mul", added, number(builder, HEAD_DIM**0.5))
    column = builder.node("Unsqueeze", unscaled, builder.constant([1, 2]))
    n_audio, n_keys = builder.dim(heads, 0), builder.dim(heads, 1)
    shape = builder.node("Concat", n_audio, n_keys, builder.constant([n_head, 1]), axis=0)
    return builder.node("Concat", heads, builder.node("Expand", column, shape), axis=3)


def append_ones(builder: GraphBuilder, query: str, one: float) -> str:
    """Append ``one`` to queries [a, b, c, 64] for :func:`append_log_counts`: [a, b, c, 65].

    ``one``: 1, or the scale of the scores if the queries are scaled already.
    """
    ending = builder.constant(np.array(one, np.float32))
    return builder.node("Pad", query, builder.constant([0, 1]), ending, builder.constant([3]))


def _quantize_heads(builder: GraphBuilder, n_head: int) -> tuple[str, str]:
    """``x`` [A, n, n_state] by heads as integers in floats [A, H, n', 64], and scales [A, H, 64].

    n' is n rounded up to :data:`~whisper_opt.runtime.padding.BLOCK`.
    """
    heads = _heads(builder, "x", n_head)
    absmax = builder.node(
        "ReduceMax", builder.node("Abs", heads), builder.constant([2]), keepdims=1
    )
    absmax = builder.node("Max", absmax, number(builder, MIN_ABSMAX))
    scale = builder.node("Div", absmax, number(builder, 127))
    integers = builder.node("Round", builder.node("Div", heads, scale))
    n_padded = builder.node(
        "Mod", builder.node("Neg", builder.dim(heads, 2)), builder.constant([BLOCK])
    )
    none = builder.constant([0])
    sizes = builder.node("Concat", builder.constant([0] * 6), n_padded, none, axis=0)
    padded = builder.node("Pad", integers, sizes)
    return padded, builder.node("Squeeze", scale, builder.constant([2]))


def _heads(builder: GraphBuilder, value: str, n_head: int) -> str:
    """[A, n, n_state] -> [A, H, n, 64]."""
    return builder.transpose(builder.reshape(value, [0, 0, n_head, HEAD_DIM]), [0, 2, 1, 3])


def pack_keys(n_head: int) -> Operator:
    """``x`` [A, n, n_state] -> packed keys and their scales [A, H, 64].

    The layout is that of :mod:`whisper_opt.export.graphs.cross`.
    """

    def body(builder: GraphBuilder) -> list[str]:
        integers, scale = _quantize_heads(builder, n_head)
        # values after the last key are never read
        shifted = builder.node("Add", integers, number(builder, 128))
        panels = builder.reshape(shifted, [0, 0, -1, PANEL, HEAD_DIM // 4, 4])
        panels = builder.transpose(panels, [0, 1, 2, 4, 3, 5])
        return [builder.node("Cast", panels, to=TensorProto.UINT8), scale]

    return Operator("PackKeys", ("x",), body, ("num_heads",))


def pack_values(n_head: int) -> Operator:
    """``x`` [A, n, n_state] -> packed values and their scales [A, H, 64].

    The layout is that of :mod:`whisper_opt.export.graphs.cross`.
    """

    def body(builder: GraphBuilder) -> list[str]:
        integers, scale = _quantize_heads(builder, n_head)
        quads = builder.transpose(
            builder.reshape(integers, [0, 0, -1, 4, HEAD_DIM]), [0, 1, 2, 4, 3]
        )
        return [builder.node("Cast", quads, to=TensorProto.INT8), scale]

    return Operator("PackValues", ("x",), body, ("num_heads",))


def _scales(builder: GraphBuilder, which: int) -> str:
    """Scales of this layer's keys (0) or values (1): [A, H, 1, 64]."""
    layer = builder.node("Gather", "steps", builder.attribute("layer"), axis=1)
    own = builder.node("Gather", layer, builder.constant(which), axis=1)
    return builder.node("Unsqueeze", own, builder.constant([2]))


def _scores(builder: GraphBuilder, n_head: int) -> str:
    """Scores [A, H, n, T'] of queries [A, n, n_state] with packed keys."""
    queries = builder.node("Mul", _heads(builder, "queries", n_head), _scales(builder, 0))
    queries = builder.node("Mul", queries, number(builder, HEAD_DIM**-0.5))
    keys = builder.node("Cast", "keys", to=TensorProto.FLOAT)
    keys = builder.node("Sub", keys, number(builder, 128))
    keys = builder.reshape(builder.transpose(keys, [0, 1, 3, 5, 2, 4]), [0, 0, HEAD_DIM, -1])
    added = builder.node("Unsqueeze", "added", builder.constant([1, 2]))
    return builder.node("Add", builder.node("MatMul", queries, keys), added)


def cross_attention(n_head: int) -> Operator:
    """Attention of queries [A, n, n_state] to packed keys and values of a layer -> [A, n, n_state].

    Inputs ``steps`` and ``added``: :mod:`whisper_opt.export.graphs.cross`.
    """

    def body(builder: GraphBuilder) -> list[str]:
        weights = builder.node("Softmax", _scores(builder, n_head), axis=-1)
        values = builder.node("Cast", "values", to=TensorProto.FLOAT)
        values = builder.transpose(values, [0, 1, 2, 4, 3])
        values = builder.reshape(values, [0, 0, -1, HEAD_DIM])
        mixed = builder.node("Mul", builder.node("MatMul", weights, values), _scales(builder, 1))
        merged = builder.transpose(mixed, [0, 2, 1, 3])
        return [builder.reshape(merged, [0, 0, n_head * HEAD_DIM])]

    inputs = ("queries", "keys", "values", "steps", "added")
    return Operator("CrossAttention", inputs, body, ("num_heads", "layer"))


def cross_scores(n_head: int) -> Operator:
    """Scores [A, n_heads, n_rows, T'] of that attention.

    Inputs ``heads`` i64 [n_heads] and ``rows`` i64 [n_rows] select heads and queries.
    """

    def body(builder: GraphBuilder) -> list[str]:
        scores = builder.node("Gather", _scores(builder, n_head), "rows", axis=2)
        return [builder.node("Gather", scores, "heads", axis=1)]

    inputs = ("queries", "keys", "steps", "added", "heads", "rows")
    return Operator("CrossScores", inputs, body, ("num_heads", "layer"))
