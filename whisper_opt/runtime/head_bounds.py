"""Bounds of approximate output head scores, and exact scores of single tokens.

A decoding step of a small Whisper spends most of its time in the output head: 51,865 dot products
with rows of the token embedding. The decoder graph multiplies an 8-bit copy of the head instead,
which is a quarter of the bytes, and also outputs the head's input. The few scores that can matter
are then computed again from the fp32 embedding. This is a maximum inner product search in two
stages. The first stage has an error bound, so the result is exact. With h the head's input, w_j a
row of the embedding, and hats for their 8-bit approximations,

    |h . w_j - ĥ . ŵ_j|  <=  |h| |w_j - ŵ_j| + |h - ĥ| |ŵ_j|      (Cauchy-Schwarz)

A token whose approximate score is further below the k-th best than the bounds allow cannot be among
the k best. Three measures keep the bounds small:

- The mean row of the embedding is subtracted; it adds the same to every score.
- Inputs are scaled per channel, and weights inversely, so that channels with large activations do
  not determine the quantization step of all others (SmoothQuant: Xiao et al. 2022,
  arXiv:2211.10438).
- An input is two rows of 7 bits; the second is the rounding error of the first. It is 7 bits
  because two products of 8 by 8 bits overflow the 16-bit sums of processors without VNNI.
"""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections.abc import Container
from typing import Callable

import numpy as np

from whisper_opt.core.arrays import F32, Int, NDArray
from whisper_opt.runtime.head_names import EMBEDDING, ERROR, MEAN, NORM, OWN_HEAD, SHRINK

__all__ = ["STEPS", "HeadBounds", "HeadInputs"]

STEPS = 63
"""Quantization steps on either side of zero in a row of 7 bits."""
_ROUNDING = 2e-6
"""Error of sums in fp32, relative to the product of the norms."""
_N_OUTLIERS = 128
"""Tokens whose rows have the largest quantization errors (two to six times the median). They are
checked one by one, so that the bound of all others can be smaller."""
_FOLD = 16
"""Scores per maximum in the first search for candidates."""
_BLOCK = 64
"""Scores computed exactly at a time."""


