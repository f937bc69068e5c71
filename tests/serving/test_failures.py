"""What fails touches only its own recordings; callbacks never stop an engine."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from tests.support.engines_on_fakes import WAIT, options, options_of, stepped, steps
from tests.support.stepped_backend import SteppedBackend
from tests.support.watched_backend import WatchedBackend, engine, noise, quiet_model, windows_of
from tests.transcription.test_scheduler_failures import Failing
from whisper_opt import AudioError, EngineClosed, EngineError, Whisper
from whisper_opt.serving import Engine
from whisper_opt.transcription.scheduler import Scheduler
from whisper_opt.transcription.stream import transcript_of

SIZES = (31.0, 5.0, 64.0, 12.0, 40.0, 3.0)


def expected(i: int) -> Any:
    return quiet_model().transcribe(noise(SIZES[i], i), **options_of())


def submitted(served: Engine, **given: Any) -> list[Any]:
    return [served.submit(noise(size, i), options(**given)) for i, size in enumerate(SIZES)]


class Unreliable(SteppedBackend):
    """Fails at calls of one kind that concern several windows."""

    what, left = "", 0

    def note(self, what: str, seeds: set[int]) -> None:
        super().note(what, seeds)
        if what == self.what and self.left and len(seeds) > 1:
            self.left -= 1
            raise EngineError(f"{what} failed with {len(seeds)} windows")


@pytest.mark.parametrize("what", ["encode", "open", "prefill", "extend"])
def test_windows_that_fail_together_are_decoded_again(what: str) -> None:
    backend = Unreliable()
    with stepped(backend, max_batch=4) as served:
        handles = submitted(served)
        backend.wait()
        backend.what, backend.left = what, 1
        while backend.left:  # until the next recordings are read, and join together
            steps(served, backend)
        backend.release()
        for i, handle in enumerate(handles):
            assert handle.result(WAIT) == expected(i)
        assert (served.stats().failed, backend.left) == (0, 0)
    assert backend.sessions == []


@pytest.mark.parametrize("most", [1, 2])
@pytest.mark.parametrize("where", ["most_encoded", "most_decoded"])
def test_too_many_windows_for_the_memory(where: str, most: int) -> None:
    failing = Failing()
    setattr(failing, where, most)
    with Engine(Whisper(engine(), failing)) as served:
        for i, handle in enumerate(submitted(served)):
            assert handle.result(WAIT) == expected(i)
    assert failing.sessions == []


def test_a_window_that_always_fails_fails_its_recording_alone() -> None:
    failing = Failing()
    failing.bad = {windows_of(noise(SIZES[2], 2), **options_of())[1]}
    with Engine(Whisper(engine(), failing)) as served:
        handles = submitted(served)
        with pytest.raises(EngineError, match=r"failed with 1 window"):
            handles[2].result(WAIT)
        for i in (0, 1, 3, 4, 5):
            assert handles[i].result(WAIT) == expected(i)
        stats = served.stats()
        assert (stats.failed, stats.completed, stats.rows) == (1, 5, 0)
    assert failing.sessions == []


class Buggy(WatchedBackend):
    """A model that raises an unexpected error for some windows."""

    bad: frozenset[int] = frozenset()

    def note(self, what: str, seeds: set[int]) -> None:
        if seeds & self.bad:
            raise ZeroDivisionError("a bug")
        super().note(what, seeds)


def test_unexpected_errors_of_the_model_fail_one_recording() -> None:
    buggy = Buggy()
    buggy.bad = frozenset(windows_of(noise(SIZES[0], 0), **options_of())[:1])
    with Engine(Whisper(engine(), buggy)) as served:
        handles = submitted(served)
        with pytest.raises(EngineError, match="unexpected ZeroDivisionError: a bug") as raised:
            handles[0].result(WAIT)
        assert isinstance(raised.value.__cause__, ZeroDivisionError)
        for i in range(1, 6):
            assert handles[i].result(WAIT) == expected(i)


def test_unexpected_errors_of_a_file_fail_one_recording(served: Engine) -> None:
    class Odd:
        def read(self, size: int) -> bytes:
            raise LookupError("no such thing")

    odd: Any = Odd()
    bad, good = served.submit(odd, options()), served.submit(noise(5.0, 1), options())
    with pytest.raises(EngineError, match="unexpected LookupError: no such thing"):
        bad.result(WAIT)
    assert good.result(WAIT) == expected(1)


def test_damage_that_is_found_late_fails_after_the_segments_before_it(served: Engine) -> None:
    sound = noise(12.0, 3)
    sound[170_000] = float("nan")
    clips = (0.0, 5.0, 10.0, 12.0)
    bad = served.submit(sound, options(strategy="batched", clip_timestamps=clips))
    with pytest.raises(AudioError, match="NaN"):
        bad.result(WAIT)
    assert served.submit(noise(5.0, 1), options()).result(WAIT) == expected(1)


def test_if_the_loop_fails_all_recordings_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(*_: Any) -> None:
        raise ZeroDivisionError("a bug")

    backend = SteppedBackend()
    with stepped(backend) as served:
        handles = submitted(served)
        backend.wait()
        monkeypatch.setattr(Scheduler, "step", bug)
        backend.release()
        for handle in handles:
            with pytest.raises(EngineError, match="ZeroDivisionError: a bug"):
                handle.result(WAIT)
        with pytest.raises(EngineClosed, match="the engine failed"):
            served.submit(noise(1.0))
    assert backend.sessions == []


def test_a_result_that_cannot_be_made_fails_one_recording(
    served: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bug(job: Any, segments: Any, vocab: Any) -> Any:
        if job.duration == SIZES[1]:
            raise ZeroDivisionError("a bug")
        return transcript_of(job, segments, vocab)

    monkeypatch.setattr("whisper_opt.serving.loop.transcript_of", bug)
    handles = submitted(served)
    with pytest.raises(ZeroDivisionError):
        handles[1].result(WAIT)
    for i in (0, 2, 3, 4, 5):
        assert handles[i].result(WAIT) == expected(i)


# --- callbacks -----------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["on_segment", "on_progress"])
def test_a_callback_that_fails_fails_its_recording_alone(served: Engine, which: str) -> None:
    def broken(*_: Any) -> None:
        raise LookupError("mine")

    given: dict[str, Any] = {which: broken}
    handles = [
        served.submit(noise(95.0, 0), options(), **given),
        served.submit(noise(SIZES[1], 1), options(), on_segment=lambda _: None),
    ]
    with pytest.raises(LookupError, match="mine"):
        handles[0].result(WAIT)
    assert handles[0].state == "failed"
    assert handles[1].result(WAIT) == expected(1)
    assert served.drain(WAIT)
    stats = served.stats()
    assert (stats.failed, stats.completed, stats.cancelled, stats.rows) == (1, 1, 0, 0)


def test_a_callback_that_waits_does_not_stop_the_engine(served: Engine) -> None:
    go = threading.Event()
    told: list[Any] = []

    def slow(segment: Any) -> None:
        assert go.wait(WAIT)
        told.append(segment)

    waiting = served.submit(noise(SIZES[0], 0), options(), on_segment=slow)
    assert served.submit(noise(SIZES[1], 1), options()).result(WAIT) == expected(1)
    assert waiting.state == "running"  # its result comes after its callbacks
    go.set()
    assert waiting.result(WAIT) == expected(0)
    assert tuple(told) == expected(0).segments


def test_callbacks_at_the_end(served: Engine, caplog: pytest.LogCaptureFixture) -> None:
    called: list[str] = []
    done = threading.Event()

    def broken(handle: Any) -> None:
        called.append(handle.state)
        raise LookupError("mine")

    handle = served.submit(noise(5.0), options())
    handle.add_done_callback(broken)
    handle.add_done_callback(lambda handle: called.append(handle.state))
    handle.add_done_callback(lambda _: done.set())
    assert done.wait(WAIT)
    assert called == ["done", "done"]
    assert "mine" in caplog.text
    handle.add_done_callback(lambda _: called.append("now"))
    assert called[-1] == "now"


def test_an_engine_may_be_closed_by_a_callback(model: Whisper) -> None:
    served = Engine(model)
    closed = threading.Event()

    def close(_: Any) -> None:
        served.close()
        closed.set()

    served.submit(noise(5.0), options(), on_segment=close)
    assert closed.wait(WAIT)
    served.close()


# --- waiting -------------------------------------------------------------------------------------


def test_waiting_for_a_result_may_end_before_it() -> None:
    backend = SteppedBackend()
    with stepped(backend) as served:
        handle = served.submit(noise(5.0), options())
        backend.wait()
        with pytest.raises(TimeoutError, match="is running after"):
            handle.result(0.01)
        assert not served.drain(0.01)
        backend.release()
        assert handle.result(WAIT)
        assert served.drain(WAIT)


def test_segments_are_there_before_the_end() -> None:
    backend = SteppedBackend()
    with stepped(backend) as served:
        handle = served.submit(noise(95.0), options())
        found: list[Any] = []
        first = threading.Event()

        def follow() -> None:
            for segment in handle.segments():
                found.append(segment)
                first.set()

        thread = threading.Thread(target=follow)
        thread.start()
        while not first.wait(0.01):
            backend.step()
        assert handle.state == "running"
        assert 0 < handle.done < handle.duration == 95.0
        assert handle.language == "en"
        backend.release()
        thread.join(WAIT)
        assert tuple(found) == handle.result(WAIT).segments


def test_an_idle_engine_unloads_its_model(model: Whisper) -> None:
    with Engine(model, idle_unload_s=0.05) as served:
        assert served.submit(noise(5.0), options()).result(WAIT)
        served._loop.thread.join(WAIT)
        assert not served._loop.thread.is_alive()
        with pytest.raises(EngineClosed, match=r"unloaded after 0.05 s"):
            served.submit(noise(5.0))
        with pytest.raises(EngineError, match="closed; load it again"):
            model.transcribe(noise(5.0))


def test_an_engine_that_works_is_not_unloaded() -> None:
    backend = SteppedBackend()
    with stepped(backend, idle_unload_s=0.01) as served:
        handle = served.submit(noise(5.0), options())
        backend.wait()
        time.sleep(0.05)
        backend.release()
        assert handle.result(WAIT)


def test_statistics(model: Whisper, watched: WatchedBackend) -> None:
    with Engine(model) as served:
        empty = served.stats()
        for i, handle in enumerate(submitted(served)):
            assert handle.result(WAIT) == expected(i)
        stats = served.stats()
    assert (empty.real_time_factor, empty.estimated_wait, empty.steps) == (0, 0, 0)
    assert stats.windows == len(watched.windows)
    assert stats.steps == len(watched.of("extend"))
    assert stats.audio_seconds == pytest.approx(sum(SIZES))
    assert (stats.completed, stats.max_batch, stats.queued) == (6, 8, 0)
    assert stats.real_time_factor > 0
