"""A call in a thread of its own."""

from __future__ import annotations

import threading
from typing import Callable, Generic, TypeVar

__all__ = ["Started"]

_T = TypeVar("_T")


class Started(Generic[_T]):
    """A call that runs in a thread."""

    def __init__(self, call: Callable[[], _T]) -> None:
        self._call = call
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._value = self._call()
        except BaseException as error:
            self._error = error

    def result(self) -> _T:
        """Wait for its result."""
        self._thread.join(120)
        assert not self._thread.is_alive()
        if self._error is not None:
            raise self._error
        return self._value
