"""Failures of recordings and of the model: nothing else fails, nothing stays open."""

from __future__ import annotations

import collections
from typing import Any

import numpy as np
import pytest

from tests.audio.test_vad import made_up
from tests.support.fake_backend import FakeEncoded
from tests.support.watched_backend import (
    BATCHED,
    ENDLESS,
    PLAIN,
    OpenStreams,
    WatchedBackend,
    WatchedSession,
    engine,
    fallback_options,
    many,
    noise,
    noises,
    quiet_model,
    spoken,
    windows_of,
)
from whisper_opt import AudioError, EngineError, OptionError, TranscribeOptions, Whisper
from whisper_opt.core.arrays import F32
from whisper_opt.core.backend import Encoded
from whisper_opt.transcription.job import Chunk

TOO_LONG = " ".join("a" * 40)


def broken(kind: str) -> tuple[Any, dict[str, Any], type[Exception]]:
    """A recording that fails, its options, and its error."""
    if kind == "nan":
        sound = noise(70.0, 5)
        sound[900_000] = np.nan
        return sound, {}, AudioError
    if kind == "empty":
        return np.zeros(0, np.float32), {}, AudioError
    if kind == "missing":
        return "no such file.wav", {}, AudioError
    if kind == "batched":
        sound, _, _ = broken("nan")
        return sound, {"strategy": "batched", "clip_timestamps": (0, 10, 12, 70)}, AudioError
    if kind == "prompt":
        return noise(70.0, 5), {"prefix": TOO_LONG}, OptionError
    if kind == "token":
        return noise(5.0, 5), {"suppress_tokens": (2000,)}, OptionError
    assert kind == "language"
    return noise(5.0, 5), {"language": "de"}, OptionError


BROKEN = ["nan", "empty", "missing", "batched", "prompt", "token", "language"]


def with_broken(kind: str) -> tuple[list[Any], list[TranscribeOptions], type[Exception]]:
    """Five recordings, the third of which fails."""
    audios: list[Any] = noises(31.0, 64.0, 95.0, 12.0)
    options = [TranscribeOptions(**PLAIN, max_new_tokens=4 + i) for i in range(4)]
    bad, extra, error = broken(kind)
    audios.insert(2, bad)
    options.insert(2, TranscribeOptions(**{**PLAIN, **extra}))
    return audios, options, error


@pytest.mark.parametrize("batch_size", [1, 2, 8])
@pytest.mark.parametrize("kind", BROKEN)
def test_one_that_fails_does_not_disturb_the_others(
    model: Whisper, watched: WatchedBackend, kind: str, batch_size: int
) -> None:
    audios, options, error = with_broken(kind)
    found = many(model, audios, options=options, batch_size=batch_size, return_exceptions=True)
    assert sorted(found) == [0, 1, 2, 3, 4]
    assert type(found[2]) is error
    with pytest.raises(error) as alone:
        quiet_model().transcribe(audios[2], options=options[2])
    assert str(found[2]) == str(alone.value)
    for i in (0, 1, 3, 4):
        assert found[i] == quiet_model().transcribe(audios[i], options=options[i])
    assert watched.sessions == []


@pytest.mark.parametrize("kind", BROKEN)
def test_a_failure_is_raised_and_leaves_nothing_open(
    model: Whisper, watched: WatchedBackend, kind: str
) -> None:
    audios, options, error = with_broken(kind)
    with pytest.raises(error):
        many(model, audios, options=options, batch_size=8)
    assert watched.sessions == []
    expected = quiet_model().transcribe(audios[0], options=options[0])
    assert model.transcribe(audios[0], options=options[0]) == expected


def test_an_unexpected_error_ends_everything(model: Whisper, watched: WatchedBackend) -> None:
    watched.fail, watched.error = 12, RuntimeError("a bug")
    with pytest.raises(RuntimeError, match="a bug"):
        many(model, noises(31.0, 31.0), return_exceptions=True, **PLAIN)
    assert watched.sessions == []


