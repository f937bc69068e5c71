"""Engines of one process take turns, so that each uses all cores for a step."""

from __future__ import annotations

import collections
import threading

__all__ = ["Turns"]


class Turns:
    """A context for one thread at a time; the others enter in the order in which they came.

    The order matters: an engine that leaves and comes again at once would otherwise keep all others
    waiting, as ``threading.Lock`` allows.
    """

    def __init__(self) -> None:
        """Nobody is in the context."""
        self._lock = threading.Lock()
        self._taken = False
        self._waiting: collections.deque[threading.Event] = collections.deque()

    def __enter__(self) -> None:
        """Wait for the turn."""
        with self._lock:
            if not self._taken:
                self._taken = True
                return
            mine = threading.Event()
            self._waiting.append(mine)
        mine.wait()

    def __exit__(self, *_: object) -> None:
        """Give the turn to the next."""
        with self._lock:
            if self._waiting:
                self._waiting.popleft().set()
            else:
                self._taken = False
