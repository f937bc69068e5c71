"""``/v1/listen``: the WebSocket."""

from __future__ import annotations

import json
import uuid
from typing import Any, Union

from starlette.responses import Response
from starlette.routing import BaseRoute, WebSocketRoute
from starlette.websockets import WebSocket

from whisper_opt.serving.http.deepgram.listening import Listening
from whisper_opt.serving.http.deepgram.query import Asked, read_query
from whisper_opt.serving.http.errors import ApiError, api_error
from whisper_opt.serving.http.live.connection import converse, logged
from whisper_opt.serving.http.live.hub import Hub, LiveSession
from whisper_opt.serving.http.live.link import Link, check_origin, subprotocols
from whisper_opt.serving.http.routes import Service

__all__ = ["listen_routes"]


def listen_routes(service: Service) -> list[BaseRoute]:
    """The route."""

    async def socket(websocket: WebSocket) -> None:
        connection = _Connection(service, websocket)
        await logged(websocket, connection.serve, service.metrics, connection.refusal)

    return [WebSocketRoute("/v1/listen", socket)]


class _Connection:
    """One WebSocket."""

    def __init__(self, service: Service, websocket: WebSocket) -> None:
        self._service = service
        self._websocket = websocket
        self._request_id = str(uuid.uuid4())
        self._link = Link(websocket)
        self._listening: Union[Listening, None] = None
        self._hub = Hub(service.metrics, self._heard, self._ended)

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

    async def serve(self) -> dict[str, Any]:
        """Serve the connection; fields of its log line.

        Raises:
            ApiError: it is refused.
        """
        websocket, service = self._websocket, self._service
        check_origin(websocket, service.options)
        client = websocket.scope["whisper_opt.client"]
        service.check_live(client)
        with (
            service.gate.one(client) as drained,
            service.metrics.live.labels("listen").track_inprogress(),
        ):
            asked, self._listening = self._begun()
            offered = subprotocols(websocket.scope)
            headers = [(b"dg-request-id", self._request_id.encode())]
            await websocket.accept(offered[0] if offered else None, headers)
            await converse(self._link, self._listening, self._hub, drained)
            return {"model": asked.model}

    def _begun(self) -> tuple[Asked, Listening]:
        service = self._service
        try:
            query = self._websocket.query_params.multi_items()
            asked = read_query(query, service.models.names, service.options)
            model = service.models.find(asked.model)

            def opened(n_channels: int) -> tuple[int, LiveSession]:
                return self._hub.open(model, asked.options, asked.live, asked.rate, n_channels)

            return asked, Listening(asked, opened, self._link.send, self._request_id)
        except Exception as error:
            self._hub.cancel()
            raise api_error(error, {"language": "language"}) from error

    def _heard(self, number: int, event: Any) -> None:
        if self._listening is not None:
            self._listening.heard(number, event)

    def _ended(self, number: int) -> None:
        if self._listening is not None:
            self._listening.ended(number)
