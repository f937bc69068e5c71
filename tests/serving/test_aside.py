"""Doubtful text is listened to in another thread, so that the other rows do not wait."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from tests.audio.test_vad import made_up
from tests.support.engines_on_fakes import WAIT, options, options_of
from tests.support.watched_backend import BATCHED, noise, quiet_model, spoken
from whisper_opt import AudioError, TranscribeOptions, TranscriptionCancelled
from whisper_opt.audio.vad import SpeechDetector
from whisper_opt.serving import Engine


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the threads that detected speech."""
    names: list[str] = []
    spans = SpeechDetector.spans

    def noted(detector: SpeechDetector, samples: Any) -> Any:
        names.append(threading.current_thread().name)
        return spans(detector, samples)

    monkeypatch.setattr(SpeechDetector, "spans", noted)
    return names


@made_up()
@pytest.mark.parametrize(
    "given",
    [
        options(vad="check"),
        options(vad="check", word_timestamps=True),
        options(vad="check", temperature=(0.0, 0.5, 1.0), logprob_threshold=-0.5),
        options(vad="cut", compression_ratio_threshold=0.5, temperature=(0.0, 0.5)),
        TranscribeOptions(**BATCHED),
    ],
    ids=["check", "words", "temperatures", "repetition", "batched"],
)
def test_speech_is_not_detected_in_the_loop(
    served: Engine, threads: list[str], given: TranscribeOptions
) -> None:
    sounds = [spoken([1, 28, 32, 60, 64, 90], 100.0, seed) for seed in range(3)]
    expected = [quiet_model().transcribe(sound, options=given) for sound in sounds]
    detected = threads.count("MainThread")
    threads.clear()
    handles = [served.submit(sound, given) for sound in sounds]
    assert [handle.result(WAIT) for handle in handles] == expected
    assert len(threads) == detected
    assert "whisper_opt engine" not in threads
    assert given.strategy == "batched" or "whisper_opt aside" in threads


class Listening:
    """Voice activity detection that waits, or fails."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.go = threading.Event(), threading.Event()
        self.error: Exception | None = None
        monkeypatch.setattr(SpeechDetector, "spans", self._spans)

    def _spans(self, samples: Any) -> list[Any]:
        self.begun.set()
        assert self.go.wait(WAIT)
        if self.error is not None:
            raise self.error
        return []


@pytest.fixture
def listening(monkeypatch: pytest.MonkeyPatch) -> Listening:
    return Listening(monkeypatch)


def test_others_do_not_wait_for_it(served: Engine, listening: Listening) -> None:
    doubtful = served.submit(noise(31.0), options(vad="check"))
    assert listening.begun.wait(WAIT)
    other = served.submit(noise(40.0, 1), options())
    assert other.result(WAIT) == quiet_model().transcribe(noise(40.0, 1), **options_of())
    assert doubtful.state == "running"
    listening.go.set()
    assert doubtful.result(WAIT).dropped


def test_cancelled_meanwhile(served: Engine, listening: Listening) -> None:
    doubtful = served.submit(noise(31.0), options(vad="check"))
    assert listening.begun.wait(WAIT)
    assert doubtful.cancel()
    assert served.drain(WAIT)
    assert served.stats().rows == 0
    listening.go.set()
    with pytest.raises(TranscriptionCancelled):
        doubtful.result(WAIT)


def test_an_error_fails_the_recording_alone(served: Engine, listening: Listening) -> None:
    listening.error = AudioError("cannot listen")
    listening.go.set()
    doubtful = served.submit(noise(31.0), options(vad="check"))
    with pytest.raises(AudioError, match="cannot listen"):
        doubtful.result(WAIT)
    other = served.submit(noise(5.0, 1), options())
    assert other.result(WAIT) == quiet_model().transcribe(noise(5.0, 1), **options_of())
