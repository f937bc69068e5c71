"""A thread for word times, and for listening to doubtful text: the loop must not wait for them."""

from __future__ import annotations

import queue
import threading
from typing import Callable, Union

from whisper_opt.transcription.window_batch import InFlight

__all__ = ["AsideThread"]


class _Later:
    """A call that the thread makes; implements ``Later``."""

    def __init__(self, call: Callable[[], Union[InFlight, None]]) -> None:
        self.done = False
        self._call = call
        self._found: InFlight | None = None
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            self._found = self._call()
        except BaseException as error:  # raised again by result()
            self._error = error
        self.done = True

    def result(self) -> InFlight | None:
        if self._error is not None:
            raise self._error
        return self._found


class AsideThread:
    """Makes calls in a thread of its own, in order; the thread starts with the first."""

    def __init__(self, wake: Callable[[], None]) -> None:
        """``wake`` is called after every call."""
        self._wake = wake
        self._calls: queue.SimpleQueue[Union[_Later, None]] = queue.SimpleQueue()
        self._started = False

    def __call__(self, call: Callable[[], Union[InFlight, None]]) -> _Later:
        """Make a call after all others."""
        if not self._started:
            self._started = True
            threading.Thread(target=self._run, name="whisper_opt aside", daemon=True).start()
        later = _Later(call)
        self._calls.put(later)
        return later

    def close(self) -> None:
        """End the thread after the calls that were begun; waits for none."""
        self._calls.put(None)

    def _run(self) -> None:
        for later in iter(self._calls.get, None):
            assert later is not None
            later.run()
            self._wake()
