"""API keys: read from a file and the environment, compared in constant time."""

from __future__ import annotations

import hmac
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket

from whisper_opt.core.errors import OptionError
from whisper_opt.serving.http.errors import ApiError, error_response
from whisper_opt.serving.http.live.link import deny, subprotocols
from whisper_opt.serving.http.page import PATHS
from whisper_opt.serving.http.realtime.secrets import Secrets, digest

__all__ = ["ANYONE", "VARIABLE", "Authentication", "Keys"]

VARIABLE = "WHISPER_OPT_API_KEYS"
"""Environment variable of keys, separated by commas."""
ANYONE = "anonymous"
"""Name of all clients of a server without keys."""
OPEN = ("/healthz", "/readyz", "/metrics", "/openapi.json", *PATHS)
"""Paths that need no key: they show nothing of any request."""
_LEAST = 8
_SUBPROTOCOL = "openai-insecure-api-key."
_SECRETS = "/v1/realtime"
"""The path that client secrets open."""


class Keys:
    """The API keys of a server, as digests."""

    def __init__(self, keys: Mapping[str, str]) -> None:
        """``keys``: name by key.

        Raises:
            OptionError: a key is too short.
        """
        for key, name in keys.items():
            if len(key) < _LEAST:
                raise OptionError(
                    f"API key {name} has {len(key)} characters; expected at least {_LEAST}"
                )
        self._names = {digest(key): name for key, name in keys.items()}

    @classmethod
    def read(cls, file: str | None) -> Keys:
        """Read the keys of a file, if any, and those of the environment.

        Raises:
            OptionError: the file cannot be read or has no keys, or a key is too short.
        """
        keys: dict[str, str] = {}
        if file is not None:
            try:
                text = Path(file).read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise OptionError(f"api_key_file {file!r} cannot be read: {error}") from error
            lines = [line.split(None, 1) for line in text.splitlines()]
            lines = [line for line in lines if line and not line[0].startswith("#")]
            if not lines:
                raise OptionError(f"api_key_file {file!r} holds no key; expected one per line")
            for number, (key, *name) in enumerate(lines, start=1):
                keys[key] = name[0].strip() if name else f"key-{number}"
        given = [key.strip() for key in os.environ.get(VARIABLE, "").split(",")]
        for number, key in enumerate(filter(None, given), start=1):
            keys.setdefault(key, f"env-{number}")
        return cls(keys)

    def __bool__(self) -> bool:
        return bool(self._names)

    def name_of(self, key: str) -> str | None:
        """The name of a key; None if it is unknown. Takes the same time for every key."""
        wanted, found = digest(key), None
        for known, name in self._names.items():
            if hmac.compare_digest(wanted, known):
                found = name
        return found


def _given(headers: Headers) -> str | None:
    """The key of a request: a bearer token, ``api-key`` as in Azure, or ``Token`` as Deepgram's."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() in ("bearer", "token") and token.strip():
        return token.strip()
    return headers.get("api-key") or headers.get("x-api-key")


def _offered(subprotocols: Sequence[str]) -> str | None:
    """The key among the subprotocols of a WebSocket: web pages can send no other header."""
    for before, each in zip(("", *subprotocols), subprotocols):
        if each.startswith(_SUBPROTOCOL):
            return each[len(_SUBPROTOCOL) :]
        if before in ("token", "bearer"):
            return each
    return None


class Authentication:
    """Refuses requests without a valid key, before their body is read."""

    def __init__(self, app: ASGIApp, keys: Keys, secrets: Secrets) -> None:
        self._app = app
        self._keys = keys
        self._secrets = secrets

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it with status 401."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        response = self._checked(scope)
        if response is not None and scope["type"] == "websocket":
            await deny(WebSocket(scope, receive, send), response)
            return
        await (response or self._app)(scope, receive, send)

    def _checked(self, scope: Scope) -> Response | None:
        """The response to a request that is refused; sets the name of the client otherwise."""
        scope["whisper_opt.client"] = ANYONE
        key = _given(Headers(scope=scope)) or _offered(subprotocols(scope))
        if scope["type"] == "websocket" and scope["path"] == _SECRETS and key:
            made = self._secrets.find(key)
            if made is not None:
                scope["whisper_opt.client"], scope["whisper_opt.settings"] = made
                return None
        if not self._keys or scope["path"] in OPEN:
            return None
        name = self._keys.name_of(key) if key else None
        if name is not None:
            scope["whisper_opt.client"] = name
            return None
        found = "is not valid" if key else "is missing"
        return error_response(
            ApiError(
                401,
                f"the API key {found}; send a key of this server as 'Authorization: Bearer KEY'",
                code="invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )
        )
