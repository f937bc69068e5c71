"""Where live sessions run in tests: one thread, no model, time by hand."""

from __future__ import annotations

import collections
import math
from typing import Callable, Union

from tests.support.live_script import RATE, result
from tests.support.live_words import words
from whisper_opt.core.arrays import F32
from whisper_opt.core.errors import EngineClosed, WhisperOptError
from whisper_opt.core.options import TranscribeOptions
from whisper_opt.serving.live.runner import Cancel, Decoded, Transcribed
from whisper_opt.text.results import Segment, Transcript
from whisper_opt.transcription.live.window import Hypothesis, Update

__all__ = ["HandRunner", "spoken"]

EACH = 0.3


def spoken(update: Update) -> Hypothesis:
    """A word every 0.3 s, those that are complete; after the committed ones."""
    first = math.ceil(update.start / EACH - 0.5)
    last = int(update.end / RATE / EACH + 1e-6)
    texts = [f"w{i}" for i in range(first, last)]
    known = [t for w in words(" ".join(texts)) for t in w.tokens][: len(update.prefix)]
    assert tuple(known) == update.prefix, "the prefix is not what was said there"
    n = 0
    while sum(len(text) + 1 for text in texts[:n]) < len(update.prefix):
        n += 1
    return result(words(" ".join(texts[n:]), start=(first + n) * EACH, each=EACH))


class HandRunner:
    """Implements ``Runner``.

    Attributes:
        time: what :meth:`now` tells.
        updates: updates that were asked for, with what gets their results.
        utterances: likewise, samples and options.
        closed: whether nothing is decoded any more.
    """

    def __init__(self) -> None:
        self.time = 0.0
        self.updates: collections.deque[tuple[Update, Decoded]] = collections.deque()
        self.utterances: collections.deque[tuple[F32, TranscribeOptions, Transcribed]] = (
            collections.deque()
        )
        self.closed = False
        self._calls: collections.deque[Callable[[], object]] = collections.deque()
        self._later: list[tuple[float, Callable[[], object]]] = []

    def now(self) -> float:
        return self.time

    def post(self, call: Callable[[], object]) -> None:
        self._calls.append(call)

    def call_later(self, seconds: float, call: Callable[[], object]) -> None:
        self._later.append((self.time + seconds, call))

    def decode(self, update: Update, deadline: float, done: Decoded) -> Cancel:
        if self.closed:
            raise EngineClosed("closed")
        entry = (update, done)
        self.updates.append(entry)
        return lambda: self.updates.remove(entry) if entry in self.updates else None

    def transcribe(
        self, samples: F32, options: TranscribeOptions, deadline: float, done: Transcribed
    ) -> Cancel:
        entry = (samples, options, done)
        self.utterances.append(entry)
        return lambda: self.utterances.remove(entry) if entry in self.utterances else None

    def work(self) -> None:
        """Make the calls that are due."""
        due = [call for at, call in self._later if at <= self.time]
        self._later = [item for item in self._later if item[0] > self.time]
        self._calls.extend(due)
        while self._calls:
            self._calls.popleft()()

    def answer(
        self, answer: Callable[[Update], Union[Hypothesis, None]] = spoken, work: float = 0.1
    ) -> Update:
        """Answer the oldest update."""
        update, done = self.updates.popleft()
        done(answer(update), work)
        self.work()
        return update

    def finish(self, text: str = " whole", error: WhisperOptError | None = None) -> F32:
        """Answer the oldest utterance with a text, or with an error."""
        samples, _, done = self.utterances.popleft()
        seconds = len(samples) / RATE
        segment = Segment(0, 0.0, seconds, text, (), -0.3, 0.1, 1.2, 0.0, 0, words=())
        done(error or Transcript((segment,), "en", seconds, text))
        self.work()
        return samples
