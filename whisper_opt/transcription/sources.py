"""Sources of jobs that do not block, so that a slow iterable does not delay decoding.

A list or a tuple is read directly. The next item of any other iterable may take arbitrarily long,
and an iterator has no non-blocking read, so it is read in a thread.
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

ITEM_TIMEOUT = 0.01
"""Seconds to wait for the next item while there is other work; once per item, so that the first
items of a fast generator are decoded together."""
_POLL = 0.5
"""Seconds between checks for an interrupt while there is no other work."""


class Source(Protocol[_T_co]):
    """Items that may not be available yet.

    Attributes:
        ended: whether there are no more items; known only after :meth:`take` returned None.
    """

    @property
    def ended(self) -> bool:
        """See the class."""

    def take(self, *, wait: bool) -> tuple[_T_co] | None:
        """The next item; None at the end or if no item is available yet.

        Args:
            wait: wait for the item, without a limit.

        Raises:
            BaseException: the error of the iterable.
        """

    def close(self) -> None:
        """Take no more items."""


class ReadySource(Generic[_T]):
    """Items that are available without waiting."""

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
    """The end of an iterable, with its error if it failed."""

    error: BaseException | None


class ThreadedSource(Generic[_T]):
    """Items of an iterable that is read in a thread, one item ahead.

    The thread starts at the first call of :meth:`take`, with a copy of the creator's context
    variables. It ends with the iterable or after :meth:`close`; an item that it is waiting for then
    must arrive first.
    """

    def __init__(self, items: Iterable[_T]) -> None:
        """``items``: iterated once, in the thread."""
        self.ended = False
        self._found: queue.SimpleQueue[Union[tuple[_T], _End]] = queue.SimpleQueue()
        self._wanted = threading.Semaphore(1)
        self._closed = threading.Event()
        self._timeout = ITEM_TIMEOUT
        # the thread must not refer to this object, so that it can be garbage-collected
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
        found = self._get(self._timeout)
        while found is None and wait:
            found = self._get(_POLL)
        if found is None:
            self._timeout = 0.0
            return None
        self._timeout = ITEM_TIMEOUT
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
    """Put each item, as a tuple of one, when it is wanted; then the end."""
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
    except BaseException as error:  # raised again by take()
        put(_End(error))
    else:
        put(_End(None))


class MappedSource(Generic[_S, _T]):
    """Items of another source, passed through a function when they are taken."""

    def __init__(self, source: Source[_S], make: Callable[[_S], _T]) -> None:
        """``make`` is called in the thread that calls :meth:`take`."""
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
    """A source for an iterable: lists and tuples are read directly, others in a thread."""
    if isinstance(items, (list, tuple)):
        return ReadySource(items)
    return ThreadedSource(items)
