"""The exact best tokens without reading the whole output head in fp32.

A step of a small Whisper spends most of its time on the output head: 51,865 products with rows of
the token embedding. Here the decoder graph multiplies a copy of the head in 8 bits, a quarter of
the bytes, and hands out the head's input with it; the few scores that can matter are then computed
again from the fp32 embedding. It is a maximum inner product search in two stages whose first stage
comes with a bound, so nothing is lost: with h the head's input, w_j a row of the embedding, and
hats for what 8 bits make of them,

    |h . w_j - ĥ . ŵ_j|  <=  |h| |w_j - ŵ_j| + |h - ĥ| |ŵ_j|      (Cauchy-Schwarz)

and a token whose rough score lies further below the k-th best than the bounds allow cannot be among
the k best. Three measures keep the bound small. The mean row of the embedding is taken out (it adds
the same to every score). Inputs are scaled channel by channel, and weights the other way, so that
the channels with large activations do not set everybody's step (SmoothQuant: Xiao et al. 2022,
arXiv:2211.10438). And an input is two rows of 7 bits, the second holding what the first left over;
7 bits, because two products of 8 by 8 bits overflow the 16-bit sums of processors without VNNI.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Callable, NamedTuple

import numpy as np

from whisper_opt.arrays import F32, Int, NDArray
from whisper_opt.protocol import TokenMask, Top
from whisper_opt.topk import log_sum_exp, top_k, top_row

__all__ = ["STEPS", "Inputs", "Screen", "ScreenedLogits", "Survey", "Surveyor"]

STEPS = 63
"""Steps on either side of zero that a row of 7 bits can take."""
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
_ROUNDING = 2e-6
"""Error of sums in fp32, as a share of the product of the norms."""
_UNUSUAL = 128
"""Tokens whose rows rounding hurts most (two to six times as much as the median) are looked at one
by one, so that the bound of all others need not be as wide."""
_FOLD = 16
"""Scores that share a maximum in the first look for candidates."""
_SAFE = 60.0
"""Scores up to this size have exponentials that a sum in fp32 can hold."""
_LEAST = float(np.finfo(np.float32).min)
"""What every score that is not banned reaches."""
_BLOCK = 64
"""Scores computed exactly at a time."""


@dataclasses.dataclass(frozen=True)
class Screen:
    """The output head in fp32, and how far the 8-bit copy of it can be off.

    Attributes:
        embedding: float32 [n_vocab, n_text_state], the token embedding: the output head.
        mean: float32 [n_text_state], its mean row.
        shrink: float32 [n_text_state], factors of the head's input before it is rounded.
        error: float32 [n_vocab], norm of what rounding took from each row (as scaled against
            ``shrink``).
        norm: largest norm of a rounded row.
    """

    embedding: F32
    mean: F32
    shrink: F32
    error: F32
    norm: float

    @classmethod
    def of(cls, tensor: Callable[[str], NDArray]) -> Screen:
        """From the tensors that an engine with a screened head lists in its manifest."""
        return cls(
            embedding=tensor("decoder.token_embedding.weight"),
            mean=tensor("screen.mean"),
            shrink=tensor("screen.shrink"),
            error=tensor("screen.error"),
            norm=float(tensor("screen.norm")[0]),
        )

    @functools.cached_property
    def widest(self) -> float:
        """The largest of ``error``."""
        return float(self.error.max())

    def widest_from(self, first: int) -> float:
        """The largest of ``error`` of the tokens from ``first`` on."""
        if first not in self._widest:
            self._widest[first] = float(self.error[first:].max())
        return self._widest[first]

    @functools.cached_property
    def _widest(self) -> dict[int, float]:
        return {}

    @functools.cached_property
    def unusual(self) -> Int:
        """Ids of the tokens of the largest ``error``, in ascending order."""
        n = min(_UNUSUAL, len(self.error) // 8)
        found: Int = np.sort(np.argpartition(self.error, -n)[-n:])
        return found

    @functools.cached_property
    def usual(self) -> float:
        """The largest ``error`` of the others."""
        return float(np.delete(self.error, self.unusual).max())

    @functools.cached_property
    def scratch(self) -> _Scratch:
        """For whoever chooses at the moment."""
        return _Scratch(*self.embedding.shape)


class _Scratch:
    """Room for one row at a time, so that no step has to ask for memory."""

    def __init__(self, n_vocab: int, n_state: int) -> None:
        # as many scores as fold; those at the end are never chosen
        self.padded = np.full(-(-n_vocab // _FOLD) * _FOLD, -np.inf, np.float32)
        self.folded = self.padded.reshape(_FOLD, -1)
        self.lines: Int = np.arange(_FOLD)[:, None] * self.folded.shape[1]
        self.exps = np.empty(n_vocab, np.float32)
        self.weights = np.empty((_BLOCK, n_state), np.float32)
        self.inputs = np.empty((_BLOCK, n_state), np.float32)


class Inputs:
    """Inputs of the head, a row each: bounds of their rough scores, and exact ones of some tokens.

    Attributes:
        shift: float32 [n], what the mean row adds to every score; rough scores lack it.
        widest: float32 [n], the largest bound of any token.
        usual: float32 [n], the largest bound but for the tokens of ``Screen.unusual``.
    """

    def __init__(self, screen: Screen, hidden: F32) -> None:
        """``hidden``: float32 [n, n_text_state]."""
        self._screen = screen
        self._hidden = hidden
        shrunk = hidden * screen.shrink
        self._length: F32 = np.sqrt(np.einsum("nd,nd->n", shrunk, shrunk))
        # the second row of 7 bits leaves half of one of its steps at most
        left = np.abs(shrunk).max(axis=1) * np.float32(shrunk.shape[1] ** 0.5 / (4 * STEPS * STEPS))
        self._rest: F32 = (left + np.float32(_ROUNDING) * self._length) * np.float32(screen.norm)
        self.widest: F32 = self._length * np.float32(screen.widest) + self._rest
        self.usual: F32 = self._length * np.float32(screen.usual) + self._rest
        self.shift: F32 = np.einsum("nd,d->n", hidden, screen.mean)

    def bounds(self, row: int, tokens: Int | slice) -> F32:
        """How far the rough scores of some tokens of one row may be off."""
        result: F32 = self._screen.error[tokens] * self._length[row]
        result += self._rest[row]
        return result

    def widest_from(self, row: int, first: int) -> float:
        """The largest bound of the tokens from ``first`` on."""
        return float(self._length[row]) * self._screen.widest_from(first) + float(self._rest[row])

    def unusual(self, row: int, scores: F32, below: float, least: float) -> Int:
        """Those of ``Screen.unusual`` that score less than ``below`` but might reach ``least``."""
        tokens = self._screen.unusual
        some = scores[tokens]
        found: Int = tokens[(some < below) & (some + self.bounds(row, tokens) >= least)]
        return found

    def everything(self, row: int) -> F32:
        """All scores [n_vocab] of one row."""
        # not a BLAS product: its threads would go on spinning beside those of the runtime
        result: F32 = np.einsum("td,d->t", self._screen.embedding, self._hidden[row])
        return result

    def exact(self, rows: Int, tokens: Int) -> F32:
        """The scores of some tokens, each in the row beside it."""
        result = np.empty(len(tokens), np.float32)
        scratch = self._screen.scratch
        for start in range(0, len(tokens), _BLOCK):
            part = slice(start, start + _BLOCK)
            some = tokens[part]
            weights, inputs = scratch.weights[: len(some)], scratch.inputs[: len(some)]
            self._screen.embedding.take(some, axis=0, out=weights, mode="clip")
            self._hidden.take(rows[part], axis=0, out=inputs, mode="clip")
            np.einsum("td,td->t", weights, inputs, out=result[part])
        return result


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

    def __call__(self, row: int, begin: int) -> Survey | None:
        """Look at ``scores``.

        Args:
            row: which of the inputs they come from.
            begin: id of ``<|0.00|>`` under the timestamp rules, else n_vocab.

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
        times, total, text = self.scores[begin:], 0.0, True
        if len(times):
            total = self._sum(slice(begin, None), level)
            together = level + math.log(total) if total else log_sum_exp(times)
            text = not self._times_win(row, begin, pool, together)
        if not text:
            self.scores[:begin] = -np.inf
            peak = float(times.max())
            find = functools.partial(_above, times, first=begin)
            pool = self._pool(row, find, peak - self._depth)
        tokens = self._candidates(row, peak, pool, find)
        if tokens is None:
            return None
        if text:
            total += self._sum(slice(begin), level)
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

    def _times_win(self, row: int, begin: int, pool: _Pool, together: float) -> bool:
        """Whether all timestamps together are likelier than any text.

        A sum of exponentials is off by no more than its worst term, and so is a maximum.

        Args:
            row: which of the inputs.
            begin: the first timestamp.
            pool: the largest scores.
            together: logarithm of the summed exponentials of all timestamps.
        """
        widest = float(self._inputs.widest[row])
        n_text = int(np.searchsorted(pool.tokens, begin))
        off = self._inputs.widest_from(row, begin)
        high = pool.floor + widest
        if n_text:
            rough, reach = pool.rough[:n_text], pool.off[:n_text]
            if together + off < float((rough - reach).max()):
                return False
            high = max(high, float((rough + reach).max()))
        return together - off > high or self._times_win_closely(row, begin)

    def _times_win_closely(self, row: int, begin: int) -> bool:
        """The same by exact scores, first those of the likeliest, then of all."""
        inputs, text = self._inputs, self.scores[:begin]
        best = float(text.max())
        if best == -np.inf:
            return True
        rivals = _above(text, best - 2 * float(inputs.widest[row]))
        against = float(inputs.exact(np.full(len(rivals), row), rivals).max())
        times, off = self.scores[begin:], inputs.bounds(row, slice(begin, None))
        rough = times + inputs.shift[row]
        low, high = rough - off, rough + off
        for floor in (float(times.max()) - _DEPTH, _LEAST):
            some = np.flatnonzero(times >= floor)
            low[some] = high[some] = inputs.exact(np.full(len(some), row), some + begin)
            if log_sum_exp(high) <= against:
                return False
            if log_sum_exp(low) > against:
                return True
        return False


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
    """Scores of which most are rough: :class:`whisper_opt.protocol.Logits` over a screened head.

    The best tokens are those of :func:`whisper_opt.topk.top_k` on exact scores.
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
        for row, begin in enumerate(mask.timestamp_begin.tolist()):
            np.copyto(surveyor.scores, self._rough[row])
            mask.forbid(row, surveyor.scores)
            survey = surveyor(row, begin)
            if survey is None or len(survey.tokens) < k:
                scores = inputs.everything(row)
                mask.forbid(row, scores)
                top.tokens[row], top.logprobs[row] = top_row(scores, begin, k)
            else:
                rows.append(row)
                surveys.append(survey)
        if rows:
            top.tokens[rows], top.logprobs[rows] = _refined(inputs, np.array(rows), surveys, k)
        return top

    def asked(self) -> F32:
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
