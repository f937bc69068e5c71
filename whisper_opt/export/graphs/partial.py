"""The part of an encoder graph that hears padding by parts (:mod:`whisper_opt.runtime.padding`).

Two further inputs, ``positions`` i64 [n_heard] and ``counts`` f32 [n_heard], say which positions
are heard and for how many each stands. What ``mel`` does not reach repeats its last position, which
must be padding. A key that stands for n positions counts n times: log n is added to its scores.

The first layer's keys and values are those of every position: what padding looks like there hangs
on nothing that is said, so they cost one product and no attention; and that layer attends to the
positions next to each, which parts do not have (in tiny.en 0.17 of it goes to the next one). The
other layers attend to what is heard alone.

So keys have a 65th component, 8 log n, and queries end in a one (an eighth, once scaled). ONNX
Runtime's own way to add to scores, ``attention_bias``, is [A, H, n, n] in version 1.19, which reads
past the end of one that is shared by a batch.
"""

from __future__ import annotations

from onnx import TensorProto

from whisper_opt.export.graphs.builder import GraphBuilder
from whisper_opt.export.graphs.operators import (
    append_log_counts,
    encoder_attention,
    encoder_attention_at,
)

__all__ = ["CompressedPositions"]


class CompressedPositions:
    """What the layers of one encoder share."""

    def __init__(self, builder: GraphBuilder) -> None:
        """Declare the inputs."""
        self._builder = builder
        self._positions = builder.input("positions", TensorProto.INT64, ["n_heard"])
        counts = builder.input("counts", TensorProto.FLOAT, ["n_heard"])
        self.added = builder.node("Log", counts)
        """[n_heard], what a key that stands for several positions has added to its scores."""
        zero, one = builder.constant(0), builder.constant(1)
        n_ctx = builder.node("ReduceSum", counts, keepdims=0)
        n_ctx = builder.node("Cast", n_ctx, to=TensorProto.INT64)
        self._n_ctx = builder.node("Unsqueeze", n_ctx, builder.constant([0]))
        self._order = builder.node("Range", zero, n_ctx, one)
        n_heard = builder.dim(self._positions, 0)
        self._by_parts = builder.node(
            "Less", builder.node("Squeeze", n_heard), builder.node("Squeeze", n_ctx)
        )

    def all_positions(self, value: str, table: str) -> str:
        """[A, C, n_state] of the convolutions, and the positions -> [A, n_ctx, n_state]."""
        builder = self._builder
        last = builder.node("Sub", builder.dim(value, 1), builder.constant([1]))
        reached = builder.node("Min", self._order, last)
        value = builder.node("Gather", value, reached, axis=1)
        known = builder.node(
            "Slice", table, builder.constant([0]), self._n_ctx, builder.constant([0])
        )
        return builder.node("Add", known, value)

    def heard(self, value: str) -> str:
        """[A, n_ctx, n_state] -> [A, n_heard, n_state]."""
        return self._builder.node("Gather", value, self._positions, axis=1)

    def attention(self, qkv: str, n_head: int, *, first: bool) -> str:
        """Attention of packed [A, n, 3 * n_state] -> [A, n_heard, n_state].

        The ``first`` layer is given every position, the others what is heard.
        """
        if first:
            operator = encoder_attention_at(n_head)
            return operator(self._builder, qkv, self._positions, num_heads=n_head)
        operator = encoder_attention(n_head)
        inputs = (qkv, self.added, self._by_parts)
        return operator(self._builder, *inputs, num_heads=n_head)

    def append_log_counts(self, heads: str, n_head: int) -> str:
        """Keys [A, n_heard, H, 64] with what their counts add to a score: [A, n_heard, H, 65]."""
        return append_log_counts(self._builder, heads, self.added, n_head)
