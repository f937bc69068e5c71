"""A server with a tiny random model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.fake_live import FakeLive
from tests.support.http_server import served
from tests.support.sockets import fake_sessions
from whisper_opt import Whisper
from whisper_opt.serving.http.server import Server


@pytest.fixture(scope="session")
def whisper(tiny: Path) -> Iterator[Whisper]:
    """The same model without a server."""
    with Whisper.load(tiny, device="cpu", threads=1) as model:
        yield model


@pytest.fixture(scope="session")
def server(tiny: Path) -> Iterator[Server]:
    """A server without keys and with default limits."""
    with served(str(tiny)) as running:
        yield running


@pytest.fixture(scope="module")
def sessions() -> Iterator[list[FakeLive]]:
    """Engines open fake live sessions, which are collected."""
    with fake_sessions() as made:
        yield made
