"""The port of the Wyoming protocol."""

from __future__ import annotations

import asyncio
import contextlib
import socket

from whisper_opt.serving.http.routes import Service
from whisper_opt.serving.wyoming.session import Session

__all__ = ["Wyoming"]


class Wyoming:
    """Accepts connections in the event loop of the server."""

    def __init__(self, service: Service, listener: socket.socket) -> None:
        """``listener``: a socket that is bound."""
        self._service = service
        self._socket = listener
        self._server: asyncio.AbstractServer | None = None
        self._sessions: set[asyncio.Task[None]] = set()
        self.address: tuple[str, int] = listener.getsockname()[:2]
        """Host and port."""

    async def start(self) -> None:
        """Accept connections from now on."""
        self._server = await asyncio.start_server(self._connected, sock=self._socket)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(Session(self._service, reader, writer).run())
        self._sessions.add(task)
        task.add_done_callback(self._sessions.discard)

    async def close(self) -> None:
        """Close the port and all connections."""
        if self._server is not None:
            self._server.close()
        for task in tuple(self._sessions):
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*self._sessions, return_exceptions=True)
