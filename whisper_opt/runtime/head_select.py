"""Choosing by rough scores: which tokens have to be scored exactly, and the choice among them.

:mod:`whisper_opt.runtime.head_bounds` says where the rough scores come from and how far they may be off. All
scores of a row are looked at as few times as possible, one row after the other while it is in the
cache; the exact scores of all rows are then computed together.
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
from whisper_opt.runtime.head_bounds import Inputs, Screen

__all__ = ["ScreenedLogits", "Survey", "Surveyor"]

_DEPTH = 7.0
"""Scores this far below the best are computed exactly too, for the sum that probabilities are
divided by; what lies further down is a small part of it and its errors cancel."""
_HEAVY = 2048
"""No more of them than this: each of the others is less than a 2048th of the sum, whose error is
about a 45th of that of a rough score then (0.02) at most."""
_WIDER = 10.0
"""As :data:`_DEPTH`, for a first look at where the k best may lie."""
_MOST = 4096
"""With more candidates than this, the whole head is computed instead."""
_SAFE = 60.0
"""Scores up to this size have exponentials that a sum in fp32 can hold."""
_LEAST = float(np.finfo(np.float32).min)
"""What every score that is not banned reaches."""


class Survey(NamedTuple):
    """What the rough scores of one row say.

    Attributes:
        tokens: int64 [n] ids in ascending order, the k best among them.
        rough: float32 [n], their rough scores.
        total: sum of exp(score - level) over the rough scores that may be chosen: the timestamps
            alone where they outweigh all text.
        level: 0, or the largest score where exponentials would not fit without it.
    """

    tokens: Int
    rough: F32
    total: float
    level: float


class _Pool(NamedTuple):
    """All tokens whose rough scores reach a floor.

    Attributes:
        floor: it.
        tokens: int64 [n], ids in ascending order.
        rough: float32 [n], their rough scores.
        off: float32 [n], the bounds of those.
    """

    floor: float
    tokens: Int
    rough: F32
    off: F32


class Surveyor:
    """Finds the tokens whose exact scores can matter, one row after the other."""

    def __init__(self, screen: Screen, inputs: Inputs, k: int) -> None:
        """``k``: how many tokens are wanted."""
        self._inputs = inputs
        self._k = k
        self._depth = _DEPTH if k == 1 else _WIDER
        self._scratch = screen.scratch
        self.scores: F32 = screen.scratch.padded[: len(screen.error)]
        """Rough scores of the row at hand, -inf where banned: to be filled before every call."""

    def __call__(self, row: int, begin: int, end: int | None = None) -> Survey | None:
        """Look at ``scores``.

        Args:
            row: which of the inputs they come from.
            begin: id of ``<|0.00|>`` under the timestamp rules, else n_vocab.
            end: the id after the last timestamp; default: they are the last ids.

        Returns:
            None where so many would have to be exact that the whole row had better be computed, or
            where nothing is allowed.
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
            text = not self._times_win(row, slice(begin, end), pool, together)
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
        return Survey(tokens, self.scores[tokens], total, level)

    def _sum(self, part: slice, level: float) -> float:
        """Sum of exp(score - level) over some tokens."""
        scores, exps = self.scores[part], self._scratch.exps[part]
        if level:
            scores = np.subtract(scores, np.float32(level), out=exps)
        np.exp(scores, out=exps)
        return float(np.einsum("t->", exps))  # twice as fast as a sum

    def _find(self, maxima: F32, floor: float) -> Int:
        """Ids of all scores of at least ``floor``, by way of the maxima, in ascending order."""
        ids: Int = (self._scratch.lines + np.flatnonzero(maxima >= floor)).reshape(-1)
        found: Int = ids[self._scratch.padded.take(ids) >= floor]
        return found

    def _pool(self, row: int, find: Callable[[float], Int], floor: float) -> _Pool:
        tokens = find(floor)
        return _Pool(floor, tokens, self.scores[tokens], self._inputs.bounds(row, tokens))

    def _candidates(
        self, row: int, peak: float, pool: _Pool, find: Callable[[float], Int]
    ) -> Int | None:
        """Ids of what can be among the k best, and of what weighs most in the sum.

        Args:
            row: which of the inputs.
            peak: the largest score.
            pool: where to begin.
            find: gives the ids of all scores of at least as much as it is told.
        """
        if len(pool.tokens) < self._k:
            pool = self._pool(row, find, _LEAST)
        least = _kth(pool.rough - pool.off, self._k)  # who cannot reach it is not among the k best
        reach = least - float(self._inputs.usual[row])
        if reach < pool.floor:
            pool = self._pool(row, find, reach)
        tokens = pool.tokens[
            (pool.rough + pool.off >= least) | (pool.rough >= _heavy(pool.rough, peak))
        ]
        if pool.floor + float(self._inputs.widest[row]) >= least:
            others = self._inputs.unusual(row, self.scores, pool.floor, least)
            if len(others):
                tokens = np.sort(np.concatenate([tokens, others]))
        return tokens if len(tokens) <= _MOST else None

    def _times_win(self, row: int, times: slice, pool: _Pool, together: float) -> bool:
        """Whether all timestamps together are likelier than any text.

        A sum of exponentials is off by no more than its worst term, and so is a maximum.

        Args:
            row: which of the inputs.
            times: ids of the timestamps.
            pool: the largest scores.
            together: logarithm of the summed exponentials of all timestamps.
        """
        widest = float(self._inputs.widest[row])
        n_text = int(np.searchsorted(pool.tokens, times.start))
        off = self._inputs.widest_from(row, times.start)
        high = pool.floor + widest
        rough, reach = pool.rough[:n_text], pool.off[:n_text]
        if times.stop is not None:
            beyond = int(np.searchsorted(pool.tokens, times.stop))
            rough = np.concatenate([rough, pool.rough[beyond:]])
            reach = np.concatenate([reach, pool.off[beyond:]])
        if len(rough):
            if together + off < float((rough - reach).max()):
                return False
            high = max(high, float((rough + reach).max()))
        return together - off > high or self._times_win_closely(row, times)

    def _times_win_closely(self, row: int, times: slice) -> bool:
        """The same by exact scores, first those of the likeliest, then of all."""
        inputs, others = self._inputs, _others(times.start, times.stop)
        best = max(float(self.scores[part].max(initial=-np.inf)) for part in others)
        if best == -np.inf:
            return True
        floor = best - 2 * float(inputs.widest[row])
        found = [_above(self.scores[part], floor, part.start) for part in others]
        rivals = np.concatenate(found)
        against = float(inputs.exact(np.full(len(rivals), row), rivals).max())
        scores, off = self.scores[times], inputs.bounds(row, times)
        rough = scores + inputs.shift[row]
        low, high = rough - off, rough + off
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
    """Ids of the scores of at least ``floor``, the first of which has the id ``first``."""
    found: Int = np.flatnonzero(scores >= floor)
    found += first
    return found


