"""A thread that calls the callbacks of an engine, so that the engine never waits for them."""

from __future__ import annotations

import logging
import queue
import threading
from typing import Callable, Union

__all__ = ["CallbackThread"]

_log = logging.getLogger(__name__)


_PATIENCE = 10.0
"""Seconds that the end of the thread waits for a callback that does not return."""


class CallbackThread:
    """Runs calls in a thread of its own, in order."""

    def __init__(self) -> None:
        """Start the thread."""
        self._calls: queue.SimpleQueue[Union[Callable[[], object], None]] = queue.SimpleQueue()
        self._lock = threading.RLock()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="whisper_opt callbacks", daemon=True)
        self._thread.start()

    @property
    def is_current(self) -> bool:
        """Whether this is the thread that calls."""
        return threading.current_thread() is self._thread

    def put(self, call: Callable[[], object]) -> None:
        """Run a call after all others; now if the thread was closed."""
        with self._lock:
            if not self._closed:
                self._calls.put(call)
                return
        _guarded(call)

    def close(self) -> None:
        """Run what was put, then end; waits for that, though not for ever."""
        with self._lock:
            self._closed = True
            self._calls.put(None)
        self._thread.join(_PATIENCE)
        if self._thread.is_alive():
            _log.warning("a callback has not returned; its thread is left behind")

    def _run(self) -> None:
        for call in iter(self._calls.get, None):
            assert call is not None
            _guarded(call)


def _guarded(call: Callable[[], object]) -> None:
    try:
        call()
    except Exception:
        _log.exception("a callback failed")
