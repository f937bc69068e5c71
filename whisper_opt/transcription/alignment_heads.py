"""Which heads of a model follow the sound: for models that do not say.

Word times need the few cross-attention heads that look at the sound of the next token. OpenAI lists
them for its own models only; a fine-tuned or distilled model may have lost or moved them. Here
every head is judged by itself: how much of its attention lies along the best monotonic path through
it. A head that follows speech keeps most of it there, one that does not next to nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from whisper_opt.core.arrays import F32
from whisper_opt.core.dims import N_FRAMES
from whisper_opt.transcription.alignment import CrossAttention, dtw, median_filter

__all__ = ["HeadScore", "rank_heads"]

_REACH = 10
"""Positions to either side of the path that count as on it (0.2 s)."""


@dataclasses.dataclass(frozen=True)
class HeadScore:
    """How well one head follows the sound.

    Attributes:
        layer: decoder layer.
        head: head of that layer.
        score: mean share of its attention within 0.2 s of its path, 0 to 1.
    """

    layer: int
    head: int
    score: float


def rank_heads(
    heads: Sequence[tuple[int, int]], heard: Iterable[tuple[CrossAttention, int]]
) -> list[HeadScore]:
    """Heads by how well they follow the sound, the best first.

    Args:
        heads: (layer, head) of each head in the attention.
        heard: attention of windows of speech, and the mel frames of sound in each.
    """
    total = np.zeros(len(heads))
    n_tokens = 0
    for attention, n_frames in heard:
        n_positions = max(1, n_frames * attention.scores.shape[-1] // N_FRAMES)
        n_text = len(attention.probs)
        rows = slice(attention.n_start, attention.n_start + n_text)
        shares = [_share_on_path(scores[rows, :n_positions]) for scores in attention.scores]
        total += np.array(shares) * n_text
        n_tokens += n_text
    means = total / max(n_tokens, 1)
    found = [HeadScore(*pair, float(mean)) for pair, mean in zip(heads, means)]
    return sorted(found, key=lambda head: -head.score)


def _share_on_path(scores: F32) -> float:
    """Mean attention near the best monotonic path through one head, float32 [n_text, n]."""
    if not len(scores):
        return 0.0
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    text, time = dtw(-median_filter(weights, 7))
    summed = np.cumsum(np.pad(weights, ((0, 0), (1, 0))), axis=1)
    first = np.maximum(time - _REACH, 0)
    last = np.minimum(time + _REACH + 1, weights.shape[1])
    near = summed[text, last] - summed[text, first]
    best = np.zeros(len(weights))
    np.maximum.at(best, text, near)  # a token stays on the path for a while: its best moment
    return float(best.mean())
