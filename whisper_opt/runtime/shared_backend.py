"""A backend that several calls use at once, and that is released after the last of them."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from whisper_opt.core.backend import Backend
from whisper_opt.core.errors import EngineError

__all__ = ["SharedBackend"]


class SharedBackend:
    """Counts the calls that use a backend; may be used from several threads."""

    def __init__(self, backend: Backend) -> None:
        """Take ownership of the backend; :meth:`close` releases it."""
        self.backend: Backend | None = backend
        # reentrant: the garbage collector may end a call at any moment, in any thread
        self._lock = threading.RLock()
        self._n_calls = 0
        self._closed = False

    def check_open(self) -> None:
        """Raise EngineError if it was closed."""
        if self._closed:
            raise EngineError("this model was closed; load it again")

    @contextlib.contextmanager
    def use(self) -> Iterator[Backend]:
        """The backend; it is not released before the end of the block.

        Raises:
            EngineError: it was closed.
        """
        with self._lock:
            self.check_open()
            self._n_calls += 1
            backend = self.backend
            assert backend is not None, "released only after it was closed"
        try:
            yield backend
        finally:
            with self._lock:
                self._n_calls -= 1
            self._release()

    def close(self) -> None:
        """Refuse further calls; the backend is released now, or at the end of the last call."""
        with self._lock:
            self._closed = True
        self._release()

    def _release(self) -> None:
        with self._lock:
            if not self._closed or self._n_calls:
                return
            backend, self.backend = self.backend, None
        close = getattr(backend, "close", None)  # backends on devices free their memory at once
        if close is not None:
            close()
