"""Stopping a run of the encoder from another thread."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Callable, Union

__all__ = ["Interrupted", "Interruption"]


class Interrupted(Exception):  # noqa: N818 # it is no fault
    """A run was stopped before its end, as was requested."""


class Interruption:
    """A request to stop one run, which may come before, while or after it runs.

    Attributes:
        requested: whether the run is to stop.
    """

    def __init__(self) -> None:
        """Nothing is requested."""
        self.requested = False
        self._lock = threading.Lock()
        self._stop: Union[Callable[[], None], None] = None

    def request(self) -> None:
        """Stop the run; from any thread. It is without effect after the end."""
        with self._lock:
            self.requested = True
            if self._stop is not None:
                self._stop()

    @contextlib.contextmanager
    def stops(self, stop: Callable[[], None]) -> Iterator[None]:
        """While the block runs, a request calls ``stop``, which returns at once.

        Raises:
            Interrupted: it was requested before.
        """
        with self._lock:
            if self.requested:
                raise Interrupted
            self._stop = stop
        try:
            yield
        finally:
            with self._lock:
                self._stop = None
