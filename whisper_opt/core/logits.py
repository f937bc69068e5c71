"""Choice of the next tokens: the numpy specification for every backend.

The order is that of openai-whisper (whisper/decoding.py):

1. The repetition penalty is applied (the reference has no such option).
2. Banned tokens are removed.
3. For rows under the timestamp rules, text tokens are removed if the probability of all timestamps
   together is greater than that of every single text token.
4. Log-softmax over the remaining tokens.
5. The k best tokens; ties go to the lowest id.
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
    """Natural-log probabilities over the last axis, float32 as ``scores``; -inf stays -inf."""
    shifted = scores - scores.max(axis=-1, keepdims=True)
    total = np.exp(shifted).sum(axis=-1, keepdims=True, dtype=np.float32)
    result: F32 = shifted - np.log(total)
    return result


def log_sum_exp(scores: F32, scratch: F32 | None = None) -> float:
    """Natural logarithm of the sum of exponentials; -inf if all scores are -inf.

    ``scratch``: float32 buffer of at least the same length, overwritten; avoids an allocation.
    """
    peak = float(scores.max())
    if peak == -np.inf:
        return peak
    shifted = np.subtract(
        scores, np.float32(peak), out=None if scratch is None else scratch[: len(scores)]
    )
    np.exp(shifted, out=shifted)
    return peak + float(np.log(np.einsum("t->", shifted)))  # a third of the time of a sum


def _allowed(
    scores: F32, begin: int, end: int | None = None, scratch: F32 | None = None
) -> tuple[F32, int, float]:
    """Allowed tokens of one row: scores (-inf if banned), first id, log of the sum of exp."""
    if begin < len(scores):
        timestamps = log_sum_exp(scores[begin:end], scratch)
        text = float(scores[:begin].max())
        if end is not None:
            text = max(text, float(scores[end:].max(initial=-np.inf)))
        if timestamps > text:
            return scores[begin:end], begin, timestamps
    # finite even if every token is banned: log-probabilities are then -inf and not NaN
    return scores, 0, max(log_sum_exp(scores, scratch), float(np.finfo(np.float32).min))


def top_row(
    scores: F32, begin: int, k: int, scratch: F32 | None = None, end: int | None = None
) -> tuple[list[int], list[float]]:
    """The k best ids of one row and their log-probabilities.

    Args:
        scores: float32 [n_vocab], -inf for banned tokens; overwritten.
        begin: id of ``<|0.00|>`` under the timestamp rules, else n_vocab.
        k: number of tokens.
        scratch: float32 buffer [n_vocab], overwritten; avoids an allocation.
        end: id after the last timestamp; None if the timestamps are the last ids.
    """
    candidates, first, normalizer = _allowed(scores, begin, end, scratch)
    best: list[int] = []
    logprobs: list[float] = []
    while len(best) < k:  # faster than a partition for small k
        token = int(candidates.argmax())
        score = candidates[token]
        if score == -np.inf:  # no allowed token is left
            others = (i for i in range(len(candidates)) if i not in best)
            best.extend(itertools.islice(others, k - len(best)))
            logprobs.extend([-np.inf] * (k - len(logprobs)))
            break
        best.append(token)
        logprobs.append(float(score - np.float32(normalizer)))
        candidates[token] = -np.inf
    return [token + first for token in best], logprobs


def penalized(scores: F32, mask: TokenMask) -> F32:
    """Scores [n_seq, n_vocab] after the repetition penalty; the same array if there is none."""
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
        k: number of tokens, at most the number of timestamps and of text tokens.
        mask: banned tokens and timestamp rule of each row.

    Returns:
        Tokens and log-probabilities [n_seq, k], best first.
    """
    scores = penalized(scores, mask)
    # row by row, so that the buffers stay in the cache
    allowed, scratch = np.empty((2, scores.shape[1]), np.float32)
    rows = []
    for i in range(len(scores)):
        begin, end = mask.times(i)
        np.copyto(allowed, scores[i])
        mask.forbid(i, allowed)
        rows.append(top_row(allowed, begin, k, scratch, end))
    return Top(
        np.array([tokens for tokens, _ in rows], np.int64),
        np.array([logprobs for _, logprobs in rows], np.float32),
    )


class HostLogits:
    """Scores in host memory: :class:`whisper_opt.core.backend.Logits` with :func:`top_k`."""

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

    The allowed tokens are those of :func:`top_k`. Tokens are drawn from the softmax of the scores
    divided by ``temperature`` and returned with their log-probability at temperature 1.

    Args:
        scores: float32 [n_vocab] logits.
        ban: bool [n_vocab].
        timestamp_begin: id of ``<|0.00|>`` under the timestamp rules, else n_vocab.
        n: number of draws.
        temperature: greater than 0.
        generator: random generator.
        timestamp_end: id after the last timestamp; None if the timestamps are the last ids.

    Returns:
        Tokens int64 [n] and log-probabilities float32 [n].
    """
    allowed = np.where(ban, np.float32(-np.inf), scores)
    allowed, first, normalizer = _allowed(allowed, timestamp_begin, timestamp_end)
    scaled = allowed.astype(np.float64) / temperature
    if scaled.max() == -np.inf:  # every token is banned: all are equally likely
        scaled = np.zeros_like(scaled)
    weights = np.exp(scaled - scaled.max())
    edges = np.cumsum(weights)
    drawn = np.searchsorted(edges, generator.random(n) * edges[-1], side="right")
    tokens = np.minimum(drawn, len(edges) - 1).astype(np.int64)
    logprobs: F32 = (allowed[tokens] - np.float32(normalizer)).astype(np.float32)
    return tokens + first, logprobs
