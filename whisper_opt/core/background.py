"""A call in a background thread, used to load the parts of a model in parallel."""

from __future__ import annotations

import threading
from typing import Callable, Generic, TypeVar, Union

__all__ = ["Background"]

_T = TypeVar("_T")


class Background(Generic[_T]):
    """Runs a call in a thread; importing ``concurrent.futures`` instead would take 20 ms.

    Use as a context manager: it waits for the call at its end.
    """

    def __init__(self, call: Callable[[], _T]) -> None:
        """Start the call."""
        self._call = call
        self._value: Union[tuple[_T], None] = None
        self._error: Union[BaseException, None] = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._value = (self._call(),)
        except BaseException as error:  # raised by result()
            self._error = error

    def result(self) -> _T:
        """Wait for the call; returns its value or raises its error."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        assert self._value is not None
        return self._value[0]

    def __enter__(self) -> Background[_T]:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Wait for the call; an error that :meth:`result` did not raise is ignored."""
        self._thread.join()
