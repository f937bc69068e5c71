"""LiveSession without a model and without threads."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from tests.support.live_runner import EACH, HandRunner
from tests.support.live_script import RATE, result
from tests.support.live_words import words
from tests.support.reference_windows import DIMS, VOCAB
from tests.support.speaker_networks import ToneNetworks, tones
from whisper_opt import (
    AudioError,
    Committed,
    EngineError,
    Failed,
    Lag,
    LiveEvent,
    LiveOptions,
    LiveSessionLost,
    Partial,
    Speakers,
    SpeechStarted,
    SpeechStopped,
    StreamError,
    TranscribeOptions,
    Utterance,
)
from whisper_opt.serving.live.session import LiveSession
from whisper_opt.serving.live.turns import UpdateTurns
from whisper_opt.transcription.live.speakers import LiveSpeakers
from whisper_opt.transcription.live.transcriber import LiveTranscriber

pytestmark = pytest.mark.usefixtures("hear_no_speech")


@pytest.fixture
def runner() -> HandRunner:
    return HandRunner()


def begun(
    runner: HandRunner,
    *,
    rate: int = RATE,
    channels: int = 1,
    speakers: LiveSpeakers | None = None,
    turns: UpdateTurns | None = None,
    **live: Any,
) -> LiveSession:
    options = TranscribeOptions()
    how = LiveOptions(**{"vad": False, "policy": "agreement", **live})
    transcriber = LiveTranscriber(VOCAB, DIMS, options, how)
    return LiveSession(
        *(runner, transcriber, options, how),
        sample_rate=rate,
        channels=channels,
        speakers=speakers,
        turns=turns,
    )


def push(session: LiveSession, runner: HandRunner, seconds: float) -> None:
    session.push(np.zeros(round(seconds * RATE), np.int16))
    runner.work()


def kinds(events: list[LiveEvent]) -> list[type]:
    return [type(event) for event in events]


def test_the_events_of_an_utterance(runner: HandRunner) -> None:
    session = begun(runner)
    push(session, runner, 0.95)
    runner.answer()
    push(session, runner, 0.9)
    runner.answer()
    session.finish()
    runner.work()
    runner.finish()
    events = session.take()
    order = [e for e in events if not isinstance(e, (Lag, Partial))]
    assert kinds(order) == [SpeechStarted, Committed, SpeechStopped, Committed, Utterance]
    assert "".join(e.text for e in order if isinstance(e, Committed)) == " w0 w1 w2 w3 w4 w5"
    last = order[-1]
    assert isinstance(last, Utterance)
    assert (last.start, last.end, last.text, last.language) == (0.0, 1.85, " whole", "en")
    assert session.ended


def test_utterances_are_transcribed_with_the_options_of_the_session(runner: HandRunner) -> None:
    session = begun(runner)
    push(session, runner, 1.0)
    session.commit()
    runner.work()
    runner.answer()
    samples, options, _ = runner.utterances[0]
    assert len(samples) == RATE
    assert options == TranscribeOptions(language="en", word_timestamps=True)


@pytest.mark.parametrize("final", ["full", "none"])
def test_utterances_have_speakers_and_the_session_has_better_ones(
    runner: HandRunner, final: str
) -> None:
    speakers = LiveSpeakers(ToneNetworks.networks(), TranscribeOptions(diarize=True))
    session = begun(runner, final=final, speakers=speakers)
    for speaker in (1, 0, 1):
        session.push(tones([(0.2, 3.8, speaker)], 4.0))
        runner.work()
        session.commit()
        runner.work()
        runner.answer()
        if final == "full":
            runner.finish()
    session.finish()
    runner.work()
    events = session.take()
    found = [event for event in events if isinstance(event, Utterance)]
    assert [event.speaker for event in found] == ["A", "B", "A"]
    for event in found:
        assert event.segments or event.words
        assert {segment.speaker for segment in event.segments} <= {event.speaker}
        assert {word.speaker for word in event.words} <= {event.speaker}
    assert events[-1] == Speakers({0: "A", 1: "B", 2: "A"})
    assert session.ended


def test_without_a_final_the_utterance_has_the_committed_words(runner: HandRunner) -> None:
    session = begun(runner, final="none")
    push(session, runner, 1.0)
    session.commit()
    runner.work()
    runner.answer()
    (last,) = [event for event in session.take() if isinstance(event, Utterance)]
    assert (last.text, [word.word for word in last.words]) == (" w0 w1 w2", [" w0", " w1", " w2"])


def test_a_failed_utterance_does_not_end_the_session(runner: HandRunner) -> None:
    session = begun(runner)
    for number in range(2):
        push(session, runner, 1.0)
        session.commit()
        runner.work()
        runner.answer()
        runner.finish(error=None if number else EngineError("broken"))
    ends = [e for e in session.take() if isinstance(e, (Failed, Utterance))]
    assert [(type(e), e.utterance) for e in ends] == [(Failed, 0), (Utterance, 1)]


def test_updates_are_coalesced(runner: HandRunner) -> None:
    session = begun(runner)
    for _ in range(30):
        push(session, runner, 0.1)
    assert len(runner.updates) == 1
    runner.answer()
    (update, _) = runner.updates[0]
    assert update.end == 3 * RATE
    assert len(runner.updates) == 1


def test_an_update_waits_for_that_of_another_session_once(runner: HandRunner) -> None:
    """The next one comes so much later: then the two do not meet again."""
    turns = UpdateTurns(1)
    first, second = (begun(runner, turns=turns, update_s=0.5) for _ in range(2))

    def speak(until: float) -> None:
        while runner.time < until - 1e-9:
            runner.time += 0.1
            push(first, runner, 0.1)
            push(second, runner, 0.1)

    speak(0.5)
    assert len(runner.updates) == 1
    runner.time += 0.07
    runner.answer()
    ((update, _),) = runner.updates  # of the second session
    assert update.end == 0.5 * RATE
    runner.answer()
    runner.time = 0.5
    speak(1.0)
    assert len(runner.updates) == 1
    runner.answer()
    assert not runner.updates
    speak(1.1)
    ((update, _),) = runner.updates
    assert update.end == 1.1 * RATE


@pytest.mark.parametrize("how", ["cancel", "fail"])
def test_a_session_that_ends_lets_the_others_go_on(runner: HandRunner, how: str) -> None:
    turns = UpdateTurns(1)
    first, second = (begun(runner, turns=turns) for _ in range(2))
    push(first, runner, 1.0)
    push(second, runner, 1.0)
    assert len(runner.updates) == 1
    if how == "cancel":
        first.cancel()
        runner.work()
    else:
        runner.answer(lambda update: 5)  # type: ignore[arg-type,return-value]
    assert first.ended
    assert len(runner.updates) == 1
    runner.answer()
    assert any(isinstance(event, Lag) for event in second.take())


def test_a_session_that_ends_does_not_begin_what_it_waited_for(runner: HandRunner) -> None:
    turns = UpdateTurns(1)
    first, second, third = (begun(runner, turns=turns) for _ in range(3))
    for session in (first, second, third):
        push(session, runner, 1.0)
    second.cancel()
    runner.work()
    runner.answer()
    runner.answer()
    assert not any(isinstance(event, Lag) for event in second.take())
    assert any(isinstance(event, Lag) for event in third.take())


def test_a_closed_engine_ends_all_sessions_that_wait(runner: HandRunner) -> None:
    turns = UpdateTurns(1)
    sessions = [begun(runner, turns=turns) for _ in range(400)]
    for session in sessions:
        push(session, runner, 1.0)
    runner.closed = True
    runner.answer()
    for session in sessions[1:]:
        assert session.ended
        assert kinds(session.take())[-1] is Failed


def test_lag_is_the_age_of_the_newest_audio_of_an_update(runner: HandRunner) -> None:
    session = begun(runner)
    push(session, runner, 1.0)
    runner.time = 0.4
    push(session, runner, 1.0)
    runner.time = 0.7
    runner.answer()
    runner.time = 0.9
    runner.answer()
    lags = [event.seconds for event in session.take() if isinstance(event, Lag)]
    assert lags == pytest.approx([0.7, 0.5])


def test_a_slow_reader_gets_the_newest_partial_only(runner: HandRunner) -> None:
    session = begun(runner)
    for i in range(20):
        push(session, runner, 0.6)
        runner.answer(lambda update, i=i: result(words(f"x{i}")))  # type: ignore[misc]
    events = session.take()
    assert [e.text for e in events if isinstance(e, Partial)] == [" x19"]
    assert len(events) == 3


def test_after_the_end_no_audio_is_accepted(runner: HandRunner) -> None:
    session = begun(runner)
    session.finish()
    with pytest.raises(StreamError, match="begin another"):
        push(session, runner, 1.0)
    runner.work()
    assert session.ended


def test_cancel_ends_the_events_at_once(runner: HandRunner) -> None:
    session = begun(runner)
    push(session, runner, 1.0)
    session.cancel()
    assert list(session.events()) == []
    runner.answer()
    assert session.take() == []


def test_cancel_stops_what_is_decoded(runner: HandRunner) -> None:
    session = begun(runner)
    push(session, runner, 1.0)
    session.commit()
    runner.work()
    runner.answer()
    push(session, runner, 1.0)
    assert (len(runner.updates), len(runner.utterances)) == (1, 1)
    session.cancel()
    runner.work()
    assert (len(runner.updates), len(runner.utterances)) == (0, 0)


def test_a_closed_engine_ends_the_session_with_a_failure(runner: HandRunner) -> None:
    session = begun(runner)
    runner.closed = True
    push(session, runner, 1.0)
    assert kinds(session.take()) == [SpeechStarted, Failed]
    assert session.ended


def test_an_unexpected_error_ends_the_session_with_a_failure(
    runner: HandRunner, caplog: pytest.LogCaptureFixture
) -> None:
    session = begun(runner)
    push(session, runner, 1.0)
    runner.answer(lambda update: 5)  # type: ignore[arg-type,return-value]
    assert kinds(session.take()) == [SpeechStarted, Failed]
    assert session.ended
    assert "live session failed" in caplog.text


def test_what_is_no_audio_is_refused_at_once(runner: HandRunner) -> None:
    with pytest.raises(AudioError):
        begun(runner).push(b"\0")
    with pytest.raises(AudioError):
        begun(runner, rate=5)


def test_rates_and_channels(runner: HandRunner) -> None:
    session = begun(runner, rate=48_000, channels=2)
    session.push(np.zeros((48_000, 2), np.float32))
    session.push(bytes(48_000 * 4))
    session.push(np.zeros(8_000 * 2, np.float32), sample_rate=8_000)
    runner.work()
    assert session.received == 48_000 + 48_000 + 8_000
    update, _ = runner.updates[0]
    assert len(update.samples) == pytest.approx(3 * RATE, abs=1_500)


# --- lost connections -----------------------------------------------------------------------------


def numbered(first: int, last: int) -> Any:
    """Samples that say where they belong."""
    return (np.arange(first, last) % 30_000).astype(np.int16)


@pytest.mark.parametrize("seed", range(5))
def test_twenty_lost_connections_lose_and_double_nothing(runner: HandRunner, seed: int) -> None:
    """The client sends again what it does not know to have arrived."""
    session, chance = begun(runner, max_utterance_s=10.0, buffer_s=4.0), random.Random(seed)
    total, sent, lost = 60 * RATE, 0, 0
    committed = ""

    def read() -> str:
        return "".join(e.text for e in session.take() if isinstance(e, Committed))

    while sent < total:
        size = chance.randrange(1, RATE // 2)
        if lost < 20 and chance.random() < 0.12:
            lost += 1
            session.detach()
            if chance.random() < 0.5:
                runner.time += chance.random() * 50
            sent = max(0, session.received - chance.randrange(RATE))
            session.resume(sent)
        session.push(numbered(sent, min(sent + size, total)))
        sent = min(sent + size, total)
        runner.work()
        if runner.updates and chance.random() < 0.7:
            update = runner.answer()
            first = round(update.start * RATE)
            expected = numbered(first, update.end).astype(np.float32) / 32_768
            np.testing.assert_array_equal(update.samples, expected)
        committed += read()
    session.finish()
    runner.work()
    while runner.updates:
        runner.answer()
    committed += read()
    assert lost == 20
    assert committed == "".join(f" w{i}" for i in range(round(60 / EACH)))


def test_a_gap_cannot_be_resumed(runner: HandRunner) -> None:
    session = begun(runner)
    push(session, runner, 1.0)
    session.detach()
    with pytest.raises(LiveSessionLost, match="send the samples from 16000 on"):
        session.resume(16_001)
    session.resume(16_000)


def test_a_session_waits_for_resume_s_only(runner: HandRunner) -> None:
    session = begun(runner, resume_s=30.0)
    session.detach()
    runner.time = 29.0
    runner.work()
    session.resume(0)
    session.detach()
    ended = []
    for runner.time in (58.0, 60.0):
        runner.work()
        ended.append(session.ended)
    assert ended == [False, True]
    with pytest.raises(LiveSessionLost, match="has ended"):
        session.resume(0)


def test_detaching_ends_the_reader_and_keeps_what_it_has_not_read(runner: HandRunner) -> None:
    session = begun(runner)
    reader = session.events()
    push(session, runner, 0.6)
    assert isinstance(next(reader), SpeechStarted)
    runner.answer()
    session.detach()
    assert list(reader) == []
    assert kinds(session.take()) == [Partial, Lag]
