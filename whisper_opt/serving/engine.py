"""Engine: one model that transcribes for many callers at once, in one thread."""

from __future__ import annotations

import atexit
import contextlib
import functools
import logging
import math
import os
import threading
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Callable

from whisper_opt.audio.decode import AudioSource
from whisper_opt.core.errors import EngineClosed, EngineError, QueueFull, TranscriptionCancelled
from whisper_opt.core.options import TranscribeOptions
from whisper_opt.serving.callbacks import CallbackThread
from whisper_opt.serving.handle import CANCELLED, DONE, FAILED, Handle
from whisper_opt.serving.limits import Limits
from whisper_opt.serving.model_calls import ModelCalls
from whisper_opt.serving.readers import PATIENCE, ReadAhead, Readers
from whisper_opt.serving.requests import Request, RequestQueue
from whisper_opt.serving.stats import Counters, EngineStats
from whisper_opt.text.results import Segment, Transcript
from whisper_opt.transcription.admission import FairShare, Terms
from whisper_opt.transcription.job import Chunk, TranscriptionJob
from whisper_opt.transcription.model import Whisper
from whisper_opt.transcription.scheduler import Scheduler
from whisper_opt.transcription.stream import transcript_of

__all__ = ["Engine"]

_log = logging.getLogger(__name__)


