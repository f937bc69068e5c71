"""Which positions of a window's padding a model listens to.

A window that is not full ends in padding, which says nothing and yet cannot be left out: Whisper
rests its attention on some of its positions, the same ones whatever the sound. Base rests most of
it on thirty, tiny.en on its last twenty-five. So padding can be heard by parts: every part by one
position, which counts for all of them; parts are short where much attention rests.
:mod:`whisper_opt.runtime.padding` is the runtime's side, docs/quantization.md has the figures.
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
"""Sound in the window that is listened to; the rest is padding."""
_TOKENS = 24
_LONGEST = 12
"""Positions that one may stand for at most."""
_SHARE = 7
"""One part for so many positions of the window, on average."""
_EVENNESS = 0.75
"""How much a part's length hangs on the attention it gets: 0 not at all, 1 wholly."""
_ENCODER = 0.3
"""What attention in the encoder counts, where that of the decoder counts 1."""


class _AttentionReference(Reference):
    """The model, which notes where attention rests.

    Attributes:
        encoder: float64 [n_ctx], attention of the positions that hold sound, over all layers.
        decoder: float64 [n_ctx], cross-attention of the tokens.
    """

    def __init__(self, checkpoint: Checkpoint, n_sound: int) -> None:
        super().__init__(checkpoint)
        self._n_sound = n_sound
        n_ctx = checkpoint.dims.n_audio_ctx
        self.encoder, self.decoder = np.zeros(n_ctx), np.zeros(n_ctx)

    def _record_attention(self, weights: F32, *, causal: bool) -> None:
        n_ctx = len(self.encoder)
        if causal or weights.shape[1] != n_ctx:
            return
        if len(weights) == n_ctx:
            self.encoder += weights[: self._n_sound].sum(axis=0, dtype=np.float64)
        else:
            self.decoder += weights.sum(axis=0, dtype=np.float64)


def padding_parts(checkpoint: Checkpoint) -> tuple[int, ...]:
    """Lengths of the parts in which the positions of a window are heard where they are padding.

    They add up to ``n_audio_ctx``. One second of a made-up voice is listened to.
    """
    dims = checkpoint.dims
    n_sound = _SECONDS * SAMPLE_RATE // HOP_LENGTH // dims.frames_per_position
    sound = synthetic_voice(sample_times(_SECONDS * SAMPLE_RATE), pitch=120.0, pace=3.0)
    mel = np.zeros((dims.n_mels, dims.n_audio_ctx * dims.frames_per_position), np.float32)
    heard = log_mel(sound, dims.n_mels).head()[:, : _SECONDS * SAMPLE_RATE // HOP_LENGTH]
    mel[:, : heard.shape[1]] = heard[:, : mel.shape[1]]
    tokens = np.random.default_rng(1).integers(0, dims.n_vocab, min(_TOKENS, dims.n_text_ctx))
    model = _AttentionReference(checkpoint, n_sound)
    model.decode(model.encode(mel), [tokens.astype(np.int64)])
    return parts_by_attention(
        _density(model.encoder, n_sound) * _ENCODER + _density(model.decoder, n_sound)
    )


def _density(attention: NDArray, n_sound: int) -> NDArray:
    """Attention to padding as a density.

    What rests right behind the sound rests there wherever that is: those positions are always
    heard, and here, as where the sound was, stands what comes after them.
    """
    density, near = attention.copy(), min(3 * n_sound, len(attention) // 2)
    density[:near] = attention[near : 2 * near].mean()
    return np.asarray(density / density.mean())


def parts_by_attention(density: NDArray) -> tuple[int, ...]:
    """Cut positions into parts on which about the same attention rests.

    Args:
        density: float64 [n_ctx], not negative, mean above zero.
    """
    weights = np.maximum(density, 1e-9) ** _EVENNESS
    weights /= weights.mean()
    n_parts = max(1, len(weights) // _SHARE)
    low, high = 0.0, float(weights.sum())
    for _ in range(50):  # the least share of a part that makes few enough
        middle = (low + high) / 2
        if len(_cut(weights, middle)) > n_parts:
            low = middle
        else:
            high = middle
    return tuple(_cut(weights, high))


def _cut(weights: NDArray, most: float) -> list[int]:
    parts: list[int] = []
    length, total = 0, 0.0
    for weight in weights.tolist():
        if length and (total + weight > most or length >= _LONGEST):
            parts.append(length)
            length, total = 0, 0.0
        length, total = length + 1, total + weight
    return [*parts, length]
