"""Serving one live connection, whatever protocol it speaks, from its opening to its end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable
from typing import Any, Callable, Protocol, Union

from starlette.responses import Response
from starlette.websockets import WebSocket, WebSocketState

from whisper_opt.serving.http.errors import ApiError, api_error, error_response
from whisper_opt.serving.http.live.hub import Hub
from whisper_opt.serving.http.live.link import Disconnected, Link, deny
from whisper_opt.serving.http.logs import log_event
from whisper_opt.serving.http.metrics import Metrics
from whisper_opt.text.live_events import LiveEvent

__all__ = ["Dialect", "converse", "logged"]

_MOST_BACKLOG = 30.0
"""Seconds of audio that may wait to be heard; beyond, the connection is not read for a while."""
_PAUSE = 0.05
GOING_AWAY = 1012
"""Code of a close because the server is restarted."""


class Dialect(Protocol):
    """One protocol on one connection."""

    idle: float
    """Seconds without a message after which the connection is closed."""
    closing: Union[tuple[int, str], None]
    """Code and reason of the close, once the client or an error has ended the conversation."""

    def receive(self, message: Union[str, bytes]) -> None:
        """Handle a message of the client."""

    def finish(self) -> None:
        """Finish all live sessions: there is no more audio."""

    def heard(self, number: int, event: LiveEvent) -> None:
        """Handle an event of the live session of that number."""

    def ended(self, number: int) -> None:
        """A live session has ended."""

    def silent(self) -> tuple[int, str]:
        """Tell the client that it was idle; code and reason of the close."""

    def farewell(self, *, restarts: bool) -> None:
        """Send what comes after the last text."""


async def converse(link: Link, dialect: Dialect, hub: Hub, drained: asyncio.Event) -> None:
    """Serve until the client, an error or a shutdown ends the conversation.

    Args:
        link: the connection.
        dialect: what is spoken.
        hub: its live sessions; those that are left are cancelled at the end.
        drained: set when the server shuts down.
    """
    tasks = [
        asyncio.ensure_future(work)
        for work in (_read(link, dialect, hub), link.write(), drained.wait(), _over(dialect, hub))
    ]
    reader, writer, _, over = tasks
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if writer.done():
            writer.result()
        ended = next((task for task in (reader, over) if task.done()), None)
        closing: Any = ended.result() if ended else (GOING_AWAY, "the server shuts down")
        await _stopped(reader)
        gone = asyncio.ensure_future(link.gone())
        tasks.append(gone)
        dialect.finish()
        await _unless(gone, hub.ended())
        dialect.farewell(restarts=closing[0] == GOING_AWAY)
        link.end()
        await _unless(gone, writer)
        await _stopped(gone)
        await link.close(*closing)
    except Disconnected:
        pass
    finally:
        hub.cancel()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, hub.ended(), return_exceptions=True)


async def _read(link: Link, dialect: Dialect, hub: Hub) -> tuple[int, str]:
    """Handle messages until the conversation is over; code and reason of the close."""
    while dialect.closing is None:
        try:
            message = await link.receive(dialect.idle)
        except asyncio.TimeoutError:
            return dialect.silent()
        dialect.receive(message)
        while hub.backlog > _MOST_BACKLOG:  # faster than it can be heard
            await asyncio.sleep(_PAUSE)
    return dialect.closing


async def _over(dialect: Dialect, hub: Hub) -> tuple[int, str]:
    """Wait until the conversation is over because of what the sessions did."""
    while dialect.closing is None:
        await hub.changed.wait()
        hub.changed.clear()
    return dialect.closing


async def _stopped(task: asyncio.Future[Any]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def _unless(gone: asyncio.Future[None], work: Awaitable[Any]) -> None:
    """Wait for work, unless the client is gone before.

    Raises:
        Disconnected: the client is gone.
    """
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Disconnected
        task.result()
    finally:
        task.cancel()


async def _broken(websocket: WebSocket, response: Response) -> None:
    """A fault of the server: close, or answer, whatever is possible yet."""
    if websocket.application_state == WebSocketState.CONNECTED:
        await websocket.close(1011)
    else:
        await deny(websocket, response)


async def logged(
    websocket: WebSocket,
    serve: Callable[[], Awaitable[dict[str, Any]]],
    metrics: Metrics,
    refusal: Callable[[ApiError], Response] = error_response,
) -> None:
    """Run the whole service of a connection, and write its line in the log.

    Args:
        websocket: the connection, not yet accepted.
        serve: serves it; returns fields of the line.
        metrics: counts refusals.
        refusal: the response to a request that is refused.
    """
    began = time.perf_counter()
    path, client = websocket.scope["path"], websocket.scope.get("whisper_opt.client")
    fields: dict[str, Any] = {}
    failure: Union[BaseException, None] = None
    try:
        fields = await serve()
    except ApiError as error:
        fields = {"status": error.status, "code": error.code}
        metrics.refused.labels(error.code or str(error.status)).inc()
        with contextlib.suppress(Exception):  # the client is gone
            await deny(websocket, refusal(error))
    except Exception as error:
        failure = error
        fields = {"status": 500}
        with contextlib.suppress(Exception):
            await _broken(websocket, refusal(api_error(error, {})))
    log_event(
        "live connection",
        level=logging.INFO if failure is None else logging.ERROR,
        exc=failure,
        path=path,
        client=client,
        seconds=round(time.perf_counter() - began, 1),
        **fields,
    )
