"""The loop of an engine: one thread that starts, decodes, reports and answers."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import threading
import time
from collections.abc import Iterator
from typing import Callable

from whisper_opt.audio.decode import AudioSource
from whisper_opt.core.errors import EngineClosed, EngineError, QueueFull, TranscriptionCancelled
from whisper_opt.core.options import TranscribeOptions
from whisper_opt.serving.aside import AsideThread
from whisper_opt.serving.callbacks import CallbackThread
from whisper_opt.serving.handle import CANCELLED, DONE, FAILED, Handle
from whisper_opt.serving.limits import Limits
from whisper_opt.serving.model_calls import ModelCalls
from whisper_opt.serving.readers import PATIENCE, ReadAhead, Readers
from whisper_opt.serving.requests import Request, RequestQueue
from whisper_opt.serving.stats import Counters, EngineStats
from whisper_opt.text.results import Segment, Transcript
from whisper_opt.transcription.admission import FairShare, Terms, is_brief
from whisper_opt.transcription.job import Chunk, TranscriptionJob
from whisper_opt.transcription.live.window import Hypothesis, Update
from whisper_opt.transcription.model import Whisper
from whisper_opt.transcription.scheduler import Scheduler
from whisper_opt.transcription.stream import transcript_of

__all__ = ["EngineLoop"]

_log = logging.getLogger(__name__)

_MOST_STEPS = 16
"""Tokens per window that a GPU samples before other windows may join, or cancelled ones leave."""


class EngineLoop:
    """Decodes the recordings of a queue in a thread of its own.

    Attributes:
        limits: the limits of the engine.
        thread: decodes; it ends after :meth:`stop`.
        readers: read recordings ahead.
        callbacks: calls the callbacks.
        accepting: whether :meth:`add` accepts recordings.
        unloads: whether the loop ended, and closed the model, because it had nothing to do.
        in_use: whether there are live sessions, which may be silent; :meth:`wake` must be called
            when the last one ends.
    """

    def __init__(
        self,
        model: Whisper,
        limits: Limits,
        turns: contextlib.AbstractContextManager[object] | None,
    ) -> None:
        """Start the thread.

        Args:
            model: the model; it is kept open until the end.
            limits: see there.
            turns: entered for every step.
        """
        self._model = model
        self.limits = limits
        admission = FairShare(
            limits.max_batch,
            rows_per_job=limits.rows_per_recording,
            reserved=limits.reserved_live_rows,
            gentle=model.device == "cpu",
        )
        self._use = contextlib.ExitStack()
        backend = self._use.enter_context(model._shared.use())
        self._turns = contextlib.nullcontext() if turns is None else turns
        self._aside = AsideThread(self.wake)
        self._scheduler = Scheduler(
            backend,
            model.vocab,
            limits.max_batch,
            admission=admission,
            failures=(Exception,),
            aside=self._aside,
            most_steps=_MOST_STEPS,
        )
        self._calls = ModelCalls(backend, model._shared.use, self._call_waits)
        self._jobs = model._job_factory(self._calls)
        self.readers = Readers(limits.readers, self._chunk_was_read)
        self.callbacks = CallbackThread()
        self._changed = threading.Condition()
        self._n_events = 0
        self.in_use: Callable[[], bool] = lambda: False
        self.accepting, self._stopping, self.unloads = True, False, False
        self._why = "the engine was closed"
        self._queue = RequestQueue()
        self._requests: dict[Handle, Request] = {}  # all that are not answered
        self._open: dict[TranscriptionJob, Request] = {}  # all that are not queued
        self._to_cancel: list[Request] = []
        self._counters = Counters()
        self._answered_last = 0
        self._process = os.getpid()
        self.thread = threading.Thread(target=self._run, name="whisper_opt engine", daemon=True)
        self.thread.start()

    # --- in the threads of callers ----------------------------------------------------------------

    def job(
        self, audio: AudioSource, sample_rate: int | None, options: TranscribeOptions
    ) -> tuple[TranscriptionJob, ReadAhead]:
        """A job, and its recording, which is not read yet.

        Raises:
            OptionError: an option is not supported by this model.
        """
        return self._opened(lambda read: self._jobs.job(audio, sample_rate, options, read))

    def update_job(
        self, update: Update, found: Callable[[Hypothesis], None]
    ) -> tuple[TranscriptionJob, ReadAhead]:
        """A job of an update of a live session, and its audio; ``found`` gets its result."""
        return self._opened(lambda read: self._jobs.update_job(update, found, read))

    def _opened(
        self, begin: Callable[[Callable[[Iterator[Chunk]], ReadAhead]], TranscriptionJob]
    ) -> tuple[TranscriptionJob, ReadAhead]:
        """The job that ``begin`` makes, given how chunks are read; and its recording."""
        reading: list[ReadAhead] = []

        def read(chunks: Iterator[Chunk]) -> ReadAhead:
            reading.append(self.readers.open(chunks))
            return reading[0]

        return begin(read), reading[0]

    def add(self, request: Request) -> None:
        """Queue a request; raises as :meth:`check_accepting`."""
        with self._changed:
            self.check_accepting(bounded=not request.terms.live)
            self._queue.add(request)
            self._requests[request.handle] = request
            self._read_first()
            self._notify()

    def stats(self) -> EngineStats:
        """What the engine is doing, and what it has done."""
        with self._changed:
            counters, queued = self._counters, len(self._queue)
            return EngineStats(
                queued=queued,
                running=len(self._requests) - queued,
                rows=self._scheduler.rows,
                max_batch=self.limits.max_batch,
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

    def drain(self, timeout: float | None) -> bool:
        """Accept no more, and wait until all are answered; whether they are."""
        with self._changed:
            if self.accepting:
                self.accepting, self._why = False, "the engine is being drained"
            return self._changed.wait_for(lambda: not self._requests, timeout)

    def check_accepting(self, *, bounded: bool = True) -> None:
        """Raises EngineClosed or, if ``bounded``, QueueFull."""
        if self.in_another_process:
            raise EngineClosed(
                "this process was forked from the one that made the engine; load the model and make"
                " an engine in each process"
            )
        if not self.accepting:
            raise EngineClosed(f"{self._why}, so it accepts no more recordings; make another one")
        if bounded and len(self._queue) >= self.limits.max_queued:
            with self._changed:
                self._counters.rejected += 1
            raise QueueFull(
                f"{len(self._queue)} recordings wait, as many as max_queued allows; submit this one"
                " later"
            )

    def _notify(self) -> None:
        self._n_events += 1
        self._changed.notify_all()

    def wake(self) -> None:
        """Look for something to do."""
        with self._changed:
            self._notify()

    def _read_first(self) -> None:
        """Begin to read the first of the queue, not only when the loop comes to it.

        The lock is held.
        """
        first = self._queue.first
        if first is not None and self.readers.idle and self._fits(first):
            first.reading.begin()

    def _chunk_was_read(self) -> None:
        """Wake the loop; a brief recording whose first chunk this is waits for no other's encoder.

        Runs in a thread of the readers.
        """
        with self._changed:
            self._read_first()
            self._notify()
            ready = [each for each in self._requests.values() if each.is_announced_now]
            for each in ready:
                each.announced = True
        for each in ready:
            if is_brief(each.job):
                self._scheduler.interrupt(each.terms.rank)

    def _call_waits(self) -> None:
        """A recording that is being begun needs the encoder; runs in a thread of the readers."""
        self.wake()
        self._scheduler.interrupt(Terms().rank)

    @property
    def in_another_process(self) -> bool:
        """Whether this process was forked from the one with the threads."""
        return os.getpid() != self._process

    @property
    def may_join(self) -> bool:
        """Whether the current thread can wait for the end: it is no thread of the engine."""
        return not (self.callbacks.is_current or threading.current_thread() is self.thread)

    def stop(self, why: str) -> None:
        """Cancel what is not finished, and end all threads; waits for nothing."""
        with self._changed:
            if not self._stopping:
                self.accepting, self._stopping, self._why = False, True, why
            self._notify()

    def cancel(self, handle: Handle) -> None:
        """Free the rows of a recording whose handle was cancelled."""
        with self._changed:
            request = self._requests.get(handle)
            self._counters.cancelled += 1
            self.callbacks.put(handle._announce)
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
            self.stop(f"the engine failed ({type(error).__name__}: {error})")
            self._end_all(FAILED, EngineError(self._why), error)
        finally:
            self._shut_down()

    def _turn(self) -> None:
        """Start, decode and report; wait if there is nothing to do."""
        with self._changed:
            seen = self._n_events
        begun = time.monotonic()
        self._cancel_requested()
        self._scheduler.heed()
        self._start_queued()
        self.readers.tend()
        with self._turns:
            most = self.limits.windows_per_step
            if self._calls.waiting and (most > 1 or not self._answered_last):
                self._answered_last = self._calls.answer()
                self._counters.detection_windows += self._answered_last
                most -= 1
            else:
                self._answered_last = 0
            updates = self._scheduler.step(most)
        self._share_work(time.monotonic() - begun)  # before an update is answered
        for job, segments in updates:
            request = self._open[job]
            try:
                self._report(request, segments)
            except Exception as error:
                _log.exception("the result of a recording cannot be reported")
                self._scheduler.cancel(job)
                self._open.pop(job, None)
                self._answer(request, FAILED, None, error)
        idle = self._scheduler.waits and not updates
        with self._changed:
            if idle and not self._calls.waiting:
                self._wait(seen)
            else:
                self._counters.worked(time.monotonic() - begun)

    def _share_work(self, seconds: float) -> None:
        """Add time of work to the updates of live sessions: an equal share of all recordings."""
        for request in self._open.values():
            if request.is_update:
                request.work += seconds / len(self._open)

    def _wait(self, seen: int) -> None:
        """Wait for an event; the lock is held."""
        limit = PATIENCE if self.readers.backlog else None
        unload = self.limits.idle_unload_s
        unloads = unload is not None and not self._requests and not self.in_use()
        arrived = self._changed.wait_for(
            lambda: self._n_events != seen, unload if unloads else limit
        )
        if unloads and not arrived and not self.in_use():
            self.accepting, self._stopping, self.unloads = False, True, True
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
        limits = self.limits
        if self.readers.backlog >= limits.readers and not request.reading.begun:
            return False
        ahead = limits.max_batch + limits.readers
        if self._scheduler.unserved(request.terms.rank) >= ahead:
            return False
        return self._fits(request)

    def _fits(self, request: Request) -> bool:
        """Whether there is memory for another recording; from any thread."""
        held = sum(each.held for each in tuple(self._open.values()))
        return request.terms.live or held <= self.limits.max_held_s

    def _report(self, request: Request, segments: list[Segment]) -> None:
        """Pass on segments and, at the end, the result."""
        handle, job = request.handle, request.job
        handle.language, handle.duration, handle.done = job.language, job.duration, job.done
        handle._add(segments)
        if not request.is_update:
            self._counters.transcribed(job.done - request.counted)
        told, request.counted = request.counted, job.done
        if request.has_callbacks:
            progress = (job.done, job.duration) if job.done > told else None
            self.callbacks.put(functools.partial(self._tell, request, segments, progress))
        if self._scheduler.holds(job):  # `job.finished` may have become true just now
            return
        del self._open[job]
        if job.error is not None:
            answer = functools.partial(self._answer, request, FAILED, None, job.error)
        else:
            transcript = transcript_of(job, tuple(handle._segments), self._model.vocab)
            answer = functools.partial(self._answer, request, DONE, transcript)
        if request.has_callbacks:
            self.callbacks.put(answer)
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
            if self.unloads:
                stack.callback(self._model.close)
            stack.enter_context(self._use)
            stack.callback(self.readers.close)
            stack.callback(self._aside.close)
            stack.callback(self.callbacks.close)
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
                if transcript is not None and not request.is_update:
                    counters.finished(transcript.duration)
                self.callbacks.put(request.handle._announce)
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
                    self.callbacks.put(request.handle._announce)
                    self._abandon(request)