def test_a_recording_may_fail_while_it_is_decoded(model: Whisper, watched: WatchedBackend) -> None:
    """The batched strategy reads in blocks: damage at the end is found late."""
    bad = spoken((1, 28, 32, 60, 64, 90, 100, 128, 140, 168), 400.0)
    bad[350 * 16000] = np.nan
    good = noise(40.0, 9)
    with made_up():
        found = many(
            model,
            [bad, good],
            options=[TranscribeOptions(**BATCHED), TranscribeOptions(**PLAIN)],
            batch_size=2,
            return_exceptions=True,
        )
    assert isinstance(found[0], AudioError)
    assert found[1] == quiet_model().transcribe(good, **PLAIN)
    assert watched.sessions == []
    assert len(watched.windows) > 4


class Failing(WatchedBackend):
    """A model that fails with some windows.

    Attributes:
        bad: windows that it never computes.
        most_encoded, most_decoded: it fails with more windows than that at once.
        failures: how often each verb fails before it works, by name.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bad: set[int] = set()
        self.most_encoded = self.most_decoded = 1000
        self.failures: collections.Counter[str] = collections.Counter()
        self.n_failed = 0

    def note(self, what: str, seeds: set[int]) -> None:
        most = self.most_encoded if what == "encode" else self.most_decoded
        if seeds & self.bad or len(seeds) > most or self.failures[what] > 0:
            self.failures[what] -= 1
            self.n_failed += 1
            raise EngineError(f"{what} failed with {len(seeds)} window(s)")
        super().note(what, seeds)


@pytest.fixture
def failing() -> Failing:
    return Failing()


SIZES = (31.0, 5.0, 64.0, 12.0, 40.0, 3.0)


def check_alone(found: dict[int, Any], audios: list[F32], options: dict[str, Any]) -> None:
    """Transcripts that were completed equal those of single runs."""
    for i, sound in enumerate(audios):
        if not isinstance(found[i], Exception):
            assert found[i] == quiet_model().transcribe(sound, **options), i


@pytest.mark.parametrize("options", [PLAIN, {**PLAIN, "beam_size": 3}], ids=["greedy", "beam"])
@pytest.mark.parametrize("what", ["encode", "open", "prefill", "extend", "join"])
@pytest.mark.parametrize("times", [1, 2])
def test_a_model_that_fails_now_and_then_loses_nothing(
    failing: Failing, what: str, times: int, options: dict[str, Any]
) -> None:
    failing.failures[what] = times
    audios = noises(*SIZES)
    found = many(Whisper(engine(), failing), audios, batch_size=4, **options)
    assert 1 <= failing.n_failed <= times
    assert sorted(found) == list(range(len(SIZES)))
    check_alone(found, audios, options)
    assert failing.sessions == []


@pytest.mark.parametrize("most", [1, 2, 3])
@pytest.mark.parametrize("where", ["most_encoded", "most_decoded"])
def test_too_many_windows_for_the_memory_are_decoded_in_smaller_groups(
    failing: Failing, where: str, most: int
) -> None:
    setattr(failing, where, most)
    audios = noises(*SIZES)
    found = many(Whisper(engine(), failing), audios, batch_size=8, **PLAIN)
    check_alone(found, audios, PLAIN)
    assert len(found) == len(SIZES)
    assert failing.n_failed > 0
    assert failing.sessions == []


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_a_window_that_always_fails_fails_its_recording(failing: Failing, batch_size: int) -> None:
    audios = noises(*SIZES)
    failing.bad = {windows_of(audios[2], **PLAIN)[1]}
    found = many(
        Whisper(engine(), failing), audios, batch_size=batch_size, return_exceptions=True, **PLAIN
    )
    assert [i for i in found if isinstance(found[i], Exception)] == [2]
    assert str(found[2]) == "encode failed with 1 window(s)"
    check_alone(found, audios, PLAIN)
    assert len(found) == len(SIZES)
    assert failing.sessions == []
    with pytest.raises(EngineError, match="encode failed"):
        many(Whisper(engine(), failing), audios, batch_size=batch_size, **PLAIN)
    assert failing.sessions == []


def test_a_model_that_is_broken_fails_every_recording(failing: Failing) -> None:
    failing.most_encoded = 0
    audios = noises(*SIZES)
    found = many(Whisper(engine(), failing), audios, batch_size=4, return_exceptions=True, **PLAIN)
    assert [type(found[i]) for i in range(len(SIZES))] == [EngineError] * len(SIZES)


def test_lack_of_memory_is_an_error_of_the_library(model: Whisper, watched: WatchedBackend) -> None:
    watched.fail, watched.error = 0, MemoryError()
    with pytest.raises(EngineError, match=r"memory.*lower beam_size"):
        model.transcribe(noises(5.0)[0], **PLAIN)
    assert watched.sessions == []


def test_full_batches_again_after_a_failure(failing: Failing) -> None:
    failing.failures["encode"] = 1
    audios = noises(*(2.0 + i for i in range(24)))
    many(Whisper(engine(), failing), audios, batch_size=4, max_new_tokens=3, **ENDLESS)
    assert max(len(seeds) for seeds in failing.of("encode")) == 4


def test_the_next_temperature_may_fail_too(failing: Failing) -> None:
    """Sampling with several candidates needs more memory."""
    audios = noises(31.0, 64.0, 5.0)
    options = fallback_options(audios)
    expected = many(quiet_model(), audios, batch_size=3, **options)
    first = set(windows_of(audios[0], **options))

    class Narrow(Failing):
        def open(self, audio: Encoded) -> WatchedSession:
            assert isinstance(audio, FakeEncoded)
            begun = {seed for seed, _ in self.prompts}
            if set(audio.seeds) <= begun and set(audio.seeds) & first:
                raise EngineError("no memory for 5 candidates")
            return super().open(audio)

    narrow = Narrow()
    found = many(Whisper(engine(), narrow), audios, batch_size=3, return_exceptions=True, **options)
    assert str(found[0]) == "no memory for 5 candidates"
    assert [found[i] for i in (1, 2)] == [expected[i] for i in (1, 2)]
    assert narrow.sessions == []


@pytest.mark.parametrize("which", [1, 2, 3])
def test_a_recording_fails_once_however_many_windows_end_together(
    model: Whisper, watched: WatchedBackend, monkeypatch: pytest.MonkeyPatch, which: int
) -> None:
    calls = 0
    accept = Chunk.accept

    def failing(self: Chunk, *args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == which:
            raise EngineError("no memory for word times")
        accept(self, *args)

    sound, other = noises(9.0, 31.0)
    options = [
        TranscribeOptions(**ENDLESS, max_new_tokens=3, strategy="batched", clip_timestamps=clips)
        for clips in ((0, 3, 3, 6, 6, 9), (0, 31))
    ]
    expected = quiet_model().transcribe(other, options=options[1])
    monkeypatch.setattr(Chunk, "accept", failing)
    found = many(model, [sound, other], options=options, batch_size=4, return_exceptions=True)
    assert str(found[0]) == "no memory for word times"
    assert found[1] == expected
    assert watched.sessions == []


def test_all_is_closed_whatever_fails(
    model: Whisper, watched: WatchedBackend, open_streams: OpenStreams
) -> None:
    """Recordings are closed even if a session cannot be closed."""

    def broken(session: WatchedSession) -> None:
        raise EngineError("the device is gone")

    sound = spoken([1, 28, 32, 60, 64, 90, 100, 128], 200.0)
    with made_up(), pytest.MonkeyPatch.context() as patch:
        stream = model.stream(sound, **BATCHED, batch_size=2)
        assert any(watched.sessions for _ in stream)  # a window is still being decoded
        assert open_streams.n_open == 1
        patch.setattr(WatchedSession, "close", broken)
        with pytest.raises(EngineError, match="the device is gone"):
            stream.close()
    assert open_streams.n_open == 0