@dataclasses.dataclass(frozen=True)
class HeadBounds:
    """The output head in fp32, and the error of its 8-bit copy.

    Attributes:
        embedding: [n_vocab, n_text_state], float32 or float16 as stored: the output head, which is
            the token embedding or a separate matrix.
        mean: float32 [n_text_state], its mean row.
        shrink: float32 [n_text_state], factors of the head's input before quantization.
        error: float32 [n_vocab], norm of the quantization error of each row (with channels divided
            by ``shrink``).
        norm: largest norm of a quantized row.
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
    def from_tensors(
        cls, tensor: Callable[[str], NDArray], names: Container[str] = ()
    ) -> HeadBounds:
        """Read the tensors that an engine with a two-stage head lists in its manifest.

        Args:
            tensor: reads one of them by name.
            names: names of all of them.
        """
        return cls(
            embedding=tensor(OWN_HEAD if OWN_HEAD in names else EMBEDDING),
            mean=tensor(MEAN),
            shrink=tensor(SHRINK),
            error=tensor(ERROR),
            norm=float(tensor(NORM)[0]),
        )

    @functools.cached_property
    def max_error(self) -> float:
        """The largest ``error``."""
        return float(self.error.max())

    def max_error_from(self, first: int) -> float:
        """The largest ``error`` of the tokens from ``first`` on."""
        if first not in self._max_errors:
            self._max_errors[first] = float(self.error[first:].max())
        return self._max_errors[first]

    @functools.cached_property
    def _max_errors(self) -> dict[int, float]:
        return {}

    @functools.cached_property
    def outliers(self) -> Int:
        """Ids of the tokens with the largest ``error``, in ascending order."""
        n = min(_N_OUTLIERS, len(self.error) // 8)
        found: Int = np.sort(np.argpartition(self.error, -n)[-n:])
        return found

    @functools.cached_property
    def inlier_error(self) -> float:
        """The largest ``error`` of the other tokens."""
        return float(np.delete(self.error, self.outliers).max())

    @property
    def scratch(self) -> _Scratch:
        """Working memory of the calling thread; its contents are valid during one call only."""
        try:
            found: _Scratch = self._own.scratch
        except AttributeError:
            found = self._own.scratch = _Scratch(*self.embedding.shape)
        return found


class _Scratch:
    """Working memory for one row, so that no decoding step allocates memory."""

    def __init__(self, n_vocab: int, n_state: int) -> None:
        # padded to a multiple of _FOLD; scores of the padding are never selected
        self.padded = np.full(-(-n_vocab // _FOLD) * _FOLD, -np.inf, np.float32)
        self.folded = self.padded.reshape(_FOLD, -1)
        self.lines: Int = np.arange(_FOLD)[:, None] * self.folded.shape[1]
        self.exps = np.empty(n_vocab, np.float32)
        self.weights = np.empty((_BLOCK, n_state), np.float32)
        self.inputs = np.empty((_BLOCK, n_state), np.float32)


class HeadInputs:
    """Inputs of the head, one per row: bounds of their approximate scores, and exact scores.

    Attributes:
        shift: float32 [n], dot product with the mean row; approximate scores do not include it.
        max_bound: float32 [n], the largest bound of all tokens.
        inlier_bound: float32 [n], the largest bound of all tokens but ``HeadBounds.outliers``.
    """

    def __init__(self, head: HeadBounds, hidden: F32) -> None:
        """``hidden``: float32 [n, n_text_state]."""
        self._head = head
        self._hidden = hidden
        shrunk = hidden * head.shrink
        self._length: F32 = np.sqrt(np.einsum("nd,nd->n", shrunk, shrunk))
        # the error of the second row of 7 bits is at most half of its quantization step
        left = np.abs(shrunk).max(axis=1) * np.float32(shrunk.shape[1] ** 0.5 / (4 * STEPS * STEPS))
        self._rest: F32 = (left + np.float32(_ROUNDING) * self._length) * np.float32(head.norm)
        self.max_bound: F32 = self._length * np.float32(head.max_error) + self._rest
        self.inlier_bound: F32 = self._length * np.float32(head.inlier_error) + self._rest
        self.shift: F32 = np.einsum("nd,d->n", hidden, head.mean)

    def bounds(self, row: int, tokens: Int | slice) -> F32:
        """Bounds of the errors of approximate scores of some tokens of one row."""
        result: F32 = self._head.error[tokens] * self._length[row]
        result += self._rest[row]
        return result

    def max_bound_from(self, row: int, first: int) -> float:
        """The largest bound of the tokens from ``first`` on."""
        return float(self._length[row]) * self._head.max_error_from(first) + float(self._rest[row])

    def outliers(self, row: int, scores: F32, below: float, least: float) -> Int:
        """``HeadBounds.outliers`` with scores less than ``below`` that may reach ``least``."""
        tokens = self._head.outliers
        some = scores[tokens]
        found: Int = tokens[(some < below) & (some + self.bounds(row, tokens) >= least)]
        return found

    def all_scores(self, row: int) -> F32:
        """All scores [n_vocab] of one row."""
        # no BLAS product: its threads would keep spinning and slow those of ONNX Runtime
        result: F32 = np.einsum("td,d->t", self._head.embedding, self._hidden[row])
        return result

    def exact(self, rows: Int, tokens: Int) -> F32:
        """The exact scores of some tokens, each for the input in the same place of ``rows``."""
        result = np.empty(len(tokens), np.float32)
        scratch = self._head.scratch
        for start in range(0, len(tokens), _BLOCK):
            part = slice(start, start + _BLOCK)
            some = tokens[part]
            weights, inputs = scratch.weights[: len(some)], scratch.inputs[: len(some)]
            if self._head.embedding.dtype == weights.dtype:
                self._head.embedding.take(some, axis=0, out=weights, mode="clip")
            else:
                weights[:] = self._head.embedding.take(some, axis=0, mode="clip")
            self._hidden.take(rows[part], axis=0, out=inputs, mode="clip")
            np.einsum("td,td->t", weights, inputs, out=result[part])
        return result
