"""Engines of ``whisper_opt.serving`` on fake models."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

from tests.support.stepped_backend import SteppedBackend
from tests.support.watched_backend import PLAIN, engine
from whisper_opt import TranscribeOptions, Whisper
from whisper_opt.serving import Engine

__all__ = ["WAIT", "options", "options_of", "settle", "stepped", "steps"]

WAIT = 60.0
"""Seconds after which a test that hangs fails."""


def options_of(**given: Any) -> dict[str, Any]:
    """Options of a fake model: one temperature, no voice activity detection."""
    return {**PLAIN, **given}


def options(**given: Any) -> TranscribeOptions:
    """The same as an object."""
    return TranscribeOptions(**options_of(**given))


@contextlib.contextmanager
def stepped(backend: SteppedBackend, **arguments: Any) -> Iterator[Engine]:
    """An engine on a model that stops before every step; it runs on when the block ends."""
    with Engine(Whisper(engine(), backend), **arguments) as served:
        try:
            yield served
        finally:
            backend.release()


def settle(served: Engine) -> None:
    """Wait until the readers have nothing to do."""
    until = time.monotonic() + WAIT
    while served._loop.readers.backlog or served._loop.readers._begun:
        assert time.monotonic() < until, "a recording is read for ever"
        time.sleep(0.001)


def steps(served: Engine, backend: SteppedBackend, n: int = 1) -> None:
    """Decode steps, each with everything that can be read ahead."""
    for _ in range(n):
        backend.wait()
        settle(served)
        backend.step()
