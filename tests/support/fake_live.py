"""A live session without a model: what is loud is speech, and every 0.2 s of it are a word."""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import json
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any, Union

import numpy as np

from whisper_opt.core.errors import StreamError, WhisperOptError
from whisper_opt.core.options import LiveOptions, TranscribeOptions
from whisper_opt.text.live_events import (
    Committed,
    Failed,
    Lag,
    LiveEvent,
    Partial,
    SpeechStarted,
    SpeechStopped,
    Utterance,
)
from whisper_opt.text.results import Segment, Word

__all__ = ["WORD_S", "FakeLive", "Talk", "loud", "quiet"]

WORD_S = 0.2
"""Seconds of speech for each word."""
_STEP_S = 0.02


def loud(seconds: float, rate: int = 24_000, n_channels: int = 1) -> Any:
    """Samples that the fake session takes for speech."""
    return np.full((round(seconds * rate), n_channels), 1000, np.int16)


def quiet(seconds: float, rate: int = 24_000, n_channels: int = 1) -> Any:
    """Samples that it takes for silence."""
    return np.zeros((round(seconds * rate), n_channels), np.int16)


class FakeLive:
    """A session; it works within the calls, and its events wait in ``pending``.

    Attributes:
        pending: events that nobody has taken.
        fails: whether the utterances that end from now on fail.
        cancelled: whether it was cancelled.
    """

    def __init__(
        self,
        options: TranscribeOptions,
        live: LiveOptions,
        *,
        sample_rate: int = 16_000,
        channels: int = 1,
    ) -> None:
        self.options = options
        self.live = live
        self.sample_rate = sample_rate
        self.channels = channels
        self.pending: collections.deque[LiveEvent] = collections.deque()
        self.received = 0
        self.fails = False
        self.cancelled = False
        self.finished = False
        self.backlog = 0.0
        self._rest = np.zeros(0, np.float32)
        self._now = 0.0  # seconds that were heard
        self._number = 0
        self._begin: Union[float, None] = None
        self._speech = 0.0
        self._silence = 0.0
        self._words: list[Word] = []

    # what a front end calls

    def push(self, samples: Any, sample_rate: Union[int, None] = None) -> None:
        if self.finished:
            raise StreamError("the session was finished")
        if isinstance(samples, bytes):
            samples = np.frombuffer(samples, "<i2")
        samples = np.asarray(samples).reshape(-1, self.channels)
        self.received += len(samples)
        rate = sample_rate or self.sample_rate
        self._rest = np.concatenate([self._rest, np.abs(samples.astype(np.float32)).max(axis=1)])
        n = round(_STEP_S * rate)
        while len(self._rest) >= n:
            step, self._rest = self._rest[:n], self._rest[n:]
            self._hear(bool(step.max() > 0))
        self.pending.append(Lag(0.0))

    def commit(self) -> None:
        if self._begin is not None:
            self._end()

    def clear(self) -> None:
        self.commit()

    def finish(self) -> None:
        if not self.finished:
            self.commit()
        self.finished = True

    def cancel(self) -> None:
        self.finished = self.cancelled = True
        self.pending.clear()

    # hearing

    def _hear(self, speech: bool) -> None:
        before, self._now = self._now, self._now + _STEP_S
        if self._begin is None and (speech or not self.live.vad):
            self._begin = before
            self._add(SpeechStarted(before, self._number))
        if speech:
            self._silence = 0.0
            self._speech += _STEP_S
            if self._speech > WORD_S - 1e-6:
                self._speech = 0.0
                self._word(before)
        elif self._begin is not None:
            self._silence += _STEP_S
            if self.live.vad and self._silence * 1000 > self.live.silence_ms - 1:
                self._end()

    def _word(self, at: float) -> None:
        word = Word(max(0.0, at - WORD_S), at, f" w{self._number}.{len(self._words)}", 0.9)
        self._words.append(word)
        self._add(Committed(word.word, (word,), self._number))
        guess = Word(at, at + WORD_S, " guess", 0.4)
        self._add(Partial(guess.word, (guess,), self._number))

    def _end(self) -> None:
        begin = self._begin or 0.0
        self._add(SpeechStopped(self._now, self._number))
        words = tuple(self._words)
        text = "".join(word.word for word in words) + ("." if words else "")
        segment = Segment(0, begin, self._now, text, (), -0.1, 0.0, 1.0, 0.0, 0, words)
        if self.options.token_logprobs:
            segment = dataclasses.replace(segment, tokens=(220,), token_logprobs=(-0.5,))
        if self.fails:
            self._add(Failed(WhisperOptError("a secret"), self._number))
        else:
            found = (segment,) if words else ()
            self._add(Utterance(found, text, begin, self._now, self._number, "en", words))
        self._number += 1
        self._words, self._begin = [], None
        self._speech = self._silence = 0.0

    def _add(self, event: LiveEvent) -> None:
        self.pending.append(event)

    # reading

    @property
    def over(self) -> bool:
        """Whether there are no events and none will come."""
        return self.finished and not self.pending

    def drain(self) -> Iterator[LiveEvent]:
        """The events that are there."""
        while self.pending:
            yield self.pending.popleft()

    def events(self) -> Iterator[LiveEvent]:
        while not self.over:
            yield from self.drain()
            time.sleep(0.001)

    async def __aiter__(self) -> AsyncIterator[LiveEvent]:
        while not self.over:
            while self.pending:
                yield self.pending.popleft()
            await asyncio.sleep(0.001)


class Talk:
    """A protocol without a socket, and the fakes that it opens; a subclass sets ``it``.

    Attributes:
        it: the protocol on one connection.
        sent: messages of the server that nobody has taken.
        sessions: its sessions, by number.
    """

    it: Any

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []
        self.sessions: list[FakeLive] = []

    def open(
        self, options: TranscribeOptions, live: LiveOptions, rate: int, n_channels: int = 1
    ) -> tuple[int, FakeLive]:
        """A session and its number."""
        self.sessions.append(FakeLive(options, live, sample_rate=rate, channels=n_channels))
        return len(self.sessions) - 1, self.sessions[-1]

    def tell(self, type_: str, **fields: Any) -> None:
        """Send a message."""
        self.it.receive(json.dumps({"type": type_, **fields}))

    def listen(self) -> None:
        """Pass on what the sessions have said."""
        for number, session in enumerate(self.sessions):
            for event in session.drain():
                self.it.heard(number, event)

    def take(self) -> list[dict[str, Any]]:
        """The messages since the last call."""
        self.listen()
        found, self.sent[:] = list(self.sent), []
        return found
