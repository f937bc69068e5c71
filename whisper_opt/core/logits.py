"""Choosing the best next tokens: the numpy specification of what every backend must compute.

Order, as in whisper/decoding.py of openai-whisper: scores of repeated tokens are penalized (an
option that the reference does not have); banned tokens leave; then, for rows under the
timestamp rules, if the probability of all timestamps together exceeds that of every single text
token, text leaves too; then log-softmax over what is left; then the k best (ties: lowest id).
"""

from __future__ import annotations

import itertools

import numpy as np

from whisper_opt.core.arrays import F32, Bool, Int
from whisper_opt.core.backend import TokenMask, Top

__all__ = [
    "HostLogits",
    "log_softmax",
    "log_sum_exp",
    "penalized",
    "sample",
    "top_k",
    "top_row",
]


def log_softmax(scores: F32) -> F32:
    """Natural-log probabilities over the last axis, float32 like ``scores``; -inf stays -inf."""
    shifted = scores - scores.max(axis=-1, keepdims=True)
    total = np.exp(shifted).sum(axis=-1, keepdims=True, dtype=np.float32)
    result: F32 = shifted - np.log(total)
    return result


def log_sum_exp(scores: F32, room: F32 | None = None) -> float:
    """Natural logarithm of the summed exponentials; -inf of nothing but -inf.

    ``room``: at least as many float32, overwritten; saves taking memory.
    """
    peak = float(scores.max())
    if peak == -np.inf:
        return peak
    shifted = np.subtract(
        scores, np.float32(peak), out=None if room is None else room[: len(scores)]
    )
    np.exp(shifted, out=shifted)
    return peak + float(np.log(np.einsum("t->", shifted)))  # a third of the time of a sum


def _allowed(
    scores: F32, begin: int, end: int | None = None, room: F32 | None = None
) -> tuple[F32, int, float]:
    """What one row may choose from: scores (-inf where banned), first id, log of their sum."""
    if begin < len(scores):
        timestamps = log_sum_exp(scores[begin:end], room)
        text = float(scores[:begin].max())
        if end is not None:
            text = max(text, float(scores[end:].max(initial=-np.inf)))
        if timestamps > text:
            return scores[begin:end], begin, timestamps
    # with every token banned nothing is likely: -inf, not -inf minus -inf
    return scores, 0, max(log_sum_exp(scores, room), float(np.finfo(np.float32).min))


def top_row(
    scores: F32, begin: int, k: int, room: F32 | None = None, end: int | None = None
) -> tuple[list[int], list[float]]:
    """The k best ids of one row and their log-probabilities.

    Args:
        scores: float32 [n_vocab], -inf where banned; overwritten.
        begin: id of ``<|0.00|>`` under the timestamp rules, else n_vocab.
        k: how many.
        room: float32 [n_vocab], overwritten; saves taking memory.
        end: the id after the last timestamp; default: they are the last ids.
    """
    candidates, first, normalizer = _allowed(scores, begin, end, room)
    best: list[int] = []
    logprobs: list[float] = []
    while len(best) < k:  # a few maxima cost less than one partition
        token = int(candidates.argmax())
        score = candidates[token]
        if score == -np.inf:  # nothing allowed is left
            others = (i for i in range(len(candidates)) if i not in best)
            best.extend(itertools.islice(others, k - len(best)))
            logprobs.extend([-np.inf] * (k - len(logprobs)))
            break
        best.append(token)
        logprobs.append(float(score - np.float32(normalizer)))
        candidates[token] = -np.inf
    return [token + first for token in best], logprobs


def penalized(scores: F32, mask: TokenMask) -> F32:
    """Scores [n_seq, n_vocab] after the repetition penalty of ``mask``; the same array without."""
    if mask.seen is None or mask.penalty is None:
        return scores
    penalty = mask.penalty[:, None]
    lowered = np.where(scores > 0, scores / penalty, scores * penalty)
    result: F32 = np.where(mask.seen, lowered, scores)
    return result


def top_k(scores: F32, k: int, mask: TokenMask) -> Top:
    """The k best allowed tokens of each row.

    Args:
        scores: float32 [n_seq, n_vocab] logits.
        k: how many, at most the number of timestamps and of text tokens.
        mask: bans and timestamp rule, a row each.

    Returns:
        Tokens and log-probabilities [n_seq, k], best first.
    """
    scores = penalized(scores, mask)
    # one row at a time, which stays in a core's own memory
    allowed, room = np.empty((2, scores.shape[1]), np.float32)
    rows = []
    for i in range(len(scores)):
        begin, end = mask.times(i)
        np.copyto(allowed, scores[i])
        mask.forbid(i, allowed)
        rows.append(top_row(allowed, begin, k, room, end))
    return Top(
        np.array([tokens for tokens, _ in rows], np.int64),
        np.array([logprobs for _, logprobs in rows], np.float32),
    )


class HostLogits:
    """Scores in host memory: :class:`whisper_opt.core.backend.Logits` by the specification itself."""

    def __init__(self, scores: F32) -> None:
        """``scores``: float32 [n_seq, n_at, n_vocab]."""
        self._scores = scores

    def top(self, k: int, mask: TokenMask) -> Top:
        return top_k(self._scores[:, -1], k, mask)

    def requested(self) -> F32:
        return self._scores[:, :-1]

    def numpy(self) -> F32:
        return self._scores


def sample(
    scores: F32,
    ban: Bool,
    timestamp_begin: int,
    n: int,
    temperature: float,
    generator: np.random.Generator,
    timestamp_end: int | None = None,
) -> tuple[Int, F32]:
    """Independent draws of one row's next token.

    The allowed tokens are those of :func:`top_k`; a token is drawn with the probability that the
    scores divided by ``temperature`` give it, and reported with its log-probability at 1.

    Args:
        scores: float32 [n_vocab] logits.
        ban: bool [n_vocab].
        timestamp_begin: id of ``<|0.00|>`` under the timestamp rules, else n_vocab.
        n: how many draws.
        temperature: above 0.
        generator: source of the draws.
        timestamp_end: the id after the last timestamp; default: they are the last ids.

    Returns:
        Tokens int64 [n] and log-probabilities float32 [n].
    """
    allowed = np.where(ban, np.float32(-np.inf), scores)
    allowed, first, normalizer = _allowed(allowed, timestamp_begin, timestamp_end)
    scaled = allowed.astype(np.float64) / temperature
    if scaled.max() == -np.inf:  # every token is banned: none is better than another
        scaled = np.zeros_like(scaled)
    weights = np.exp(scaled - scaled.max())
    edges = np.cumsum(weights)
    drawn = np.searchsorted(edges, generator.random(n) * edges[-1], side="right")
    tokens = np.minimum(drawn, len(edges) - 1).astype(np.int64)
    logprobs: F32 = (allowed[tokens] - np.float32(normalizer)).astype(np.float32)
    return tokens + first, logprobs