class Engine:
    """Transcribes recordings of many callers with one model; a context manager.

    All methods may be called from any thread. One thread decodes; it keeps one batch full with
    windows of all recordings, and never waits for a recording, a caller or a callback. Recordings
    are read in other threads. The result of a recording equals that of :meth:`Whisper.transcribe`
    with the same options, whatever else is transcribed meanwhile.

    Rows of the batch are shared: live recordings first, then by priority; then the recording with
    the fewest rows, then the earliest deadline, then in turns.

    Example:
        >>> with Engine(model) as engine:  # doctest: +SKIP
        ...     handles = [engine.submit(path) for path in paths]
        ...     texts = [handle.result().text for handle in handles]
    """

    def __init__(
        self,
        model: Whisper,
        *,
        max_batch: int = 8,
        max_queued: int = 256,
        max_windows_per_step: int = 2,
        rows_per_recording: int | None = None,
        reserved_live_rows: int = 0,
        readers: int = 2,
        idle_unload_s: float | None = None,
        max_held_s: float = 6 * 3600.0,
        turns: contextlib.AbstractContextManager[object] | None = None,
    ) -> None:
        """Start the thread.

        Args:
            model: a loaded model, which others may use too.
            max_batch: maximum number of windows decoded at once.
            max_queued: maximum number of recordings that wait to be read.
            max_windows_per_step: maximum number of windows encoded between two decode steps: the
                running windows wait for that long.
            rows_per_recording: maximum number of windows of one recording that are decoded at once;
                default: three quarters of ``max_batch``. With the batched strategy,
                ``batch_size`` of its options is another maximum.
            reserved_live_rows: rows of the batch that only live recordings may use.
            readers: number of threads that read recordings.
            idle_unload_s: close the engine and the model after so many seconds without work;
                default: never.
            max_held_s: do not begin to read another recording while those being transcribed hold
                more than so many seconds of audio in memory (96 bytes per ms).
            turns: entered for every step; engines that share it take turns.

        Raises:
            OptionError: a number is out of range.
            EngineError: the model was closed.
        """
        limits = Limits(
            max_batch, max_queued, max_windows_per_step, rows_per_recording, reserved_live_rows,
            readers, idle_unload_s, max_held_s,
        )  # fmt: skip
        self.model = model
        self._limits = limits
        admission = FairShare(
            max_batch, rows_per_job=limits.rows_per_job, reserved=reserved_live_rows
        )
        self._use = contextlib.ExitStack()
        backend = self._use.enter_context(model._shared.use())
        self._turns = contextlib.nullcontext() if turns is None else turns
        self._scheduler = Scheduler(
            backend, model.vocab, max_batch, admission=admission, failures=(Exception,)
        )
        self._calls = ModelCalls(backend, model._shared.use, self._wake)
        self._jobs = model._job_factory(self._calls)
        self._readers = Readers(readers, self._wake)
        self._callbacks = CallbackThread()
        self._changed = threading.Condition()
        self._n_events = 0
        self._accepting, self._stopping, self._unloads = True, False, False
        self._why = "the engine was closed"
        self._queue = RequestQueue()
        self._requests: dict[Handle, Request] = {}  # all that are not answered
        self._open: dict[TranscriptionJob, Request] = {}  # all that are not queued
        self._to_cancel: list[Request] = []
        self._counters = Counters()
        self._answered_last = 0
        self._process = os.getpid()
        self._thread = threading.Thread(target=self._run, name="whisper_opt engine", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    # --- for callers ------------------------------------------------------------------------------

    def submit(
        self,
        audio: AudioSource,
        options: TranscribeOptions | None = None,
        *,
        sample_rate: int | None = None,
        priority: int = 0,
        deadline: float | None = None,
        live: bool = False,
        on_segment: Callable[[Segment], None] | None = None,
        on_progress: Callable[[float, float], None] | None = None,
    ) -> Handle:
        """Queue a recording; returns at once.

        Callbacks are called in a thread of the engine, one after another. If one raises, its
        recording fails with that error, and no other.

        Args:
            audio: path, bytes, binary file object, or numpy array [n] or [n, channels]. It must not
                change before the end.
            options: how to transcribe.
            sample_rate: rate of an array in Hz (default 16,000); not for files.
            priority: recordings of a higher priority come first.
            deadline: seconds from now in which the answer is wanted; among equals the earliest
                comes first. Nothing happens when it has passed.
            live: the recording comes before all others, and may use the reserved rows.
            on_segment: called with every segment.
            on_progress: called with (seconds done, total seconds so far) when more is done.

        Raises:
            QueueFull: ``max_queued`` recordings wait.
            EngineClosed: the engine accepts no more.
            OptionError: an option is not supported by this model.
        """
        self._check_accepting()
        chosen = TranscribeOptions() if options is None else options
        chosen.check_alone()
        reading: list[ReadAhead] = []

        def read(chunks: Iterator[Chunk]) -> ReadAhead:
            reading.append(self._readers.open(chunks))
            return reading[0]

        job = self._jobs.job(audio, sample_rate, chosen, read)
        by = math.inf if deadline is None else time.monotonic() + deadline
        rows = chosen.batch_size if chosen.strategy == "batched" else None
        terms = Terms(priority, by, live, rows)
        handle = Handle(self._cancel)
        request = Request(handle, job, reading[0], terms, on_segment, on_progress)
        with self._changed:
            self._check_accepting()
            self._queue.add(request)
            self._requests[handle] = request
            self._notify()
        return handle

    def stats(self) -> EngineStats:
        """What the engine is doing, and what it has done."""
        with self._changed:
            counters, queued = self._counters, len(self._queue)
            return EngineStats(
                queued=queued,
                running=len(self._requests) - queued,
                rows=self._scheduler.rows,
                max_batch=self._limits.max_batch,
                windows=self._scheduler.n_encoded + counters.detection_windows,
                steps=self._scheduler.n_steps,
                audio_seconds=counters.audio_seconds,
                completed=counters.completed,
                rejected=counters.rejected,
                cancelled=counters.cancelled,
                failed=counters.failed,
                real_time_factor=counters.real_time_factor,
                estimated_wait=counters.wait(queued),
            )

    def drain(self, timeout: float | None = None) -> bool:
        """Accept no more recordings, and wait until all are answered.

        Args:
            timeout: maximum wait in seconds; default: no limit.

        Returns:
            Whether all are answered. The engine remains to be closed.
        """
        with self._changed:
            if self._accepting:
                self._accepting, self._why = False, "the engine is being drained"
            return self._changed.wait_for(lambda: not self._requests, timeout)

    def close(self) -> None:
        """Cancel what is not finished, and end all threads; the model stays open."""
        if os.getpid() != self._process:  # the threads do not exist in this process
            return
        self._stop("the engine was closed")
        if not (self._callbacks.is_current or threading.current_thread() is self._thread):
            self._thread.join()

    def __enter__(self) -> Engine:
        """Return the engine itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Call :meth:`close`."""
        self.close()

    # --- in the threads of callers ----------------------------------------------------------------

    def _check_accepting(self) -> None:
        if os.getpid() != self._process:
            raise EngineClosed(
                "this process was forked from the one that made the engine; load the model and make"
                " an engine in each process"
            )
        if not self._accepting:
            raise EngineClosed(f"{self._why}, so it accepts no more recordings; make another one")
        if len(self._queue) >= self._limits.max_queued:
            with self._changed:
                self._counters.rejected += 1
            raise QueueFull(
                f"{len(self._queue)} recordings wait, as many as max_queued allows; submit this one"
                " later"
            )

    def _notify(self) -> None:
        self._n_events += 1
        self._changed.notify_all()

    def _wake(self) -> None:
        with self._changed:
            self._notify()

    def _stop(self, why: str) -> None:
        with self._changed:
            if not self._stopping:
                self._accepting, self._stopping, self._why = False, True, why
            self._notify()

    def _cancel(self, handle: Handle) -> None:
        """Free the rows of a recording whose handle was cancelled."""
        with self._changed:
            request = self._requests.get(handle)
            self._counters.cancelled += 1
            self._callbacks.put(handle._announce)
            if request is not None:  # it is None if the recording was finished just now
                self._abandon(request)

    def _abandon(self, request: Request) -> None:
        """Transcribe a request no further; the lock is held."""
        if self._queue.remove(request):
            request.job.close()
            self._requests.pop(request.handle, None)
        else:
            self._to_cancel.append(request)
        self._notify()

    # --- in the thread of the engine --------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._turn()
        except BaseException as error:
            _log.exception("the engine failed")
            self._stop(f"the engine failed ({type(error).__name__}: {error})")
            self._end_all(FAILED, EngineError(self._why), error)
        finally:
            self._shut_down()

    def _turn(self) -> None:
        """Start, decode and report; wait if there is nothing to do."""
        with self._changed:
            seen = self._n_events
        begun = time.monotonic()
        self._cancel_requested()
        self._start_queued()
        self._readers.tend()
        with self._turns:
            most = self._limits.windows_per_step
            if self._calls.waiting and (most > 1 or not self._answered_last):
                self._answered_last = self._calls.answer()
                self._counters.detection_windows += self._answered_last
                most -= 1
            else:
                self._answered_last = 0
            updates = self._scheduler.step(most)
        for job, segments in updates:
            self._report(self._open[job], segments)
        idle = self._scheduler.waits and not updates
        with self._changed:
            if idle and not self._calls.waiting:
                self._wait(seen)
            else:
                self._counters.worked(time.monotonic() - begun)

    def _wait(self, seen: int) -> None:
        """Wait for an event; the lock is held."""
        limit = PATIENCE if self._readers.backlog else None
        unload = self._limits.idle_unload_s
        unloads = unload is not None and not self._requests
        arrived = self._changed.wait_for(
            lambda: self._n_events != seen, unload if unloads else limit
        )
        if unloads and not arrived:
            self._accepting, self._stopping, self._unloads = False, True, True
            self._why = f"the engine was unloaded after {unload} s without work"

    def _cancel_requested(self) -> None:
        with self._changed:
            requests, self._to_cancel = self._to_cancel, []
        for request in requests:
            self._scheduler.cancel(request.job)
            self._open.pop(request.job, None)
            self._forget(request)

    def _forget(self, request: Request) -> None:
        """A request is answered."""
        with self._changed:
            self._requests.pop(request.handle, None)
            self._notify()

    def _start_queued(self) -> None:
        """Begin to read recordings of the queue, a few more than there is room for."""
        while True:
            with self._changed:
                request = self._queue.first
                if request is None or not self._may_start(request):
                    return
                self._queue.pop()
                self._open[request.job] = request
            request.handle._start()
            request.reading.begin()
            self._scheduler.start(request.job, request.terms)

    def _may_start(self, request: Request) -> bool:
        limits = self._limits
        if self._readers.backlog >= limits.readers:
            return False
        ahead = limits.max_batch + limits.readers
        if self._scheduler.unserved(request.terms.rank) >= ahead:
            return False
        return request.terms.live or (
            sum(each.held for each in self._open.values()) <= limits.max_held_s
        )

    def _report(self, request: Request, segments: list[Segment]) -> None:
        """Pass on segments and, at the end, the result."""
        handle, job = request.handle, request.job
        handle.language, handle.duration, handle.done = job.language, job.duration, job.done
        handle._add(segments)
        self._counters.transcribed(job.done - request.counted)
        told, request.counted = request.counted, job.done
        if request.has_callbacks:
            progress = (job.done, job.duration) if job.done > told else None
            self._callbacks.put(functools.partial(self._tell, request, segments, progress))
        if not job.finished:
            return
        del self._open[job]
        if job.error is not None:
            answer = functools.partial(self._answer, request, FAILED, None, job.error)
        else:
            transcript = transcript_of(job, tuple(handle._segments), self.model.vocab)
            answer = functools.partial(self._answer, request, DONE, transcript)
        if request.has_callbacks:
            self._callbacks.put(answer)
        else:
            answer()

    def _end_all(self, state: str, error: Exception, cause: BaseException | None = None) -> None:
        """Answer every request with an error."""
        error.__cause__ = cause
        with self._changed:
            requests = list(self._requests.values())
            self._queue.take_all()
        for request in requests:
            self._answer(request, state, None, error)

    def _shut_down(self) -> None:
        with contextlib.ExitStack() as stack:  # does all, even if one raises
            stack.callback(atexit.unregister, self.close)
            if self._unloads:
                stack.callback(self.model.close)
            stack.enter_context(self._use)
            stack.callback(self._readers.close)
            stack.callback(self._callbacks.close)
            stack.callback(
                self._end_all,
                CANCELLED,
                TranscriptionCancelled(f"the transcription was cancelled: {self._why}"),
            )
            stack.callback(self._calls.close)
            stack.callback(self._scheduler.close)

    # --- in the thread of the engine or of the callbacks ------------------------------------------

    def _answer(
        self,
        request: Request,
        state: str,
        transcript: Transcript | None,
        error: BaseException | None = None,
    ) -> None:
        """Set the result of a request."""
        with self._changed:
            if request.handle._end(state, transcript, error):
                counters = self._counters
                counters.failed += state == FAILED
                counters.cancelled += state == CANCELLED
                if transcript is not None:
                    counters.finished(transcript.duration)
                self._callbacks.put(request.handle._announce)
        self._forget(request)

    def _tell(
        self, request: Request, segments: list[Segment], progress: tuple[float, float] | None
    ) -> None:
        """Call the callbacks of a request; runs in their thread."""
        try:
            for segment in segments if request.on_segment is not None else ():
                if request.handle._ended:
                    return
                request.on_segment(segment)  # type: ignore[misc]
            if request.on_progress is not None and progress is not None:
                request.on_progress(*progress)
        except BaseException as error:
            with self._changed:
                if request.handle._end(FAILED, error=error):
                    self._counters.failed += 1
                    self._callbacks.put(request.handle._announce)
                    self._abandon(request)
