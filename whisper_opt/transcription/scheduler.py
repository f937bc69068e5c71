"""Scheduler: continuous batching of the windows of many recordings.

Windows of any recordings and options share a batch. A finished window leaves it, and another one
takes its place at once. :mod:`whisper_opt.transcription.windows` defines the windows of a
recording, :mod:`whisper_opt.transcription.admission` which recording comes next, and
:mod:`whisper_opt.transcription.window_batch` what happens if the model fails.
"""

from __future__ import annotations

import collections
import contextlib
import threading
import time
from collections.abc import Generator, Iterable
from typing import Callable, Union

from whisper_opt.core.backend import Backend
from whisper_opt.core.errors import EngineError, WhisperOptError
from whisper_opt.core.interruption import Interruption
from whisper_opt.text.results import Segment
from whisper_opt.text.vocabulary import Vocab
from whisper_opt.transcription.admission import ActiveJob, Admission, OldestFirst, Rank, Terms
from whisper_opt.transcription.job import Chunk, TranscriptionJob
from whisper_opt.transcription.sources import ReadySource, Source, source_of
from whisper_opt.transcription.window_batch import Aside, InFlight, WindowBatch

__all__ = ["Progress", "Scheduler", "Steps", "Update"]

Progress = Callable[[float, float], None]
"""Called with (seconds done, total seconds) when a window is finished."""

Update = tuple[TranscriptionJob, list[Segment]]
"""A job and its next segments."""

Steps = Generator[Update, None, None]

_FAILURES = (WhisperOptError, MemoryError)
"""Errors of single windows or jobs; any other error ends the run."""
_EQUAL = Terms()


def _failure(error: Exception) -> WhisperOptError:
    """The error of a job that failed with any error."""
    if isinstance(error, WhisperOptError):
        return error
    if isinstance(error, MemoryError):
        message = (
            "there is not enough memory to decode a window; lower beam_size or best_of, or free"
            " memory of other processes"
        )
    else:
        message = f"the transcription failed with an unexpected {type(error).__name__}: {error}"
    failure = EngineError(message)
    failure.__cause__ = error
    return failure


