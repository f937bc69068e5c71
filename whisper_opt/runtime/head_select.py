"""Token selection in two stages: candidates by approximate scores, then the best by exact scores.

:mod:`whisper_opt.runtime.head_bounds` explains the approximate scores and their bounds. Rows are
processed one by one with few passes, so that a row stays in the cache; the exact scores of all
rows are then computed together.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Callable, NamedTuple

import numpy as np

from whisper_opt.core.arrays import F32, Int
from whisper_opt.core.backend import TokenMask, Top
from whisper_opt.core.logits import log_sum_exp, top_k, top_row
from whisper_opt.runtime.head_bounds import HeadBounds, HeadInputs

__all__ = ["CandidateSelector", "Candidates", "TwoStageLogits"]

_DEPTH = 7.0
"""Scores within this distance of the best are also computed exactly, for the denominator of the
softmax. Scores below are a small part of it, and their errors cancel."""
_MAX_HEAVY = 2048
"""At most this many of them are computed exactly: each of the others is less than 1/2048 of the
sum, so the error of the sum is at most about 1/45 of that of an approximate score (0.02)."""
_FIRST_DEPTH = 10.0
"""As :data:`_DEPTH`, for the first search for the k best."""
_MAX_CANDIDATES = 4096
"""With more candidates than this, the whole head is computed instead."""
_SAFE = 60.0
"""Exponentials of scores up to this magnitude can be summed in fp32."""
_LEAST = float(np.finfo(np.float32).min)
"""Every score that is not masked is at least this."""


class Candidates(NamedTuple):
    """Candidates of one row, selected by approximate scores.

    Attributes:
        tokens: int64 [n] ids in ascending order, the k best among them.
        approximate: float32 [n], their approximate scores.
        total: sum of exp(score - level) over the approximate scores of all allowed tokens: of
            timestamps alone if they are more probable than all text.
        level: 0, or the largest score if exponentials would overflow otherwise.
    """

    tokens: Int
    approximate: F32
    total: float
    level: float


class _Pool(NamedTuple):
    """All tokens whose approximate scores are at least ``floor``.

    Attributes:
        floor: the threshold.
        tokens: int64 [n], ids in ascending order.
        approximate: float32 [n], their approximate scores.
        bounds: float32 [n], bounds of the errors of those scores.
    """

    floor: float
    tokens: Int
    approximate: F32
    bounds: F32


class CandidateSelector:
    """Selects the tokens whose exact scores can matter, one row at a time."""

    def __init__(self, head: HeadBounds, inputs: HeadInputs, k: int) -> None:
        """``k``: the number of requested tokens."""
        self._inputs = inputs
        self._k = k
        self._depth = _DEPTH if k == 1 else _FIRST_DEPTH
        self._scratch = head.scratch
        self.scores: F32 = head.scratch.padded[: len(head.error)]
        """Approximate scores of the current row, -inf if masked; set them before every call."""

    def __call__(self, row: int, begin: int, end: int | None = None) -> Candidates | None:
        """Select candidates by ``scores``.

        Args:
            row: index of the input of these scores.
            begin: id of ``<|0.00|>`` under the timestamp rules, else n_vocab.
            end: the id after the last timestamp; default: timestamps are the last ids.

        Returns:
            None if there are so many candidates that computing the whole row is faster, or if all
            tokens are masked.
        """
        maxima = self._scratch.folded.max(axis=0)
        peak = float(maxima.max())
        if peak == -np.inf:
            return None
        level = 0.0 if abs(peak) < _SAFE else peak
        find: Callable[[float], Int] = functools.partial(self._find, maxima)
        pool = self._pool(row, find, peak - self._depth)
        times, total, text = self.scores[begin:end], 0.0, True
        if len(times):
            total = self._sum(slice(begin, end), level)
            together = level + math.log(total) if total else log_sum_exp(times)
            text = not self._timestamps_win(row, slice(begin, end), pool, together)
        if not text:
            for part in _others(begin, end):
                self.scores[part] = -np.inf
            peak = float(times.max())
            find = functools.partial(_above, times, first=begin)
            pool = self._pool(row, find, peak - self._depth)
        tokens = self._candidates(row, peak, pool, find)
        if tokens is None:
            return None
        if text:
            for part in _others(begin, end):
                total += self._sum(part, level)
        return Candidates(tokens, self.scores[tokens], total, level)

    def _sum(self, part: slice, level: float) -> float:
        """Sum of exp(score - level) over some tokens."""
        scores, exps = self.scores[part], self._scratch.exps[part]
        if level:
            scores = np.subtract(scores, np.float32(level), out=exps)
        np.exp(scores, out=exps)
        return float(np.einsum("t->", exps))  # twice as fast as a sum

    def _find(self, maxima: F32, floor: float) -> Int:
        """Ids of all scores of at least ``floor`` in ascending order, found with the maxima."""
        ids: Int = (self._scratch.lines + np.flatnonzero(maxima >= floor)).reshape(-1)
        found: Int = ids[self._scratch.padded.take(ids) >= floor]
        return found

    def _pool(self, row: int, find: Callable[[float], Int], floor: float) -> _Pool:
        tokens = find(floor)
        return _Pool(floor, tokens, self.scores[tokens], self._inputs.bounds(row, tokens))

    def _candidates(
        self, row: int, peak: float, pool: _Pool, find: Callable[[float], Int]
    ) -> Int | None:
        """Ids of tokens that can be among the k best, and of the largest terms of the sum.

        Args:
            row: index of the input.
            peak: the largest score.
            pool: the first candidates.
            find: returns the ids of all scores of at least its argument.
        """
        if len(pool.tokens) < self._k:
            pool = self._pool(row, find, _LEAST)
        # tokens that cannot reach it are not among the k best
        least = _kth(pool.approximate - pool.bounds, self._k)
        reach = least - float(self._inputs.inlier_bound[row])
        if reach < pool.floor:
            pool = self._pool(row, find, reach)
        tokens = pool.tokens[
            (pool.approximate + pool.bounds >= least)
            | (pool.approximate >= _heavy(pool.approximate, peak))
        ]
        if pool.floor + float(self._inputs.max_bound[row]) >= least:
            others = self._inputs.outliers(row, self.scores, pool.floor, least)
            if len(others):
                tokens = np.sort(np.concatenate([tokens, others]))
        return tokens if len(tokens) <= _MAX_CANDIDATES else None

    def _timestamps_win(self, row: int, times: slice, pool: _Pool, together: float) -> bool:
        """Whether all timestamps together are more probable than any text token.

        The error of the logarithm of a sum of exponentials is at most the largest error of its
        terms; the same holds for a maximum.

        Args:
            row: index of the input.
            times: ids of the timestamps.
            pool: the largest scores.
            together: logarithm of the summed exponentials of all timestamps.
        """
        max_bound = float(self._inputs.max_bound[row])
        n_text = int(np.searchsorted(pool.tokens, times.start))
        time_bound = self._inputs.max_bound_from(row, times.start)
        high = pool.floor + max_bound
        approximate, bounds = pool.approximate[:n_text], pool.bounds[:n_text]
        if times.stop is not None:
            beyond = int(np.searchsorted(pool.tokens, times.stop))
            approximate = np.concatenate([approximate, pool.approximate[beyond:]])
            bounds = np.concatenate([bounds, pool.bounds[beyond:]])
        if len(approximate):
            if together + time_bound < float((approximate - bounds).max()):
                return False
            high = max(high, float((approximate + bounds).max()))
        return together - time_bound > high or self._timestamps_win_closely(row, times)

    def _timestamps_win_closely(self, row: int, times: slice) -> bool:
        """The same by exact scores, first of the most probable timestamps, then of all."""
        inputs, others = self._inputs, _others(times.start, times.stop)
        best = max(float(self.scores[part].max(initial=-np.inf)) for part in others)
        if best == -np.inf:
            return True
        floor = best - 2 * float(inputs.max_bound[row])
        found = [_above(self.scores[part], floor, part.start) for part in others]
        rivals = np.concatenate(found)
        against = float(inputs.exact(np.full(len(rivals), row), rivals).max())
        scores, bounds = self.scores[times], inputs.bounds(row, times)
        approximate = scores + inputs.shift[row]
        low, high = approximate - bounds, approximate + bounds
        for floor in (float(scores.max()) - _DEPTH, _LEAST):
            some = np.flatnonzero(scores >= floor)
            low[some] = high[some] = inputs.exact(np.full(len(some), row), some + times.start)
            if log_sum_exp(high) <= against:
                return False
            if log_sum_exp(low) > against:
                return True
        return False


def _others(begin: int, end: int | None) -> list[slice]:
    """All ids but those of the timestamps."""
    before = slice(0, begin)
    return [before] if end is None else [before, slice(end, None)]


def _above(scores: F32, floor: float, first: int = 0) -> Int:
    """Ids of the scores of at least ``floor``; ``first`` is the id of the first score."""
    found: Int = np.flatnonzero(scores >= floor)
    found += first
    return found


def _heavy(approximate: F32, peak: float) -> float:
    """The score above which a term of the sum is large enough to be computed exactly."""
    floor = peak - _DEPTH
    if len(approximate) <= _MAX_HEAVY:
        return floor
    return max(floor, _kth(approximate, _MAX_HEAVY))


def _kth(scores: F32, k: int) -> float:
    """The k-th largest score, or the smallest if there are fewer than k."""
    if k == 1:
        return float(scores.max())
    place = max(len(scores) - k, 0)
    return float(np.partition(scores, place)[place])


class TwoStageLogits:
    """:class:`whisper_opt.core.backend.Logits` of a two-stage head, most of them approximate.

    The best tokens are those of :func:`whisper_opt.core.logits.top_k` on exact scores.
    """

    def __init__(self, head: HeadBounds, approximate: F32, hidden: F32, exact: F32) -> None:
        """Wrap the outputs of one call of the decoder.

        Args:
            head: the head.
            approximate: float32 [n_seq, n_vocab] approximate scores after each row's last token.
            hidden: float32 [n_seq, n_text_state] inputs of the head at the same positions.
            exact: float32 [n_seq, n_at - 1, n_vocab] scores at the other requested positions.
        """
        self._head = head
        self._approximate = approximate
        self._hidden = hidden
        self._exact = exact

    def top(self, k: int, mask: TokenMask) -> Top:
        if mask.seen is not None:  # a penalty changes scores by more than the bounds allow
            return top_k(self.numpy()[:, -1], k, mask)
        inputs = HeadInputs(self._head, self._hidden)
        selector = CandidateSelector(self._head, inputs, k)
        shape = (len(self._approximate), k)
        top = Top(np.zeros(shape, np.int64), np.zeros(shape, np.float32))
        rows: list[int] = []
        selected: list[Candidates] = []
        for row in range(len(self._approximate)):
            begin, end = mask.times(row)
            np.copyto(selector.scores, self._approximate[row])
            mask.forbid(row, selector.scores)
            candidates = selector(row, begin, end)
            if candidates is None or len(candidates.tokens) < k:
                scores = inputs.all_scores(row)
                mask.forbid(row, scores)
                top.tokens[row], top.logprobs[row] = top_row(scores, begin, k, end=end)
            else:
                rows.append(row)
                selected.append(candidates)
        if rows:
            top.tokens[rows], top.logprobs[rows] = _refined(inputs, np.array(rows), selected, k)
        return top

    def requested(self) -> F32:
        return self._exact

    def numpy(self) -> F32:
        last = self._hidden @ self._head.embedding.T
        return np.concatenate([self._exact, last[:, None]], axis=1)


def _refined(
    inputs: HeadInputs, rows: Int, selected: Sequence[Candidates], k: int
) -> tuple[Int, F32]:
    """The k best tokens of some rows, [n, k], and their log-probabilities, by exact scores."""
    sizes = np.array([len(candidates.tokens) for candidates in selected])
    starts = np.cumsum(sizes) - sizes
    place = np.repeat(np.arange(len(rows)), sizes)
    tokens = np.concatenate([candidates.tokens for candidates in selected])
    exact = inputs.exact(rows[place], tokens)
    order = np.lexsort((-exact, place))  # by row, then score; stable: ties keep the order of ids
    best = order[starts[:, None] + np.arange(k)]
    # the sums, with exact instead of approximate scores of the candidates
    shift, level = (
        inputs.shift[rows],
        np.array([candidates.level for candidates in selected], np.float32),
    )
    change = np.exp(exact - (shift + level)[place])
    change -= np.exp(
        np.concatenate([candidates.approximate for candidates in selected]) - level[place]
    )
    total = np.array([candidates.total for candidates in selected]) + np.add.reduceat(
        change, starts
    )
    normalizer = np.log(total).astype(np.float32) + (shift + level)
    return tokens[best], exact[best] - normalizer[:, None]
