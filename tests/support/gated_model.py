"""A fake model that waits, or fails, where a test says so."""

from __future__ import annotations

import threading

from tests.support.fake_backend import FakeBackend, FakeEncoded
from tests.support.reference_windows import DIMS
from tests.support.watched_backend import engine, talkative
from whisper_opt import Whisper
from whisper_opt.core.arrays import F32
from whisper_opt.core.interruption import Interruption

__all__ = ["GatedBackend", "gated_model"]

_WARM_UP = 1
"""Windows that a server encodes before it is ready."""


class GatedBackend(FakeBackend):
    """A fake model whose encoder waits at a gate.

    Attributes:
        gate: closed at first; what is held waits until it is opened.
        held_from: number of the first window, after the warm-up and from 0, that is held.
        waiting: set while a window waits at the gate.
        fail_at: number of the window, after the warm-up and from 0, that fails.
        n_encoded: windows that were encoded, without the warm-up.
    """

    def __init__(self) -> None:
        super().__init__(DIMS, talkative)
        self.gate = threading.Event()
        self.waiting = threading.Event()
        self.held_from = 0
        self.fail_at: int | None = None
        self.n_encoded = -_WARM_UP

    def encode(self, mel: F32, interruption: Interruption | None = None) -> FakeEncoded:
        if self.n_encoded >= self.held_from and not self.gate.is_set():
            self.waiting.set()
            assert self.gate.wait(120), "nobody opened the gate"
            self.waiting.clear()
        self.n_encoded += len(mel)
        if self.fail_at is not None and self.n_encoded > self.fail_at:
            raise RuntimeError("a secret of the recording")
        return super().encode(mel)


def gated_model(backend: GatedBackend) -> Whisper:
    """The model of a backend."""
    return Whisper(engine(), backend)
