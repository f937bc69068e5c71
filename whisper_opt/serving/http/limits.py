"""Limits on requests: how many per minute from each key, how many at once."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Callable

from whisper_opt.serving.http.errors import ApiError, queue_full

__all__ = ["Admission", "Rate"]


class Rate:
    """A token bucket for each client: a minute's requests may come at once, then evenly."""

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        """``per_minute``: 0 for no limit."""
        self.per_minute = per_minute
        self._clock = clock
        self._buckets: dict[str, tuple[float, float]] = {}  # tokens, time

    def take(self, client: str) -> None:
        """Count a request.

        Raises:
            ApiError: 429, the client has sent too many.
        """
        if not self.per_minute:
            return
        now = self._clock()
        tokens, then = self._buckets.get(client, (float(self.per_minute), now))
        tokens = min(self.per_minute, tokens + (now - then) * self.per_minute / 60)
        if tokens < 1:
            self._buckets[client] = tokens, now
            raise ApiError(
                429,
                f"this key may send {self.per_minute} requests per minute; send it again later",
                code="rate_limit_exceeded",
                retry_after=(1 - tokens) * 60 / self.per_minute,
            )
        self._buckets[client] = tokens - 1, now


class Admission:
    """Requests that are uploading, waiting or running; beyond a limit they are refused at once.

    The limit bounds the temporary files, which a slow upload holds before it is queued.
    """

    def __init__(self, limit: int) -> None:
        """``limit``: how many requests are in progress at most."""
        self.limit = limit
        self.n_now = 0

    @contextlib.contextmanager
    def one(self, wait: float) -> Iterator[None]:
        """Count one request as long as the context lasts.

        Raises:
            ApiError: 429, there are too many; ``wait``: estimated seconds until there are fewer.
        """
        if self.n_now >= self.limit:
            raise queue_full(wait)
        self.n_now += 1
        try:
            yield
        finally:
            self.n_now -= 1
