"""Cross-attention keys and values, from the encoder graph to the decoder graph, in two layouts.

Plain: per layer ``cross_k_i`` kv [A, H, 64, T] (transposed, the layout of the product with a query)
and ``cross_v_i`` kv [A, H, T, 64]. With padding compression, keys have a 65th row
(:mod:`whisper_opt.export.graphs.partial`). Every runtime can multiply them.

Packed: 8 bits, in the order in which the kernels read them (:mod:`whisper_opt.runtime.native`). T'
is T rounded up to :data:`~whisper_opt.runtime.padding.BLOCK`:

    cross_k_i    u8 [A, H, T' / 64, 16, 64, 4], zero point 128
    cross_v_i    i8 [A, H, T' / 4, 64, 4]
    cross_steps  f32 [A, L, 2, H, 64], scale of every channel of keys and values
    cross_added  f32 [A, T'], added to the scores of a key: the logarithm of the number of positions
                 it represents, or :data:`~whisper_opt.runtime.padding.MASKED` after the last key
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from onnx import TensorProto

from whisper_opt.core.dims import HEAD_DIM, ModelDims
from whisper_opt.export.graphs.builder import GraphBuilder
from whisper_opt.export.graphs.linear import Linear
from whisper_opt.export.graphs.operators import (
    COUNTED_HEAD_DIM,
    append_ones,
    cross_attention,
    cross_scores,
    pack_keys,
    pack_values,
)
from whisper_opt.export.graphs.packed_weights import PANEL
from whisper_opt.export.graphs.partial import CompressedPositions
from whisper_opt.runtime.padding import BLOCK, MASKED

__all__ = ["CrossKV", "PackedCrossKV", "PlainCrossKV"]

_FLOAT = TensorProto.FLOAT


class CrossKV(Protocol):
    """A layout of keys and values in one graph."""

    def outputs(self, value: str, padding: CompressedPositions | None) -> None:
        """Declare the encoder's outputs; ``value`` is its normalized final state."""

    def inputs(self) -> str:
        """Declare the decoder's inputs; returns the number of audios, int64 [1]."""

    def attend(
        self, layer: int, query: str, heads: Sequence[int], aligned: str
    ) -> tuple[str, str | None]:
        """Attend from [A, G * S, n_state] to the audio.

        Returns:
            The attention output, of the same shape; and the scores f32 [A, n_heads, n_aligned, T]
            of ``heads`` at the positions ``aligned``, or None without heads.
        """


class PlainCrossKV:
    """Keys and values as floats."""

    def __init__(self, builder: GraphBuilder, linear: Linear, dims: ModelDims) -> None:
        """Of one graph."""
        self._builder, self._linear, self._dims = builder, linear, dims

    def outputs(self, value: str, padding: CompressedPositions | None) -> None:
        """As of :class:`CrossKV`."""
        builder, dims = self._builder, self._dims
        for i in range(dims.n_text_layer):
            builder.scope(f"decoder.blocks.{i}.cross_attn")
            for kind, part, order in (("k", "key", [0, 2, 3, 1]), ("v", "value", [0, 2, 1, 3])):
                heads = _project(self._linear, value, i, part)
                heads = builder.reshape(heads, [0, 0, dims.n_text_head, HEAD_DIM])
                if padding is not None and kind == "k":
                    heads = padding.append_log_counts(heads, dims.n_text_head)
                heads = builder.transpose(heads, order)
                shape = self._shape(kind)
                builder.output(heads, f"cross_{kind}_{i}", self._linear.types.kv, shape)

    def _shape(self, kind: str) -> list[int | str]:
        rows = COUNTED_HEAD_DIM if self._linear.types.compresses_padding else HEAD_DIM
        tail: list[int | str] = [rows, "n_ctx"] if kind == "k" else ["n_ctx", HEAD_DIM]
        return ["n_audio", self._dims.n_text_head, *tail]

    def inputs(self) -> str:
        """As of :class:`CrossKV`."""
        for i in range(self._dims.n_text_layer):
            for kind in ("k", "v"):
                kv = self._linear.types.kv
                self._builder.input(f"cross_{kind}_{i}", kv, self._shape(kind))
        return self._builder.dim("cross_k_0", 0)

    def attend(
        self, layer: int, query: str, heads: Sequence[int], aligned: str
    ) -> tuple[str, str | None]:
        """As of :class:`CrossKV`.

        Plain products in every dialect. A single query reads transposed keys once and in order,
        which no attention operator of ONNX Runtime does on the CPU; and word timestamps need the
        scores.
        """
        builder, types, n_head = self._builder, self._linear.types, self._dims.n_text_head
        split = builder.transpose(builder.reshape(query, [0, 0, n_head, HEAD_DIM]), [0, 2, 1, 3])
        scale = builder.constant(np.array(HEAD_DIM**-0.5, types.compute))
        scaled = builder.node("Mul", split, scale)
        if types.compresses_padding:
            scaled = append_ones(builder, scaled, HEAD_DIM**-0.5)
        scores = builder.node("MatMul", scaled, f"cross_k_{layer}")
        weights = builder.node("Softmax", scores, axis=-1)
        mixed = builder.node("MatMul", weights, f"cross_v_{layer}")
        mixed = builder.reshape(builder.transpose(mixed, [0, 2, 1, 3]), [0, 0, n_head * HEAD_DIM])
        if not heads:
            return mixed, None
        # tokens first: without any, nothing is copied
        scores = builder.node("Gather", scores, aligned, axis=2)
        scores = builder.node("Gather", scores, builder.constant(list(heads)), axis=1)
        return mixed, builder.cast(scores, types.compute, np.float32)


