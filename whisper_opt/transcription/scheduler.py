"""Scheduler: continuous batching of the windows of many recordings.

Windows of any recordings and options share a batch. A finished window leaves it, and another one
takes its place at once. :mod:`whisper_opt.transcription.windows` defines the windows of a
recording.

If the model fails with several windows, usually for lack of memory, they are decoded again in
groups of half the size, down to single windows. A window that fails alone fails its job and no
other.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
from collections.abc import Generator, Iterable, Sequence
from typing import Callable, Union

import numpy as np

from whisper_opt.core.backend import Backend, Encoded
from whisper_opt.core.errors import EngineError, WhisperOptError
from whisper_opt.decoding import Batch, Decoded
from whisper_opt.text.results import Segment
from whisper_opt.text.vocabulary import Vocab
from whisper_opt.transcription.alignment import Aligner, aligner
from whisper_opt.transcription.fallback import Window, WindowResult
from whisper_opt.transcription.job import Chunk, TranscriptionJob
from whisper_opt.transcription.language import language_probabilities
from whisper_opt.transcription.sources import ReadySource, Source, source_of

__all__ = ["Progress", "Scheduler", "Steps", "Update"]

Progress = Callable[[float, float], None]
"""Called with (seconds done, total seconds) when a window is finished."""

Update = tuple[TranscriptionJob, list[Segment]]
"""A job and its next segments."""

Steps = Generator[Update, None, None]

_FAILURES = (WhisperOptError, MemoryError)
"""Errors of single windows or jobs; any other error ends the run."""


@dataclasses.dataclass(frozen=True, eq=False)
class _InFlight:
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


class Scheduler:
    """Transcribes jobs with a batch of windows, which it keeps full.

    :meth:`run` transcribes all jobs of a source. A program with its own loop calls :meth:`submit`
    and :meth:`step` instead; they wait for nothing but the model.

    Use a scheduler from one thread at a time. It holds no lock between calls, so several schedulers
    may take turns with one backend.
    """

    def __init__(self, backend: Backend, vocab: Vocab, batch_size: int) -> None:
        """``batch_size``: maximum number of windows decoded at once."""
        self._backend = backend
        self._vocab = vocab
        self._batch_size = batch_size
        self._limit = batch_size  # lower after a failure, until its windows are decoded
        self._batch = Batch(backend)
        self._in_flight: dict[int, _InFlight] = {}
        self._again: collections.deque[_InFlight] = collections.deque()
        self._waiting: collections.deque[tuple[TranscriptionJob, Chunk]] = collections.deque()
        self._active: list[TranscriptionJob] = []
        self._submitted: collections.deque[TranscriptionJob] = collections.deque()
        self._source: Source[TranscriptionJob] = ReadySource(())

    # --- single steps -----------------------------------------------------------------------------

    def submit(self, job: TranscriptionJob) -> None:
        """Add a job; its recording is opened when there is room for its first window."""
        self._submitted.append(job)

    def cancel(self, job: TranscriptionJob) -> None:
        """Cancel a job and make room for others; there will be no more updates of it."""
        with contextlib.suppress(ValueError):
            self._submitted.remove(job)
        with contextlib.suppress(ValueError):
            self._active.remove(job)
        try:
            self._drop(job)
        finally:
            job.close()

    @property
    def busy(self) -> bool:
        """Whether any submitted job is unfinished."""
        return bool(self._active or self._submitted)

    def step(self) -> list[Update]:
        """Report finished jobs; if there are none, decode one or more tokens in every window.

        Returns:
            Jobs and their next segments, in order of time. After its last update a job is
            ``finished``; that update may have no segments, and the job may have an ``error``.
        """
        finished = self._finished()
        if finished:
            return finished
        self._admit()
        return [
            (job, job.take())
            for job in self._decode()
            if job.error is None  # failed jobs are reported once, when they are finished
        ]

    def close(self) -> None:
        """Cancel all unfinished jobs."""
        with contextlib.ExitStack() as stack:  # closes all, even if one raises
            stack.callback(self._source.close)
            for job in (*self._active, *self._submitted):
                stack.callback(job.close)
            stack.callback(self._batch.close)
        self._in_flight.clear()
        for left in (self._again, self._waiting, self._active, self._submitted):
            left.clear()

    # --- jobs of a source -------------------------------------------------------------------------

    def run(self, jobs: Union[Iterable[TranscriptionJob], Source[TranscriptionJob]]) -> Steps:
        """Transcribe jobs; segments are yielded as soon as they are known.

        The next job is taken from the source when there is room for it. The scheduler waits for the
        source only if it has nothing else to do.

        Yields:
            Results of :meth:`step`.

        Closing the generator cancels all unfinished jobs.
        """
        self._source = source_of(jobs) if isinstance(jobs, Iterable) else jobs
        try:
            while self.busy or not self._source.ended:
                yield from self.step()
        finally:
            self.close()

    # --- jobs -------------------------------------------------------------------------------------

    def _finished(self) -> list[Update]:
        """Updates of jobs without pending windows."""
        updates: list[Update] = []
        for job in [job for job in self._active if not self._is_pending(job)]:
            ready = job.take()
            if job.finished:
                self._active.remove(job)
            if ready or job.finished:
                updates.append((job, ready))
        return updates

    def _is_pending(self, job: TranscriptionJob) -> bool:
        """Whether windows of a job are being decoded or wait to be decoded."""
        windows = (*self._in_flight.values(), *self._again)
        return any(item.job is job for item in windows) or any(
            owner is job for owner, _ in self._waiting
        )

    def _fail(self, job: TranscriptionJob, error: Exception) -> None:
        if isinstance(error, MemoryError):
            error = EngineError(
                "there is not enough memory to decode a window; lower beam_size or best_of, or free"
                " memory of other processes"
            )
        assert isinstance(error, WhisperOptError)
        job.fail(error)
        self._drop(job)

    def _drop(self, job: TranscriptionJob) -> None:
        """Remove all windows of a job."""
        numbers = [n for n, item in self._in_flight.items() if item.job is job]
        for number in numbers:
            del self._in_flight[number]
        for item in [item for item in self._again if item.job is job]:
            self._again.remove(item)
        for pair in [pair for pair in self._waiting if pair[0] is job]:
            self._waiting.remove(pair)
        try:
            self._batch.remove(numbers)
        except _FAILURES as error:
            self._retry([], error)

    # --- windows ----------------------------------------------------------------------------------

    def _admit(self) -> None:
        """Add windows until the batch is full."""
        if not (self._again or self._in_flight):
            self._limit = self._batch_size
        if self._again or self._limit < self._batch_size:
            room = self._limit - len(self._in_flight)
            admitted = [self._again.popleft() for _ in range(min(room, len(self._again)))]
        else:
            admitted = self._new_windows()
        if admitted:
            self._encode(admitted)

    def _new_windows(self) -> list[_InFlight]:
        """Windows of active and new jobs, as many as there is room for."""
        admitted: list[_InFlight] = []
        n_started = 0
        while len(self._in_flight) + len(admitted) < self._batch_size:
            if self._waiting:
                job, chunk = self._waiting.popleft()
                window = self._next_window(job, chunk)
                if window is not None:
                    admitted.append(_InFlight(job, chunk, window))
            elif not self._start_chunk():
                # jobs without windows never fill the batch: report them first
                if n_started == self._batch_size or not self._start_job(idle=not admitted):
                    break
                n_started += 1
        return [item for item in admitted if item.job.error is None]

    def _start_job(self, *, idle: bool) -> bool:
        """Start a submitted job or the next one of the source; False if there is none.

        ``idle``: whether no window waits to be decoded.
        """
        if self._submitted:
            self._active.append(self._submitted.popleft())
            return True
        found = self._source.take(wait=idle and not (self._in_flight or self._active))
        if found is None:
            return False
        self._active.append(found[0])
        return True

    def _start_chunk(self) -> bool:
        """Queue the next chunk of an active job; False if there is none."""
        for job in self._active:
            if job.error is None:
                chunk = None
                try:
                    chunk = job.next_chunk()
                except _FAILURES as error:
                    self._fail(job, error)
                if chunk is not None:
                    self._waiting.append((job, chunk))
                    return True
        return False

    def _next_window(self, job: TranscriptionJob, chunk: Chunk) -> Window | None:
        try:
            window = chunk.next_window()
            if window is not None:
                job.fallback.request(window, 0)  # raises if the prompt is too long
        except _FAILURES as error:
            self._fail(job, error)
            return None
        return window

    def _encode(self, admitted: Sequence[_InFlight]) -> None:
        """Encode windows and add them to the batch."""
        try:
            mels = [item.chunk.mel.window(item.window.seek, item.window.size) for item in admitted]
            audio = self._backend.encode(np.stack(mels))
            encoded = [
                dataclasses.replace(item, audio=audio, index=i) for i, item in enumerate(admitted)
            ]
            self._submit(audio, self._detect_languages(audio, encoded))
        except _FAILURES as error:
            self._retry(admitted, error)

    def _detect_languages(self, audio: Encoded, admitted: list[_InFlight]) -> list[_InFlight]:
        """Detect the language of every window whose options are multilingual."""
        multilingual = [item for item in admitted if item.job.fallback.options.multilingual]
        if not multilingual:
            return admitted
        audio = audio.take([item.index for item in multilingual])
        for item, probs in zip(
            multilingual, language_probabilities(self._backend, self._vocab, audio)
        ):
            item.chunk.cursor.language = next(iter(probs))
        return [
            dataclasses.replace(item, window=item.chunk.next_window() or item.window)
            if item in multilingual
            else item
            for item in admitted
        ]

    def _submit(self, audio: Encoded, admitted: Sequence[_InFlight]) -> None:
        requests = [item.job.fallback.request(item.window, len(item.attempts)) for item in admitted]
        self._in_flight.update(zip(self._batch.add(audio, requests), admitted))

    def _retry(self, windows: Sequence[_InFlight], error: Exception) -> None:
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

    # --- decoding ---------------------------------------------------------------------------------

    def _decode(self) -> list[TranscriptionJob]:
        """Decode one or more tokens in every window; returns the jobs of finished windows."""
        touched: dict[TranscriptionJob, None] = {}
        again: list[_InFlight] = []
        try:
            results = self._batch.step()
        except _FAILURES as error:
            self._retry([], error)
            return []
        for number, decoded in results.items():
            item = self._in_flight.pop(number, None)
            if item is None:  # its job has failed meanwhile
                continue
            try:
                retry = self._finish(item, decoded)
            except _FAILURES as error:
                self._fail(item.job, error)
                continue
            if retry is None:
                touched[item.job] = None
                self._waiting.appendleft((item.job, item.chunk))
            else:
                again.append(retry)
        for item in again:
            if item.job.error is None:
                self._try_again(item)
        return list(touched)

    def _try_again(self, item: _InFlight) -> None:
        """Decode a window at its next temperature."""
        try:
            audio = item.encoded()
            self._submit(audio, [dataclasses.replace(item, audio=audio, index=0)])
        except _FAILURES as error:
            self._retry([item], error)

    def _finish(self, item: _InFlight, decoded: Decoded) -> _InFlight | None:
        """Process a result; returns the window if it is decoded again at the next temperature."""
        fallback, window = item.job.fallback, item.window
        result = fallback.result(window, decoded, len(item.attempts))
        attempts = (*item.attempts, result)
        kept = item.chunk.cursor.choose(window, attempts, fallback)
        if kept is None:
            return dataclasses.replace(item, attempts=attempts)
        aligner = self._aligner(item) if fallback.options.word_timestamps else None
        item.chunk.accept(window, kept, aligner)
        return None

    def _aligner(self, item: _InFlight) -> Aligner:
        language = item.chunk.cursor.language
        task = item.job.fallback.options.task
        start = self._vocab.start(language, task, timestamps=False)
        return aligner(self._backend, self._vocab, item.encoded(), start)
