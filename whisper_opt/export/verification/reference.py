"""A plain numpy forward pass of Whisper, the reference of exported graphs.

Written from the paper's architecture (arXiv:2212.04356) and the layer order of openai-whisper's
whisper/model.py. It shares no code with the graph builder, and has no cache and no batches.
Everything is float32. Weights are read layer by layer and dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Callable, cast

import numpy as np

from whisper_opt.core.arrays import F32, Int
from whisper_opt.core.dims import HEAD_DIM
from whisper_opt.export.checkpoints.checkpoint import EMBEDDING, OUTPUT_HEAD, Checkpoint

__all__ = ["Reference", "gelu", "layer_norm"]


_BLOCK = 1 << 16
"""Values of a GELU computed at a time, so that what lies between stays in the processor's cache."""


def _erf(x: F32) -> F32:
    """Error function after Abramowitz and Stegun 7.1.26 (absolute error below 1.5e-7)."""
    t = 1 / (1 + np.float32(0.3275911) * np.abs(x))
    poly = t * np.float32(1.061405429) - np.float32(1.453152027)
    for coefficient in (1.421413741, -0.284496736, 0.254829592):
        poly = poly * t + np.float32(coefficient)
    return cast(F32, np.sign(x) * (1 - poly * t * np.exp(-x * x)))


