"""The encoder and decoder graphs of a Whisper model.

Architecture: Radford et al. 2022 (arXiv:2212.04356) and whisper/model.py of openai-whisper.
Signatures (A audios, G hypotheses per audio, N = A * G rows, S new tokens, P requested positions, C
cache capacity, T encoder positions, H heads of 64):

    encoder   mel f32 [A, n_mels, F] -> cross_k_i kv [A, H, 64, T], cross_v_i kv [A, H, T, 64]
              (one pair per decoder layer; keys are transposed; or packed: see ``cross``)
              integer encoders have more inputs, and keys of 65 rows: see ``partial``
    decoder   tokens i64 [N, S], start i64 [N], at i64 [N, P], aligned i64 [Q],
              self_k_i, self_v_i kv [N, H, C, 64], cross_k_i, cross_v_i as above
              -> logits f32 [N, P, n_vocab], self_k_i_out, self_v_i_out kv [N, H, C, 64],
                 attention_i f32 [A, n_heads_i, Q, T] for every layer that has alignment heads
              a two-stage head has more inputs and outputs: see ``head.two_stage_head``

``kv`` is f32 or f16, as :class:`~whisper_opt.export.graphs.precision.Precision` says.

``start`` is the position of each row's first new token. ``at`` lists, for each row, the indices of
the new tokens whose scores are requested; the last index is the row's last real token (padding
follows it). The self-attention cache is written in place if one buffer is bound as input and
output. ``aligned`` lists the new tokens whose cross-attention scores (before the softmax) are
requested, for the alignment heads in the order of layers. In ordinary decoding it is empty and
costs nothing. For word timestamps N must equal A.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from onnx import TensorProto

from whisper_opt.core.dims import HEAD_DIM, ModelDims
from whisper_opt.export.checkpoints.checkpoint import Tensor
from whisper_opt.export.graphs import convolutions
from whisper_opt.export.graphs.builder import GraphBuilder, OnnxGraph
from whisper_opt.export.graphs.cross import CrossKV, PackedCrossKV, PlainCrossKV
from whisper_opt.export.graphs.head import embed, exact_head, two_stage_head
from whisper_opt.export.graphs.linear import Linear
from whisper_opt.export.graphs.mixed import MixedLinear
from whisper_opt.export.graphs.operators import Operator, self_attention
from whisper_opt.export.graphs.partial import CompressedPositions
from whisper_opt.export.graphs.precision import FP32, Precision
from whisper_opt.export.quantization.activation_stats import ActivationStats
from whisper_opt.export.quantization.int4 import Int4Linear
from whisper_opt.export.quantization.int8 import Int8Linear

__all__ = ["DecoderInputs", "Dialect", "build_decoder", "build_encoder"]

_FLOAT, _INT64 = TensorProto.FLOAT, TensorProto.INT64


class DecoderInputs:
    """Token inputs of the decoder and the positions of the tokens."""

    def __init__(self, builder: GraphBuilder, dims: ModelDims) -> None:
        """Declare the token inputs and derive the positions."""
        self.tokens = builder.input("tokens", _INT64, ["n_seq", "n_new"])
        self.start = builder.input("start", _INT64, ["n_seq"])
        self.at = builder.input("at", _INT64, ["n_seq", "n_at"])
        self.n_new = builder.dim(self.tokens, 1)
        zero, one = builder.constant(0), builder.constant(1)
        steps = builder.node("Range", zero, builder.node("Squeeze", self.n_new), one)
        first = builder.node("Unsqueeze", self.start, builder.constant([1]))
        # [n_seq, n_new]; the cap is for padding, which may exceed the table of positions
        self.positions = builder.node(
            "Min", builder.node("Add", first, steps), builder.constant(dims.n_text_ctx - 1)
        )


class Dialect(Protocol):
    """A family of operators for attention over a fixed-capacity cache."""

    name: str
    opset: int
    ir_version: int
    two_stage_head: bool
    """Whether fp32 engines have a two-stage output head (:mod:`whisper_opt.runtime.head_bounds`).

    It saves time on CPUs only.
    """

    def gelu(self, builder: GraphBuilder, value: str) -> str:
        """Exact (erf) GELU."""

    def encoder_attention(
        self, builder: GraphBuilder, qkv: str, n_head: int, types: Precision
    ) -> str:
        """Bidirectional attention of packed [A, T, 3 * n_state] -> [A, T, n_state]."""

    def begin_decoder(self, builder: GraphBuilder, inputs: DecoderInputs) -> None:
        """Compute the values that all layers share (lengths or masks)."""

    def self_attention(
        self,
        builder: GraphBuilder,
        qkv: str,
        cache: tuple[str, str],
        n_head: int,
        types: Precision,
    ) -> tuple[str, str, str]:
        """Append packed [N, S, 3 * n_state] to the cache and attend -> (mix, key', value')."""


def _add(builder: GraphBuilder, linear: Linear, value: str, branch: str) -> str:
    """The residual stream plus a branch."""
    types = linear.types
    return builder.node("Add", value, builder.cast(branch, types.compute, types.residual))


def _mlp(linear: Linear, dialect: Dialect, value: str, block: str) -> str:
    hidden = linear.norm_linear(value, f"{block}.mlp_ln", f"{block}.mlp.0")
    return linear.gelu_linear_add(value, hidden, f"{block}.mlp.2", dialect.gelu)


def _linear(
    builder: GraphBuilder,
    tensors: Mapping[str, Tensor],
    types: Precision,
    stats: Mapping[str, ActivationStats] | None,
    bits: int | None,
) -> Linear:
    if bits is None:
        return Linear(builder, tensors, types)
    int8 = Int8Linear(builder, tensors, types, stats or {})
    low: Linear = int8
    high = Linear(builder, tensors, types)
    if bits == 4:
        low, high = Int4Linear(builder, tensors, types), int8
    return MixedLinear(low, high, types.kept) if types.kept else low


def build_encoder(
    dims: ModelDims,
    tensors: Mapping[str, Tensor],
    dialect: Dialect,
    types: Precision = FP32,
    stats: Mapping[str, ActivationStats] | None = None,
    *,
    packed: bool = False,
) -> tuple[OnnxGraph, list[str]]:
    """The encoder, with the cross-attention keys and values of every decoder layer as outputs.

    Args:
        dims: model dimensions.
        tensors: checkpoint tensors by canonical name
            (:func:`~whisper_opt.export.checkpoints.expected_shapes`).
        dialect: operator family.
        types: the type of every value.
        stats: statistics of the inputs of the products, if their weights are integers.
        packed: whether keys and values have the layout of the kernels.

    Returns:
        The graph, and the names of the residual stream between layers, at which the graph can be
        partitioned.
    """
    builder = GraphBuilder("whisper_encoder")
    encoder_bits = None if types.bits is None else 8
    linear = _linear(builder, tensors, types, stats, encoder_bits)
    mel = builder.input("mel", _FLOAT, ["n_audio", dims.n_mels, "n_frames"])
    padding = CompressedPositions(builder, dims.n_audio_ctx) if types.compresses_padding else None
    value, cuts = _stem(builder, linear, dialect, dims, mel), []
    builder.scope("encoder.positional_embedding")
    table = linear.vector("encoder.positional_embedding", types.residual)
    if padding is None:
        sizes = builder.constant([0]), builder.dim(value, 1), builder.constant([0])
        value = builder.node("Add", builder.node("Slice", table, *sizes), value)
    else:
        value = padding.all_positions(value, table)
    for i in range(dims.n_audio_layer):
        block = f"encoder.blocks.{i}"
        builder.scope(block)
        cuts.append(value)
        qkv = linear.norm_qkv(value, f"{block}.attn_ln", f"{block}.attn")
        if padding is None:
            mixed = dialect.encoder_attention(builder, qkv, dims.n_audio_head, types)
        else:
            mixed = padding.attention(qkv, dims.n_audio_head, first=i == 0)
            value = padding.select(value) if i == 0 else value
        value = linear.linear_add(value, mixed, f"{block}.attn.out")
        value = _mlp(linear, dialect, value, block)
    builder.scope("encoder.ln_post")
    cuts.append(value)
    value = linear.inputs(value, "encoder.ln_post")
    cross = PackedCrossKV if packed else PlainCrossKV
    cross(builder, linear, dims).outputs(value, padding)
    return builder.finish(dialect.opset, dialect.ir_version), cuts


def _stem(
    builder: GraphBuilder, linear: Linear, dialect: Dialect, dims: ModelDims, mel: str
) -> str:
    """The convolutions: [A, n_mels, F] -> [A, F / 2, n_audio_state]."""
    types = linear.types
    if types.bits is not None and dims.n_mels % convolutions.CHANNELS == 0:
        return convolutions.stem(builder, linear, mel, dims.frames_per_position)
    value = builder.cast(mel, np.float32, types.compute)
    for conv, stride in (("encoder.conv1", 1), ("encoder.conv2", dims.frames_per_position)):
        builder.scope(conv)
        weights = (linear.vector(f"{conv}.weight"), linear.vector(f"{conv}.bias"))
        value = builder.node(
            "Conv", value, *weights, kernel_shape=[3], pads=[1, 1], strides=[stride]
        )
        if conv == "encoder.conv2":  # the residual stream begins here
            value = builder.cast(value, types.compute, types.residual)
        value = dialect.gelu(builder, value)
    return builder.transpose(value, [0, 2, 1])


def _group_by_audio(builder: GraphBuilder, value: str, n_audio: str, n_state: int) -> str:
    """[A * G, S, n_state] -> [A, G * S, n_state], as hypotheses share the keys of their audio."""
    shape = builder.node(
        "Concat", n_audio, builder.constant([-1]), builder.constant([n_state]), axis=0
    )
    return builder.node("Reshape", value, shape)


def build_decoder(
    dims: ModelDims,
    tensors: Mapping[str, Tensor],
    dialect: Dialect,
    alignment_heads: Sequence[tuple[int, int]] | None = None,
    types: Precision = FP32,
    stats: Mapping[str, ActivationStats] | None = None,
    *,
    packed: bool = False,
) -> tuple[OnnxGraph, list[str]]:
    """The decoder over a fixed-capacity cache; one graph for prefill (S > 1) and steps (S = 1).

    Arguments and return value as :func:`build_encoder`; ``alignment_heads`` are (layer, head) pairs
    in the order of layers (default: :attr:`ModelDims.default_alignment_heads`).
    """
    builder = GraphBuilder("whisper_decoder")
    linear = _linear(builder, tensors, types, stats, types.bits)
    alignment_heads = alignment_heads or dims.default_alignment_heads
    cross = (PackedCrossKV if packed else PlainCrossKV)(builder, linear, dims)
    own = self_attention(dims.n_text_head) if packed else None
    layers = _DecoderLayers(builder, linear, dialect, dims, alignment_heads, cross, own)
    inputs = layers.inputs
    value = embed(builder, inputs.tokens, tensors, types.head)
    table = linear.vector("decoder.positional_embedding", types.residual)
    value = _add(builder, linear, builder.node("Gather", table, inputs.positions), value)
    cuts = []
    for i in range(dims.n_text_layer):
        cuts.append(value)
        value = layers.layer(value, i)
    builder.scope("decoder.ln")
    cuts.append(value)
    hidden = _head_input(builder, linear, inputs, value)
    if dialect.two_stage_head and types.compute == np.float32 and types.bits is None:
        two_stage_head(builder, hidden, dims, tensors, types)
    else:
        logits = exact_head(builder, hidden, dims, tensors, types.head)
        builder.output(logits, "logits", _FLOAT, ["n_seq", "n_at", dims.n_vocab])
    layers.outputs()
    return builder.finish(dialect.opset, dialect.ir_version), cuts


class _DecoderLayers:
    """The layers of one decoder and their shared values."""

    def __init__(
        self,
        builder: GraphBuilder,
        linear: Linear,
        dialect: Dialect,
        dims: ModelDims,
        alignment_heads: Sequence[tuple[int, int]],
        cross: CrossKV,
        own: Operator | None,
    ) -> None:
        """Declare the inputs; ``own``: the operator of self-attention, if it has a kernel."""
        self._builder, self._linear, self._dialect, self._dims = builder, linear, dialect, dims
        self._alignment_heads = alignment_heads
        self.inputs = DecoderInputs(builder, dims)
        self._own_attention = own
        if own is None:
            dialect.begin_decoder(builder, self.inputs)
        self._aligned = builder.input("aligned", _INT64, ["n_aligned"])
        self._own: list[int | str] = ["n_seq", dims.n_text_head, "capacity", HEAD_DIM]
        self._caches = [
            (self._cache(f"self_k_{i}"), self._cache(f"self_v_{i}"))
            for i in range(dims.n_text_layer)
        ]
        self._cross = cross
        self._n_audio = cross.inputs()
        shape = builder.node("Shape", self.inputs.tokens)
        self._row_shape = builder.node(
            "Concat", shape, builder.constant([dims.n_text_state]), axis=0
        )
        self._updated: list[Sequence[str]] = []
        self._scores: dict[int, tuple[int, str]] = {}

    def _cache(self, name: str) -> str:
        return self._builder.input(name, self._linear.types.kv, self._own)

    def layer(self, value: str, i: int) -> str:
        """The residual stream after layer ``i``."""
        builder, linear, dims = self._builder, self._linear, self._dims
        block = f"decoder.blocks.{i}"
        builder.scope(block)
        qkv = linear.norm_qkv(value, f"{block}.attn_ln", f"{block}.attn")
        own, n_head = self._own_attention, dims.n_text_head
        if own is not None:
            given = [qkv, *self._caches[i], self.inputs.start]
            mixed, *cache = own.nodes(builder, given, 3, num_heads=n_head)
        else:
            mixed, *cache = self._dialect.self_attention(
                builder, qkv, self._caches[i], n_head, linear.types
            )
        self._updated.append(cache)
        value = linear.linear_add(value, mixed, f"{block}.attn.out")
        query = linear.norm_linear(value, f"{block}.cross_attn_ln", f"{block}.cross_attn.query")
        query = _group_by_audio(builder, query, self._n_audio, dims.n_text_state)
        heads = [head for layer, head in self._alignment_heads if layer == i]
        mixed, scores = self._cross.attend(i, query, heads, self._aligned)
        if scores is not None:
            self._scores[i] = len(heads), scores
        mixed = builder.node("Reshape", mixed, self._row_shape)
        value = linear.linear_add(value, mixed, f"{block}.cross_attn.out")
        return _mlp(linear, self._dialect, value, block)

    def outputs(self) -> None:
        """Declare the caches and the alignment scores as outputs."""
        builder, kv = self._builder, self._linear.types.kv
        for i, (heads, scores) in self._scores.items():
            shape: list[int | str] = ["n_audio", heads, "n_aligned", "n_ctx"]
            builder.output(scores, f"attention_{i}", _FLOAT, shape)
        for i, (key, value) in enumerate(self._updated):
            builder.output(key, f"self_k_{i}_out", kv, self._own)
            builder.output(value, f"self_v_{i}_out", kv, self._own)


def _head_input(builder: GraphBuilder, linear: Linear, inputs: DecoderInputs, value: str) -> str:
    """Inputs of the output head, f32 [N, P, n_text_state], at the requested positions."""
    index = builder.node("Unsqueeze", inputs.at, builder.constant([2]))
    requested = builder.node("GatherND", value, index, batch_dims=1)
    return linear.normalized(requested, "decoder.ln")
