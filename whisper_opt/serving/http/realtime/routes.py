"""``/v1/realtime``: the WebSocket, and client secrets for it."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from typing import Any, Callable, Union

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, WebSocketRoute
from starlette.websockets import WebSocket

from whisper_opt.serving.http.errors import ApiError, api_error
from whisper_opt.serving.http.live.connection import converse, logged
from whisper_opt.serving.http.live.hub import Hub, LiveSession
from whisper_opt.serving.http.live.link import Link, check_origin, subprotocols
from whisper_opt.serving.http.observe import named_route
from whisper_opt.serving.http.realtime.conversation import Conversation
from whisper_opt.serving.http.realtime.secrets import DEFAULT_SECONDS
from whisper_opt.serving.http.realtime.settings import Settings
from whisper_opt.serving.http.realtime.values import Values, invalid
from whisper_opt.serving.http.routes import Service, json_response
from whisper_opt.text.vocabulary import Vocab

__all__ = ["realtime_routes"]

_BODY = 1 << 16
"""Bytes of a request for a client secret."""


def realtime_routes(service: Service) -> list[BaseRoute]:
    """The routes."""

    async def socket(websocket: WebSocket) -> None:
        async def serve() -> dict[str, Any]:
            return await _Connection(service, websocket).serve()

        await logged(websocket, serve, service.metrics)

    async def client_secrets(request: Request) -> Response:
        return await _client_secret(service, request)

    async def transcription_sessions(request: Request) -> Response:
        return await _transcription_session(service, request)

    return [
        WebSocketRoute("/v1/realtime", socket),
        named_route("/v1/realtime/client_secrets", client_secrets, methods=["POST"]),
        named_route(
            "/v1/realtime/transcription_sessions", transcription_sessions, methods=["POST"]
        ),
    ]


def _new_id(prefix: str) -> str:
    return f"{prefix}_{uuid.uuid4().hex[:24]}"


class _Connection:
    """One WebSocket."""

    def __init__(self, service: Service, websocket: WebSocket) -> None:
        self._service = service
        self._websocket = websocket
        self._link = Link(websocket)
        self._conversation: Union[Conversation, None] = None
        self._hub = Hub(service.metrics, self._heard, self._ended)

    async def serve(self) -> dict[str, Any]:
        """Serve the connection; fields of its log line.

        Raises:
            ApiError: it is refused.
        """
        websocket, service = self._websocket, self._service
        check_origin(websocket, service.options)
        settings = self._first_settings()
        client = websocket.scope["whisper_opt.client"]
        service.check_live(client)
        with (
            service.gate.one(client) as drained,
            service.metrics.live.labels("realtime").track_inprogress(),
        ):
            self._conversation = self._begun(settings)
            offered = subprotocols(websocket.scope)
            await websocket.accept("realtime" if "realtime" in offered else None)
            await converse(self._link, self._conversation, self._hub, drained)
            return {"model": self._conversation.settings.model}

    def _first_settings(self) -> Settings:
        query, service = self._websocket.query_params, self._service
        if query.get("intent", "transcription") != "transcription":
            raise ApiError(
                400,
                f"intent is {query['intent'][:80]!r}; expected transcription: this server says"
                " nothing",
                param="intent",
                code="unsupported_value",
            )
        settings: Union[Settings, None] = self._websocket.scope.get("whisper_opt.settings")
        if settings is not None:  # of the client secret
            return settings
        name = query.get("model", service.models.names[0])
        service.models.find(name)
        return Settings(name)

    def _begun(self, settings: Settings) -> Conversation:
        try:
            return Conversation(
                settings,
                self._service.models.names,
                self._opened,
                self._link.send,
                _new_id,
                vocab=self._vocab,
                flat=_is_flat(self._websocket),
                idle=self._service.options.live_idle_timeout,
            )
        except Exception as error:
            raise api_error(error, {}) from error

    def _vocab(self, name: str) -> Vocab:
        return self._service.models.find(name).whisper.vocab

    def _opened(self, settings: Settings) -> tuple[int, LiveSession]:
        model = self._service.models.find(settings.model)
        return self._hub.open(model, settings.options, settings.live, settings.rate)

    def _heard(self, number: int, event: Any) -> None:
        if self._conversation is not None:
            self._conversation.heard(number, event)

    def _ended(self, number: int) -> None:
        if self._conversation is not None:
            self._conversation.ended(number)


def _is_flat(websocket: WebSocket) -> bool:
    """Whether the client speaks the old dialect."""
    old = "realtime=v1" in websocket.headers.get("openai-beta", "")
    return old or "openai-beta.realtime-v1" in subprotocols(websocket.scope)


# client secrets


async def _body(request: Request) -> dict[str, Any]:
    """The JSON object that was sent.

    Raises:
        ApiError: it is none, or too long.
    """
    data = b""
    async for part in request.stream():
        data += part
        if len(data) > _BODY:
            raise ApiError(413, f"the body is longer than {_BODY} bytes")
    try:
        found = json.loads(data or b"{}")
    except (ValueError, RecursionError):
        raise ApiError(400, "the body is no JSON", code="invalid_value") from None
    if not isinstance(found, dict):
        raise ApiError(400, "the body is no JSON object", code="invalid_value")
    return found


async def _client_secret(service: Service, request: Request) -> Response:
    values = Values(await _body(request), "")
    seconds = DEFAULT_SECONDS
    if values.has("expires_after"):
        after = Values(values.take("expires_after") or {}, "expires_after")
        after.choice("anchor", ("created_at",))
        seconds = after.integer("seconds", 10, 7200) or DEFAULT_SECONDS
        after.end()
    session = values.take("session")
    values.end()
    settings = _asked(service, session or {}, Settings.changed)
    made = service.secrets.make(request.scope["whisper_opt.client"], settings, seconds)
    shown = settings.shown(_new_id("sess"))
    return json_response({"value": made.value, "expires_at": made.expires_at, "session": shown})


async def _transcription_session(service: Service, request: Request) -> Response:
    settings = _asked(service, await _body(request), Settings.changed_flat)
    made = service.secrets.make(request.scope["whisper_opt.client"], settings)
    secret = {"value": made.value, "expires_at": made.expires_at}
    return json_response({**settings.shown_flat(_new_id("sess")), "client_secret": secret})


def _asked(
    service: Service,
    session: Any,
    changed: Callable[[Settings, Any, tuple[str, ...]], Settings],
) -> Settings:
    if isinstance(session, Mapping) and session.get("type") == "realtime":
        raise invalid("session.type", "is 'realtime'", "transcription: this server says nothing")
    names = service.models.names
    settings = changed(Settings(names[0]), session, names)
    try:
        settings.options, settings.live  # noqa: B018 # raise OptionError
    except Exception as error:
        raise api_error(error, {}) from error
    return settings
