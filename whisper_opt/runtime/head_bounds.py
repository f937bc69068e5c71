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
import threading
from collections.abc import Container
from typing import Callable

import numpy as np

from whisper_opt.core.arrays import F32, Int, NDArray

__all__ = ["STEPS", "Inputs", "Screen"]

STEPS = 63
"""Steps on either side of zero that a row of 7 bits can take."""
_ROUNDING = 2e-6
"""Error of sums in fp32, as a share of the product of the norms."""
_UNUSUAL = 128
"""Tokens whose rows rounding hurts most (two to six times as much as the median) are looked at one
by one, so that the bound of all others need not be as wide."""
_FOLD = 16
"""Scores that share a maximum in the first look for candidates."""
_BLOCK = 64
"""Scores computed exactly at a time."""


@dataclasses.dataclass(frozen=True)
class Screen:
    """The output head in fp32, and how far the 8-bit copy of it can be off.

    Attributes:
        embedding: float32 or, where that is how it is stored, float16 [n_vocab, n_text_state], the
            output head: the token embedding, or a matrix of its own.
        mean: float32 [n_text_state], its mean row.
        shrink: float32 [n_text_state], factors of the head's input before it is rounded.
        error: float32 [n_vocab], norm of what rounding took from each row (as scaled against
            ``shrink``).
        norm: largest norm of a rounded row.
    """

    embedding: NDArray
    mean: F32
    shrink: F32
    error: F32
    norm: float
    _own: threading.local = dataclasses.field(
        default_factory=threading.local, init=False, repr=False, compare=False
    )

    @classmethod
    def of(cls, tensor: Callable[[str], NDArray], names: Container[str] = ()) -> Screen:
        """From the tensors that an engine with a screened head lists in its manifest.

        Args:
            tensor: reads one of them.
            names: of all of them.
        """
        own = "decoder.head.weight"
        return cls(
            embedding=tensor(own if own in names else "decoder.token_embedding.weight"),
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

    @property
    def scratch(self) -> _Scratch:
        """Working memory of the calling thread; what it holds is valid during one call only."""
        try:
            found: _Scratch = self._own.scratch
        except AttributeError:
            found = self._own.scratch = _Scratch(*self.embedding.shape)
        return found


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
            if self._screen.embedding.dtype == weights.dtype:
                self._screen.embedding.take(some, axis=0, out=weights, mode="clip")
            else:
                weights[:] = self._screen.embedding.take(some, axis=0, mode="clip")
            self._hidden.take(rows[part], axis=0, out=inputs, mode="clip")
            np.einsum("td,td->t", weights, inputs, out=result[part])
        return result
