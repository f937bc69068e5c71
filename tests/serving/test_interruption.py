"""A short recording does not wait for the encoder, which works for a long one."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from tests.support.engines_on_fakes import WAIT, options, settle
from tests.support.fake_backend import FakeEncoded
from tests.support.watched_backend import WatchedBackend, engine, noise, quiet_model, windows_of
from whisper_opt import Whisper
from whisper_opt.core.arrays import F32
from whisper_opt.core.interruption import Interrupted, Interruption
from whisper_opt.serving import Engine
from whisper_opt.transcription import admission

LONG, SHORT = noise(95.0), noise(3.0, 5)
CLIPS = tuple(float(t) for i in range(0, 90, 10) for t in (i, i + 10))


class Patient(WatchedBackend):
    """A run of the encoder that may be interrupted lasts until it is.

    Attributes:
        patient: whether that is so.
        begun: set when such a run has begun.
        n_interrupted: how many there were.
        stopped: set when the last one was to stop.
    """

    def __init__(self) -> None:
        super().__init__()
        self.patient = True
        self.begun = threading.Event()
        self.n_interrupted = 0
        self.stopped = threading.Event()

    def encode(self, mel: F32, interruption: Interruption | None = None) -> FakeEncoded:
        if interruption is None or not self.patient:
            return super().encode(mel)
        self.n_interrupted += 1
        self.stopped = threading.Event()
        with interruption.stops(self.stopped.set):
            self.begun.set()
            assert self.stopped.wait(WAIT), "it is not interrupted"
        if interruption.requested:
            raise Interrupted
        return super().encode(mel)

    def release(self) -> None:
        """Runs end by themselves from now on."""
        self.patient = False
        self.stopped.set()


@pytest.mark.parametrize("given", [{}, {"strategy": "batched", "clip_timestamps": CLIPS}])
def test_a_short_recording_goes_first(given: dict[str, Any]) -> None:
    backend, chosen = Patient(), options(**given)
    with Engine(Whisper(engine(), backend)) as served:
        long = served.submit(LONG, chosen)
        assert backend.begun.wait(WAIT)
        short = served.submit(SHORT, options())
        assert short.result(WAIT) == quiet_model().transcribe(SHORT, options=options())
        assert backend.n_interrupted >= 1
        assert backend.windows == windows_of(SHORT, options=options())
        backend.release()
        assert long.result(WAIT) == quiet_model().transcribe(LONG, options=chosen)


def test_long_recordings_get_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """A window is put off for a limited time only, however many short recordings there are."""
    monkeypatch.setattr(admission, "_PUT_OFF_S", 0.05)
    backend = Patient()
    with Engine(Whisper(engine(), backend)) as served:
        long = served.submit(LONG, options())
        while long.state != "done":
            served.submit(SHORT, options()).result(WAIT)
        assert long.result() == quiet_model().transcribe(LONG, options=options())
    assert backend.n_interrupted >= 1


@pytest.mark.parametrize(("priority", "stops"), [(-1, False), (0, True), (1, True)])
def test_only_for_recordings_of_the_same_rank_or_a_higher_one(priority: int, stops: bool) -> None:
    backend = Patient()
    with Engine(Whisper(engine(), backend)) as served:
        served.submit(LONG, options())
        assert backend.begun.wait(WAIT)
        run = backend.stopped
        served.submit(SHORT, options(), priority=priority)
        settle(served)
        assert run.is_set() is stops
        backend.release()


def test_a_request_before_the_run_stops_it() -> None:
    interruption = Interruption()
    interruption.request()
    with pytest.raises(Interrupted), interruption.stops(lambda: None):
        raise AssertionError("it runs")


def test_a_request_after_the_run_stops_nothing() -> None:
    interruption, stopped = Interruption(), []
    with interruption.stops(lambda: stopped.append(1)):
        pass
    interruption.request()
    assert not stopped
