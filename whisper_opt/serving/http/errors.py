"""Errors of the API: status, type, code and parameter, and what the library's errors become."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from whisper_opt.core.errors import (
    AudioError,
    EngineClosed,
    LiveSessionsFull,
    OptionError,
    QueueFull,
    TranscriptionCancelled,
)

__all__ = [
    "ApiError",
    "api_error",
    "error_response",
    "handlers",
    "invalid",
    "loading",
    "model_not_found",
    "queue_full",
    "shutting_down",
]

_TYPES = {429: "rate_limit_error", 503: "service_unavailable_error"}
"""Types of errors by status; the others are ``invalid_request_error``, and 500 ``server_error``."""
_INTERNAL = "the server failed to process the request; its log has the reason under this request id"
_UPLOAD = re.compile(r"'(/proc/\d+/fd/\d+|[^']*whisper-opt-upload-[^']*)'|audio data of \d+ bytes")
"""How the decoders name an upload: a temporary file, or bytes."""


class ApiError(Exception):
    """An error that is sent to the client.

    Attributes:
        status: HTTP status.
        message: what was found, what was expected, the fix.
        param: the field of the request that is wrong, or None.
        code: a name of the error for programs, or None.
        retry_after: seconds after which a retry may succeed, or None.
        headers: further headers.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = dict(headers or {})
        if status == 500:  # the same request would fail again; OpenAI's clients would send it twice
            self.headers["x-should-retry"] = "false"
        if retry_after is not None:
            self.headers["retry-after"] = str(max(1, math.ceil(retry_after - 1e-6)))

    @property
    def body(self) -> dict[str, Any]:
        """The error in OpenAI's schema."""
        default = "server_error" if self.status == 500 else "invalid_request_error"
        return {
            "error": {
                "message": self.message,
                "type": _TYPES.get(self.status, default),
                "param": self.param,
                "code": self.code,
            }
        }


def error_response(error: ApiError) -> Response:
    """The response to a request that failed."""
    content = json.dumps(error.body).encode()
    return Response(content, error.status, error.headers, "application/json")


def queue_full(wait: float) -> ApiError:
    """The error of a full queue; ``wait``: estimated seconds until there is room."""
    return ApiError(
        429,
        "too many requests are waiting; send the request again later",
        code="queue_full",
        retry_after=wait,
    )


def invalid(name: str, found: str, expected: str) -> ApiError:
    """The error of a value that is not what was expected; ``name``: its field or path."""
    return ApiError(400, f"{name} {found}; expected {expected}", param=name, code="invalid_value")


def model_not_found(name: str, names: Collection[str], param: str = "model") -> ApiError:
    """The error of a request for a model that the server does not have."""
    return ApiError(
        404,
        f"the model {name[:200]!r} does not exist; this server has {', '.join(names)}",
        param=param,
        code="model_not_found",
    )


def loading() -> ApiError:
    """The error of a request that comes before all models are loaded."""
    return ApiError(503, "the models are being loaded; send the request again", retry_after=1)


def shutting_down(code: str | None = None) -> ApiError:
    """The error of a request that comes after SIGTERM, or cannot be completed because of it."""
    return ApiError(503, "the server is shutting down; use another", code=code, retry_after=5)


def api_error(error: BaseException, parameters: Mapping[str, str], wait: float = 1.0) -> ApiError:
    """What an error of the library is for the client.

    Args:
        error: the error.
        parameters: name of the field that gave each option, by name of the option.
        wait: estimated seconds until a full queue has room.
    """
    if isinstance(error, ApiError):
        return error
    if isinstance(error, LiveSessionsFull):
        return ApiError(429, str(error), code="too_many_sessions", retry_after=10)
    if isinstance(error, QueueFull):
        return queue_full(wait)
    if isinstance(error, (EngineClosed, TranscriptionCancelled)):
        return shutting_down()
    if isinstance(error, AudioError):
        message = _UPLOAD.sub("the file", str(error))
        known = "reference clip of" in message
        field = "known_speaker_references" if known else "file"
        return ApiError(400, message, param=field, code="invalid_audio")
    if isinstance(error, OptionError):
        message = str(error)
        return ApiError(400, message, param=_parameter(message, parameters), code="invalid_value")
    return ApiError(500, _INTERNAL)


def _parameter(message: str, parameters: Mapping[str, str]) -> str | None:
    """The field that a message of :class:`OptionError` is about: it names the option first."""
    for word in re.findall(r"[a-z]\w*", message):
        if word in parameters:
            return parameters[word]
    return None


def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = request.url.path[:200]
    messages = {
        404: f"unknown path {path!r}; GET /openapi.json lists the paths of this server",
        405: f"method {request.method} is not allowed for {path!r}",
    }
    message = messages.get(error.status_code, error.detail)
    return error_response(ApiError(error.status_code, message, headers=error.headers))


def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error_response(error)


def _disconnected(request: Request, error: Exception) -> Response:
    return Response(status_code=400)  # nobody reads it


def _other_error(request: Request, error: Exception) -> Response:
    return error_response(ApiError(500, _INTERNAL))


handlers: Mapping[Any, Any] = {
    ApiError: _api_error,
    HTTPException: _http_error,
    ClientDisconnect: _disconnected,
    Exception: _other_error,
}
"""Exception handlers of the application."""
