"""Handle: one recording that was submitted to an engine, and its result."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Generator, Iterator
from typing import Any, Callable

from whisper_opt.core.errors import TranscriptionCancelled
from whisper_opt.text.results import Segment, Transcript

__all__ = ["Handle"]

_log = logging.getLogger(__name__)

QUEUED, RUNNING, DONE, FAILED, CANCELLED = "queued", "running", "done", "failed", "cancelled"


class Handle:
    """A recording that is transcribed by a :class:`whisper_opt.serving.Engine`.

    All methods may be called from any thread. ``await handle`` waits for the result in any asyncio
    event loop; a task that is cancelled while it waits cancels the transcription.
    """

    def __init__(self, cancel: Callable[[Handle], None]) -> None:
        """Created by :meth:`Engine.submit`; ``cancel`` is called if it is cancelled, once."""
        self._on_cancel = cancel
        self._changed = threading.Condition()
        self._state = QUEUED
        self._segments: list[Segment] = []
        self._transcript: Transcript | None = None
        self._error: BaseException | None = None
        self._waiters: list[Callable[[], None]] = []
        self._callbacks: list[Callable[[Handle], None]] = []
        self.language: str | None = None
        """Code of the language; None until it is known."""
        self.duration = 0.0
        """Length of the recording in seconds as far as it is known."""
        self.done = 0.0
        """Time in seconds up to which everything is transcribed."""

    # --- for callers ------------------------------------------------------------------------------

    @property
    def state(self) -> str:
        """``queued``, ``running`` (read or decoded), ``done``, ``failed`` or ``cancelled``."""
        return self._state

    def result(self, timeout: float | None = None) -> Transcript:
        """Wait for the transcript.

        Args:
            timeout: maximum wait in seconds; default: no limit.

        Raises:
            TimeoutError: there is no result yet.
            TranscriptionCancelled: it was cancelled.
            WhisperOptError: the transcription failed.
            Exception: what a callback of this recording raised.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._ended, timeout):
                raise TimeoutError(
                    f"the transcription is {self._state} after {timeout} s; wait longer, or cancel"
                    " it"
                )
        return self._outcome()

    def cancel(self) -> bool:
        """Cancel the transcription; False if it has ended already.

        The state is ``cancelled`` at once. Its rows are free within one step of the engine.
        """
        error = TranscriptionCancelled(
            f"the transcription was cancelled after {len(self._segments)} segment(s); submit the"
            " recording again"
        )
        if not self._end(CANCELLED, error=error):
            return False
        self._on_cancel(self)
        return True

    def segments(self) -> Iterator[Segment]:
        """Yield the segments as they are decoded; waits for each. May be called several times.

        Raises:
            WhisperOptError: as :meth:`result`, after the segments that were decoded.
        """
        n = 0
        while True:
            with self._changed:
                self._changed.wait_for(lambda n=n: self._ended or len(self._segments) > n)  # type: ignore[misc]
                new = self._segments[n:]
            if not new:
                break
            yield from new
            n += len(new)
        self._outcome()

    def add_done_callback(self, fn: Callable[[Handle], None]) -> None:
        """Call ``fn(handle)`` when the transcription has ended, or now if it has.

        It is called in a thread of the engine and should not wait for anything. Errors that it
        raises are logged.
        """
        with self._changed:
            if not self._ended:
                self._callbacks.append(fn)
                return
        self._call(fn)

    def __await__(self) -> Generator[Any, None, Transcript]:
        """Wait for the result in an asyncio event loop; raises as :meth:`result`."""
        loop = asyncio.get_running_loop()
        ended = loop.create_future()

        def wake() -> None:
            if not ended.done():
                ended.set_result(None)

        def notify() -> None:
            try:
                loop.call_soon_threadsafe(wake)
            except RuntimeError:  # the loop was closed: nobody waits any more
                _log.debug("an event loop was closed before a transcription had ended")

        with self._changed:
            if self._ended:
                ended.set_result(None)
            else:
                self._waiters.append(notify)
        try:
            yield from ended
        except asyncio.CancelledError:
            self.cancel()
            raise
        return self._outcome()

    # --- for the engine ---------------------------------------------------------------------------

    @property
    def _ended(self) -> bool:
        return self._state not in (QUEUED, RUNNING)

    def _outcome(self) -> Transcript:
        if self._error is not None:
            raise self._error
        assert self._transcript is not None, "it has ended without a result"
        return self._transcript

    def _start(self) -> bool:
        """Set the state to running; False if it was cancelled."""
        with self._changed:
            if self._ended:
                return False
            self._state = RUNNING
            return True

    def _add(self, segments: list[Segment]) -> None:
        with self._changed:
            if not self._ended:
                self._segments.extend(segments)
                self._changed.notify_all()

    def _end(
        self,
        state: str,
        transcript: Transcript | None = None,
        error: BaseException | None = None,
    ) -> bool:
        """Set the final state; False if it has one already. :meth:`_announce` must follow."""
        with self._changed:
            if self._ended:
                return False
            self._transcript, self._error, self._state = transcript, error, state
            self._changed.notify_all()
            waiters, self._waiters = self._waiters, []
        for notify in waiters:
            notify()
        return True

    def _announce(self) -> None:
        """Call the callbacks of the end."""
        with self._changed:
            callbacks, self._callbacks = self._callbacks, []
        for fn in callbacks:
            self._call(fn)

    def _call(self, fn: Callable[[Handle], None]) -> None:
        try:
            fn(self)
        except Exception:
            _log.exception("a callback at the end of a transcription failed")