class Scheduler:
    """Transcribes jobs with a batch of windows, which it keeps full.

    :meth:`run` transcribes all jobs of a source. A program with its own loop calls :meth:`submit`
    and :meth:`step` instead; they wait for nothing but the model and, unless a job is ``polled``,
    its recording.

    Use a scheduler from one thread at a time. It holds no lock between calls, so several schedulers
    may take turns with one backend.
    """

    def __init__(
        self,
        backend: Backend,
        vocab: Vocab,
        batch_size: int,
        *,
        admission: Admission | None = None,
        failures: tuple[type[Exception], ...] = _FAILURES,
        aside: Aside | None = None,
        most_steps: int | None = None,
    ) -> None:
        """An idle scheduler.

        Args:
            backend: the model.
            vocab: its vocabulary.
            batch_size: maximum number of windows decoded at once.
            admission: which recording comes next; default: the oldest.
            failures: errors that fail only the windows or the job concerned.
            aside: where results are processed whose processing takes long; default: at once.
            most_steps: tokens per window that a step samples at most, on a device that can sample
                several; default: as many as it can.
        """
        self._batch_size = batch_size
        self._admission = OldestFirst() if admission is None else admission
        self._failures = failures
        self._windows = WindowBatch(
            backend, vocab, batch_size, failures, self._fail, aside, most_steps
        )
        self._active: dict[TranscriptionJob, ActiveJob] = {}
        self._submitted: collections.deque[TranscriptionJob] = collections.deque()
        self._source: Source[TranscriptionJob] = ReadySource(())
        self._turn = 0
        self._encoding: tuple[Interruption, Rank] | None = None  # what can be interrupted now
        self._urgent: Rank | None = None
        self._lock = threading.Lock()  # held while one of the two is changed or compared

    # --- single steps -----------------------------------------------------------------------------

    def submit(self, job: TranscriptionJob) -> None:
        """Add a job; its recording is opened when there is room for its first window."""
        self._submitted.append(job)

    def start(self, job: TranscriptionJob, terms: Terms = _EQUAL) -> None:
        """Add a job that takes part in the next step, whether there is room for it or not."""
        self._turn += 1
        self._active[job] = ActiveJob(job, terms, self._turn)

    def cancel(self, job: TranscriptionJob) -> None:
        """Cancel a job and make room for others; there will be no more updates of it."""
        with contextlib.suppress(ValueError):
            self._submitted.remove(job)
        try:
            self._drop(job)
        finally:
            self._active.pop(job, None)
            job.close()

    @property
    def busy(self) -> bool:
        """Whether any submitted job is unfinished."""
        return bool(self._active or self._submitted)

    @property
    def rows(self) -> int:
        """Windows that are being decoded."""
        return self._windows.rows

    @property
    def n_steps(self) -> int:
        """Decode steps so far."""
        return self._windows.n_steps

    @property
    def n_encoded(self) -> int:
        """Windows encoded so far."""
        return self._windows.n_encoded

    def unserved(self, rank: Rank) -> int:
        """Started jobs of at least this rank that have not had a row."""
        return sum(not each.served and each.terms.rank >= rank for each in self._active.values())

    def holds(self, job: TranscriptionJob) -> bool:
        """Whether a job was started and its end was not reported yet."""
        return job in self._active

    @property
    def waits(self) -> bool:
        """Whether there is no window to decode: every unfinished job waits for its recording."""
        ready = self._submitted or any(
            each.waiting or each.job.error is not None for each in self._active.values()
        )
        return self._windows.empty and not ready

    def step(self, most_new: int | None = None) -> list[Update]:
        """Report finished jobs; if there are none, decode one or more tokens in every window.

        Args:
            most_new: maximum number of windows that are encoded first; default: no limit.

        Returns:
            Jobs and their next segments, in order of time. After its last update a job is
            ``finished``; that update may have no segments, and the job may have an ``error``.
        """
        for each in self._active.values():
            each.waited += not each.served
            each.idle = each.idle + 1 if each.waiting and not each.n_windows else 0
            if each.job.polled and not each.waiting:
                self._fill(each)
        finished = self._finished()
        if finished:
            return finished
        most = self._batch_size if most_new is None else most_new
        self._windows.retry(most)
        admitted = self._new_windows(min(self._windows.room, most))
        if admitted:
            self._add(admitted)
        # failed jobs are reported once, when they are finished
        return [self._update(job) for job in self._decode() if job.error is None]

    def close(self) -> None:
        """Cancel all unfinished jobs."""
        with contextlib.ExitStack() as stack:  # closes all, even if one raises
            stack.callback(self._source.close)
            for job in (*self._active, *self._submitted):
                stack.callback(job.close)
            stack.callback(self._windows.close)
        self._active.clear()
        self._submitted.clear()

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
        idle = [each.job for each in self._active.values() if not each.pending]
        updates = [self._update(job) for job in idle]
        return [(job, ready) for job, ready in updates if ready or job.finished]

    def _update(self, job: TranscriptionJob) -> Update:
        """Segments of a job that are ready; a finished job is forgotten."""
        ready = job.take()
        if job.finished:
            ready += job.take()  # it may have ended after the first call
            self._active.pop(job, None)
        return job, ready

    def _fail(self, job: TranscriptionJob, error: Exception) -> None:
        job.fail(_failure(error))
        self._drop(job)

    def _drop(self, job: TranscriptionJob) -> None:
        """Remove all windows of a job."""
        if job in self._active:
            self._active[job].clear()
        self._windows.drop(job)

    # --- windows ----------------------------------------------------------------------------------

    def _decode(self) -> list[TranscriptionJob]:
        """Decode one or more tokens in every window; returns the jobs of finished windows."""
        touched: dict[TranscriptionJob, None] = {}
        for item in self._windows.decode():
            if item.job.error is None:
                each = self._active[item.job]
                each.n_windows -= 1
                self._turn += 1
                each.turn = self._turn
                touched[item.job] = None
                self._queue(each, item.chunk)
        return list(touched)

    def _new_windows(self, room: int) -> list[InFlight]:
        """Windows of active and new jobs, as many as there is room for."""
        admitted: list[InFlight] = []
        chosen: list[ActiveJob] = []
        n_started = 0
        while len(admitted) < room:
            each = self._next_job(chosen)
            if each is not None:
                chosen.append(each)
                admitted.append(self._take(each))
            # jobs without windows never fill the batch: report them first
            elif n_started == self._batch_size or not self._start_job(idle=not admitted):
                break
            else:
                n_started += 1
        return [item for item in admitted if item.job.error is None]

    def _add(self, admitted: list[InFlight]) -> None:
        """Encode windows; if that is interrupted, they wait again."""
        jobs = [self._active[item.job] for item in admitted]
        interruption = Interruption() if all(each.gives_way for each in jobs) else None
        if interruption is not None:
            with self._lock:
                self._encoding = interruption, max(each.terms.rank for each in jobs)
                self._stop_encoder()  # it may be urgent already
        added = self._windows.add(admitted, interruption)
        self._encoding = None
        for each, item in zip(reversed(jobs), reversed(admitted)):
            each.idle = 0
            if added:
                each.put_off = None
            else:
                each.put_off = time.monotonic() if each.put_off is None else each.put_off
                each.n_windows -= 1
                each.waiting.appendleft((item.chunk, item.window))

    def interrupt(self, rank: Rank) -> None:
        """Stop the encoder if it works for a longer recording of at most this rank.

        To be called from another thread when a window of a recording with at most one is ready. The
        window that was stopped is encoded again later; its result is the same. Without effect if
        the backend cannot do that. If the encoder does not run, that holds for the next run, unless
        :meth:`heed` is called before.
        """
        with self._lock:
            self._urgent = rank if self._urgent is None else max(rank, self._urgent)
            self._stop_encoder()

    def heed(self) -> None:
        """The recordings for which :meth:`interrupt` was called take part in the next step."""
        with self._lock:
            self._urgent = None

    def _stop_encoder(self) -> None:
        """The lock is held."""
        encoding, urgent = self._encoding, self._urgent
        if encoding is not None and urgent is not None and urgent >= encoding[1]:
            encoding[0].request()

    def _next_job(self, admitted: list[ActiveJob]) -> ActiveJob | None:
        """The job whose window is decoded next; it has one that waits."""
        chosen = self._admission.choose(self._active.values(), admitted)
        if chosen is None:
            read = (each for each in self._active.values() if not each.job.polled)
            chosen = next((each for each in read if not each.waiting and self._fill(each)), None)
        return chosen

    def _take(self, each: ActiveJob) -> InFlight:
        """The next window of a job."""
        self._turn += 1
        each.turn, each.served = self._turn, True
        each.n_windows += 1
        chunk, window = each.waiting.popleft()
        if each.job.polled and not each.waiting:
            self._fill(each)
        return InFlight(each.job, chunk, window)

    def _start_job(self, *, idle: bool) -> bool:
        """Start a submitted job or the next one of the source; False if there is none.

        ``idle``: whether no window waits to be decoded.
        """
        if self._submitted:
            self.start(self._submitted.popleft())
            return True
        found = self._source.take(wait=idle and not (self._windows.rows or self._active))
        if found is None:
            return False
        self.start(found[0])
        return True

    def _fill(self, each: ActiveJob) -> bool:
        """Queue the first window of the next chunk of a job; False if there is none."""
        try:
            while each.job.error is None:
                chunk = each.job.next_chunk()
                if chunk is None:
                    return False
                if self._queue(each, chunk):
                    return True
        except self._failures as error:
            self._fail(each.job, error)
        return False

    def _queue(self, each: ActiveJob, chunk: Chunk) -> bool:
        """Queue the next window of a chunk before all others; False if there is none."""
        try:
            window = chunk.next_window()
            if window is None:
                return False
            each.job.fallback.request(window, 0)  # raises if the prompt is too long
        except self._failures as error:
            self._fail(each.job, error)
            return False
        each.waiting.appendleft((chunk, window))
        return True
