"""Serving a connection: what is read when, and how it ends."""

from __future__ import annotations

import asyncio
from typing import Any, Union

import pytest

from whisper_opt.serving.http.live import connection
from whisper_opt.serving.http.live.connection import converse
from whisper_opt.serving.http.live.link import Disconnected


class Parts:
    """A link, a dialect and the sessions in one, which note what is done."""

    idle = 1000.0

    def __init__(self, messages: list[str], backlogs: Union[list[float], None] = None) -> None:
        self.done: list[str] = []
        self.closing: Union[tuple[int, str], None] = None
        self.changed = asyncio.Event()
        self._messages = messages
        self._backlogs = backlogs or []
        self._ended = asyncio.Event()

    # the link

    async def receive(self, timeout: float) -> str:
        if not self._messages:
            await asyncio.Event().wait()
        message = self._messages.pop(0)
        if message == "gone":
            raise Disconnected
        if message == "nothing":
            raise asyncio.TimeoutError
        return message

    async def write(self) -> None:
        await self._ended.wait()

    def end(self) -> None:
        self._ended.set()

    async def gone(self) -> None:
        await asyncio.Event().wait()

    async def close(self, code: int, reason: str = "") -> None:
        self.done.append(f"close {code}")

    # the dialect

    def heard(self, message: str) -> None:
        self.done.append(message)
        if message == "stop":
            self.closing = 1000, ""

    def finish(self) -> None:
        self.done.append("finish")

    def silent(self) -> tuple[int, str]:
        return 1001, "idle"

    def farewell(self, *, restarts: bool) -> None:
        self.done.append("restarts" if restarts else "farewell")

    # the sessions

    @property
    def backlog(self) -> float:
        found = self._backlogs.pop(0) if self._backlogs else 0.0
        self.done.append(f"{found:g}")
        return found

    async def ended(self) -> None:
        pass

    def cancel(self) -> None:
        self.done.append("cancel")


class _Dialect:
    """The dialect's side of the parts: its ``receive`` has another meaning than the link's."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self.receive = parts.heard

    def __getattr__(self, name: str) -> Any:
        return getattr(self._parts, name)


def served(messages: list[str], backlogs: Any = None, *, drains: bool = False) -> list[str]:
    async def run() -> list[str]:
        parts, drained = Parts(messages, backlogs), asyncio.Event()
        if drains:
            drained.set()
        link: Any = parts
        dialect: Any = _Dialect(parts)
        await asyncio.wait_for(converse(link, dialect, link, drained), 60)
        return parts.done

    return asyncio.run(run())


def test_the_client_ends_it() -> None:
    assert served(["a", "stop"]) == [
        "a", "0", "stop", "0", "finish", "farewell", "close 1000", "cancel",
    ]  # fmt: skip


def test_a_client_that_is_too_fast_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_PAUSE", 0)
    done = served(["a", "stop"], [31.0, 31.0, 29.0])
    assert done[:5] == ["a", "31", "31", "29", "stop"]


def test_a_client_that_is_gone() -> None:
    assert served(["a", "gone"]) == ["a", "0", "cancel"]


def test_a_client_that_is_silent() -> None:
    assert served(["nothing"]) == ["finish", "farewell", "close 1001", "cancel"]


def test_a_shutdown() -> None:
    assert served([], drains=True) == ["finish", "restarts", "close 1012", "cancel"]
