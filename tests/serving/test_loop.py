"""The loop of an engine: what it tells about its work."""

from __future__ import annotations

import types

import pytest

from tests.support.quick_backend import OPTIONS, quick_model
from tests.support.watched_backend import noise
from whisper_opt import LiveOptions, Utterance
from whisper_opt.serving import Engine

pytestmark = pytest.mark.usefixtures("hear_no_speech")


def test_all_steps_of_an_update_are_counted_as_its_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last one too: the capacity for live sessions follows from it."""
    now, counted = [0.0], list[float]()
    clock = types.SimpleNamespace(monotonic=lambda: now[0])
    monkeypatch.setattr("whisper_opt.serving.loop.time", clock)
    with Engine(quick_model()) as engine:
        scheduler = engine._loop._scheduler
        step, steps = scheduler.step, [0]

        def slow(most: int) -> object:
            working = scheduler.busy
            if working:
                now[0] += 1.0
                steps[0] += 1
            return step(most)

        monkeypatch.setattr(scheduler, "step", slow)
        monkeypatch.setattr(engine._live._capacity, "worked", lambda work, _: counted.append(work))
        session = engine.live(OPTIONS, LiveOptions(vad=False, policy="agreement", final="none"))
        session.push(noise(1.0))
        session.finish()
        assert isinstance(list(session.events())[-1], Utterance)
    assert sum(counted) == steps[0] > 0