def _heavy(rough: F32, peak: float) -> float:
    """The score from which a token weighs enough in the sum to be computed exactly."""
    floor = peak - _DEPTH
    if len(rough) <= _HEAVY:
        return floor
    return max(floor, _kth(rough, _HEAVY))


def _kth(scores: F32, k: int) -> float:
    """The k-th largest, or the smallest of fewer."""
    if k == 1:
        return float(scores.max())
    place = max(len(scores) - k, 0)
    return float(np.partition(scores, place)[place])


class ScreenedLogits:
    """Scores of which most are rough: :class:`whisper_opt.core.backend.Logits` over a screened head.

    The best tokens are those of :func:`whisper_opt.core.logits.top_k` on exact scores.
    """

    def __init__(self, screen: Screen, rough: F32, hidden: F32, exact: F32) -> None:
        """Wrap what one call of the decoder gave.

        Args:
            screen: the head.
            rough: float32 [n_seq, n_vocab] scores after each row's last token, from 8 bits.
            hidden: float32 [n_seq, n_text_state] what the head was given there.
            exact: float32 [n_seq, n_at - 1, n_vocab] scores at the other wanted positions.
        """
        self._screen = screen
        self._rough = rough
        self._hidden = hidden
        self._exact = exact

    def top(self, k: int, mask: TokenMask) -> Top:
        if mask.seen is not None:  # a penalty moves scores by more than the bounds know of
            return top_k(self.numpy()[:, -1], k, mask)
        inputs = Inputs(self._screen, self._hidden)
        surveyor = Surveyor(self._screen, inputs, k)
        shape = (len(self._rough), k)
        top = Top(np.zeros(shape, np.int64), np.zeros(shape, np.float32))
        rows: list[int] = []
        surveys: list[Survey] = []
        for row in range(len(self._rough)):
            begin, end = mask.times(row)
            np.copyto(surveyor.scores, self._rough[row])
            mask.forbid(row, surveyor.scores)
            survey = surveyor(row, begin, end)
            if survey is None or len(survey.tokens) < k:
                scores = inputs.everything(row)
                mask.forbid(row, scores)
                top.tokens[row], top.logprobs[row] = top_row(scores, begin, k, end=end)
            else:
                rows.append(row)
                surveys.append(survey)
        if rows:
            top.tokens[rows], top.logprobs[rows] = _refined(inputs, np.array(rows), surveys, k)
        return top

    def requested(self) -> F32:
        return self._exact

    def numpy(self) -> F32:
        last = self._hidden @ self._screen.embedding.T
        return np.concatenate([self._exact, last[:, None]], axis=1)


def _refined(inputs: Inputs, rows: Int, surveys: Sequence[Survey], k: int) -> tuple[Int, F32]:
    """The k best tokens of some rows, [n, k], and their log-probabilities, by exact scores."""
    sizes = np.array([len(survey.tokens) for survey in surveys])
    starts = np.cumsum(sizes) - sizes
    place = np.repeat(np.arange(len(rows)), sizes)
    tokens = np.concatenate([survey.tokens for survey in surveys])
    exact = inputs.exact(rows[place], tokens)
    order = np.lexsort((-exact, place))  # by row, then score; stable: ties keep the order of ids
    best = order[starts[:, None] + np.arange(k)]
    # the sums, with the exact scores in place of the rough ones
    shift, level = inputs.shift[rows], np.array([survey.level for survey in surveys], np.float32)
    change = np.exp(exact - (shift + level)[place])
    change -= np.exp(np.concatenate([survey.rough for survey in surveys]) - level[place])
    total = np.array([survey.total for survey in surveys]) + np.add.reduceat(change, starts)
    normalizer = np.log(total).astype(np.float32) + (shift + level)
    return tokens[best], exact[best] - normalizer[:, None]
