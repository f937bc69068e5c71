"""Padding compression in an encoder graph (:mod:`whisper_opt.runtime.padding`).

Two further inputs: ``positions`` i64 [n_encoded], the positions to encode, and ``counts`` f32
[n_encoded], the number of positions that each represents. Positions beyond the end of ``mel``
repeat its last position, which must be padding. A key that represents n positions has n times the
weight: log n is added to its scores.

The first layer has keys and values of every position. For padding these do not depend on the audio,
so they cost one product and no attention. That layer attends to neighbouring positions, which
compressed padding lacks (in tiny.en 0.17 of its attention goes to the next position). The other
layers attend to the selected positions only.

Keys have a 65th component, 8 log n, and queries end in a one (an eighth, if scaled). The
``attention_bias`` of ONNX Runtime is no alternative: in version 1.19 it is [A, H, n, n], and one
that is shared by a batch is read past its end.
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from whisper_opt.export.graphs.builder import GraphBuilder
from whisper_opt.export.graphs.operators import (
    append_log_counts,
    encoder_attention,
    encoder_attention_at,
)

__all__ = ["CompressedPositions"]

N_ENCODED = "n_heard"
"""Name in the graph of the dimension of encoded positions."""


class CompressedPositions:
    """The positions and counts of one encoder, shared by its layers."""

    def __init__(self, builder: GraphBuilder, n_audio_ctx: int) -> None:
        """Declare the inputs; ``n_audio_ctx``: the most positions."""
        self._builder = builder
        self._positions = builder.input("positions", TensorProto.INT64, [N_ENCODED])
        counts = builder.input("counts", TensorProto.FLOAT, [N_ENCODED])
        # a table: ONNX Runtime's logarithm has other bits on other processors
        logs = builder.constant(
            np.log(np.maximum(np.arange(n_audio_ctx + 1), 1)).astype(np.float32)
        )
        whole = builder.cast(counts, np.float32, np.int64)
        self.added = builder.node("Gather", logs, whole)
        """[n_encoded], the logarithms of the counts, which are added to the scores of the keys."""
        zero, one = builder.constant(0), builder.constant(1)
        n_ctx = builder.node("ReduceSum", counts, keepdims=0)
        n_ctx = builder.node("Cast", n_ctx, to=TensorProto.INT64)
        self._n_ctx = builder.node("Unsqueeze", n_ctx, builder.constant([0]))
        self._order = builder.node("Range", zero, n_ctx, one)
        n_encoded = builder.dim(self._positions, 0)
        self._compressed = builder.node(
            "Less", builder.node("Squeeze", n_encoded), builder.node("Squeeze", n_ctx)
        )

    def all_positions(self, value: str, table: str) -> str:
        """Extend [A, C, n_state] to all positions and add their embeddings: [A, n_ctx, n_state]."""
        builder = self._builder
        last = builder.node("Sub", builder.dim(value, 1), builder.constant([1]))
        reached = builder.node("Min", self._order, last)
        value = builder.node("Gather", value, reached, axis=1)
        known = builder.node(
            "Slice", table, builder.constant([0]), self._n_ctx, builder.constant([0])
        )
        return builder.node("Add", known, value)

    def select(self, value: str) -> str:
        """[A, n_ctx, n_state] -> [A, n_encoded, n_state]."""
        return self._builder.node("Gather", value, self._positions, axis=1)

    def attention(self, qkv: str, n_head: int, *, first: bool) -> str:
        """Attention of packed [A, n, 3 * n_state] -> [A, n_encoded, n_state].

        The input of the ``first`` layer has every position, that of the others the selected ones.
        """
        if first:
            operator = encoder_attention_at(n_head)
            return operator(self._builder, qkv, self._positions, num_heads=n_head)
        operator = encoder_attention(n_head)
        inputs = (qkv, self.added, self._compressed)
        return operator(self._builder, *inputs, num_heads=n_head)

    def append_log_counts(self, heads: str, n_head: int) -> str:
        """Append the log-counts to keys [A, n_encoded, H, 64]: [A, n_encoded, H, 65]."""
        return append_log_counts(self._builder, heads, self.added, n_head)
