"""An engine gives what ``Whisper.transcribe`` gives."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.audio.test_vad import made_up
from tests.support.engines_on_fakes import WAIT, options, stepped
from tests.support.stepped_backend import SteppedBackend
from tests.support.watched_backend import (
    BATCHED,
    PLAIN,
    WatchedBackend,
    noise,
    noises,
    quiet_model,
    spoken,
)
from whisper_opt import (
    AudioError,
    EngineClosed,
    EngineError,
    OptionError,
    QueueFull,
    Segment,
    TranscribeOptions,
    TranscriptionCancelled,
    Whisper,
)
from whisper_opt.serving import Engine


def test_results_equal_those_of_transcribe(served: Engine, watched: WatchedBackend) -> None:
    audios = noises(31.0, 5.0, 64.0, 12.0, 0.5, 95.0)
    chosen = [options(), options(beam_size=3), options(word_timestamps=True)] * 2
    handles = [served.submit(sound, each) for sound, each in zip(audios, chosen)]
    for sound, each, handle in zip(audios, chosen, handles):
        assert handle.result(WAIT) == quiet_model().transcribe(sound, options=each)
        assert handle.state == "done"
    assert 1 < watched.most <= 8


@made_up()
def test_strategies_equal_those_of_transcribe(served: Engine) -> None:
    sound = spoken([1, 28, 32, 60, 64, 90, 100, 128], 200.0)
    chosen = [TranscribeOptions(**BATCHED), options(vad="check"), options(vad="cut")]
    handles = [served.submit(sound, each) for each in chosen]
    for each, handle in zip(chosen, handles):
        assert handle.result(WAIT) == quiet_model().transcribe(sound, options=each)


def test_segments_come_one_by_one(served: Engine) -> None:
    (sound,) = noises(95.0)
    told: list[Segment] = []
    steps: list[tuple[float, float]] = []
    handle = served.submit(
        sound,
        options(),
        on_segment=told.append,
        on_progress=lambda done, total: steps.append((done, total)),
    )
    found = list(handle.segments())
    assert tuple(found) == handle.result(WAIT).segments == tuple(told)
    assert [done for done, _ in steps] == sorted({done for done, _ in steps})
    assert steps[-1] == (95.0, 95.0)
    assert len(steps) > 3
    assert list(handle.segments()) == found


def test_await(served: Engine) -> None:
    async def both() -> list[Any]:
        handles = [served.submit(sound, options()) for sound in noises(31.0, 5.0)]
        first, second = await asyncio.gather(*handles)
        return [first, second, await handles[0]]

    first, second, again = asyncio.run(both())
    expected = [quiet_model().transcribe(sound, **PLAIN) for sound in noises(31.0, 5.0)]
    assert [first, second] == expected
    assert again == first


def test_a_recording_that_fails_fails_alone(served: Engine) -> None:
    good, bad = noise(31.0), "no such file.wav"
    handles = [served.submit(sound, options()) for sound in (good, bad, good)]
    with pytest.raises(AudioError, match="no such file"):
        handles[1].result(WAIT)
    assert handles[1].state == "failed"
    with pytest.raises(AudioError, match="no such file"):
        list(handles[1].segments())
    expected = quiet_model().transcribe(good, **PLAIN)
    assert [handle.result(WAIT) for handle in (handles[0], handles[2])] == [expected, expected]
    assert served.stats().failed == 1


def test_options_are_checked_at_once(served: Engine) -> None:
    with pytest.raises(OptionError, match="language"):
        served.submit(noise(1.0), options(language="de"))
    with pytest.raises(OptionError, match="batch_size is 3"):
        served.submit(noise(1.0), options(batch_size=3))


def test_closing_cancels_what_runs(model: Whisper, watched: WatchedBackend) -> None:
    served = Engine(model)
    handles = [served.submit(sound, options()) for sound in noises(95.0, 95.0)]
    served.close()
    for handle in handles:
        with pytest.raises(TranscriptionCancelled, match="closed"):
            handle.result(WAIT)
    assert watched.sessions == []
    with pytest.raises(EngineClosed, match="closed"):
        served.submit(noise(1.0))
    served.close()
    assert model.transcribe(noise(1.0), **PLAIN)


def test_drain(model: Whisper) -> None:
    with Engine(model) as served:
        handles = [served.submit(sound, options()) for sound in noises(31.0, 5.0)]
        assert served.drain(WAIT)
        assert [handle.state for handle in handles] == ["done", "done"]
        with pytest.raises(EngineClosed, match="drained"):
            served.submit(noise(1.0))
        stats = served.stats()
    assert (stats.queued, stats.running, stats.rows, stats.completed) == (0, 0, 0, 2)
    assert stats.audio_seconds == pytest.approx(36.0)


def test_a_full_queue_refuses() -> None:
    backend = SteppedBackend()
    with stepped(backend, max_queued=2) as served:
        handles = [served.submit(noise(31.0), options())]
        backend.wait()
        handles += [served.submit(noise(1.0, i), options()) for i in range(2)]
        assert [handle.state for handle in handles] == ["running", "queued", "queued"]
        with pytest.raises(QueueFull, match="2 recordings wait, as many as max_queued"):
            served.submit(noise(1.0), options())
        stats = served.stats()
        assert (stats.queued, stats.running, stats.rows, stats.rejected) == (2, 1, 1, 1)
        backend.release()
        assert [handle.result(WAIT).duration for handle in handles] == [31.0, 1.0, 1.0]


def test_a_closed_model_is_refused(model: Whisper) -> None:
    model.close()
    with pytest.raises(EngineError, match="closed; load it again"):
        Engine(model)


def test_a_model_that_is_closed_meanwhile_serves_on(served: Engine, model: Whisper) -> None:
    model.close()
    assert served.submit(noise(5.0), options()).result(WAIT)


def test_a_forked_process_needs_an_engine_of_its_own(
    model: Whisper, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Engine(model) as served:
        with monkeypatch.context() as forked:
            forked.setattr("os.getpid", lambda: -1)
            with pytest.raises(EngineClosed, match="was forked"):
                served.submit(noise(5.0), options())
            served.close()  # there is nothing to close there
        assert served.submit(noise(5.0), options()).result(WAIT)


def test_files_and_sample_rates(served: Engine) -> None:
    path = Path(__file__).parents[2] / "examples" / "jfk.flac"
    expected = quiet_model().transcribe(path, **PLAIN)
    with path.open("rb") as file:
        handles = [
            served.submit(path, options()),
            served.submit(path.read_bytes(), options()),
            served.submit(file, options()),
        ]
        assert [handle.result(WAIT) for handle in handles] == [expected] * 3
    slow = served.submit(noise(8.0), options(), sample_rate=8000).result(WAIT)
    assert slow == quiet_model().transcribe(noise(8.0), sample_rate=8000, **PLAIN)
