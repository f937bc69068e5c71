"""Ranking of alignment heads, for models whose alignment heads are not known.

Word times need the few cross-attention heads that attend to the audio of the next token. OpenAI
lists them for its own models only; in fine-tuned and distilled models they may differ. The score of
a head is the share of its attention along the best monotonic path through it: most of it for an
alignment head, almost none for others.
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
"""Distance in positions that still counts as on the path (0.2 s)."""


@dataclasses.dataclass(frozen=True)
class HeadScore:
    """Alignment score of one head.

    Attributes:
        layer: decoder layer.
        head: index of the head in that layer.
        score: mean share of its attention within 0.2 s of the path, 0 to 1.
    """

    layer: int
    head: int
    score: float


def rank_heads(
    heads: Sequence[tuple[int, int]], attentions: Iterable[tuple[CrossAttention, int]]
) -> list[HeadScore]:
    """Heads by their alignment score, the best first.

    Args:
        heads: (layer, head) of each head in the attention.
        attentions: cross-attention of windows with speech, and their mel frames of audio.
    """
    total = np.zeros(len(heads))
    n_tokens = 0
    for attention, n_frames in attentions:
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
    np.maximum.at(best, text, near)  # a token has several cells on the path: the best one
    return float(best.mean())
