"""Live sessions on a real engine: threads, one batch, its end."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest

from tests.support.quick_backend import OPTIONS, quick_model
from tests.support.watched_backend import noise
from whisper_opt import (
    AudioError,
    Failed,
    Live,
    LiveEvent,
    LiveOptions,
    LiveSessionLost,
    LiveSessionsFull,
    OptionError,
    SpeechStarted,
    TranscribeOptions,
    Utterance,
    Whisper,
)
from whisper_opt.serving import Engine, EngineClosed
from whisper_opt.serving.live.session import final_options

LIVE = LiveOptions(vad=False, policy="agreement")

pytestmark = pytest.mark.usefixtures("hear_no_speech")


@pytest.fixture(scope="module")
def model() -> Whisper:
    return quick_model()


@pytest.fixture
def served(model: Whisper) -> Iterator[Engine]:
    with Engine(model, max_live=3) as engine:
        yield engine


def ends(events: list[LiveEvent]) -> list[Utterance]:
    return [event for event in events if isinstance(event, Utterance)]


def test_an_utterance_is_the_offline_transcript_of_its_audio(
    model: Whisper, served: Engine
) -> None:
    sound = noise(4.0)
    session = served.live(OPTIONS, LIVE)
    session.push(sound[:20_000])
    session.commit()
    session.push(sound[20_000:])
    session.finish()
    found = ends(list(session.events()))
    assert [(each.start, each.end) for each in found] == [(0.0, 1.25), (1.25, 4.0)]
    for each in found:
        cut = sound[round(each.start * 16_000) : round(each.end * 16_000)]
        offline = model.transcribe(cut, options=final_options(OPTIONS, each.language))
        assert each.text == offline.text
        assert [s.text for s in each.segments] == [s.text for s in offline]
        assert each.segments[0].start == pytest.approx(offline[0].start + each.start)
        assert each.segments[0].seek == offline[0].seek + round(each.start * 100)


def test_updates_and_recordings_share_the_batch(model: Whisper, served: Engine) -> None:
    sound = noise(40.0)
    handle = served.submit(sound, OPTIONS)
    session = served.live(OPTIONS, LIVE)
    session.push(noise(2.0, 1))
    session.finish()
    assert len(ends(list(session.events()))) == 1
    assert handle.result(60).text == model.transcribe(sound, options=OPTIONS).text
    assert served.stats().completed == 2  # the recording and the utterance, but no update


def test_too_many_sessions_are_refused(served: Engine) -> None:
    sessions = [served.live(OPTIONS, LIVE) for _ in range(3)]
    assert served.live_capacity == (3, 3)
    with pytest.raises(LiveSessionsFull):
        served.live(OPTIONS, LIVE)
    sessions[0].cancel()
    served.live(OPTIONS, LIVE)


def test_a_session_that_is_refused_is_not_built(
    served: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full engine refuses at once: a session loads its speech detector."""
    for _ in range(3):
        served.live(OPTIONS, LIVE)
    monkeypatch.setattr("whisper_opt.serving.live.sessions.LiveSession", None)
    with pytest.raises(LiveSessionsFull):
        served.live(OPTIONS, LIVE)


def test_a_session_that_cannot_be_built_takes_no_place(served: Engine) -> None:
    for _ in range(4):
        with pytest.raises(AudioError):
            served.live(OPTIONS, LIVE, sample_rate=5)
    assert served.live_capacity == (0, 3)


def test_resume_by_name(served: Engine) -> None:
    session = served.live(OPTIONS, LIVE)
    session.push(noise(1.0))
    session.detach()
    assert served.resume_live(session.id, 8_000) is session
    session.push(noise(1.0)[8_000:])
    session.push(noise(1.0, 1))
    session.finish()
    (found,) = ends(list(session.events()))
    assert found.end == 2.0
    with pytest.raises(LiveSessionLost, match="no live session"):
        served.resume_live(session.id, 0)


def test_the_end_of_the_engine_ends_sessions(model: Whisper) -> None:
    engine = Engine(model)
    session = engine.live(OPTIONS, LIVE)
    session.push(noise(1.0))
    engine.close()
    assert list(session.events()) == []
    with pytest.raises(EngineClosed):
        engine.live(OPTIONS, LIVE)


def test_a_silent_session_keeps_the_model_loaded() -> None:
    model = quick_model()
    with Engine(model, idle_unload_s=3600.0) as engine:
        session = engine.live(OPTIONS, LIVE)
        engine._loop.limits = dataclasses.replace(engine._loop.limits, idle_unload_s=0.01)
        engine._loop.wake()
        engine._loop.thread.join(0.3)
        assert not engine.unloaded
        session.cancel()
        engine._loop.thread.join(60)
        assert engine.unloaded


def test_asyncio(served: Engine) -> None:
    async def listen() -> list[LiveEvent]:
        session = served.live(OPTIONS, LIVE)
        session.push(noise(1.0))
        session.finish()
        return [event async for event in session]

    found = asyncio.run(asyncio.wait_for(listen(), 60))
    assert isinstance(found[0], SpeechStarted)
    assert isinstance(found[-1], Utterance)


def test_live_alone_on_a_model(model: Whisper) -> None:
    with Live(model, OPTIONS, LIVE, sample_rate=8_000) as session:
        session.push(np.zeros(8_000, np.int16))
        session.finish()
        assert session.received == 8_000
        assert session.id
        (found,) = ends(list(session.events()))
    assert found.end == pytest.approx(1.0, abs=0.01)
    assert model.transcribe(noise(1.0), options=OPTIONS)  # the model stays open


def test_an_utterance_that_fails_is_reported(served: Engine) -> None:
    session = served.live(dataclasses.replace(OPTIONS, max_duration=0.5), LIVE)
    session.push(noise(1.0))
    session.finish()
    found = list(session.events())
    assert [type(event) for event in found if isinstance(event, (Failed, Utterance))] == [Failed]


@pytest.mark.parametrize(
    "given",
    [
        {"strategy": "batched"},
        {"multilingual": True},
        {"prefix": "a"},
        {"transcript_prefix": "a"},
        {"clip_timestamps": (0.0, 1.0)},
        {"language": "de"},
    ],
)
def test_options_without_use_are_refused(served: Engine, given: dict[str, object]) -> None:
    with pytest.raises(OptionError):
        served.live(TranscribeOptions(**given), LIVE)  # type: ignore[arg-type]
