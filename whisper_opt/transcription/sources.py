"""Items of an iterable, taken only when they are there, so that a slow source delays no work.

A list or a tuple is read directly. Of anything else nobody knows how long the next item takes, and
an iterator can be asked only by waiting for it: it is read in a thread of its own.
"""

from __future__ import annotations

import contextvars
import dataclasses
import queue
import threading
from collections.abc import Iterable, Iterator
from typing import Any, Callable, Generic, Protocol, TypeVar, Union

__all__ = ["MappedSource", "ReadySource", "Source", "ThreadedSource", "source_of"]

_T = TypeVar("_T")
_T_co = TypeVar("_T_co", covariant=True)
_S = TypeVar("_S")

PATIENCE = 0.01
"""Seconds to wait for the next item while there is other work; once for each item, so that the
first items of a fast generator are decoded together."""
_POLL = 0.5
"""Seconds between looks for an interrupt while there is nothing to do but to wait."""


class Source(Protocol[_T_co]):
    """Items that may not be there yet.

    Attributes:
        ended: whether there are no more. It is known only after :meth:`take` found none.
    """

    @property
    def ended(self) -> bool:
        """See the class."""

    def take(self, *, wait: bool) -> tuple[_T_co] | None:
        """The next item; None at the end, and while there is none yet.

        Args:
            wait: wait for it, however long it takes.

        Raises:
            BaseException: what the iterable raised.
        """

    def close(self) -> None:
        """Ask for no more items."""


class ReadySource(Generic[_T]):
    """Items that are all there already."""

    def __init__(self, items: Iterable[_T]) -> None:
        """``items``: a list or a tuple, or an iterator that never waits."""
        self.ended = False
        self._items = iter(items)

    def take(self, *, wait: bool) -> tuple[_T] | None:
        """See :class:`Source`."""
        if not self.ended:
            for item in self._items:
                return (item,)
        self.ended = True
        return None

    def close(self) -> None:
        """See :class:`Source`."""
        self.ended = True


@dataclasses.dataclass(frozen=True)
class _End:
    """The end of an iterable, and the error that it ended with, if any."""

    error: BaseException | None


class ThreadedSource(Generic[_T]):
    """Items of an iterable that is read in a thread, one item ahead.

    The thread begins with the first item that is asked for, in a copy of the caller's context
    variables. It ends with the iterable, or after :meth:`close`; if it waits for an item then, it
    ends when that has come.
    """

    def __init__(self, items: Iterable[_T]) -> None:
        """``items``: iterated once, in the thread."""
        self.ended = False
        self._found: queue.SimpleQueue[Union[tuple[_T], _End]] = queue.SimpleQueue()
        self._wanted = threading.Semaphore(1)
        self._closed = threading.Event()
        self._patience = PATIENCE
        # the thread must not refer to this object, or it could never be forgotten
        context = contextvars.copy_context()
        arguments = (context.run, _read, items, self._found.put, self._wanted, self._closed)
        self._thread: threading.Thread | None = threading.Thread(
            target=_call, args=arguments, name="whisper_opt recordings", daemon=True
        )

    def take(self, *, wait: bool) -> tuple[_T] | None:
        """See :class:`Source`."""
        if self.ended:
            return None
        if self._thread is not None:
            self._thread.start()
            self._thread = None
        found = self._get(self._patience)
        while found is None and wait:
            found = self._get(_POLL)
        if found is None:
            self._patience = 0.0
            return None
        self._patience = PATIENCE
        if isinstance(found, _End):
            self.ended = True
            if found.error is not None:
                raise found.error
            return None
        self._wanted.release()
        return found

    def _get(self, timeout: float) -> Union[tuple[_T], _End, None]:
        try:
            return self._found.get(timeout=timeout)
        except queue.Empty:
            return None

    def close(self) -> None:
        """See :class:`Source`."""
        self.ended = True
        self._closed.set()
        self._wanted.release()


def _call(run: Callable[..., None], *arguments: Any) -> None:
    run(*arguments)


def _read(
    items: Iterable[_T],
    put: Callable[[Union[tuple[_T], _End]], None],
    wanted: threading.Semaphore,
    closed: threading.Event,
) -> None:
    """Hand over each item, as a tuple of one, when it is wanted; then how it ended."""
    try:
        iterator: Iterator[_T] = iter(items)
        while True:
            wanted.acquire()
            if closed.is_set():
                return
            try:
                item = next(iterator)
            except StopIteration:
                break
            put((item,))
    except BaseException as error:  # raised again where the items are taken
        put(_End(error))
    else:
        put(_End(None))


class MappedSource(Generic[_S, _T]):
    """What a function makes of the items of another source, when they are taken."""

    def __init__(self, source: Source[_S], make: Callable[[_S], _T]) -> None:
        """``make`` is called in the thread that takes the items."""
        self._source = source
        self._make = make

    @property
    def ended(self) -> bool:
        """See :class:`Source`."""
        return self._source.ended

    def take(self, *, wait: bool) -> tuple[_T] | None:
        """See :class:`Source`."""
        found = self._source.take(wait=wait)
        return None if found is None else (self._make(found[0]),)

    def close(self) -> None:
        """See :class:`Source`."""
        self._source.close()


def source_of(items: Iterable[_T]) -> Source[_T]:
    """The source of an iterable: read directly if it is a list or a tuple, else in a thread."""
    if isinstance(items, (list, tuple)):
        return ReadySource(items)
    return ThreadedSource(items)
