"""Clients of the WebSockets of a server on loopback, and a server whose live sessions are fakes."""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Iterator
from typing import Any

from tests.support.fake_live import FakeLive
from whisper_opt.serving import Engine
from whisper_opt.serving.http.server import Server

__all__ = ["REALTIME", "Socket", "fake_sessions", "opened"]

REALTIME = "/v1/realtime?intent=transcription"
PATIENCE = 60.0
"""Seconds after which a test fails instead of waiting on."""


@contextlib.contextmanager
def fake_sessions() -> Iterator[list[FakeLive]]:
    """Engines open fakes, which are collected."""
    made: list[FakeLive] = []

    def live(engine: Engine, *arguments: Any, **given: Any) -> FakeLive:
        made.append(FakeLive(*arguments, **given))
        return made[-1]

    before = Engine.__dict__.get("live")
    setattr(Engine, "live", live)  # noqa: B010
    try:
        yield made
    finally:
        if before is None:
            delattr(Engine, "live")
        else:
            setattr(Engine, "live", before)  # noqa: B010


class Socket:
    """An open WebSocket that speaks JSON."""

    def __init__(self, link: Any) -> None:
        self.link = link

    def tell(self, type_: str, **fields: Any) -> None:
        """Send an event."""
        self.link.send(json.dumps({"type": type_, **fields}))

    def say(self, samples: Any) -> None:
        """Append audio, as the realtime API does."""
        audio = base64.b64encode(samples.tobytes()).decode()
        self.tell("input_audio_buffer.append", audio=audio)

    def next(self) -> dict[str, Any]:
        """The next event."""
        found: dict[str, Any] = json.loads(self.link.recv(timeout=PATIENCE))
        return found

    def until(self, type_: str) -> list[dict[str, Any]]:
        """The events up to the next one of a type; an error that is not asked for fails."""
        found = [self.next()]
        while found[-1]["type"] != type_:
            assert found[-1]["type"] not in ("error", "Error"), found[-1]
            found.append(self.next())
        return found

    def rest(self) -> tuple[list[dict[str, Any]], int]:
        """All events up to the close, and its code."""
        from websockets.exceptions import ConnectionClosed

        found = []
        try:
            while True:
                found.append(self.next())
        except ConnectionClosed as closed:
            return found, closed.rcvd.code if closed.rcvd else 1006


@contextlib.contextmanager
def opened(server: Server, path: str = REALTIME, **options: Any) -> Iterator[Socket]:
    """A connection; options are those of ``websockets.sync.client.connect``."""
    from websockets.sync.client import connect

    host, port = server.address
    with connect(f"ws://{host}:{port}{path}", open_timeout=PATIENCE, **options) as link:
        yield Socket(link)
