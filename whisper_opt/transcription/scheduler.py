"""Many windows of many recordings through one model: continuous batching.

A recording gives a window whenever it can (:mod:`whisper_opt.transcription.windows` says which), windows of
any recordings and options share a batch, and a finished one makes room for the next at once.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Callable

import numpy as np

from whisper_opt.core.arrays import Int
from whisper_opt.core.backend import Backend, Encoded
from whisper_opt.core.errors import WhisperOptError
from whisper_opt.core.logits import log_softmax
from whisper_opt.decoding import Batch, Decoded
from whisper_opt.text.results import Segment
from whisper_opt.text.vocabulary import Vocab
from whisper_opt.transcription.alignment import Aligner, CrossAttention
from whisper_opt.transcription.fallback import Window, WindowResult
from whisper_opt.transcription.job import Chunk, TranscriptionJob
from whisper_opt.transcription.language import language_probabilities

__all__ = ["Progress", "Scheduler", "Steps", "aligner"]

Progress = Callable[[float, float], None]
"""Called with (seconds done, seconds in all) whenever a window is finished."""


@dataclasses.dataclass(frozen=True, eq=False)
class _Flight:
    """A window that is being decoded."""

    recording: TranscriptionJob
    chunk: Chunk
    window: Window
    audio: Encoded
    index: int  # of the window in ``audio``
    attempts: tuple[WindowResult, ...] = ()  # at the temperatures so far


Steps = Generator[tuple[TranscriptionJob, list[Segment]], None, None]


class Scheduler:
    """Keeps a batch of windows full, from as many recordings as it takes."""

    def __init__(self, backend: Backend, vocab: Vocab, batch_size: int) -> None:
        """``batch_size``: windows decoded at once at most."""
        self._backend = backend
        self._vocab = vocab
        self._batch_size = batch_size
        self._batch = Batch(backend)
        self._flights: dict[int, _Flight] = {}
        self._waiting: collections.deque[tuple[TranscriptionJob, Chunk]] = collections.deque()
        self._active: list[TranscriptionJob] = []

    def run(self, recordings: Iterable[TranscriptionJob]) -> Steps:
        """Transcribe recordings; segments come as soon as they are known.

        Yields:
            A recording and its next segments, in order of time. The last of each recording comes
            when it is ``finished``, perhaps with no segments, perhaps with an ``error``.

        Closing the generator gives up what is being decoded.
        """
        source = iter(recordings)
        try:
            while True:
                yield from self._finished_idle()
                opened = self._admit(source)
                if not (self._flights or self._waiting or self._active or opened):
                    return
                for recording in self._step():
                    yield recording, recording.take()
        finally:
            self._batch.close()
            for recording in self._active:
                recording.close()

    def _finished_idle(self) -> Steps:
        """Recordings that have come to their end."""
        for recording in [r for r in self._active if not self._in_flight(r)]:
            ready = recording.take()
            if recording.finished:
                self._active.remove(recording)
            if ready or recording.finished:
                yield recording, ready

    def _in_flight(self, recording: TranscriptionJob) -> bool:
        return any(flight.recording is recording for flight in self._flights.values()) or any(
            owner is recording for owner, _ in self._waiting
        )

    def _admit(self, source: Iterator[TranscriptionJob]) -> bool:
        """Let windows join until the batch is full; returns whether any recording was begun."""
        found: list[tuple[TranscriptionJob, Chunk, Window]] = []
        n_begun = 0
        while len(self._flights) + len(found) < self._batch_size:
            if not self._waiting:
                if self._begin_chunk():
                    continue
                # recordings that give nothing never fill the batch: hand them out first
                recording = next(source, None) if n_begun < self._batch_size else None
                if recording is None:
                    break
                self._active.append(recording)
                n_begun += 1
                continue
            recording, chunk = self._waiting.popleft()
            if recording.error is None and (window := self._next_window(recording, chunk)):
                found.append((recording, chunk, window))
        if found:
            self._launch(found)
        return n_begun > 0

    def _begin_chunk(self) -> bool:
        """Queue one more chunk of a recording under way."""
        for recording in self._active:
            if recording.error is None:
                chunk = None
                try:
                    chunk = recording.next_chunk()
                except WhisperOptError as error:
                    recording.fail(error)
                if chunk is not None:
                    self._waiting.append((recording, chunk))
                    return True
        return False

    def _next_window(self, recording: TranscriptionJob, chunk: Chunk) -> Window | None:
        try:
            window = chunk.next_window()
            if window is not None:
                recording.answers.task(window, 0)  # refuses a prompt that does not fit
        except WhisperOptError as error:
            recording.fail(error)
            return None
        return window

    def _launch(self, found: Sequence[tuple[TranscriptionJob, Chunk, Window]]) -> None:
        mels = [chunk.mel.window(window.seek, window.size) for _, chunk, window in found]
        audio = self._backend.encode(np.stack(mels))
        flights = [
            _Flight(recording, chunk, window, audio, i)
            for i, (recording, chunk, window) in enumerate(found)
        ]
        self._fly(audio, self._in_their_languages(flights))

    def _in_their_languages(self, flights: list[_Flight]) -> list[_Flight]:
        """Detect the language of every window that asks for it."""
        asking = [f for f in flights if f.recording.answers.options.multilingual]
        if not asking:
            return flights
        audio = asking[0].audio.take([flight.index for flight in asking])
        for flight, probs in zip(asking, language_probabilities(self._backend, self._vocab, audio)):
            flight.chunk.state.language = next(iter(probs))
        return [
            dataclasses.replace(flight, window=flight.chunk.next_window() or flight.window)
            if flight in asking
            else flight
            for flight in flights
        ]

    def _fly(self, audio: Encoded, flights: Sequence[_Flight]) -> None:
        tasks = [f.recording.answers.task(f.window, len(f.attempts)) for f in flights]
        self._flights.update(zip(self._batch.add(audio, tasks), flights))

    def _step(self) -> list[TranscriptionJob]:
        """A token everywhere, or more; returns the recordings that got an answer."""
        touched: list[TranscriptionJob] = []
        again: list[_Flight] = []
        for number, decoded in self._batch.step().items():
            flight = self._flights.pop(number)
            if flight.recording.error is not None:
                continue
            try:
                left = self._land(flight, decoded)
            except WhisperOptError as error:
                flight.recording.fail(error)
                continue
            if left is None:
                touched.append(flight.recording)
                self._waiting.appendleft((flight.recording, flight.chunk))
            else:
                again.append(left)
        for flight in again:
            self._fly(flight.audio.take([flight.index]), [flight])
        return touched

    def _land(self, flight: _Flight, decoded: Decoded) -> _Flight | None:
        """Take an answer; returns what is to be decoded at the next temperature, if it is."""
        answers, window = flight.recording.answers, flight.window
        result = answers.result(window, decoded, len(flight.attempts))
        attempts = (*flight.attempts, result)
        kept = flight.chunk.state.choose(window, attempts, answers)
        if kept is None:
            return dataclasses.replace(flight, attempts=attempts)
        aligner = self._aligner(flight) if answers.options.word_timestamps else None
        flight.chunk.accept(window, kept, aligner)
        return None

    def _aligner(self, flight: _Flight) -> Aligner:
        language = flight.chunk.state.language
        task = flight.recording.answers.options.task
        start = self._vocab.start(language, task, timestamps=False)
        audio = flight.audio.take([flight.index])
        return aligner(self._backend, self._vocab.eot, audio, start)


def aligner(backend: Backend, eot: int, audio: Encoded, start: Sequence[int]) -> Aligner:
    """What feeds a text to the model and tells where it listened, for word times.

    Args:
        backend: the model.
        eot: its end-of-text id.
        audio: one window.
        start: ids before the text, up to and with no_timestamps.
    """

    def align(text: Sequence[int]) -> CrossAttention:
        tokens: Int = np.array([[*start, *text, eot]], np.int64)
        heard = backend.attention(audio, tokens, np.array([tokens.shape[1]]))
        # the token after the last one of ``start`` is the first of the text
        first = len(start) - 1
        logits = heard.logits[0, first : first + len(text), :eot]
        logprobs = log_softmax(logits)[np.arange(len(text)), list(text)]
        return CrossAttention(heard.scores[0], np.exp(logprobs))

    return align
