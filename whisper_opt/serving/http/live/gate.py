"""Limits on live connections, and their end when the server shuts down."""

from __future__ import annotations

import asyncio
import collections
import contextlib
from collections.abc import Iterator

from whisper_opt.core.options import ServeOptions
from whisper_opt.serving.http.errors import ApiError, shutting_down

__all__ = ["Gate"]

_RETRY = 10.0
"""Seconds after which a refused client may try again: nobody knows when a session ends."""


class Gate:
    """Counts live connections, of all clients and of each key."""

    def __init__(self, options: ServeOptions) -> None:
        self._most = options.live_connections
        self._most_per_key = options.live_connections_per_key
        self._per_key: collections.Counter[str] = collections.Counter()
        self._draining = False
        self._open: dict[asyncio.Task[object], asyncio.Event] = {}

    @property
    def n_now(self) -> int:
        """How many connections there are."""
        return len(self._open)

    @contextlib.contextmanager
    def one(self, client: str) -> Iterator[asyncio.Event]:
        """Count the connection of this task as long as the context lasts.

        Yields:
            An event that is set when the server shuts down: the connection should finish then.

        Raises:
            ApiError: 429, there are too many; 503, the server is shutting down.
        """
        if self._draining:
            raise shutting_down()
        if len(self._open) >= self._most:
            raise _too_many(f"this server has {self._most} live connections, as many as it accepts")
        if self._most_per_key and self._per_key[client] >= self._most_per_key:
            raise _too_many(
                f"this key has {self._most_per_key} live connections, and may have no more"
            )
        task = asyncio.current_task()
        assert task is not None
        self._open[task] = drained = asyncio.Event()
        self._per_key[client] += 1
        try:
            yield drained
        finally:
            del self._open[task]
            self._per_key[client] -= 1
            if not self._per_key[client]:
                del self._per_key[client]

    async def drain(self, timeout: float) -> None:
        """Accept no more, and wait until all have received their last text.

        Args:
            timeout: maximum wait in seconds.
        """
        self._draining = True
        for event in self._open.values():
            event.set()
        if self._open:
            await asyncio.wait(tuple(self._open), timeout=timeout)


def _too_many(found: str) -> ApiError:
    return ApiError(
        429,
        f"{found}; close one, or connect again later",
        code="too_many_sessions",
        retry_after=_RETRY,
    )
