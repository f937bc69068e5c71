"""Diarization error rate.

The share of the time of speech that is missed, made up, or said by someone else, with the best
assignment of names. Times within 0.25 s of a boundary of the truth are left out (``collar``), as is
usual; overlapping speech counts once per speaker.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

STEP = 0.01
"""Seconds per frame of the score."""


class Span(Protocol):
    """A turn."""

    @property
    def start(self) -> float: ...
    @property
    def end(self) -> float: ...
    @property
    def speaker(self) -> str: ...


@dataclasses.dataclass(frozen=True)
class Errors:
    """Seconds of speech, and of each error."""

    total: float = 0.0
    missed: float = 0.0
    false: float = 0.0
    confused: float = 0.0

    def __add__(self, other: Errors) -> Errors:
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other))
        return Errors(*(a + b for a, b in pairs))

    @property
    def rate(self) -> float:
        """The diarization error rate."""
        return (self.missed + self.false + self.confused) / max(self.total, 1e-9)


def _table(spans: Iterable[Span], names: Sequence[str], n: int) -> npt.NDArray[np.bool_]:
    table = np.zeros((n, len(names)), np.bool_)
    for span in spans:
        place = slice(round(span.start / STEP), round(span.end / STEP))
        table[place, names.index(span.speaker)] = True
    return table


def assignment(truth: Sequence[Span], found: Sequence[Span], seconds: float) -> dict[str, str]:
    """The true name of each found speaker, one to one, with most time in common."""
    mine, theirs = (sorted({span.speaker for span in spans}) for spans in (truth, found))
    n = round(seconds / STEP) + 1
    common = _table(found, theirs, n).T.astype(np.float32) @ _table(truth, mine, n)
    rows, columns = linear_sum_assignment(-common)
    return {theirs[i]: mine[j] for i, j in zip(rows, columns)}


def errors(
    truth: Sequence[Span], found: Sequence[Span], seconds: float, collar: float = 0.25
) -> Errors:
    """Errors of one recording."""
    n = round(seconds / STEP) + 1
    mine, theirs = (sorted({span.speaker for span in spans}) for spans in (truth, found))
    table, guess = _table(truth, mine, n), _table(found, theirs, n)
    scored = np.ones(n, np.bool_)
    for span in truth if collar else ():
        for edge in (span.start, span.end):
            scored[max(0, round((edge - collar) / STEP)) : round((edge + collar) / STEP)] = False
    table, guess = table[scored], guess[scored]
    same = assignment(truth, found, seconds)
    right = np.zeros(len(table), np.int64)
    for theirs_name, my_name in same.items():
        right += guess[:, theirs.index(theirs_name)] & table[:, mine.index(my_name)]
    spoken, said = table.sum(axis=1), guess.sum(axis=1)
    return Errors(
        float(spoken.sum()) * STEP,
        float(np.maximum(spoken - said, 0).sum()) * STEP,
        float(np.maximum(said - spoken, 0).sum()) * STEP,
        float((np.minimum(spoken, said) - right).sum()) * STEP,
    )
