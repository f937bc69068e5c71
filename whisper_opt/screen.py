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
from typing import Callable

import numpy as np

from whisper_opt.arrays import F32, Bool, Int, NDArray
from whisper_opt.protocol import TokenMask, Top
from whisper_opt.topk import log_sum_exp, top_k, top_row

__all__ = ["STEPS", "Input", "Refined", "Screen", "ScreenedLogits", "refine"]

STEPS = 63
"""Steps on either side of zero that a row of 7 bits can take."""
_DEPTH = 7.0
"""Scores this far below the best are computed exactly too, for the sum that probabilities are
divided by; what lies further down is a small part of it and its errors cancel."""
_WIDER = 10.0
"""As :data:`_DEPTH`, for a first look at where the k best may lie."""
_MOST = 4096
"""With more candidates than this, the whole head is computed instead."""
_ROUNDING = 2e-6
"""Error of sums in fp32, as a share of the product of the norms."""


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


class Input:
    """One input of the head: bounds of its rough scores, and exact ones of some tokens."""

    def __init__(self, screen: Screen, hidden: F32) -> None:
        """``hidden``: float32 [n_text_state]."""
        self._screen = screen
        self._hidden = hidden
        shrunk = hidden * screen.shrink
        self._length = float(np.linalg.norm(shrunk))
        # the second row of 7 bits leaves half of one of its steps at most
        left = float(np.abs(shrunk).max()) / (4 * STEPS * STEPS) * len(shrunk) ** 0.5
        self._rest = (left + _ROUNDING * self._length) * screen.norm
        self.widest = self._length * screen.widest + self._rest
        """The largest bound."""

    def bounds(self, tokens: Int | slice | int) -> F32:
        """How far the rough scores of some tokens may be off, once :attr:`shift` is added."""
        result: F32 = np.float32(self._length) * self._screen.error[tokens]
        result += np.float32(self._rest)
        return result

    @property
    def shift(self) -> float:
        """What the mean row adds to every score; rough scores lack it."""
        return float(np.dot(self._hidden, self._screen.mean))

    def everything(self) -> F32:
        """All scores [n_vocab]."""
        result: F32 = self._screen.embedding @ self._hidden
        return result

    def exact(self, tokens: Int) -> F32:
        """The scores of some tokens."""
        # not a BLAS product: its threads would go on spinning beside those of the runtime
        result: F32 = np.einsum("tn,n->t", self._screen.embedding[tokens], self._hidden)
        return result


@dataclasses.dataclass(frozen=True)
class Refined:
    """Where the scores of a row have been made exact.

    Attributes:
        first: the first token that may be chosen: the first timestamp if they outweigh all text.
        peak: the largest rough score from there on.
        tokens: [n] ids in ascending order, the k best among them.
        scores: float32 [n], theirs.
    """

    first: int
    peak: float
    tokens: Int
    scores: F32


def refine(scores: F32, begin: int, k: int, source: Input) -> Refined | None:
    """Make the scores of one row exact wherever that can change its k best tokens.

    Args:
        scores: float32 [n_vocab] rough scores, -inf where banned; written to.
        begin: id of ``<|0.00|>`` under the timestamp rules, else n_vocab.
        k: how many tokens are wanted.
        source: where the scores come from.

    Returns:
        None where so many would have to be exact that the whole row had better be computed, or
        where nothing is allowed.
    """
    first = 0
    if begin < len(scores) and _timestamps_win(scores, begin, source):
        first = begin
    allowed = scores[first:]
    peak = float(allowed.max())
    if peak == -np.inf:
        return None
    floor = peak - _DEPTH if k == 1 else peak - _WIDER
    pool = np.flatnonzero(allowed >= floor)
    if len(pool) < k:
        pool, floor = np.flatnonzero(allowed > -np.inf), -np.inf
    reach = _kth(allowed[pool], k) - 2 * source.widest
    if reach < floor:
        pool = np.flatnonzero(allowed >= reach)
    rough = allowed[pool]
    pool += first
    off = source.bounds(pool)
    tokens = pool[rough + off >= min(_kth(rough - off, k), peak - _DEPTH)]
    if len(tokens) > _MOST:
        return None
    exact = source.exact(tokens)
    scores[tokens] = exact
    return Refined(first, peak, tokens, exact)


def _kth(scores: F32, k: int) -> float:
    """The k-th largest, or the smallest of fewer."""
    if k == 1:
        return float(scores.max())
    place = max(len(scores) - k, 0)
    return float(np.partition(scores, place)[place])


def _timestamps_win(scores: F32, begin: int, source: Input) -> bool:
    """Whether all timestamps together are likelier than any text, by exact scores if it is close.

    A sum of exponentials is off by no more than its worst term, and so is a maximum.
    """
    times, text = scores[begin:], scores[:begin]
    best = int(text.argmax())
    peak = float(text[best])
    if peak == -np.inf:
        return True
    off = source.bounds(slice(begin, None))
    if log_sum_exp(times + off) < peak - float(source.bounds(best)):
        return False
    if log_sum_exp(times - off) > peak + source.widest:
        return True
    some = np.flatnonzero(times > -np.inf)
    times[some] = source.exact(some + begin)
    rivals = np.flatnonzero(text >= peak - 2 * source.widest)
    text[rivals] = source.exact(rivals)
    return log_sum_exp(times) > float(text[rivals].max())


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
        scores = np.empty(self._rough.shape[1], np.float32)
        rows = [
            self._top_row(row, scores, ban, begin, k)
            for row, (ban, begin) in enumerate(zip(mask.ban, mask.timestamp_begin.tolist()))
        ]
        return Top(
            np.array([tokens for tokens, _ in rows], np.int64),
            np.array([logprobs for _, logprobs in rows], np.float32),
        )

    def _top_row(
        self, row: int, scores: F32, ban: Bool, begin: int, k: int
    ) -> tuple[list[int], list[float]]:
        source = Input(self._screen, self._hidden[row])
        np.add(self._rough[row], np.float32(source.shift), out=scores)
        np.copyto(scores, -np.inf, where=ban)
        refined = refine(scores, begin, k, source)
        if refined is None:
            scores = np.where(ban, -np.inf, source.everything())
        if refined is None or len(refined.tokens) < k:
            return top_row(scores, begin, k)
        order = np.argsort(-refined.scores, kind="stable")[:k]  # ties: lowest id
        allowed = scores[refined.first :]
        allowed -= np.float32(refined.peak)
        np.exp(allowed, out=allowed)
        normalizer = np.float32(refined.peak) + np.log(allowed.sum(dtype=np.float32))
        logprobs = refined.scores[order] - normalizer
        return refined.tokens[order].tolist(), logprobs.tolist()

    def asked(self) -> F32:
        return self._exact

    def numpy(self) -> F32:
        last = self._hidden @ self._screen.embedding.T
        return np.concatenate([self._exact, last[:, None]], axis=1)
