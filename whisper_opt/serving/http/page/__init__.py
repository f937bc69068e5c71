"""The page at ``/``: plain HTML, CSS and ES modules, which use the API like any client.

The files are sent as they are; there is no build step, and nothing is fetched from elsewhere.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from whisper_opt.serving.http.observe import named_route

__all__ = ["PATHS", "page_routes"]

_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
_FILES: Mapping[str, str] = {
    "/": "index.html",
    **{
        f"/page/{name}": name
        for name in (
            *("style.css", "app.js", "api.js", "capture.js", "formats.js", "live.js"),
            "transcript.js",
        )
    },
}
PATHS = tuple(_FILES)
"""Paths of the page, which need no API key: it asks for one."""
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:;"
    " media-src blob:; form-action 'none'; frame-ancestors 'none'; base-uri 'none'"
)


def page_routes() -> list[Route]:
    """The routes of the files."""
    return [named_route(path, functools.partial(_file, name)) for path, name in _FILES.items()]


async def _file(name: str, request: Request) -> Response:
    path = Path(__file__).with_name(name)
    headers = {
        "cache-control": "no-cache",
        "content-security-policy": _POLICY,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
    }
    return Response(path.read_bytes(), media_type=_TYPES[path.suffix], headers=headers)
