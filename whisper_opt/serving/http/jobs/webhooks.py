"""Telling another server that a job has ended."""

from __future__ import annotations

import json
import logging
import threading
import time
import urllib.error
import urllib.request
from typing import Any, Union
from urllib.parse import urlsplit

from whisper_opt.serving.http.errors import ApiError
from whisper_opt.serving.http.jobs.store import Job, JobStore, described
from whisper_opt.serving.http.logs import log_event

__all__ = ["Announcer", "check_webhook", "delivered"]

_TIMEOUT = 10.0
_PAUSE = 0.5
_TRIES = 10
"""How often a webhook is called; the pauses double from a second on, to 17 minutes in all."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """An origin that is allowed may not send on to one that is not."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirects, urllib.request.ProxyHandler({}))


def _origin(url: str) -> Union[tuple[str, str, Union[int, None]], None]:
    """Scheme, host and port of a URL; None if it is none of HTTP, or names a user."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return None
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
        return None
    return parts.scheme, parts.hostname, port or {"http": 80, "https": 443}[parts.scheme]


def check_webhook(url: str, origins: Union[str, None]) -> None:
    """Refuse a URL that is not on an allowed origin.

    Raises:
        ApiError: it is not; ``origins``: the option ``webhook_origins``.
    """
    allowed = [_origin(one.strip()) for one in (origins or "").split(",")]
    found = _origin(url)
    if found is None or found not in allowed:
        raise ApiError(
            400,
            "webhook is not a URL of an origin that this server may call (--webhook-origins)",
            param="webhook",
            code="invalid_value",
        )


class Announcer:
    """Calls the webhooks of jobs that have ended, in a thread; what fails is tried again."""

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self._stop = threading.Event()
        self._next_try: dict[str, float] = {}
        self._thread = threading.Thread(target=self._run, name="whisper-opt hooks", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Stop; what was not told is told after the next start."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(_PAUSE):
            self._turn()

    def _turn(self) -> None:
        try:
            for job in self._store.unannounced():
                self._announce(job)
        except Exception as error:
            log_event("webhooks failed", logging.ERROR, exc=error)

    def _announce(self, job: Job) -> None:
        if self._stop.is_set() or self._next_try.get(job.id, 0.0) > time.monotonic():
            return
        assert job.webhook is not None
        if delivered(job.webhook, described(job)):
            self._store.announced(job.id)
            return
        self._store.not_announced(job.id)
        self._next_try[job.id] = time.monotonic() + 2.0**job.webhook_tries
        if job.webhook_tries + 1 >= _TRIES:
            log_event("webhook given up", logging.WARNING, job=job.id)
            self._store.announced(job.id)


def delivered(url: str, content: Any) -> bool:
    """POST JSON; whether the answer is a status of 200 to 299."""
    body = json.dumps(content).encode()
    request = urllib.request.Request(
        url, body, {"content-type": "application/json", "user-agent": "whisper-opt"}
    )
    try:
        with _OPENER.open(request, timeout=_TIMEOUT) as response:
            return bool(200 <= response.status < 300)
    except (OSError, ValueError, urllib.error.HTTPError):
        return False
