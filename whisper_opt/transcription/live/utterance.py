"""The state of one utterance of a live session."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Callable

from whisper_opt.audio.vad.rules import Span
from whisper_opt.core.dims import SAMPLE_RATE
from whisper_opt.transcription.live.words import LiveWord, parted

__all__ = ["LiveUtterance"]

_ANCHOR = 2
"""Committed words that stay in the buffer: no other word is near its beginning."""
_SENTENCE_ENDS = tuple(".。!！?？")  # noqa: RUF001 - full-width marks are meant


@dataclasses.dataclass
class LiveUtterance:
    """An utterance: its audio, its committed words, its last results.

    Positions are samples from the start of the session.

    Attributes:
        number: from 0.
        start: first sample.
        begin: first sample of the buffer, the audio of the next update.
        heard: end of the audio of the last update.
        stop: end; None while it is not known.
        committed: the committed words.
        n_before: how many of them are before the buffer.
        doubtful: indices of committed words of results that fail the thresholds.
        results: words of the last results that are not committed, the newest last.
        shown: the uncommitted text that was reported last.
    """

    number: int
    start: int
    begin: int
    heard: int
    stop: int | None = None
    committed: list[LiveWord] = dataclasses.field(default_factory=list)
    n_before: int = 0
    doubtful: set[int] = dataclasses.field(default_factory=set)
    results: list[tuple[LiveWord, ...]] = dataclasses.field(default_factory=list)
    shown: str = ""

    @classmethod
    def at(cls, number: int, start: int) -> LiveUtterance:
        """A new utterance."""
        return cls(number, start, start, start)

    @property
    def prefix(self) -> tuple[int, ...]:
        """Ids of the committed words in the buffer."""
        return tuple(token for word in self.committed[self.n_before :] for token in word.tokens)

    @property
    def pending(self) -> tuple[LiveWord, ...]:
        """Words of the last result that are not committed."""
        return self.results[-1] if self.results else ()

    def add_result(self, words: tuple[LiveWord, ...], most: int) -> None:
        """Add a result; at most ``most`` are kept."""
        self.results.append(words)
        del self.results[:-most]

    def commit(self, n: int, *, good: bool) -> tuple[LiveWord, ...]:
        """Commit the first words of the last result; returns them."""
        words = self.pending[:n]
        if not good:
            first = len(self.committed)
            self.doubtful.update(range(first, first + len(words)))
        self.committed.extend(words)
        # results that do not begin with these words say nothing about what follows
        rest = self.pending[n:]
        if n:
            self.results = [rest]
        return words

    def part_mark(self, decode: Callable[[Sequence[int]], str]) -> int:
        """Make the punctuation at the end of the last result a word; how many words are before it.

        ``decode`` gives the text of ids.
        """
        words = self.pending
        if not words:
            return 0
        self.results[-1] = (*words[:-1], *parted(words[-1], decode))
        return len(words)

    def pending_before(self, at: int) -> int:
        """How many words of the last result that are not committed are before a sample."""
        return sum(_middle(word) < at / SAMPLE_RATE for word in self.pending)

    def trim(self, at: int) -> tuple[int, ...]:
        """Let the buffer begin at a sample; returns the ids of good words before it."""
        seconds = at / SAMPLE_RATE
        last = len(self.committed)
        n = next(
            (i for i in range(self.n_before, last) if _middle(self.committed[i]) >= seconds), last
        )
        gone = range(self.n_before, n)
        self.begin, self.n_before = at, n
        return tuple(
            token for i in gone if i not in self.doubtful for token in self.committed[i].tokens
        )

    def cut_point(self, pauses: Sequence[Span], earliest: int, latest: int) -> int | None:
        """The best sample at which the buffer may begin: in a pause, else between words.

        All words up to there are committed, and so are a few after it. None if there is no such
        sample from ``earliest`` to ``latest``.
        """
        words = self.committed[self.n_before :]
        if len(words) <= _ANCHOR:
            return None
        bound = min(latest, round(words[-_ANCHOR].start * SAMPLE_RATE))
        for pause in reversed(pauses):
            middle = (pause.start + pause.end) // 2
            if earliest <= middle <= bound:
                return middle
        ends = [
            (word.text.rstrip().endswith(_SENTENCE_ENDS), round(word.end * SAMPLE_RATE))
            for word in words[:-_ANCHOR]
        ]
        between = [(ends_sentence, end) for ends_sentence, end in ends if earliest <= end <= bound]
        return max(between)[1] if between else None


def _middle(word: LiveWord) -> float:
    return (word.start + word.end) / 2