def gelu(x: F32) -> F32:
    """Exact Gaussian error linear unit."""
    found = np.empty_like(x)
    step = max(1, _BLOCK * len(x) // max(x.size, 1))
    for begin in range(0, len(x), step):
        rows = x[begin : begin + step]
        half = rows * np.float32(0.5)
        found[begin : begin + step] = half * (1 + _erf(rows * np.float32(0.5**0.5)))
    return found


def layer_norm(x: F32, weight: F32, bias: F32) -> F32:
    """Layer normalization over the last axis, epsilon 1e-5."""
    centered = x - x.mean(axis=-1, keepdims=True)
    variance = (centered * centered).mean(axis=-1, keepdims=True)
    return cast(F32, centered / np.sqrt(variance + np.float32(1e-5)) * weight + bias)


def _attend(
    query: F32,
    key: F32,
    value: F32,
    *,
    causal: bool,
    record: Callable[..., None],
    counts: Int | None = None,
) -> F32:
    """Scaled dot-product attention of [n, H, d] arrays -> [n_query, H * d], one head at a time.

    ``record`` is called with the weights [n_query, n_key] of every head and ``causal``. ``counts``:
    number of positions that each key represents.
    """
    n_query, n_head, width = query.shape
    mixed = np.empty((n_query, n_head * width), np.float32)
    future = np.triu(np.ones((n_query, len(key)), np.bool_), 1) if causal else None
    for head in range(n_head):
        scores = query[:, head] @ key[:, head].T
        scores *= np.float32(width**-0.5)
        if counts is not None:
            scores += np.log(counts).astype(np.float32)
        if future is not None:
            scores[future] = -np.inf
        scores -= scores.max(axis=-1, keepdims=True)
        np.exp(scores, out=scores)
        scores /= scores.sum(axis=-1, keepdims=True)
        record(scores, causal=causal)
        mixed[:, head * width : (head + 1) * width] = scores @ value[:, head]
    return mixed


class Reference:
    """The model of one checkpoint, one audio and one token sequence at a time."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        """Read nothing yet."""
        self._tensors = checkpoint.tensors
        self._dims = checkpoint.dims

    def _read(self, name: str) -> F32:
        return self._tensors[name].read()

    def _linear(self, x: F32, name: str, *, bias: bool = True) -> F32:
        product: F32 = x @ self._read(f"{name}.weight").T
        if bias:
            product += self._read(f"{name}.bias")
        return product

    def _embedding(self) -> F32:
        """[n_vocab, n_text_state]."""
        return self._read(EMBEDDING)

    def _output_head(self, embedding: F32) -> F32:
        """[n_vocab, n_text_state], the embedding in models without a separate head."""
        return self._read(OUTPUT_HEAD) if OUTPUT_HEAD in self._tensors else embedding

    def _norm(self, x: F32, name: str) -> F32:
        return layer_norm(x, self._read(f"{name}.weight"), self._read(f"{name}.bias"))

    def _heads(self, x: F32) -> F32:
        return x.reshape(len(x), -1, HEAD_DIM)

    def _self_attention(
        self, x: F32, name: str, *, causal: bool, at: Int | None = None, counts: Int | None = None
    ) -> F32:
        """``at``: positions of the queries (default: all)."""
        queries = x if at is None else x[at]
        query = self._heads(self._linear(queries, f"{name}.query"))
        key = self._heads(self._linear(x, f"{name}.key", bias=False))
        value = self._heads(self._linear(x, f"{name}.value"))
        mixed = _attend(
            query, key, value, causal=causal, record=self._record_attention, counts=counts
        )
        return self._linear(mixed, f"{name}.out")

    def _record_attention(self, weights: F32, *, causal: bool) -> None:
        """Called with the attention [n_query, n_key] of every head; subclasses may record it."""

    def _mlp(self, x: F32, block: str) -> F32:
        hidden = gelu(self._linear(self._norm(x, f"{block}.mlp_ln"), f"{block}.mlp.0"))
        return self._linear(hidden, f"{block}.mlp.2")

    def _conv(self, x: F32, name: str, stride: int) -> F32:
        """1-D convolution, kernel 3, padding 1: [n_in, n] -> [n_out, n / stride]."""
        weight = self._read(f"{name}.weight")
        padded = np.pad(x, ((0, 0), (1, 1)))
        taps = [padded[:, tap : tap + x.shape[1] : stride] for tap in range(3)]
        total = sum(weight[:, :, tap] @ values for tap, values in enumerate(taps))
        return cast(F32, total + self._read(f"{name}.bias")[:, None])

    def encode(self, mel: F32) -> F32:
        """Encoder output [n_ctx, n_audio_state] of one log-mel window [n_mels, n_frames]."""
        return self.encode_from(self.stem(mel), 0)

    def encode_compressed(self, mel: F32, positions: Int, counts: Int) -> F32:
        """Encoder output [n_encoded, n_audio_state] with padding compression.

        ``positions`` and ``counts`` are as of :mod:`whisper_opt.runtime.padding`; ``mel`` is a
        whole window [n_mels, n_frames].
        """
        x = self.layer(self.stem(mel), 0, at=positions)
        for i in range(1, self._dims.n_audio_layer):
            x = self.layer(x, i, counts=counts)
        return self._norm(x, "encoder.ln_post")

    def stem(self, mel: F32) -> F32:
        """Input of the first encoder layer [n_ctx, n_audio_state]."""
        x = gelu(self._conv(mel, "encoder.conv1", 1))
        x = gelu(self._conv(x, "encoder.conv2", self._dims.frames_per_position)).T
        return cast(F32, x + self._read("encoder.positional_embedding")[: len(x)])

    def encode_from(self, x: F32, first: int) -> F32:
        """Encoder output from ``x``, the input of layer ``first``."""
        for i in range(first, self._dims.n_audio_layer):
            x = self.layer(x, i)
        return self._norm(x, "encoder.ln_post")

    def layer(self, x: F32, i: int, *, at: Int | None = None, counts: Int | None = None) -> F32:
        """The residual stream [n_ctx, n_audio_state] after an encoder layer.

        ``at``: positions to continue with (default: all). ``counts``: number of positions that each
        represents.
        """
        block = f"encoder.blocks.{i}"
        mixed = self._self_attention(
            self._norm(x, f"{block}.attn_ln"), f"{block}.attn", causal=False, at=at, counts=counts
        )
        x = (x if at is None else x[at]) + mixed
        return cast(F32, x + self._mlp(x, block))

    def cross(self, audio: F32, layer: int) -> tuple[F32, F32]:
        """Cross-attention keys and values [n_ctx, H, 64] of one decoder layer."""
        name = f"decoder.blocks.{layer}.cross_attn"
        key = self._heads(self._linear(audio, f"{name}.key", bias=False))
        return key, self._heads(self._linear(audio, f"{name}.value"))

    def logits(self, audio: F32, sequences: list[Int]) -> list[F32]:
        """Teacher-forced next-token scores [len(tokens), n_vocab] of each token sequence.

        Args:
            audio: what :meth:`encode` returned.
            sequences: int64 [n] tokens each, from position 0.
        """
        return self.decode(audio, sequences)[0]

    def decode(
        self,
        audio: F32,
        sequences: list[Int],
        heads: Sequence[tuple[int, int]] = (),
        counts: Int | None = None,
    ) -> tuple[list[F32], list[F32]]:
        """Scores as :meth:`logits`, and cross-attention scores before the softmax.

        The latter are those of ``heads``, (layer, head) pairs in the order of layers:
        [len(heads), len(tokens), n_ctx] per sequence. ``counts``: number of positions that each
        position of the audio represents.
        """
        alignment: list[list[F32]] = [[] for _ in sequences]
        embedding = self._embedding()
        positions = self._read("decoder.positional_embedding")
        states = [embedding[tokens] + positions[: len(tokens)] for tokens in sequences]
        for i in range(self._dims.n_text_layer):
            block = f"decoder.blocks.{i}"
            key, value = self.cross(audio, i)
            for j, x in enumerate(states):
                x = x + self._self_attention(
                    self._norm(x, f"{block}.attn_ln"), f"{block}.attn", causal=True
                )
                normed = self._norm(x, f"{block}.cross_attn_ln")
                query = self._heads(self._linear(normed, f"{block}.cross_attn.query"))
                alignment[j].extend(
                    query[:, head] @ key[:, head].T * np.float32(HEAD_DIM**-0.5)
                    for layer, head in heads
                    if layer == i
                )
                mixed = _attend(
                    query, key, value, causal=False, record=self._record_attention, counts=counts
                )
                x = x + self._linear(mixed, f"{block}.cross_attn.out")
                states[j] = x + self._mlp(x, block)
        empty = np.zeros((0, 0, len(audio)), np.float32)
        head = self._output_head(embedding)
        return (
            [self._norm(x, "decoder.ln") @ head.T for x in states],
            [np.stack(scores) if scores else empty for scores in alignment],
        )
