"""Fixtures: an engine on a fake model whose calls are recorded."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.watched_backend import WatchedBackend, engine
from whisper_opt import Whisper
from whisper_opt.serving import Engine


@pytest.fixture
def watched() -> WatchedBackend:
    return WatchedBackend()


@pytest.fixture
def model(watched: WatchedBackend) -> Whisper:
    """A model of English whose backend is ``watched``."""
    return Whisper(engine(), watched)


@pytest.fixture
def served(model: Whisper) -> Iterator[Engine]:
    with Engine(model) as engine:
        yield engine
