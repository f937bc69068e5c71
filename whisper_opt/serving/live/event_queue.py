"""Events of a live session on their way to its caller."""

from __future__ import annotations

import asyncio
import collections
import logging
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Callable

from whisper_opt.text.live_events import Lag, LiveEvent, Partial

__all__ = ["EventQueue"]

_log = logging.getLogger(__name__)


class EventQueue:
    """Events in order, for one reader at a time.

    A :class:`Partial` that was not read is replaced by the next one, and so is a :class:`Lag`, so a
    slow reader does not fall behind.
    """

    def __init__(self) -> None:
        """No events."""
        self._changed = threading.Condition()
        self._events: collections.deque[LiveEvent] = collections.deque()
        self._ended = False
        self._reader = 0
        self._wakers: list[Callable[[], None]] = []

    def put(self, event: LiveEvent) -> None:
        """Add an event; nothing after the end."""
        with self._changed:
            if self._ended:
                return
            if isinstance(event, (Partial, Lag)):
                self._replace(event)
            else:
                self._events.append(event)
            wakers = self._notify()
        for wake in wakers:
            wake()

    def _replace(self, event: LiveEvent) -> None:
        """Add an event in place of one of its kind, if only such events came after it."""
        for i in range(len(self._events) - 1, -1, -1):
            other = self._events[i]
            if type(other) is type(event):
                same = not isinstance(event, Partial) or (
                    isinstance(other, Partial) and other.utterance == event.utterance
                )
                if same:
                    del self._events[i]
                break
            if not isinstance(other, (Partial, Lag)):
                break
        self._events.append(event)

    def end(self, *, at_once: bool = False) -> None:
        """No more events; with ``at_once`` those that were not read are dropped."""
        with self._changed:
            self._ended = True
            if at_once:
                self._events.clear()
            wakers = self._notify()
        for wake in wakers:
            wake()

    @property
    def ended(self) -> bool:
        """Whether there will be no more events."""
        return self._ended

    def release(self) -> None:
        """End the iteration of the present reader; events that it has not read are kept."""
        with self._changed:
            self._reader += 1
            wakers = self._notify()
        for wake in wakers:
            wake()

    def _notify(self) -> list[Callable[[], None]]:
        self._changed.notify_all()
        wakers, self._wakers = self._wakers, []
        return wakers

    def take(self) -> list[LiveEvent]:
        """All events that were not read, without waiting."""
        with self._changed:
            found = list(self._events)
            self._events.clear()
            return found

    def __iter__(self) -> Iterator[LiveEvent]:
        """Wait for each event; ends the iteration of any other reader."""
        self.release()
        reader = self._reader
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._events or self._ended or self._reader != reader
                )
                if self._reader != reader or not self._events:
                    return
                event = self._events.popleft()
            yield event

    async def __aiter__(self) -> AsyncIterator[LiveEvent]:
        """Like :meth:`__iter__`, in an asyncio event loop."""
        loop = asyncio.get_running_loop()
        self.release()
        reader = self._reader
        while True:
            woken = loop.create_future()

            def wake(woken: asyncio.Future[None] = woken) -> None:
                try:
                    loop.call_soon_threadsafe(_wake, woken)
                except RuntimeError:  # the loop was closed: nobody waits any more
                    _log.debug("an event loop was closed before its live session")

            event = None
            with self._changed:
                if self._reader != reader or (self._ended and not self._events):
                    return
                if self._events:
                    event = self._events.popleft()
                else:
                    self._wakers.append(wake)
            if event is None:
                await woken
            else:
                yield event


def _wake(woken: asyncio.Future[None]) -> None:
    if not woken.done():
        woken.set_result(None)
