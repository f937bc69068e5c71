"""Around every request: its id, its log line, its metrics, and the rest of a refused upload."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import Awaitable, Sequence
from typing import Any, Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from whisper_opt.serving.http.logs import log_event
from whisper_opt.serving.http.metrics import Metrics

__all__ = ["Notes", "Observe", "named_route", "notes_of"]

Endpoint = Callable[[Request], Awaitable[Response]]
_LINGER = (2.0, 30.0)
"""Seconds without data, and in all, in which the rest of a refused upload is read and dropped:
a connection that is closed with unread data is reset, and the client may not see the response."""
_ABANDONED = 499
"""Status in logs and metrics of a request whose client disconnected (nginx's)."""


class Notes(dict[str, Any]):
    """What a request's log line says besides method, path, status and time."""


def named_route(path: str, endpoint: Endpoint, methods: Sequence[str] = ("GET",)) -> Route:
    """A route whose requests are logged and counted under ``path`` as it is given here."""

    async def named(request: Request) -> Response:
        request.scope["whisper_opt.path"] = path
        return await endpoint(request)

    return Route(path, named, methods=list(methods))


def notes_of(scope: Any) -> Notes:
    """The notes of a request."""
    notes: Notes = scope.setdefault("whisper_opt.notes", Notes())
    return notes


class _Exchange:
    """One request and its response as they pass."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, request_id: str) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._request_id = request_id
        self._began = time.perf_counter()
        self.status: int | None = None
        self.read_whole = False
        self.ended = False

    @property
    def milliseconds(self) -> float:
        return round((time.perf_counter() - self._began) * 1000, 1)

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            self.read_whole = True
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["x-request-id"] = self._request_id
            headers["openai-processing-ms"] = str(int(self.milliseconds))
        last = message["type"] == "http.response.body" and not message.get("more_body", False)
        if last and not self.read_whole and self._expects_body():
            await self._send({**message, "more_body": True})
            await self._drop_rest()
            message = {"type": "http.response.body", "body": b"", "more_body": False}
        await self._send(message)
        self.ended = self.ended or last

    def _expects_body(self) -> bool:
        headers = Headers(scope=self._scope)
        if "expect" in headers:  # the client waits for permission to send it
            return False
        return headers.get("content-length", "0") != "0" or "transfer-encoding" in headers

    async def _drop_rest(self) -> None:
        idle, whole = _LINGER
        end = time.monotonic() + whole
        with contextlib.suppress(asyncio.TimeoutError):
            while not self.read_whole and time.monotonic() < end:
                await asyncio.wait_for(self.receive(), idle)


class Observe:
    """Outermost middleware."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request and log it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = f"req_{uuid.uuid4().hex}"
        scope["whisper_opt.id"] = request_id
        exchange = _Exchange(scope, receive, send, request_id)
        failure: BaseException | None = None
        with self._metrics.in_progress.track_inprogress():
            try:
                await self._app(scope, exchange.receive, exchange.send)
            except Exception as error:  # it was answered with status 500
                failure = error
        self._log(scope, exchange, request_id, failure)

    def _log(
        self, scope: Scope, exchange: _Exchange, request_id: str, failure: BaseException | None
    ) -> None:
        notes = notes_of(scope)
        gone = notes.pop("disconnected", False) or not exchange.ended
        status = _ABANDONED if gone else exchange.status
        path = scope.get("whisper_opt.path", "other")
        self._metrics.requests.labels(path, str(status)).inc()
        if gone:
            self._metrics.disconnected.inc()
        if path in ("/healthz", "/readyz", "/metrics") and failure is None:
            return
        log_event(
            "request",
            level=logging.INFO if failure is None else logging.ERROR,
            exc=failure,
            id=request_id,
            method=scope["method"],
            path=path,
            status=status,
            ms=exchange.milliseconds,
            client=scope.get("whisper_opt.client"),
            **notes,
        )
