"""Scores of live transcription: latency of words, word errors, words lost or doubled, erasure."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Sequence

import numpy as np

from whisper_opt import Committed, Lag, LiveEvent, Partial, Utterance, Word
from whisper_opt.transcription.live.words import units

__all__ = ["Scores", "Timed", "align", "keys", "score", "summary"]

Log = Sequence[tuple[float, LiveEvent]]
"""Events of a session and when they came, in seconds from the start of the recording."""


@dataclasses.dataclass(frozen=True)
class Timed:
    """A word that was committed.

    Attributes:
        key: the word without case and punctuation.
        shown: when it was shown first.
        committed: when it was committed.
    """

    key: str
    shown: float
    committed: float


@dataclasses.dataclass
class Scores:
    """Scores of one recording, or of several together."""

    shown: list[float] = dataclasses.field(default_factory=list)
    committed: list[float] = dataclasses.field(default_factory=list)
    lags: list[float] = dataclasses.field(default_factory=list)
    reference_words: int = 0
    live_errors: int = 0
    final_errors: int = 0
    offline_errors: int = 0
    lost: int = 0
    doubled: int = 0
    n_committed: int = 0
    erased: int = 0
    work: float = 0.0
    audio: float = 0.0

    def add(self, other: Scores) -> None:
        """Add the scores of another recording."""
        for field in dataclasses.fields(self):
            mine = getattr(self, field.name)
            setattr(self, field.name, mine + getattr(other, field.name))


_BETWEEN = re.compile(r"[\s\u2010-\u2015-]+")
"""Spaces, hyphens and dashes."""


def keys(text: str) -> list[str]:
    """The words of a text as they are compared; characters in scripts without spaces.

    ``wood-cutters`` is two words: a live session may commit them one after the other.
    """
    return [unit for word in _BETWEEN.split(text) for unit in units(word)]


_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_DIGITS = {name: str(i) for i, name in enumerate(_NAMES)}


def spoken(words: Sequence[str]) -> list[str]:
    """Words with numbers written in one way: ``1, 2`` and ``one two`` are ``12``."""
    found: list[str] = []
    for word in words:
        word = _DIGITS.get(word, word)
        if word.isdigit() and found and found[-1].isdigit():
            found[-1] += word
        else:
            found.append(word)
    return found


def align(left: Sequence[str], right: Sequence[str]) -> list[tuple[int | None, int | None]]:
    """Pairs of indices of least edit distance; None on one side: a word that only one has."""
    n, m = len(left), len(right)
    cost = np.zeros((n + 1, m + 1), np.int32)
    cost[:, 0], cost[0] = np.arange(n + 1), np.arange(m + 1)
    other = np.array(right, dtype=object)
    steps = np.arange(m + 1, dtype=np.int32)
    for i, word in enumerate(left):
        row = np.minimum(cost[i, 1:] + 1, cost[i, :-1] + (other != word).astype(np.int32))
        row = np.concatenate([[i + 1], row])
        cost[i + 1] = np.minimum.accumulate(row - steps) + steps
    pairs: list[tuple[int | None, int | None]] = []
    i, j = n, m
    while i or j:
        if i and j and cost[i, j] == cost[i - 1, j - 1] + (left[i - 1] != right[j - 1]):
            i, j = i - 1, j - 1
            pairs.append((i, j))
        elif i and cost[i, j] == cost[i - 1, j] + 1:
            i -= 1
            pairs.append((i, None))
        else:
            j -= 1
            pairs.append((None, j))
    return pairs[::-1]


def errors(reference: Sequence[str], found: Sequence[str]) -> int:
    """Word errors."""
    pairs = align(reference, found)
    return sum(i is None or j is None or reference[i] != found[j] for i, j in pairs)


def timed_words(log: Log) -> tuple[list[Timed], int]:
    """The committed words with times, and how many words of partial results were taken back."""
    done: list[Timed] = []
    partial: list[str] = []
    since: list[float] = []
    erased = 0
    for at, event in log:
        if isinstance(event, Committed):
            new = keys(event.text)
            for i, key in enumerate(new):
                same = i < len(partial) and partial[i] == key
                done.append(Timed(key, since[i] if same else at, at))
            erased += sum(a != b for a, b in zip(partial, new))
            partial, since = partial[len(new) :], since[len(new) :]
        elif isinstance(event, Partial):
            shown = keys(event.text)
            kept = next(
                (i for i, (a, b) in enumerate(zip(partial, shown)) if a != b),
                min(len(partial), len(shown)),
            )
            erased += len(partial) - kept
            since = [*since[:kept], *([at] * (len(shown) - kept))]
            partial = shown
    return done, erased


def score(
    log: Log, offline: Sequence[Word], reference: str, *, work: float, audio: float
) -> Scores:
    """Scores of one recording.

    Args:
        log: what the session gave.
        offline: words of the offline transcript, with times.
        reference: what was said.
        work: seconds of work.
        audio: seconds of audio.
    """
    done, erased = timed_words(log)
    live, said = [word.key for word in done], keys(reference)
    expected = [(key, word.end) for word in offline for key in keys(word.word)]
    plain = [key for key, _ in expected]
    final = [k for _, e in log if isinstance(e, Utterance) for k in keys(e.text)]
    found = Scores(work=work, audio=audio, erased=erased, n_committed=len(live))
    found.lags = [event.seconds for _, event in log if isinstance(event, Lag)]
    pairs = align(plain, live)
    for i, j in pairs:
        if i is not None and j is not None and plain[i] == live[j]:
            found.shown.append(done[j].shown - expected[i][1])
            found.committed.append(done[j].committed - expected[i][1])
    said, live, plain = spoken(said), spoken(live), spoken(plain)
    found.reference_words = len(said)
    found.live_errors = errors(said, live)
    found.final_errors = errors(said, spoken(final))
    found.offline_errors = errors(said, plain)
    found.lost, found.doubled = lost_and_doubled(plain, live, said)
    return found


def lost_and_doubled(
    offline: Sequence[str], live: Sequence[str], said: Sequence[str]
) -> tuple[int, int]:
    """Words that were said, and that only the offline transcript has; and words that only the live
    one has, and that repeat one of the five before. ``may be`` and ``maybe`` are the same."""
    pairs = _differing(align(offline, live), offline, live)
    right = {i for i, j in align(offline, said) if i is not None and j is not None
             and offline[i] == said[j]}  # fmt: skip
    lost = sum(i is not None and j is None and i in right for i, j in pairs)
    extra = [j for i, j in pairs if i is None and j is not None]
    doubled = sum(live[j] in live[max(0, j - 5) : j] for j in extra)
    return lost, doubled


def _differing(
    pairs: Sequence[tuple[int | None, int | None]], left: Sequence[str], right: Sequence[str]
) -> list[tuple[int | None, int | None]]:
    """The pairs of words that differ, without runs of them that are the same letters."""

    def differs(pair: tuple[int | None, int | None]) -> bool:
        i, j = pair
        return i is None or j is None or left[i] != right[j]

    found: list[tuple[int | None, int | None]] = []
    for different, group in itertools.groupby(pairs, differs):
        run = list(group)
        letters = "".join(left[i] for i, _ in run if i is not None)
        if different and letters != "".join(right[j] for _, j in run if j is not None):
            found += run
    return found


def summary(scores: Scores) -> dict[str, float]:
    """The figures of a table."""
    words = max(scores.reference_words, 1)
    return {
        "shown_mean": float(np.mean(scores.shown)),
        "shown_p95": float(np.percentile(scores.shown, 95)),
        "committed_mean": float(np.mean(scores.committed)),
        "committed_p95": float(np.percentile(scores.committed, 95)),
        "wer_live": 100 * scores.live_errors / words,
        "wer_final": 100 * scores.final_errors / words,
        "wer_offline": 100 * scores.offline_errors / words,
        "lost_per_1000": 1000 * scores.lost / words,
        "doubled_per_1000": 1000 * scores.doubled / words,
        "erasure": scores.erased / max(scores.n_committed, 1),
        "lag_p95": float(np.percentile(scores.lags, 95)),
        "load": scores.work / scores.audio,
    }
