"""``/v1/listen``: the WebSocket."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from typing import Any, ClassVar

from starlette.responses import Response
from starlette.routing import BaseRoute, WebSocketRoute
from starlette.websockets import WebSocket

from whisper_opt.serving.http.deepgram.listening import Listening
from whisper_opt.serving.http.deepgram.query import read_query
from whisper_opt.serving.http.errors import ApiError
from whisper_opt.serving.http.live.base import LiveConnection
from whisper_opt.serving.http.live.connection import logged
from whisper_opt.serving.http.live.hub import LiveSession
from whisper_opt.serving.http.live.link import subprotocols
from whisper_opt.serving.http.routes import Service

__all__ = ["listen_routes"]


def listen_routes(service: Service) -> list[BaseRoute]:
    """The route."""

    async def socket(websocket: WebSocket) -> None:
        connection = _Connection(service, websocket)
        await logged(websocket, connection.serve, service.metrics, connection.refusal)

    return [WebSocketRoute("/v1/listen", socket)]


class _Connection(LiveConnection):
    """One WebSocket."""

    protocol = "listen"
    parameters: ClassVar[Mapping[str, str]] = {"language": "language"}

    def __init__(self, service: Service, websocket: WebSocket) -> None:
        super().__init__(service, websocket)
        self._request_id = str(uuid.uuid4())
        self._model = ""

    def refusal(self, error: ApiError) -> Response:
        """The response to a request that is refused, as Deepgram words it."""
        body = {
            "err_code": error.code or str(error.status),
            "err_msg": error.message,
            "request_id": self._request_id,
        }
        headers = {
            **error.headers,
            "dg-error": error.message.encode("ascii", "replace").decode(),
            "dg-request-id": self._request_id,
        }
        return Response(json.dumps(body), error.status, headers, "application/json")

    def begin(self) -> Listening:
        """See :class:`LiveConnection`."""
        models = self.service.models
        query = self.websocket.query_params.multi_items()
        asked = read_query(query, models.names, self.service.options)
        model, self._model = models.find(asked.model), asked.model

        def opened(n_channels: int) -> tuple[int, LiveSession]:
            return self.hub.open(model, asked.options, asked.live, asked.rate, n_channels)

        return Listening(asked, opened, self.link.send, self._request_id)

    async def accept(self) -> None:
        """See :class:`LiveConnection`."""
        offered = subprotocols(self.websocket.scope)
        headers = [(b"dg-request-id", self._request_id.encode())]
        await self.websocket.accept(offered[0] if offered else None, headers)

    @property
    def fields(self) -> dict[str, Any]:
        """See :class:`LiveConnection`."""
        return {"model": self._model}
