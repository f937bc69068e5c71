"""A fake model that computes one call at a time, when a test allows it."""

from __future__ import annotations

import threading
from typing import Callable

from tests.support.watched_backend import WatchedBackend

__all__ = ["SteppedBackend"]

_WAIT = 60.0
"""Seconds after which a test that hangs fails."""


class SteppedBackend(WatchedBackend):
    """Stops before every call of one kind: ``encode`` or ``extend`` (a decode step).

    The thread that computes is then outside of every lock, so a test may look at anything.
    """

    def __init__(self, stops_at: str = "extend") -> None:
        super().__init__()
        self._stops_at = stops_at
        self._changed = threading.Condition()
        self._allowed = 0
        self._free = False
        self._stopped = False

    def note(self, what: str, seeds: set[int]) -> None:
        if what == self._stops_at:
            with self._changed:
                self._stopped = True
                self._changed.notify_all()
                self._wait(lambda: self._allowed > 0 or self._free)
                self._stopped = False
                self._allowed -= 1
        super().note(what, seeds)

    def _wait(self, ready: Callable[[], bool]) -> None:
        assert self._changed.wait_for(ready, _WAIT), "nothing happened"

    def wait(self) -> None:
        """Wait until it has stopped before a call."""
        with self._changed:
            self._wait(lambda: self._stopped)

    def step(self, n: int = 1) -> None:
        """Allow so many calls, and wait until it has stopped before the next."""
        for _ in range(n):
            with self._changed:
                self._wait(lambda: self._stopped)
                self._allowed += 1
                self._changed.notify_all()
                self._wait(lambda: self._allowed <= 0)
                self._wait(lambda: self._stopped)

    def release(self) -> None:
        """Stop no more."""
        with self._changed:
            self._free = True
            self._changed.notify_all()
