"""Padding compression: which positions of a window's padding an encoder must compute.

A window that is not full ends in padding. Padding contains no speech but cannot be left out, since
Whisper gives much of its attention to some padding positions, whatever the audio: base to thirty of
them, tiny.en to its last twenty-five. So padding is divided into parts, each represented by one
position with the weight of all (token merging). Parts with much attention are short.
:mod:`whisper_opt.runtime.padding` applies the parts; docs/quantization.md has the measurements.
"""

from __future__ import annotations

import numpy as np

from whisper_opt.audio.features import log_mel
from whisper_opt.core.arrays import F32, NDArray
from whisper_opt.core.dims import HOP_LENGTH, SAMPLE_RATE
from whisper_opt.export.checkpoints.checkpoint import Checkpoint
from whisper_opt.export.verification.reference import Reference
from whisper_opt.export.verification.synthetic_audio import sample_times, synthetic_voice

__all__ = ["padding_parts", "parts_by_attention"]

_SECONDS = 1
"""Length of the audio in the window; the rest is padding."""
_TOKENS = 24
_MAX_LENGTH = 12
"""Largest number of positions per part."""
_MEAN_LENGTH = 7
"""Average number of positions per part."""
_EXPONENT = 0.75
"""How much a part's length depends on its attention: 0 not at all, 1 fully."""
_ENCODER_WEIGHT = 0.3
"""Weight of attention in the encoder; that of the decoder has weight 1."""


class _AttentionReference(Reference):
    """The model, which sums its attention per position.

    Attributes:
        encoder: float64 [n_ctx], attention from the positions of audio, over all layers.
        decoder: float64 [n_ctx], cross-attention from the tokens.
    """

    def __init__(self, checkpoint: Checkpoint, n_audio: int) -> None:
        super().__init__(checkpoint)
        self._n_audio = n_audio
        n_ctx = checkpoint.dims.n_audio_ctx
        self.encoder, self.decoder = np.zeros(n_ctx), np.zeros(n_ctx)

    def _record_attention(self, weights: F32, *, causal: bool) -> None:
        n_ctx = len(self.encoder)
        if causal or weights.shape[1] != n_ctx:
            return
        if len(weights) == n_ctx:
            self.encoder += weights[: self._n_audio].sum(axis=0, dtype=np.float64)
        else:
            self.decoder += weights.sum(axis=0, dtype=np.float64)


def padding_parts(checkpoint: Checkpoint) -> tuple[int, ...]:
    """Lengths of the parts of a window's positions, for those that are padding.

    They add up to ``n_audio_ctx``. Attention is measured on one second of synthetic audio.
    """
    dims = checkpoint.dims
    n_audio = _SECONDS * SAMPLE_RATE // HOP_LENGTH // dims.frames_per_position
    audio = synthetic_voice(sample_times(_SECONDS * SAMPLE_RATE), pitch=120.0, pace=3.0)
    mel = np.zeros((dims.n_mels, dims.n_audio_ctx * dims.frames_per_position), np.float32)
    frames = log_mel(audio, dims.n_mels).head()[:, : _SECONDS * SAMPLE_RATE // HOP_LENGTH]
    mel[:, : frames.shape[1]] = frames[:, : mel.shape[1]]
    tokens = np.random.default_rng(1).integers(0, dims.n_vocab, min(_TOKENS, dims.n_text_ctx))
    model = _AttentionReference(checkpoint, n_audio)
    model.decode(model.encode(mel), [tokens.astype(np.int64)])
    return parts_by_attention(
        _density(model.encoder, n_audio) * _ENCODER_WEIGHT + _density(model.decoder, n_audio)
    )


def _density(attention: NDArray, n_audio: int) -> NDArray:
    """Attention to padding as a density.

    Attention right after the audio moves with the end of the audio, and the runtime always encodes
    those positions. So they, and the positions of the audio, get the mean of the positions after
    them.
    """
    density, near = attention.copy(), min(3 * n_audio, len(attention) // 2)
    density[:near] = attention[near : 2 * near].mean()
    return np.asarray(density / density.mean())


def parts_by_attention(density: NDArray) -> tuple[int, ...]:
    """Divide positions into parts of about the same attention.

    Args:
        density: float64 [n_ctx], not negative, mean above zero.
    """
    weights = np.maximum(density, 1e-9) ** _EXPONENT
    weights /= weights.mean()
    n_parts = max(1, len(weights) // _MEAN_LENGTH)
    low, high = 0.0, float(weights.sum())
    for _ in range(50):  # the least weight per part that gives at most n_parts
        middle = (low + high) / 2
        if len(_cut(weights, middle)) > n_parts:
            low = middle
        else:
            high = middle
    return tuple(_cut(weights, high))


def _cut(weights: NDArray, max_weight: float) -> list[int]:
    """Parts of at most ``max_weight`` each."""
    parts: list[int] = []
    length, total = 0, 0.0
    for weight in weights.tolist():
        if length and (total + weight > max_weight or length >= _MAX_LENGTH):
            parts.append(length)
            length, total = 0, 0.0
        length, total = length + 1, total + weight
    return [*parts, length]
