"""Runs the jobs of a store, in a thread, at a lower priority than requests."""

from __future__ import annotations

import collections
import dataclasses
import functools
import logging
import threading
from typing import Union

from whisper_opt.core.errors import EngineClosed, QueueFull, TranscriptionCancelled
from whisper_opt.core.options import ServeOptions
from whisper_opt.serving import Handle
from whisper_opt.serving.http.call import read_call
from whisper_opt.serving.http.errors import ApiError, api_error
from whisper_opt.serving.http.jobs.results import dumped
from whisper_opt.serving.http.jobs.store import (
    CANCELLED,
    COMPLETED,
    FAILED,
    QUEUED,
    Job,
    JobStore,
)
from whisper_opt.serving.http.logs import log_event
from whisper_opt.serving.http.models import Models
from whisper_opt.serving.http.recordings import likely_language

__all__ = ["JobRunner"]

_PRIORITY = -1
_PAUSE = 1.0
"""Seconds between looks at what no event announces: a queue with room again, times that passed."""


class JobRunner:
    """Keeps the engines busy with jobs, as many at once as their batches have rows."""

    def __init__(self, store: JobStore, models: Models, options: ServeOptions) -> None:
        self._store = store
        self._models = models
        self._options = options
        self._changed = threading.Condition()
        self._stopping = False
        self._handles: dict[str, Handle] = {}
        self._progress: dict[str, tuple[float, float]] = {}
        self._ended: collections.deque[tuple[Job, Handle]] = collections.deque()
        self._thread = threading.Thread(target=self._run, name="whisper-opt jobs", daemon=True)

    def start(self) -> None:
        """Begin; the models may still be loading."""
        self._thread.start()

    def wake(self) -> None:
        """There is a new job."""
        with self._changed:
            self._changed.notify_all()

    def progress(self, job_id: str) -> Union[tuple[float, float], None]:
        """Seconds done and in all of a job that runs."""
        return self._progress.get(job_id)

    def cancel(self, job_id: str) -> None:
        """Cancel a job, in every state; without effect if it has ended."""
        self._store.finish(job_id, CANCELLED)
        handle = self._handles.get(job_id)
        if handle is not None:
            handle.cancel()
        self.wake()

    def stop(self) -> None:
        """Stop; jobs that run are queued again, for the next start."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()
        for handle in tuple(self._handles.values()):
            handle.cancel()

    def _run(self) -> None:
        while not self._stopping:
            try:
                self._turn()
            except Exception as error:
                log_event("jobs failed", logging.ERROR, exc=error)
            with self._changed:
                if not self._stopping and not self._ended:
                    self._changed.wait(_PAUSE)

    def _turn(self) -> None:
        while self._ended:
            self._finish(*self._ended.popleft())
        if self._models.ready:
            room = self._options.max_batch - len(self._handles)
            for job in self._store.of_status(QUEUED, room) if room > 0 else ():
                if not self._begin(job):
                    break
        self._store.expire(self._options.jobs_keep)

    def _begin(self, job: Job) -> bool:
        """Submit a job; False if the queue of its model is full."""
        try:
            handle = self._submitted(job)
        except QueueFull:
            return False
        except Exception as error:
            self._fail(job, error, {})
            return True
        if not self._store.start(job.id):  # it was cancelled meanwhile
            handle.cancel()
            return True
        self._handles[job.id] = handle
        handle.add_done_callback(functools.partial(self._put_end, job))
        found = self._store.get(job.id)
        if found is None or found.ended:  # it was cancelled just now
            handle.cancel()
        return True

    def _submitted(self, job: Job) -> Handle:
        call = read_call(job.fields, self._options, translate=job.translate)
        model, path = self._models.find(job.model), str(self._store.recording(job.id))
        options = call.options
        if call.languages:
            language = likely_language(model.whisper, path, call.languages)
            options = dataclasses.replace(options, language=language)

        def on_progress(done: float, whole: float) -> None:
            self._progress[job.id] = done, whole

        return model.engine.submit(path, options, priority=_PRIORITY, on_progress=on_progress)

    def _put_end(self, job: Job, handle: Handle) -> None:
        self._ended.append((job, handle))
        self.wake()

    def _finish(self, job: Job, handle: Handle) -> None:
        self._handles.pop(job.id, None)
        self._progress.pop(job.id, None)
        try:
            transcript = handle.result(0)
        except (EngineClosed, TranscriptionCancelled):  # by its client, or at the server's end
            self._store.requeue(job.id)
        except Exception as error:
            self._fail(job, error, {})
        else:
            result = dumped(transcript)
            self._store.finish(job.id, COMPLETED, duration=transcript.duration, result=result)
            log_event("job completed", job=job.id, audio_s=round(transcript.duration, 3))

    def _fail(self, job: Job, error: Exception, parameters: dict[str, str]) -> None:
        refused: ApiError = api_error(error, parameters)
        level = logging.ERROR if refused.status == 500 else logging.INFO
        log_event("job failed", level, exc=error if refused.status == 500 else None, job=job.id)
        self._store.finish(job.id, FAILED, error=refused.body["error"])
