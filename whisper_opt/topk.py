"""Choosing the best next tokens: the numpy specification of what every backend must compute.

Order, as in whisper/decoding.py of openai-whisper: banned tokens leave; then, for rows under the
timestamp rules, if the probability of all timestamps together exceeds that of every single text
token, text leaves too; then log-softmax over what is left; then the k best (ties: lowest id).
"""

from __future__ import annotations

import numpy as np

from whisper_opt.arrays import F32, Bool
from whisper_opt.protocol import TokenMask, Top

__all__ = ["HostLogits", "log_softmax", "top_k"]


def log_softmax(scores: F32) -> F32:
    """Natural-log probabilities over the last axis, float32 like ``scores``; -inf stays -inf."""
    shifted = scores - scores.max(axis=-1, keepdims=True)
    total = np.exp(shifted).sum(axis=-1, keepdims=True, dtype=np.float32)
    result: F32 = shifted - np.log(total)
    return result


def _log_sum_exp(scores: F32) -> float:
    peak = float(scores.max())
    if peak == -np.inf:
        return peak
    return peak + float(np.log(np.exp(scores - np.float32(peak)).sum(dtype=np.float32)))


def _top_row(scores: F32, ban: Bool, begin: int, k: int) -> tuple[list[int], list[float]]:
    allowed = np.where(ban, np.float32(-np.inf), scores)
    first = 0
    normalizer = None
    if begin < len(allowed):
        timestamps = _log_sum_exp(allowed[begin:])
        if timestamps > float(allowed[:begin].max()):
            first, normalizer = begin, timestamps
    candidates = allowed[first:]
    if normalizer is None:
        normalizer = _log_sum_exp(candidates)
    if k == 1:
        best = np.array([int(candidates.argmax())])
    else:
        # a stable order among equals needs every token that reaches the k-th best score
        floor = np.partition(candidates, len(candidates) - k)[len(candidates) - k]
        reach = np.flatnonzero(candidates >= floor)
        best = reach[np.argsort(-candidates[reach], kind="stable")][:k]
    # with every token banned nothing is likely: -inf, not -inf minus -inf
    logprobs = candidates[best] - np.float32(max(normalizer, np.finfo(np.float32).min))
    return (best + first).tolist(), logprobs.tolist()


def top_k(scores: F32, k: int, mask: TokenMask) -> Top:
    """The k best allowed tokens of each row.

    Args:
        scores: float32 [n_seq, n_vocab] logits.
        k: how many, at most the number of timestamps and of text tokens.
        mask: bans and timestamp rule, a row each.

    Returns:
        Tokens and log-probabilities [n_seq, k], best first.
    """
    rows = [
        _top_row(row, ban, int(begin), k)
        for row, ban, begin in zip(scores, mask.ban, mask.timestamp_begin)
    ]
    return Top(
        np.array([tokens for tokens, _ in rows], np.int64),
        np.array([logprobs for _, logprobs in rows], np.float32),
    )


class HostLogits:
    """Scores in host memory: :class:`whisper_opt.protocol.Logits` by the specification itself."""

    def __init__(self, scores: F32) -> None:
        """``scores``: float32 [n_seq, n_at, n_vocab]."""
        self._scores = scores

    def top(self, k: int, mask: TokenMask) -> Top:
        return top_k(self._scores[:, -1], k, mask)

    def numpy(self) -> F32:
        return self._scores
