"""Work beside other work: both halves of a model load at once."""

from __future__ import annotations

import threading
from typing import Callable, Generic, TypeVar, Union

__all__ = ["Background"]

_T = TypeVar("_T")


class Background(Generic[_T]):
    """A call in a thread of its own, without the 20 ms that ``concurrent.futures`` takes to import.

    Use as a context manager: at its end the call has ended too.
    """

    def __init__(self, call: Callable[[], _T]) -> None:
        """Begin."""
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
        """What the call returns, once it has; raises what it raises."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        assert self._value is not None
        return self._value[0]

    def __enter__(self) -> Background[_T]:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Wait for the end of the call; its error is dropped unless result() raised it."""
        self._thread.join()
