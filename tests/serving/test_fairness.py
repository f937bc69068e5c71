"""Recordings share the rows of the batch."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.engines_on_fakes import WAIT, options, options_of, stepped, steps
from tests.support.stepped_backend import SteppedBackend
from tests.support.watched_backend import ENDLESS, noise, quiet_model, windows_of
from whisper_opt import OptionError, TranscribeOptions, Whisper
from whisper_opt.serving import Engine

CLIPS = tuple(float(t) for i in range(60) for t in (i, i + 1))


def long_options(**given: Any) -> TranscribeOptions:
    """Sixty windows of one second, all of which can be decoded side by side."""
    return TranscribeOptions(
        **{**ENDLESS, "max_new_tokens": 8, "strategy": "batched", "clip_timestamps": CLIPS, **given}
    )


def short_options(**given: Any) -> TranscribeOptions:
    return TranscribeOptions(**{**ENDLESS, "max_new_tokens": 3, **given})


@pytest.fixture
def backend() -> SteppedBackend:
    return SteppedBackend()


def rows(backend: SteppedBackend) -> list[frozenset[int]]:
    """The windows of every decode step so far."""
    return backend.of("extend")


def steps_until(served: Engine, backend: SteppedBackend, seed: int, most: int = 20) -> int:
    """Decode steps until a window is decoded."""
    for n in range(most):
        if seed in rows(backend)[-1]:
            return n
        steps(served, backend)
    raise AssertionError(f"not within {most} steps")


@pytest.mark.parametrize(("given", "most"), [({}, 6), ({"rows_per_recording": 3}, 3)])
def test_a_long_recording_leaves_rows_to_others(
    backend: SteppedBackend, given: dict[str, int], most: int
) -> None:
    short = noise(3.0, 5)
    (window,) = windows_of(short, options=short_options())
    with stepped(backend, **given) as served:
        long = served.submit(noise(60.0), long_options())
        steps(served, backend, 12)
        assert len(rows(backend)[-1]) == most
        quick = served.submit(short, short_options())
        # it is read while the first step runs or the second, and decoded in the one after
        assert steps_until(served, backend, window) <= 3
        while quick.state != "done":
            steps(served, backend)
        assert long.state == "running"
        assert max(len(seeds) for seeds in rows(backend)) <= most + 1
        backend.release()
        assert long.result(WAIT) == quiet_model().transcribe(noise(60.0), options=long_options())


def test_batch_size_of_a_recording_limits_its_rows(backend: SteppedBackend) -> None:
    backend.release()
    with stepped(backend) as served:
        served.submit(noise(60.0), long_options(batch_size=2)).result(WAIT)
    assert max(len(seeds) for seeds in rows(backend)) == 2


@pytest.mark.parametrize("most", [1, 2, 3])
def test_few_windows_are_encoded_between_two_steps(backend: SteppedBackend, most: int) -> None:
    with stepped(backend, max_windows_per_step=most) as served:
        handles = [served.submit(noise(60.0), long_options())]
        backend.wait()
        handles += [served.submit(noise(60.0, i), long_options()) for i in range(1, 5)]
        steps(served, backend, 3)
        backend.release()
        for handle in handles:
            handle.result(WAIT)
    encoded, largest = 0, 0
    for what, seeds in backend.diary:
        encoded = {"encode": encoded + len(seeds), "extend": 0}.get(what, encoded)
        largest = max(largest, encoded)
    assert largest == most


def test_recordings_take_turns(backend: SteppedBackend) -> None:
    """With one row, three recordings of several windows are decoded in turns."""
    sounds = [noise(95.0, seed) for seed in range(3)]
    owner = {
        window: i
        for i, sound in enumerate(sounds)
        for window in windows_of(sound, options=short_options())
    }
    with stepped(backend, max_batch=1, readers=4) as served:
        first = served.submit(noise(1.0, 9), short_options())
        backend.wait()
        handles = [served.submit(sound, short_options()) for sound in sounds]
        while not all(handle.state == "done" for handle in handles[:2]):
            steps(served, backend)
        backend.release()
        for handle in (first, *handles):
            handle.result(WAIT)
    order = [owner[window] for window in backend.windows if window in owner]
    assert order == [0, 1, 2] * 4


def test_a_deadline_and_a_priority_come_first(backend: SteppedBackend) -> None:
    sounds = [noise(2.0, seed) for seed in range(5)]
    with stepped(backend, max_batch=1, readers=1) as served:
        served.submit(sounds[0], short_options())
        backend.wait()
        # all of them wait in the queue of the engine
        served.submit(sounds[1], short_options())
        served.submit(sounds[2], short_options(), deadline=1000.0)
        third = served.submit(sounds[3], short_options(), priority=1)
        served.submit(sounds[4], short_options(), live=True, priority=-1)
        while third.state != "done":  # with everything read that can be
            steps(served, backend)
        backend.release()
        assert served.drain(WAIT)
    first = [windows_of(sound, options=short_options())[0] for sound in sounds]
    assert [first.index(window) for window in backend.windows] == [0, 4, 3, 2, 1]


def test_reserved_rows_are_for_live_recordings(backend: SteppedBackend) -> None:
    live = noise(3.0, 5)
    (window,) = windows_of(live, options=short_options())
    with stepped(backend, max_batch=4, reserved_live_rows=2, max_windows_per_step=4) as served:
        served.submit(noise(60.0), long_options())
        served.submit(noise(60.0, 1), long_options())
        steps(served, backend, 12)
        assert len(rows(backend)[-1]) == 2
        session = served.submit(live, short_options(), live=True)
        steps_until(served, backend, window)
        assert len(rows(backend)[-1]) == 3
        backend.release()
        session.result(WAIT)


def test_a_recording_that_does_not_fit_in_memory_waits(backend: SteppedBackend) -> None:
    with stepped(backend, max_held_s=50.0) as served:
        first = served.submit(noise(60.0), options())
        backend.wait()
        second, live = (
            served.submit(noise(5.0), options()),
            served.submit(noise(5.0, 1), options(), live=True),
        )
        steps(served, backend, 3)
        assert (first.state, second.state, live.state) == ("running", "queued", "running")
        backend.release()
        assert second.result(WAIT) == quiet_model().transcribe(noise(5.0), **options_of())
        assert first.state == "done"


@pytest.mark.parametrize(
    "arguments",
    [
        {"max_batch": 0},
        {"max_batch": True},
        {"max_queued": 0},
        {"max_windows_per_step": 0},
        {"rows_per_recording": 0},
        {"reserved_live_rows": 8},
        {"reserved_live_rows": -1},
        {"readers": 0},
        {"idle_unload_s": 0.0},
        {"max_held_s": -1.0},
    ],
)
def test_limits_are_checked(model: Whisper, arguments: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match="expected"):
        Engine(model, **arguments)
