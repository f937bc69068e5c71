"""The windows of a scheduler that are decoded together, and what happens if the model fails.

If the model fails with several windows, usually for lack of memory, they are decoded again in
groups of half the size, down to single windows. A window that fails alone fails its job and no
other.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Sequence
from typing import Callable, Protocol

import numpy as np

from whisper_opt.core.backend import Backend, Encoded
from whisper_opt.core.interruption import Interrupted, Interruption
from whisper_opt.decoding import Batch, Decoded
from whisper_opt.text.vocabulary import Vocab
from whisper_opt.transcription.alignment import Aligner, aligner
from whisper_opt.transcription.fallback import Window, WindowResult
from whisper_opt.transcription.job import Chunk, TranscriptionJob
from whisper_opt.transcription.language import language_probabilities

__all__ = ["Aside", "InFlight", "Later", "WindowBatch"]


class Later(Protocol):
    """A call in another thread."""

    @property
    def done(self) -> bool:
        """Whether it has returned or raised."""

    def result(self) -> InFlight | None:
        """What it returned; raises what it raised."""


Aside = Callable[[Callable[[], "InFlight | None"]], Later]
"""Starts a call in another thread."""


@dataclasses.dataclass(frozen=True, eq=False)
class InFlight:
    """A window that is being decoded or waits to be decoded."""

    job: TranscriptionJob
    chunk: Chunk
    window: Window
    attempts: tuple[WindowResult, ...] = ()  # results at the temperatures so far
    audio: Encoded | None = None
    index: int = 0  # of the window in ``audio``

    def encoded(self) -> Encoded:
        """The encoded audio of this window alone."""
        assert self.audio is not None, "windows are encoded before they are decoded"
        return self.audio.take([self.index])


class WindowBatch:
    """Encodes and decodes windows, each at as many temperatures as it needs.

    Attributes:
        n_steps: decode steps so far.
        n_encoded: windows encoded so far.
    """

    def __init__(
        self,
        backend: Backend,
        vocab: Vocab,
        size: int,
        failures: tuple[type[Exception], ...],
        fail: Callable[[TranscriptionJob, Exception], None],
        aside: Aside | None = None,
        most_steps: int | None = None,
    ) -> None:
        """An empty batch.

        Args:
            backend: the model.
            vocab: its vocabulary.
            size: maximum number of windows decoded at once.
            failures: errors of single windows; any other error is raised.
            fail: called with a job and its error; must call :meth:`drop`.
            aside: results whose processing takes long are processed there, so that the other
                windows do not wait for that; default: at once.
            most_steps: tokens per window that :meth:`decode` samples at most; default: no limit.
        """
        self._backend = backend
        self._vocab = vocab
        self._size = size
        self._failures = failures
        self._fail = fail
        self._limit = size  # lower after a failure, until its windows are decoded
        self._batch = Batch(backend, most_steps)
        self._in_flight: dict[int, InFlight] = {}
        self._again: collections.deque[InFlight] = collections.deque()
        self._aside = aside
        self._set_aside: dict[InFlight, Later] = {}
        self.n_steps = 0
        self.n_encoded = 0

    @property
    def rows(self) -> int:
        """Windows that are being decoded."""
        return len(self._in_flight)

    @property
    def empty(self) -> bool:
        """Whether there are no windows."""
        return not (self._in_flight or self._again)

    @property
    def room(self) -> int:
        """How many windows can be added now; none before windows that failed are decoded."""
        if self.empty:
            self._limit = self._size
        if self._again or self._limit < self._size:
            return 0
        return self._size - len(self._in_flight) - len(self._set_aside)

    def retry(self, most: int) -> None:
        """Encode at most so many of the windows that failed together."""
        room = min(self._limit - len(self._in_flight), most, len(self._again))
        if room > 0:
            self.add([self._again.popleft() for _ in range(room)])

    def add(self, admitted: Sequence[InFlight], interruption: Interruption | None = None) -> bool:
        """Encode windows and add them to the batch.

        Args:
            admitted: the windows.
            interruption: stops the encoder, if the backend supports that.

        Returns:
            False if it was stopped; then nothing has changed.
        """
        try:
            mels = [item.chunk.mel.window(item.window.seek, item.window.size) for item in admitted]
            audio = self._backend.encode(np.stack(mels), interruption)
            encoded = [
                dataclasses.replace(item, audio=audio, index=i) for i, item in enumerate(admitted)
            ]
            self.n_encoded += len(admitted)
            self._submit(audio, self._detect_languages(audio, encoded))
        except Interrupted:
            return False
        except self._failures as error:
            self._lose(admitted, error)
        return True

    def _detect_languages(self, audio: Encoded, admitted: list[InFlight]) -> list[InFlight]:
        """Detect the language of every window whose options are multilingual."""
        multilingual = [item for item in admitted if item.job.fallback.options.multilingual]
        if not multilingual:
            return admitted
        audio = audio.take([item.index for item in multilingual])
        for item, probs in zip(
            multilingual, language_probabilities(self._backend, self._vocab, audio)
        ):
            item.chunk.cursor.heard(probs)
        return [
            dataclasses.replace(item, window=item.chunk.next_window() or item.window)
            if item in multilingual
            else item
            for item in admitted
        ]

    def _submit(self, audio: Encoded, admitted: Sequence[InFlight]) -> None:
        requests = [item.job.fallback.request(item.window, len(item.attempts)) for item in admitted]
        self._in_flight.update(zip(self._batch.add(audio, requests), admitted))

    def _lose(self, windows: Sequence[InFlight], error: Exception) -> None:
        """Decode windows again, half as many at once; a window that failed alone fails its job.

        Args:
            windows: windows that could not be added to the batch. Windows that the batch has lost
                are decoded again too.
            error: the error of the model.
        """
        lost = [*windows, *(self._in_flight.pop(number) for number in self._batch.take_lost())]
        if len(lost) == 1 and not self._in_flight:
            self._fail(lost[0].job, error)
            return
        self._limit = max(1, len(self._in_flight) + len(lost) // 2)
        # encoded again later, so that their memory is free until then
        self._again.extendleft(
            dataclasses.replace(item, audio=None, index=0) for item in reversed(lost)
        )

    def decode(self) -> list[InFlight]:
        """Decode one or more tokens in every window; returns the finished windows.

        Their results are in their chunks.
        """
        self.n_steps += len(self._batch) > 0
        try:
            results = self._batch.step()
        except self._failures as error:
            self._lose([], error)
            return []
        finished, again = self._processed_aside()
        for number, decoded in results.items():
            item = self._in_flight.pop(number, None)
            if item is not None:  # it is None if its job has failed meanwhile
                self._process(item, decoded, finished, again)
        for item in again:
            if item.job.error is None:
                self._try_again(item)
        return finished

    def _process(
        self, item: InFlight, decoded: Decoded, finished: list[InFlight], again: list[InFlight]
    ) -> None:
        """Process a result now or aside."""
        try:
            fallback = item.job.fallback
            result = fallback.result(item.window, decoded, len(item.attempts))
            attempts = (*item.attempts, result)
            process = functools.partial(self._finish, item, attempts)
            if self._aside and item.chunk.cursor.takes_long(item.window, attempts, fallback):
                item.chunk.busy = True
                self._set_aside[item] = self._aside(process)
            else:
                self._sort(item, process(), finished, again)
        except self._failures as error:
            self._fail(item.job, error)

    def _processed_aside(self) -> tuple[list[InFlight], list[InFlight]]:
        """Windows that are finished, and windows to be decoded again, after processing aside."""
        finished: list[InFlight] = []
        again: list[InFlight] = []
        for item in [item for item, later in self._set_aside.items() if later.done]:
            later = self._set_aside.pop(item, None)
            if later is None:  # its job has failed meanwhile
                continue
            item.chunk.busy = False
            try:
                self._sort(item, later.result(), finished, again)
            except self._failures as error:
                self._fail(item.job, error)
        return finished, again

    @staticmethod
    def _sort(
        item: InFlight,
        retry: InFlight | None,
        finished: list[InFlight],
        again: list[InFlight],
    ) -> None:
        if retry is None:
            finished.append(item)
        else:
            again.append(retry)

    def _try_again(self, item: InFlight) -> None:
        """Decode a window at its next temperature."""
        try:
            audio = item.encoded()
            self._submit(audio, [dataclasses.replace(item, audio=audio, index=0)])
        except self._failures as error:
            self._lose([item], error)

    def _finish(self, item: InFlight, attempts: tuple[WindowResult, ...]) -> InFlight | None:
        """Process results; returns the window if it is decoded again at the next temperature."""
        fallback, window = item.job.fallback, item.window
        kept = item.chunk.cursor.choose(window, attempts, fallback)
        if kept is None:
            return dataclasses.replace(item, attempts=attempts)
        aligner = self._aligner(item) if fallback.options.word_timestamps else None
        item.chunk.accept(window, kept, aligner)
        return None

    def _aligner(self, item: InFlight) -> Aligner:
        language = item.chunk.cursor.language
        task = item.job.fallback.options.task
        start = self._vocab.start(language, task, timestamps=False)
        return aligner(self._backend, self._vocab, item.encoded(), start)

    # --- leaving ----------------------------------------------------------------------------------

    def drop(self, job: TranscriptionJob) -> None:
        """Remove all windows of a job; their rows are free at once."""
        numbers = [n for n, item in self._in_flight.items() if item.job is job]
        for number in numbers:
            del self._in_flight[number]
        for item in [item for item in self._again if item.job is job]:
            self._again.remove(item)
        for item in [item for item in self._set_aside if item.job is job]:
            del self._set_aside[item]
        try:
            self._batch.remove(numbers)
        except self._failures as error:
            self._lose([], error)

    def close(self) -> None:
        """Remove all windows."""
        self._in_flight.clear()
        self._again.clear()
        self._set_aside.clear()
        self._batch.close()
