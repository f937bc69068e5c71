"""A WebSocket: messages in and out, and refusals before it is open."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any, Union
from urllib.parse import urlsplit

from starlette.responses import Response
from starlette.websockets import WebSocket, WebSocketDisconnect

from whisper_opt.core.options import ServeOptions
from whisper_opt.serving.http.errors import ApiError

__all__ = ["Disconnected", "Link", "check_origin", "deny", "subprotocols"]


def subprotocols(scope: Mapping[str, Any]) -> list[str]:
    """The subprotocols that a client offers; some servers pass the header on as it is."""
    offered = scope.get("subprotocols", ())
    return [each.strip() for header in offered for each in header.split(",")]


async def deny(websocket: WebSocket, response: Response) -> None:
    """Answer the request for a WebSocket with a response."""
    kept = [pair for pair in response.raw_headers if pair[0] != b"content-length"]
    response.raw_headers = kept  # the server adds it, and old ones add it to what is there
    await websocket.send_denial_response(response)


class Disconnected(Exception):  # noqa: N818 # it is no fault
    """The client is gone."""


def check_origin(websocket: WebSocket, options: ServeOptions) -> None:
    """Refuse web pages of other origins: browsers let every page open a WebSocket to every server.

    Raises:
        ApiError: 403, the page may not call this server.
    """
    origin = websocket.headers.get("origin")
    if origin is None:  # no browser
        return
    allowed = [each.strip() for each in (options.cors_origins or "").split(",")]
    if urlsplit(origin).netloc == websocket.headers.get("host") or {origin, "*"} & set(allowed):
        return
    raise ApiError(
        403,
        "pages of this origin may not call this server; name the origin in --cors-origins",
        code="origin_not_allowed",
    )


class Link:
    """An open WebSocket. What is sent waits in a queue, so that senders never wait."""

    def __init__(self, websocket: WebSocket) -> None:
        self._websocket = websocket
        self._queue: asyncio.Queue[Union[dict[str, Any], None]] = asyncio.Queue()

    async def receive(self, timeout: float) -> Union[str, bytes]:
        """The next message.

        Raises:
            Disconnected: the client is gone.
            asyncio.TimeoutError: none came for ``timeout`` seconds.
        """
        message = await asyncio.wait_for(self._websocket.receive(), timeout)
        if message["type"] == "websocket.disconnect":
            raise Disconnected
        text: Union[str, None] = message.get("text")
        data: bytes = message.get("bytes") or b""
        return data if text is None else text

    def send(self, event: dict[str, Any]) -> None:
        """Send an object as JSON, after all that were sent before."""
        self._queue.put_nowait(event)

    def end(self) -> None:
        """There is nothing more to send: :meth:`write` ends."""
        self._queue.put_nowait(None)

    async def write(self) -> None:
        """Send what is in the queue until :meth:`end`.

        Raises:
            Disconnected: the client is gone.
        """
        try:
            while (event := await self._queue.get()) is not None:
                await self._websocket.send_text(json.dumps(event, ensure_ascii=False))
        except (WebSocketDisconnect, RuntimeError) as error:
            raise Disconnected from error

    async def gone(self) -> None:
        """Wait until the client is gone; messages are dropped."""
        while (await self._websocket.receive())["type"] != "websocket.disconnect":
            pass

    async def close(self, code: int, reason: str = "") -> None:
        """Close the connection."""
        try:
            await self._websocket.close(code, reason[:120])
        except (WebSocketDisconnect, RuntimeError) as error:
            raise Disconnected from error
