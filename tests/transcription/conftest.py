"""Fixtures: a fake model whose calls are recorded."""

from __future__ import annotations

import pytest

from tests.support.watched_backend import OpenStreams, WatchedBackend, engine
from whisper_opt import Whisper


@pytest.fixture
def watched() -> WatchedBackend:
    return WatchedBackend()


@pytest.fixture
def model(watched: WatchedBackend) -> Whisper:
    """A model of English whose backend is ``watched``."""
    return Whisper(engine(), watched)


@pytest.fixture
def open_streams(monkeypatch: pytest.MonkeyPatch) -> OpenStreams:
    return OpenStreams(monkeypatch)
