"""What live sessions need: a clock, a thread, and a model that decodes."""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
import time
from typing import Callable, Protocol, Union

from whisper_opt.core.arrays import F32
from whisper_opt.core.errors import WhisperOptError
from whisper_opt.core.options import TranscribeOptions
from whisper_opt.serving.handle import Handle
from whisper_opt.serving.loop import EngineLoop
from whisper_opt.serving.readers import ReadAhead
from whisper_opt.serving.requests import Request
from whisper_opt.text.results import Transcript
from whisper_opt.transcription.admission import Terms
from whisper_opt.transcription.job import TranscriptionJob
from whisper_opt.transcription.live.window import Hypothesis, Update

__all__ = ["Cancel", "Decoded", "EngineRunner", "LiveThread", "Runner", "Transcribed"]

_log = logging.getLogger(__name__)

Cancel = Callable[[], object]
"""Cancels what was begun; does nothing if it has ended."""
Decoded = Callable[[Union[Hypothesis, None], float], None]
"""Called with the result of an update, None if it failed, and the seconds of work for it."""
Transcribed = Callable[[Union[Transcript, WhisperOptError]], None]
"""Called with the transcript of an utterance, or its error."""


class Runner(Protocol):
    """Where a live session runs. All that is called runs in one thread, in order."""

    def now(self) -> float:
        """The time in seconds since any fixed moment."""

    def post(self, call: Callable[[], object]) -> None:
        """Call soon; may be called from any thread."""

    def call_later(self, seconds: float, call: Callable[[], object]) -> None:
        """Call after a time."""

    def decode(self, update: Update, deadline: float, done: Decoded) -> Cancel:
        """Begin to decode an update.

        Args:
            update: the update.
            deadline: seconds in which the result is wanted.
            done: gets the result.

        Returns:
            What cancels it; ``done`` may be called all the same.

        Raises:
            EngineClosed: nothing is decoded any more.
        """

    def transcribe(
        self, samples: F32, options: TranscribeOptions, deadline: float, done: Transcribed
    ) -> Cancel:
        """Begin to transcribe an utterance; returns and raises as :meth:`decode`."""


class LiveThread:
    """A thread that makes calls, some of them later; it starts with the first."""

    def __init__(self) -> None:
        """No thread yet."""
        self._changed = threading.Condition()
        self._calls: list[tuple[float, int, Callable[[], object]]] = []
        self._order = itertools.count()
        self._thread: threading.Thread | None = None
        self._closed = False

    def put(self, call: Callable[[], object], seconds: float = 0.0) -> None:
        """Call after a time, at once if it is 0; not at all if the thread was closed."""
        at = time.monotonic() + seconds if seconds else 0.0
        with self._changed:
            if self._closed:
                return
            heapq.heappush(self._calls, (at, next(self._order), call))
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="whisper_opt live", daemon=True
                )
                self._thread.start()
            self._changed.notify()

    def close(self) -> None:
        """Make the calls that are due, no others, and end; waits for nothing."""
        with self._changed:
            self._closed = True
            self._calls = [entry for entry in self._calls if not entry[0]]
            heapq.heapify(self._calls)
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._calls or self._calls[0][0] > time.monotonic():
                    if self._closed:
                        return
                    left = self._calls[0][0] - time.monotonic() if self._calls else None
                    self._changed.wait(left)
                call = heapq.heappop(self._calls)[2]
            try:
                call()
            except Exception:
                _log.exception("a call of a live session failed")


class EngineRunner:
    """Implements :class:`Runner` on the loop of an engine, in real time."""

    def __init__(self, loop: EngineLoop) -> None:
        """Start nothing yet."""
        self._loop = loop
        self._thread = LiveThread()

    def now(self) -> float:
        """See :class:`Runner`."""
        return time.monotonic()

    def post(self, call: Callable[[], object]) -> None:
        """See :class:`Runner`."""
        self._thread.put(call)

    def call_later(self, seconds: float, call: Callable[[], object]) -> None:
        """See :class:`Runner`."""
        self._thread.put(call, max(seconds, 1e-3))

    def close(self) -> None:
        """Make no more calls but those that are due."""
        self._thread.close()

    def decode(self, update: Update, deadline: float, done: Decoded) -> Cancel:
        """See :class:`Runner`."""
        found: list[Hypothesis] = []
        job, reading = self._loop.update_job(update, found.append)
        request = self._request(job, reading, deadline)
        request.is_update = True

        def ended(handle: Handle) -> None:
            failed = handle.state != "done" or not found
            self.post(lambda: done(None if failed else found[0], request.work))

        return self._begin(request, ended)

    def transcribe(
        self, samples: F32, options: TranscribeOptions, deadline: float, done: Transcribed
    ) -> Cancel:
        """See :class:`Runner`."""
        job, reading = self._loop.job(samples, None, options)
        request = self._request(job, reading, deadline)

        def ended(handle: Handle) -> None:
            try:
                result: Union[Transcript, WhisperOptError] = handle.result()
            except WhisperOptError as error:
                result = error
            self.post(lambda: done(result))

        return self._begin(request, ended)

    def _begin(self, request: Request, ended: Callable[[Handle], None]) -> Cancel:
        request.handle.add_done_callback(ended)
        self._loop.add(request)
        return request.handle.cancel

    def _request(self, job: TranscriptionJob, reading: ReadAhead, deadline: float) -> Request:
        terms = Terms(deadline=time.monotonic() + deadline, live=True)
        return Request(Handle(self._loop.cancel), job, reading, terms)
