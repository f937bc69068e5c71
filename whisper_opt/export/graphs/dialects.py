"""The operator families of engines. Both compute the same model.

``contrib``   ONNX Runtime's own operators (com.microsoft), opset 20 and IR 10: runs on ONNX Runtime
              1.19 (the newest for Python 3.9) and later, on the CPU.
``standard``  opset 24 ``TensorScatter`` and ``Attention`` with a boolean mask built in the graph:
              for TensorRT 10.15 and later, and ONNX Runtime 1.24 and later. In float16 the graph
              spells ``Attention`` out in simpler operators (``Precision.fused``).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from onnx import TensorProto

from whisper_opt.core.dims import HEAD_DIM
from whisper_opt.core.errors import OptionError
from whisper_opt.export.graphs.builder import MICROSOFT, GraphBuilder
from whisper_opt.export.graphs.graph import DecoderInputs, Dialect
from whisper_opt.export.graphs.operators import grouped_attention
from whisper_opt.export.graphs.precision import Precision

__all__ = ["DIALECTS", "Contrib", "Standard", "make_dialect"]


class Contrib:
    """GroupQueryAttention over a shared past/present buffer, MultiHeadAttention elsewhere.

    GroupQueryAttention masks causally and takes each row's length from ``seqlens_k``. It is exact
    for a prefill at position 0 (ragged, right-padded) and for single steps. It is not exact for
    several tokens after a past on ONNX Runtime 1.19: engines of this dialect must not do that.
    """

    name = "contrib"
    opset = 20
    ir_version = 10
    two_stage_head = True

    def gelu(self, builder: GraphBuilder, value: str) -> str:
        return builder.node("Gelu", value, domain=MICROSOFT)

    def encoder_attention(
        self, builder: GraphBuilder, qkv: str, n_head: int, types: Precision
    ) -> str:
        query, key, val = builder.nodes("Split", [qkv], 3, axis=-1, num_outputs=3)
        return builder.node(
            "MultiHeadAttention", query, key, val, domain=MICROSOFT, num_heads=n_head
        )

    def begin_decoder(self, builder: GraphBuilder, inputs: DecoderInputs) -> None:
        last = builder.node(
            "Gather", inputs.at, builder.constant(-1), axis=1
        )  # index of each row's last real token
        self._seqlens = builder.node(
            "Cast", builder.node("Add", inputs.start, last), to=TensorProto.INT32
        )
        longest = builder.node("ReduceMax", inputs.start, keepdims=0)
        total = builder.node("Add", longest, builder.node("Squeeze", inputs.n_new))
        self._total = builder.node("Cast", total, to=TensorProto.INT32)

    def self_attention(
        self,
        builder: GraphBuilder,
        qkv: str,
        cache: tuple[str, str],
        n_head: int,
        types: Precision,
    ) -> tuple[str, str, str]:
        lengths = self._seqlens, self._total
        mixed, key, val = grouped_attention(builder, qkv, cache, *lengths, n_head)
        return mixed, key, val


class Standard:
    """Operators of the ONNX standard alone (opset 24)."""

    name = "standard"
    opset = 24
    ir_version = 11
    two_stage_head = False

    def gelu(self, builder: GraphBuilder, value: str) -> str:
        return builder.node("Gelu", value, approximate="none")

    @staticmethod
    def _heads(builder: GraphBuilder, value: str, n_head: int) -> str:
        return builder.transpose(builder.reshape(value, [0, 0, n_head, HEAD_DIM]), [0, 2, 1, 3])

    @staticmethod
    def _merge(builder: GraphBuilder, value: str, n_head: int) -> str:
        return builder.reshape(builder.transpose(value, [0, 2, 1, 3]), [0, 0, n_head * HEAD_DIM])

    def encoder_attention(
        self, builder: GraphBuilder, qkv: str, n_head: int, types: Precision
    ) -> str:
        parts = builder.nodes("Split", [qkv], 3, axis=-1, num_outputs=3)
        query, key, val = (self._heads(builder, part, n_head) for part in parts)
        return self._merge(builder, self._attend(builder, types, query, key, val), n_head)

    @staticmethod
    def _attend(
        builder: GraphBuilder, types: Precision, query: str, key: str, val: str, *mask: str
    ) -> str:
        """Attention of [N, H, S, 64] to [N, H, C, 64] at the positions where ``mask`` is true.

        ``mask``: bool [N, 1, S, C].
        """
        if types.fused:
            return builder.node("Attention", query, key, val, *mask)
        scale = builder.constant(np.array(HEAD_DIM**-0.5, types.compute))
        keys = builder.transpose(key, [0, 1, 3, 2])
        scores = builder.node("MatMul", builder.node("Mul", query, scale), keys)
        scores = builder.cast(scores, types.compute, np.float32)
        if mask:
            lowest = builder.constant(np.array(-np.inf, np.float32))
            scores = builder.node("Where", *mask, scores, lowest)
        weights = builder.node("Softmax", scores, axis=-1)
        return builder.node("MatMul", builder.cast(weights, np.float32, types.compute), val)

    def begin_decoder(self, builder: GraphBuilder, inputs: DecoderInputs) -> None:
        self._start = inputs.start
        self._positions = builder.node("Unsqueeze", inputs.positions, builder.constant([1, 3]))
        self._mask = ""

    def _causal_mask(self, builder: GraphBuilder, cache: str) -> str:
        """[N, 1, S, C]: true for cache positions up to the query's position."""
        capacity = builder.node("Squeeze", builder.dim(cache, 2))
        slots = builder.node("Range", builder.constant(0), capacity, builder.constant(1))
        slots = builder.node("Unsqueeze", slots, builder.constant([0, 1, 2]))
        return builder.node("LessOrEqual", slots, self._positions)

    def self_attention(
        self,
        builder: GraphBuilder,
        qkv: str,
        cache: tuple[str, str],
        n_head: int,
        types: Precision,
    ) -> tuple[str, str, str]:
        parts = builder.nodes("Split", [qkv], 3, axis=-1, num_outputs=3)
        query, key, val = (self._heads(builder, part, n_head) for part in parts)
        key, val = (
            builder.node("TensorScatter", past, new, self._start, axis=-2)
            for past, new in zip(cache, (key, val))
        )
        if not self._mask:
            self._mask = self._causal_mask(builder, cache[0])
        mixed = self._attend(builder, types, query, key, val, self._mask)
        return self._merge(builder, mixed, n_head), key, val


DIALECTS: Mapping[str, type[Contrib] | type[Standard]] = {
    "contrib": Contrib,
    "standard": Standard,
}
"""Dialect classes by name. An instance holds the state of one graph: make one per graph."""


def make_dialect(name: str) -> Dialect:
    """A new dialect by name.

    Raises:
        OptionError: no such dialect.
    """
    if name not in DIALECTS:
        raise OptionError(f"unknown dialect {name!r}; expected one of {', '.join(DIALECTS)}")
    return DIALECTS[name]()
