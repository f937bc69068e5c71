"""One live connection: what is the same in all protocols."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Any, ClassVar, Union

from starlette.websockets import WebSocket

from whisper_opt.serving.http.errors import api_error
from whisper_opt.serving.http.live.connection import Dialect, converse
from whisper_opt.serving.http.live.hub import Hub
from whisper_opt.serving.http.live.link import Link, check_origin
from whisper_opt.serving.http.routes import Service
from whisper_opt.text.live_events import LiveEvent

__all__ = ["LiveConnection"]


class LiveConnection(abc.ABC):
    """One WebSocket, which a protocol derives from.

    Attributes:
        protocol: name of the protocol in the metrics.
        parameters: name of the field that gives each option, by name of the option.
        service: what the endpoints share.
        websocket: the connection.
        link: the same, once it is accepted.
        hub: its live sessions.
    """

    protocol: ClassVar[str]
    parameters: ClassVar[Mapping[str, str]] = {}

    def __init__(self, service: Service, websocket: WebSocket) -> None:
        """Nothing is accepted yet."""
        self.service = service
        self.websocket = websocket
        self.link = Link(websocket)
        self.hub = Hub(service.metrics, self._heard, self._ended)
        self._dialect: Union[Dialect, None] = None

    @abc.abstractmethod
    def begin(self) -> Dialect:
        """Read the request, and open its live sessions.

        Raises:
            ApiError: the request is refused.
            WhisperOptError: the engine accepts no session.
        """

    @abc.abstractmethod
    async def accept(self) -> None:
        """Accept the connection."""

    @property
    @abc.abstractmethod
    def fields(self) -> dict[str, Any]:
        """Fields of its line in the log."""

    async def serve(self) -> dict[str, Any]:
        """Serve the connection; its live sessions are cancelled at the end, whatever it is.

        Returns:
            Fields of its line in the log.

        Raises:
            ApiError: it is refused.
        """
        check_origin(self.websocket, self.service.options)
        client = self.websocket.scope["whisper_opt.client"]
        self.service.check_live(client)
        with (
            self.service.gate.one(client) as drained,
            self.service.metrics.live.labels(self.protocol).track_inprogress(),
        ):
            try:
                self._dialect = self._begun()
                await self.accept()
                await converse(self.link, self._dialect, self.hub, drained)
            finally:
                self.hub.cancel()
            return self.fields

    def _begun(self) -> Dialect:
        try:
            return self.begin()
        except Exception as error:
            raise api_error(error, self.parameters) from error

    def _heard(self, number: int, event: LiveEvent) -> None:
        if self._dialect is not None:
            self._dialect.heard(number, event)

    def _ended(self, number: int) -> None:
        if self._dialect is not None:
            self._dialect.ended(number)
