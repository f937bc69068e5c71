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

from whisper_opt.serving.http.errors import ApiError, api_error, invalid
from whisper_opt.serving.http.live.base import LiveConnection
from whisper_opt.serving.http.live.connection import logged
from whisper_opt.serving.http.live.hub import LiveSession
from whisper_opt.serving.http.live.link import subprotocols
from whisper_opt.serving.http.observe import named_route
from whisper_opt.serving.http.realtime.conversation import Conversation
from whisper_opt.serving.http.realtime.secrets import DEFAULT_SECONDS
from whisper_opt.serving.http.realtime.settings import Settings
from whisper_opt.serving.http.realtime.values import Values
from whisper_opt.serving.http.routes import Service, json_response
from whisper_opt.text.vocabulary import Vocab

__all__ = ["realtime_routes"]

_BODY = 1 << 16
"""Bytes of a request for a client secret."""


def realtime_routes(service: Service) -> list[BaseRoute]:
    """The routes."""

    async def socket(websocket: WebSocket) -> None:
        await logged(websocket, _Connection(service, websocket).serve, service.metrics)

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


class _Connection(LiveConnection):
    """One WebSocket."""

    protocol = "realtime"

    def begin(self) -> Conversation:
        """See :class:`LiveConnection`."""
        self._conversation = Conversation(
            self._first_settings(),
            self.service.models.names,
            self._opened,
            self.link.send,
            _new_id,
            vocab=self._vocab,
            flat=_is_flat(self.websocket),
            idle=self.service.options.live_idle_timeout,
        )
        return self._conversation

    def _first_settings(self) -> Settings:
        query, models = self.websocket.query_params, self.service.models
        if query.get("intent", "transcription") != "transcription":
            raise ApiError(
                400,
                f"intent is {query['intent'][:80]!r}; expected transcription: this server says"
                " nothing",
                param="intent",
                code="unsupported_value",
            )
        settings: Union[Settings, None] = self.websocket.scope.get("whisper_opt.settings")
        if settings is not None:  # of the client secret
            return settings
        name = query.get("model", models.names[0])
        models.find(name)
        return Settings(name)

    async def accept(self) -> None:
        """See :class:`LiveConnection`."""
        offered = subprotocols(self.websocket.scope)
        await self.websocket.accept("realtime" if "realtime" in offered else None)

    @property
    def fields(self) -> dict[str, Any]:
        """See :class:`LiveConnection`."""
        return {"model": self._conversation.settings.model}

    def _vocab(self, name: str) -> Vocab:
        return self.service.models.find(name).whisper.vocab

    def _opened(self, settings: Settings) -> tuple[int, LiveSession]:
        model = self.service.models.find(settings.model)
        return self.hub.open(model, settings.options, settings.live, settings.rate)


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
        settings.check()
    except Exception as error:
        raise api_error(error, {}) from error
    return settings