class PackedCrossKV:
    """Keys and values in 8 bits, in the layout of the kernels."""

    def __init__(self, builder: GraphBuilder, linear: Linear, dims: ModelDims) -> None:
        """Of one graph, which compresses padding."""
        self._builder, self._linear, self._dims = builder, linear, dims

    def outputs(self, value: str, padding: CompressedPositions | None) -> None:
        """As of :class:`CrossKV`."""
        assert padding is not None  # 8-bit graphs always compress padding
        builder, dims, scales = self._builder, self._dims, []
        n_head, n_layer = dims.n_text_head, dims.n_text_layer
        for i in range(n_layer):
            builder.scope(f"decoder.blocks.{i}.cross_attn")
            for kind, part in (("k", "key"), ("v", "value")):
                pack = pack_keys(n_head) if kind == "k" else pack_values(n_head)
                projected = _project(self._linear, value, i, part)
                packed, scale = pack.nodes(builder, [projected], 2, num_heads=n_head)
                builder.output(packed, f"cross_{kind}_{i}", *self._packed(kind))
                scales.append(scale)
        builder.scope("cross")
        stacked = builder.node("Concat", *scales, axis=1)
        stacked = builder.reshape(stacked, [0, n_layer, 2, n_head, HEAD_DIM])
        builder.output(stacked, "cross_steps", _FLOAT, self._scales)
        builder.output(self._added(value, padding.added), "cross_added", _FLOAT, self._masked)

    def _packed(self, kind: str) -> tuple[int, list[int | str]]:
        start: list[int | str] = ["n_audio", self._dims.n_text_head]
        if kind == "k":
            return TensorProto.UINT8, [*start, "n_panels", HEAD_DIM // 4, PANEL, 4]
        return TensorProto.INT8, [*start, "n_quads", HEAD_DIM, 4]

    @property
    def _scales(self) -> list[int | str]:
        dims = self._dims
        return ["n_audio", dims.n_text_layer, 2, dims.n_text_head, HEAD_DIM]

    @property
    def _masked(self) -> list[int | str]:
        return ["n_audio", "n_keys"]

    def _added(self, value: str, added: str) -> str:
        """[n_positions], masked after the last -> [A, T']."""
        builder = self._builder
        n_masked = builder.node(
            "Mod", builder.node("Neg", builder.dim(added, 0)), builder.constant([BLOCK])
        )
        sizes = builder.node("Concat", builder.constant([0]), n_masked, axis=0)
        padded = builder.node("Pad", added, sizes, builder.constant(np.array(MASKED, np.float32)))
        row = builder.node("Unsqueeze", padded, builder.constant([0]))
        shape = builder.node("Concat", builder.dim(value, 0), builder.constant([1]), axis=0)
        return builder.node("Expand", row, shape)

    def inputs(self) -> str:
        """As of :class:`CrossKV`."""
        for i in range(self._dims.n_text_layer):
            for kind in ("k", "v"):
                self._builder.input(f"cross_{kind}_{i}", *self._packed(kind))
        self._builder.input("cross_steps", _FLOAT, self._scales)
        self._builder.input("cross_added", _FLOAT, self._masked)
        return self._builder.dim("cross_added", 0)

    def attend(
        self, layer: int, query: str, heads: Sequence[int], aligned: str
    ) -> tuple[str, str | None]:
        """As of :class:`CrossKV`."""
        builder, n_head = self._builder, self._dims.n_text_head
        keys, values, shared = (
            f"cross_k_{layer}",
            f"cross_v_{layer}",
            ("cross_steps", "cross_added"),
        )
        attributes = {"num_heads": n_head, "layer": layer}
        mixed = cross_attention(n_head)(builder, query, keys, values, *shared, **attributes)
        if not heads:
            return mixed, None
        chosen = builder.constant(list(heads))
        inputs = (query, keys, *shared, chosen, aligned)
        return mixed, cross_scores(n_head)(builder, *inputs, **attributes)


def _project(linear: Linear, value: str, layer: int, part: str) -> str:
    return linear(value, f"decoder.blocks.{layer}.cross_attn.{part}", bias=part == "value")
