"""A backend is released when the last call ends."""

from __future__ import annotations

import pytest

from tests.support.fake_backend import FakeBackend
from tests.support.reference_windows import DIMS
from whisper_opt.core.errors import EngineError
from whisper_opt.runtime.shared_backend import SharedBackend


class Device(FakeBackend):
    """Counts how often it was closed."""

    n_closed = 0

    def close(self) -> None:
        self.n_closed += 1


def test_closed_at_once_if_nobody_uses_it() -> None:
    device = Device(DIMS)
    shared = SharedBackend(device)
    with shared.use() as backend:
        assert backend is device
    assert device.n_closed == 0
    shared.close()
    shared.close()
    assert device.n_closed == 1
    assert shared.backend is None


def test_the_last_call_closes_it() -> None:
    device = Device(DIMS)
    shared = SharedBackend(device)
    first, second = shared.use(), shared.use()
    first.__enter__()
    second.__enter__()
    shared.close()
    with pytest.raises(EngineError, match="closed; load it again"):
        shared.check_open()
    with pytest.raises(EngineError, match="closed; load it again"), shared.use():
        pass
    first.__exit__(None, None, None)
    assert device.n_closed == 0
    second.__exit__(None, None, None)
    assert device.n_closed == 1


def test_a_backend_without_close_is_forgotten() -> None:
    shared = SharedBackend(FakeBackend(DIMS))
    with pytest.raises(LookupError, match="mine"), shared.use():
        raise LookupError("mine")
    shared.close()
    assert shared.backend is None
