"""Continuous batching on a fake model that records its calls."""

from __future__ import annotations

import collections
import dataclasses
import functools
import gc
import queue
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.audio.test_vad import made_up
from tests.support.fake_backend import FakeBackend, FakeEncoded, FakeSession, Scores
from tests.support.models import random_checkpoint
from tests.support.reference_windows import DIMS, VOCAB
from tests.transcription.test_model import noise
from tests.transcription.test_transcribe_whole import talkative
from whisper_opt import AudioError, EngineError, OptionError, TranscribeOptions, Transcript, Whisper
from whisper_opt.audio import decode as audio
from whisper_opt.audio.vad import SpeechDetector, pack
from whisper_opt.core.arrays import F32, Int
from whisper_opt.core.backend import Attention, Encoded, Session
from whisper_opt.core.dims import N_SAMPLES, ModelDims
from whisper_opt.core.logits import HostLogits
from whisper_opt.core.options import VadOptions
from whisper_opt.export import export
from whisper_opt.runtime.engine import Engine
from whisper_opt.text.results import Dropped, Segment
from whisper_opt.transcription.job import Chunk, TranscriptionJob
from whisper_opt.transcription.scheduler import Scheduler

PLAIN: dict[str, Any] = {"temperature": 0.0, "no_speech_threshold": None, "vad": "off"}
ENDLESS: dict[str, Any] = {**PLAIN, "suppress_tokens": (VOCAB.eot,), "without_timestamps": True}
"""Results that end at max_new_tokens only, which is then the number of steps of a window."""


class WatchedSession(FakeSession):
    """Records its calls in its backend."""

    def __init__(self, backend: WatchedBackend, audio: FakeEncoded) -> None:
        super().__init__(backend, audio)
        self.backend = backend

    @property
    def seeds(self) -> set[int]:
        return {seed for seed, _ in self._rows}

    def extend(self, tokens: Int, lengths: Int | None = None, at: Int | None = None) -> HostLogits:
        backend = self.backend
        begins = not any(held for _, held in self._rows)
        backend.note("prefill" if begins else "extend", self.seeds)
        backend.most = max(backend.most, len(set().union(*(s.seeds for s in backend.sessions))))
        if begins:
            rows = zip(self._rows, tokens.tolist(), (lengths if lengths is not None else []))
            for (seed, _), prompt, length in rows:
                backend.prompts.append((seed, tuple(prompt[: int(length)])))
        return super().extend(tokens, lengths, at)

    def append(self, other: Session) -> None:
        assert isinstance(other, WatchedSession)
        self.backend.note("join", other.seeds)
        super().append(other)

    def close(self) -> None:
        assert self in self.backend.sessions, "closed twice"
        self.backend.sessions.remove(self)
        super().close()


class WatchedBackend(FakeBackend):
    """A fake model that records its calls.

    Attributes:
        sessions: those that are open.
        diary: (what happened, the windows concerned), in order.
        prompts: (window, prompt) of every window that began.
        most: windows decoded at once at most.
        fail: from which entry of the diary on an interrupt comes, once.
    """

    def __init__(self, dims: ModelDims = DIMS, scores: Scores | None = talkative) -> None:
        super().__init__(dims, scores)
        self.sessions: list[WatchedSession] = []
        self.diary: list[tuple[str, frozenset[int]]] = []
        self.prompts: list[tuple[int, tuple[int, ...]]] = []
        self.most = 0
        self.fail: int | None = None
        self.error: BaseException = KeyboardInterrupt()

    def note(self, what: str, seeds: set[int]) -> None:
        self.diary.append((what, frozenset(seeds)))
        if self.fail is not None and len(self.diary) > self.fail:
            self.fail = None
            raise self.error

    def of(self, what: str) -> list[frozenset[int]]:
        return [seeds for name, seeds in self.diary if name == what]

    @property
    def windows(self) -> list[int]:
        """Every window encoded, in order."""
        return [seed for call in self.of("encode") for seed in call]

    def encode(self, mel: F32) -> FakeEncoded:
        encoded = super().encode(mel)
        assert len(set(encoded.seeds)) == len(mel), "windows that cannot be told apart"
        self.note("encode", set(encoded.seeds))
        return encoded

    def open(self, audio: Encoded) -> WatchedSession:
        assert isinstance(audio, FakeEncoded)
        self.note("open", set(audio.seeds))
        self.sessions.append(WatchedSession(self, audio))
        return self.sessions[-1]

    def attention(self, audio: Encoded, tokens: Int, lengths: Int) -> Attention:
        found = super().attention(audio, tokens, lengths)
        self.sessions.pop()  # the one of the fake backend, which needs no closing
        return found


@functools.cache
def engine(n_vocab: int = DIMS.n_vocab, n_text_ctx: int = DIMS.n_text_ctx) -> Engine:
    """An engine with a vocabulary and token lists only."""
    narrow = {"n_audio_state": 64, "n_text_state": 64, "n_audio_head": 1, "n_text_head": 1}
    dims = dataclasses.replace(DIMS, n_vocab=n_vocab, n_text_ctx=n_text_ctx, **narrow)
    folder = Path(tempfile.mkdtemp(prefix="whisper-opt-test-"))
    return export(random_checkpoint(dims), folder / "engine")


@pytest.fixture
def watched() -> WatchedBackend:
    return WatchedBackend()


@pytest.fixture
def model(watched: WatchedBackend) -> Whisper:
    """A model of English whose backend is ``watched``."""
    return Whisper(engine(), watched)


def quiet_model() -> Whisper:
    """The same model on a plain backend."""
    return Whisper(engine(), FakeBackend(DIMS, talkative))


def windows_of(sound: F32, **options: Any) -> list[int]:
    """The windows of a recording that is transcribed alone."""
    backend = WatchedBackend()
    Whisper(engine(), backend).transcribe(sound, **options)
    return backend.windows


def many(model: Whisper, *args: Any, **options: Any) -> dict[int, Any]:
    results = list(model.transcribe_many(*args, **options))
    assert len({i for i, _ in results}) == len(results)
    return dict(results)


def sounds(*seconds: float) -> list[F32]:
    return [noise(length, seed) for seed, length in enumerate(seconds)]


# --- continuous batching -------------------------------------------------------------------------


def test_windows_join_while_others_are_decoded(model: Whisper, watched: WatchedBackend) -> None:
    slow, fast = sounds(20.0, 95.0)
    lengths = (20, 3)
    options = [TranscribeOptions(max_new_tokens=n, **ENDLESS) for n in lengths]
    (first,) = windows_of(slow, **ENDLESS, max_new_tokens=20)
    others = windows_of(fast, **ENDLESS, max_new_tokens=3)
    assert len(others) == 4
    found = many(model, [slow, fast], options=options, batch_size=2)
    # the slow window is decoded next to every window of the other recording, one after another
    beside = [seeds - {first} for seeds in watched.of("extend") if first in seeds]
    assert [list(seeds) for seeds in beside if seeds] == [
        [window] for window in others for _ in range(lengths[1] - 1)
    ]
    assert set(watched.of("join")) == {frozenset([window]) for window in others[1:]}
    for i, sound in enumerate((slow, fast)):
        assert found[i] == quiet_model().transcribe(sound, options=options[i])


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7])
def test_the_batch_is_full_and_never_fuller(
    model: Whisper, watched: WatchedBackend, batch_size: int
) -> None:
    sizes = (31.0, 5.0, 64.0, 95.0, 0.5, 12.0, 40.0, 33.0)
    options = [TranscribeOptions(max_new_tokens=2 + 3 * i % 11, **ENDLESS) for i in range(8)]

    class Audios(list[F32]):
        def __iter__(self) -> Iterator[F32]:
            yield from super().__iter__()
            watched.note("no more", set())

    found = many(model, Audios(sounds(*sizes)), options=options, batch_size=batch_size)
    assert sorted(found) == list(range(8))
    assert watched.most == batch_size
    assert watched.sessions == []
    # the batch is full as long as there are enough windows
    until = watched.diary.index(("no more", frozenset()))
    running = [len(seeds) for what, seeds in watched.diary[:until] if what == "extend"]
    assert set(running) == {batch_size}


@pytest.mark.parametrize("batch_size", [1, 3, 5])
def test_windows_are_encoded_once_and_together(
    model: Whisper, watched: WatchedBackend, batch_size: int
) -> None:
    audios = sounds(31.0, 5.0, 64.0, 12.0)
    many(model, audios, batch_size=batch_size, max_new_tokens=6, **ENDLESS)
    alone = [windows_of(sound, max_new_tokens=6, **ENDLESS) for sound in audios]
    expected = collections.Counter(window for windows in alone for window in windows)
    assert collections.Counter(watched.windows) == expected
    assert max(expected.values()) == 1
    first = watched.of("encode")[0]
    assert first == {windows[0] for windows in alone[:batch_size]}


def test_one_recording_takes_one_window_at_a_time(model: Whisper, watched: WatchedBackend) -> None:
    """In the sequential strategy a window depends on the one before it."""
    model.transcribe(sounds(95.0)[0], **PLAIN)
    assert watched.most == 1
    assert {len(seeds) for seeds in watched.of("encode")} == {1}


def test_recordings_are_opened_when_there_is_room(model: Whisper, watched: WatchedBackend) -> None:
    opened = 0
    finished = 0
    ahead: list[int] = []

    def audios() -> Iterator[F32]:
        nonlocal opened
        for i in range(12):
            opened += 1
            ahead.append(opened - finished)
            yield noise(3.0 + 4 * (i % 3), i)

    results = model.transcribe_many(audios(), batch_size=2, max_new_tokens=5, **PLAIN)
    assert opened == 0
    for _ in results:
        finished += 1
    assert (opened, finished) == (12, 12)
    # recordings in the batch, recordings that have just left it, and one ahead
    assert max(ahead) <= 5
    assert watched.sessions == []


@pytest.mark.parametrize("kind", ["broken", "too short"])
def test_recordings_without_segments_are_opened_one_after_another_too(
    model: Whisper, kind: str
) -> None:
    """Results are yielded although there is always room for another recording."""
    opened = 0

    def audios() -> Iterator[Any]:
        nonlocal opened
        for _ in range(50):
            opened += 1
            yield "no such file.wav" if kind == "broken" else noise(0.005)

    results = model.transcribe_many(audios(), batch_size=2, return_exceptions=True, **PLAIN)
    next(results)
    assert opened <= 4
    assert len(list(results)) == 49


def test_results_come_as_they_finish(model: Whisper) -> None:
    audios = sounds(95.0, 3.0, 4.0)
    order = [i for i, _ in model.transcribe_many(audios, batch_size=2, **ENDLESS)]
    assert order == [1, 2, 0]


def test_nothing_to_do(model: Whisper, watched: WatchedBackend) -> None:
    assert list(model.transcribe_many([])) == []
    assert watched.diary == []


def test_recordings_without_windows(model: Whisper) -> None:
    audios = [noise(0.005), noise(4.0), noise(0.001), noise(0.009)]
    found = many(model, audios, batch_size=2, **PLAIN)
    assert [len(found[i]) > 0 for i in range(4)] == [False, True, False, False]
    assert found[0].duration == 0.005
    assert found[1] == quiet_model().transcribe(audios[1], **PLAIN)


def test_options_of_each(model: Whisper) -> None:
    audios = sounds(31.0, 31.0, 31.0)
    each = [
        TranscribeOptions(**PLAIN),
        TranscribeOptions(**PLAIN, without_timestamps=True, max_new_tokens=4),
        TranscribeOptions(**PLAIN, beam_size=3, prefix="so"),
    ]
    found = many(model, audios, options=iter(each), batch_size=3)
    shared = many(model, audios, options=each[1], batch_size=3)
    overridden = many(model, audios, options=each, batch_size=2, initial_prompt="Ann")
    for i, sound in enumerate(audios):
        assert found[i] == quiet_model().transcribe(sound, options=each[i])
        assert shared[i] == quiet_model().transcribe(sound, options=each[1])
        own = dataclasses.replace(each[i], initial_prompt="Ann")
        assert overridden[i] == quiet_model().transcribe(sound, options=own)


def test_recordings_share_one_batch_size(model: Whisper) -> None:
    each = [TranscribeOptions(**PLAIN), TranscribeOptions(**PLAIN, batch_size=3)]
    with pytest.raises(OptionError, match=r"recording 1 have batch_size 3, .* of 8 windows"):
        many(model, sounds(1.0, 1.0), options=each)
    assert len(many(model, sounds(1.0, 1.0), options=each, batch_size=3)) == 2


def test_one_recording_alone_is_no_batch(model: Whisper) -> None:
    (sound,) = sounds(1.0)
    with pytest.raises(OptionError, match="batch_size is 3, but the sequential strategy"):
        model.transcribe(sound, **PLAIN, batch_size=3)


@pytest.mark.parametrize("n", [0, 1])
def test_as_many_options_as_recordings(model: Whisper, n: int) -> None:
    """A recording without options is an error."""
    options = [TranscribeOptions(**PLAIN)] * n
    with pytest.raises(OptionError, match="options"):
        list(model.transcribe_many(sounds(1.0, 2.0), options=options))


def test_no_options_for_no_recordings(model: Whisper) -> None:
    assert list(model.transcribe_many([], options=[])) == []


@pytest.mark.parametrize("batch_size", [0, -1, 2.5, True])
def test_a_batch_has_at_least_one_window(model: Whisper, batch_size: Any) -> None:
    with pytest.raises(OptionError, match="batch_size"):
        list(model.transcribe_many(sounds(1.0), batch_size=batch_size))


def test_segments_are_numbered_in_order_of_time(model: Whisper) -> None:
    for transcript in many(model, sounds(64.0, 95.0, 31.0), batch_size=3, **PLAIN).values():
        assert [segment.id for segment in transcript] == list(range(len(transcript)))
        assert [s.start for s in transcript] == sorted(s.start for s in transcript)
        assert len({segment.seek for segment in transcript}) > 1


def test_progress_of_many(model: Whisper) -> None:
    audios = sounds(64.0, 95.0, 5.0)
    steps: list[tuple[int, float, float]] = []
    many(model, audios, batch_size=2, on_progress=lambda *step: steps.append(step), **PLAIN)
    for i, sound in enumerate(audios):
        own = [(done, total) for number, done, total in steps if number == i]
        assert own == sorted(own)
        assert own[-1] == (len(sound) / 16000, len(sound) / 16000)
        assert {total for _, total in own} == {len(sound) / 16000}
    assert len({done for number, done, _ in steps if number == 1}) >= 4


# --- what fails ----------------------------------------------------------------------------------

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
    audios: list[Any] = sounds(31.0, 64.0, 95.0, 12.0)
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
        many(model, sounds(31.0, 31.0), return_exceptions=True, **PLAIN)
    assert watched.sessions == []


def spoken(seconds: Sequence[float], total: float, seed: int = 0) -> F32:
    """Noise whose frames are speech (``made_up``) within start, end, start, end, ..."""
    sound = noise(total, seed)
    starts = np.arange(0, len(sound), 512)
    times = starts / 16000
    speech = np.zeros(len(starts), np.bool_)
    for start, end in zip(seconds[::2], seconds[1::2]):
        speech |= (start <= times) & (times < end)
    sound[starts] = np.where(speech, np.float32(0.9), np.float32(0))
    return sound


BATCHED: dict[str, Any] = {
    "strategy": "batched",
    "temperature": 0.0,
    "no_speech_threshold": None,
}


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
    audios = sounds(*SIZES)
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
    audios = sounds(*SIZES)
    found = many(Whisper(engine(), failing), audios, batch_size=8, **PLAIN)
    check_alone(found, audios, PLAIN)
    assert len(found) == len(SIZES)
    assert failing.n_failed > 0
    assert failing.sessions == []


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_a_window_that_always_fails_fails_its_recording(failing: Failing, batch_size: int) -> None:
    audios = sounds(*SIZES)
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
    audios = sounds(*SIZES)
    found = many(Whisper(engine(), failing), audios, batch_size=4, return_exceptions=True, **PLAIN)
    assert [type(found[i]) for i in range(len(SIZES))] == [EngineError] * len(SIZES)


def test_lack_of_memory_is_an_error_of_the_library(model: Whisper, watched: WatchedBackend) -> None:
    watched.fail, watched.error = 0, MemoryError()
    with pytest.raises(EngineError, match=r"memory.*lower beam_size"):
        model.transcribe(sounds(5.0)[0], **PLAIN)
    assert watched.sessions == []


def test_full_batches_again_after_a_failure(failing: Failing) -> None:
    failing.failures["encode"] = 1
    audios = sounds(*(2.0 + i for i in range(24)))
    many(Whisper(engine(), failing), audios, batch_size=4, max_new_tokens=3, **ENDLESS)
    assert max(len(seeds) for seeds in failing.of("encode")) == 4


def test_the_next_temperature_may_fail_too(failing: Failing) -> None:
    """Sampling with several candidates needs more memory."""
    audios = sounds(31.0, 64.0, 5.0)
    options = thresholds(audios)
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

    sound, other = sounds(9.0, 31.0)
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


# --- cancelling ----------------------------------------------------------------------------------


class Doors:
    """Counts the recordings that are read as a stream and open."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.n_open = 0
        self.n_opened = 0
        doors = self

        def open_audio(*args: Any, **kwargs: Any) -> Any:
            stream = audio.open_audio(*args, **kwargs)
            doors.n_open += 1
            doors.n_opened += 1
            close = stream.close

            def closing() -> None:
                doors.n_open -= 1
                close()

            stream.close = closing  # type: ignore[method-assign]
            return stream

        monkeypatch.setattr("whisper_opt.transcription.chunking.open_audio", open_audio)


@pytest.fixture
def doors(monkeypatch: pytest.MonkeyPatch) -> Doors:
    return Doors(monkeypatch)


@made_up()
@pytest.mark.parametrize("after", [0, 1, 2])
def test_closing_many_early(
    model: Whisper, watched: WatchedBackend, doors: Doors, after: int
) -> None:
    sound = spoken([1, 28, 32, 60, 64, 90, 100, 128], 200.0)
    audios = [sound, *sounds(5.0, 40.0), sound]
    options = [
        TranscribeOptions(**(BATCHED if i % 3 == 0 else PLAIN), max_new_tokens=4) for i in range(4)
    ]
    results: Any = model.transcribe_many(audios, options=options, batch_size=3)
    for _ in range(after):
        next(results)
    assert (watched.sessions == []) == (after == 0)
    assert (doors.n_opened > 0) == (after > 0)
    results.close()
    assert watched.sessions == []
    assert doors.n_open == 0


@made_up()
@pytest.mark.parametrize(
    ("how", "after"),
    [
        ("stream", 0),
        ("stream", 1),
        ("stream", 4),
        ("segments", 1),
        ("segments", 4),
        ("forgotten", 0),
        ("forgotten", 1),
        ("forgotten", 4),
    ],
)
def test_closing_a_stream_early(
    model: Whisper, watched: WatchedBackend, doors: Doors, after: int, how: str
) -> None:
    sound = spoken([1, 28, 32, 60, 64, 90, 100, 128], 200.0)
    stream: Any = model.stream(sound, **BATCHED, batch_size=2)
    assert doors.n_open == 1
    for _ in range(after):
        next(stream.segments)
    if how == "stream":
        stream.close()
    elif how == "segments":
        stream.segments.close()
    else:
        del stream
        gc.collect()
    assert watched.sessions == []
    assert doors.n_open == 0
    decoded = len(watched.diary)
    if how == "stream":
        assert len(list(stream)) < 5  # what was already there
    assert len(watched.diary) == decoded


@pytest.mark.parametrize("what", ["encode", "open", "extend", "join"])
@pytest.mark.parametrize("which", [0, 1, 4])
def test_an_interrupt_leaves_nothing_behind(
    model: Whisper, watched: WatchedBackend, what: str, which: int
) -> None:
    audios = sounds(31.0, 5.0, 64.0, 95.0, 12.0)
    expected = many(model, audios, batch_size=3, **PLAIN)
    calls = [i for i, (name, _) in enumerate(watched.diary) if name == what]
    watched.diary.clear()
    watched.fail = calls[which]
    with pytest.raises(KeyboardInterrupt):
        many(model, audios, batch_size=3, **PLAIN)
    assert watched.sessions == []
    assert many(model, audios, batch_size=3, **PLAIN) == expected


def interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def test_an_interrupt_while_progress_is_shown(model: Whisper, watched: WatchedBackend) -> None:
    with pytest.raises(KeyboardInterrupt):
        many(model, sounds(31.0, 5.0, 64.0), batch_size=3, on_progress=interrupt, **PLAIN)
    assert watched.sessions == []


@made_up()
def test_an_interrupt_while_progress_of_a_stream_is_shown(
    model: Whisper, watched: WatchedBackend, doors: Doors
) -> None:
    sound = spoken([1, 28, 32, 60, 64, 90, 100, 128], 200.0)
    with pytest.raises(KeyboardInterrupt):
        model.transcribe(sound, on_progress=interrupt, **BATCHED)
    assert watched.sessions == []
    assert doors.n_open == 0


# --- fallback ------------------------------------------------------------------------------------

LADDER: dict[str, Any] = {
    "temperature": (0.0, 0.4, 1.0),
    "no_speech_threshold": None,
    "vad": "off",
    "seed": 5,
}


def thresholds(audios: Sequence[F32]) -> dict[str, Any]:
    """Temperatures with a threshold that about half the results at temperature 0 do not pass."""
    found = [segment for sound in audios for segment in quiet_model().transcribe(sound, **PLAIN)]
    middle = float(np.median([segment.avg_logprob for segment in found]))
    return {**LADDER, "logprob_threshold": middle, "compression_ratio_threshold": None}


@pytest.mark.parametrize("beam_size", [None, 3])
def test_windows_fall_back_one_by_one(
    model: Whisper, watched: WatchedBackend, beam_size: int | None
) -> None:
    audios = sounds(31.0, 64.0, 5.0, 95.0)
    options = {**thresholds(audios), "beam_size": beam_size, "best_of": 2}
    found = many(model, audios, batch_size=4, **options)
    temperatures = [segment.temperature for t in found.values() for segment in t]
    assert len(set(temperatures)) > 1
    assert set(temperatures) <= {0.0, 0.4, 1.0}
    for i, sound in enumerate(audios):
        assert found[i] == quiet_model().transcribe(sound, **options)
    attempts = collections.Counter(seed for seed, _ in watched.prompts)
    assert {1, 2, 3} >= set(attempts.values()) > {1}
    # the encoded audio is used again
    assert collections.Counter(watched.windows) == dict.fromkeys(attempts, 1)
    assert watched.most == 4


def test_others_go_on_while_one_falls_back(model: Whisper, watched: WatchedBackend) -> None:
    audios = sounds(31.0, 64.0, 5.0, 95.0)
    many(model, audios, batch_size=4, **thresholds(audios))
    begun: set[int] = set()
    undisturbed = 0
    running: frozenset[int] = frozenset()
    again: set[int] = set()
    for what, seeds in watched.diary:
        if what == "open":
            again |= seeds & begun
            begun |= seeds
        if what == "extend":
            undisturbed += bool(again and (seeds & running) - again)
            assert again <= seeds
            running, again = seeds, set()
    assert undisturbed > 0


def test_the_prompt_is_the_same_at_every_temperature(
    model: Whisper, watched: WatchedBackend
) -> None:
    audios = sounds(64.0, 95.0)
    many(model, audios, batch_size=2, **thresholds(audios))
    prompts: dict[int, set[tuple[int, ...]]] = collections.defaultdict(set)
    for seed, prompt in watched.prompts:
        prompts[seed].add(prompt)
    assert {len(each) for each in prompts.values()} == {1}
    assert len(watched.prompts) > len(prompts)


def test_a_silent_window_does_not_fall_back(model: Whisper, watched: WatchedBackend) -> None:
    audios = sounds(64.0, 95.0, 31.0)
    options = {**LADDER, "logprob_threshold": -0.001, "no_speech_threshold": 0.3}
    many(model, audios, batch_size=3, **options)
    attempts = collections.Counter(seed for seed, _ in watched.prompts)
    assert set(attempts.values()) == {1, 3}


# --- the batched strategy ------------------------------------------------------------------------


def moved(segment: Segment, by: float, i: int) -> Segment:
    words = segment.words and tuple(
        dataclasses.replace(word, start=word.start + by, end=word.end + by)
        for word in segment.words
    )
    return dataclasses.replace(
        segment,
        id=i,
        start=segment.start + by,
        end=segment.end + by,
        seek=segment.seek + round(by * 100),
        words=words,
    )


def same(found: Sequence[Segment], expected: Sequence[Segment]) -> None:
    """Equal but for the rounding of times."""
    assert len(found) == len(expected)
    for mine, other in zip(found, expected):
        times: dict[str, Any] = {"start": mine.start, "end": mine.end, "words": mine.words}
        assert dataclasses.replace(other, **times) == mine
        assert (mine.start, mine.end) == pytest.approx((other.start, other.end), abs=1e-6)
        assert (mine.words is None) == (other.words is None)
        for word, another in zip(mine.words or (), other.words or ()):
            assert (word.word, word.probability) == (another.word, another.probability)
            assert (word.start, word.end) == pytest.approx((another.start, another.end), abs=0.011)
        assert len(mine.words or ()) == len(other.words or ())


def piece_by_piece(
    sound: F32, spans: Sequence[tuple[float, float]], **options: Any
) -> list[Segment]:
    """Every span as its own recording, with its segments at their times."""
    found: list[Segment] = []
    for start, end in spans:
        piece = sound[round(start * 16000) : round(end * 16000)]
        alone = quiet_model().transcribe(piece, vad="off", **options)
        found += [moved(segment, start, len(found) + i) for i, segment in enumerate(alone)]
    return found


@pytest.mark.parametrize("batch_size", [1, 2, 8])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"without_timestamps": True},
        {"beam_size": 3},
        {"word_timestamps": True},
        {"initial_prompt": "Ann", "prefix": "so"},
        {"hotwords": "Bob"},
        {"condition_on_previous_text": False},
    ],
    ids=lambda options: " ".join(options) or "defaults",
)
def test_clips_in_one_batch_equal_single_clips(
    model: Whisper, watched: WatchedBackend, options: dict[str, Any], batch_size: int
) -> None:
    sound = noise(150.0, 2)
    spans = [(0.0, 7.0), (9.5, 81.25), (82.0, 82.3), (90.0, 125.0), (126.0, 150.0)]
    points = [second for span in spans for second in span]
    given = {**PLAIN, **options}
    expected = piece_by_piece(sound, spans, **_without_vad(given))
    found = model.transcribe(
        sound, strategy="batched", clip_timestamps=points, batch_size=batch_size, **given
    )
    same(found.segments, expected)
    assert found.duration == 150.0
    assert [s.seek for s in found] == sorted(s.seek for s in found)
    assert watched.most == min(batch_size, 5)
    # the long clips took several windows
    assert len({s.seek for s in found if 950 <= s.seek < 8200}) >= 3
    assert watched.sessions == []


def _without_vad(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name != "vad"}


@pytest.mark.parametrize(
    ("points", "spans"),
    [
        ((70.0,), [(70.0, 80.0)]),  # to the end
        ((10, 20, 70), [(10.0, 20.0), (70.0, 80.0)]),
        ((70, 500), [(70.0, 80.0)]),
        ((5, 6, 90, 95), [(5.0, 6.0)]),  # after the end there is nothing
        ((5, 6, 90), [(5.0, 6.0)]),
    ],
)
def test_where_clips_end(
    model: Whisper, points: Sequence[float], spans: list[tuple[float, float]]
) -> None:
    sound = noise(80.0, 3)
    found = model.transcribe(sound, strategy="batched", clip_timestamps=points, **PLAIN)
    same(found.segments, piece_by_piece(sound, spans, **_without_vad(PLAIN)))


@made_up()
@pytest.mark.parametrize("batch_size", [1, 3])
def test_spans_of_speech_in_one_batch(
    model: Whisper, watched: WatchedBackend, batch_size: int
) -> None:
    sound = spoken([2, 9, 15, 40, 41.5, 58, 80, 104, 150, 162, 170, 199], 200.0, 4)
    longest: dict[str, Any] = {"vad_max_speech_duration": 25.0}
    spans = [
        span.seconds
        for span in pack(
            SpeechDetector(VadOptions(max_speech_duration=25.0)).spans(sound), N_SAMPLES
        )
    ]
    assert len(spans) >= 5
    expected = piece_by_piece(sound, spans, **_without_vad(PLAIN))
    found = model.transcribe(sound, batch_size=batch_size, **BATCHED, **longest)
    same(found.segments, expected)
    assert found.duration == 200.0
    assert watched.most == batch_size
    starts = [segment.start for segment in found]
    assert starts == sorted(starts)


@made_up()
def test_a_recording_without_speech(model: Whisper, watched: WatchedBackend, doors: Doors) -> None:
    found = model.transcribe(spoken([], 90.0), **BATCHED)
    noise_only = Dropped(3.0, 90.0, "loud sound")
    assert found == Transcript((), "en", 90.0, "", dropped=(noise_only,))
    assert watched.diary == []
    assert doors.n_open == 0


@made_up()
def test_segments_of_a_batched_stream_come_in_order_as_they_are_ready(
    model: Whisper, watched: WatchedBackend
) -> None:
    sound = spoken([2, 28, 34, 60, 66, 92, 98, 124, 130, 156], 160.0)
    steps: list[tuple[float, float]] = []
    stream = model.stream(
        sound, batch_size=2, on_progress=lambda *step: steps.append(step), **BATCHED
    )
    found: list[Segment] = []
    encoded: list[int] = []
    for segment in stream:
        found.append(segment)
        encoded.append(len(watched.windows))
    assert encoded[0] < encoded[-1]
    assert [segment.id for segment in found] == list(range(len(found)))
    assert [segment.start for segment in found] == sorted(segment.start for segment in found)
    done = [seconds for seconds, _ in steps]
    assert done == sorted(set(done))
    assert all(seconds <= total for seconds, total in steps)
    assert steps[-1] == (160.0, 160.0)


@made_up()
def test_strategies_mix(model: Whisper, watched: WatchedBackend) -> None:
    audios = [
        spoken([2, 9, 15, 40, 80, 104], 120.0, 1),
        spoken([3, 20], 64.0, 2),
        spoken([1, 29, 31, 58], 70.0, 3),
    ]
    options = [
        TranscribeOptions(**BATCHED),
        TranscribeOptions(**PLAIN, beam_size=2),
        TranscribeOptions(**BATCHED, max_new_tokens=3, word_timestamps=True),
    ]
    found = many(model, audios, options=options, batch_size=4)
    for i, (sound, chosen) in enumerate(zip(audios, options)):
        assert found[i] == quiet_model().transcribe(sound, options=chosen)
    assert watched.most == 4
    assert watched.sessions == []


def test_draws_of_two_chunks_are_independent() -> None:
    """The same audio twice in one recording gets different draws."""
    sound = noise(10.0, 6)
    twice = np.concatenate([sound, sound])
    options = {**PLAIN, "temperature": 1.0, "without_timestamps": True}
    found = quiet_model().transcribe(
        twice, strategy="batched", clip_timestamps=(0, 10, 10, 20), **options
    )
    assert len(found) == 2
    assert found[0].tokens != found[1].tokens


# --- a session that cannot be closed ----------------------------------------------------------


def test_all_is_closed_whatever_fails(model: Whisper, doors: Doors) -> None:
    """Recordings are closed even if a session cannot be closed."""

    def broken(session: WatchedSession) -> None:
        raise EngineError("the device is gone")

    sound = spoken([1, 28, 32, 60, 64, 90, 100, 128], 200.0)
    with made_up(), pytest.MonkeyPatch.context() as patch:
        stream = model.stream(sound, **BATCHED, batch_size=2)
        next(iter(stream))
        assert doors.n_open == 1
        patch.setattr(WatchedSession, "close", broken)
        with pytest.raises(EngineError, match="the device is gone"):
            stream.close()
    assert doors.n_open == 0


# --- single steps, and slow sources --------------------------------------------------------------


def jobs(*seconds: float, **options: Any) -> list[TranscriptionJob]:
    factory = quiet_model()._job_factory(FakeBackend(DIMS, talkative))
    chosen = TranscribeOptions(**{**PLAIN, **options})
    return [factory.job(sound, None, chosen) for sound in sounds(*seconds)]


def finish(scheduler: Scheduler) -> dict[TranscriptionJob, list[Segment]]:
    found: dict[TranscriptionJob, list[Segment]] = collections.defaultdict(list)
    while scheduler.busy:
        for recording, segments in scheduler.step():
            found[recording] += segments
    return found


def test_recordings_are_submitted_while_others_are_decoded(watched: WatchedBackend) -> None:
    scheduler = Scheduler(watched, VOCAB, 3)
    assert scheduler.step() == []
    first, second, third = jobs(31.0, 5.0, 40.0)
    scheduler.submit(first)
    assert scheduler.step() == []
    scheduler.submit(second)
    scheduler.submit(third)
    found = finish(scheduler)
    for recording, sound in zip((first, second, third), sounds(31.0, 5.0, 40.0)):
        assert recording.finished
        assert tuple(found[recording]) == quiet_model().transcribe(sound, **PLAIN).segments
    assert watched.most == 3
    scheduler.close()
    assert watched.sessions == []


@pytest.mark.parametrize("beam_size", [None, 3])
def test_a_cancelled_recording_makes_room_at_once(
    watched: WatchedBackend, beam_size: int | None
) -> None:
    scheduler = Scheduler(watched, VOCAB, 2)
    first, second, third, fourth = jobs(31.0, 5.0, 40.0, 3.0, beam_size=beam_size)
    for recording in (first, second, third, fourth):
        scheduler.submit(recording)
    for _ in range(2):
        assert scheduler.step() == []
    scheduler.cancel(first)
    scheduler.cancel(fourth)
    scheduler.step()
    running = watched.of("extend")[-1]
    assert len(running) == 2
    assert not running & set(windows_of(sounds(31.0)[0], **PLAIN, beam_size=beam_size))
    found = finish(scheduler)
    assert set(found) == {second, third}
    for recording, sound in zip((second, third), sounds(31.0, 5.0, 40.0)[1:]):
        alone = quiet_model().transcribe(sound, **PLAIN, beam_size=beam_size)
        assert tuple(found[recording]) == alone.segments
    assert watched.sessions == []


def test_cancelling_the_last_recording_closes_everything(watched: WatchedBackend) -> None:
    scheduler = Scheduler(watched, VOCAB, 2)
    (recording,) = jobs(31.0)
    scheduler.submit(recording)
    scheduler.step()
    assert watched.sessions
    scheduler.cancel(recording)
    assert not scheduler.busy
    assert watched.sessions == []


def test_a_slow_source_does_not_delay_results(model: Whisper) -> None:
    """Each transcript comes before the next recording does."""
    wanted: queue.Queue[int] = queue.Queue()

    def slow() -> Iterator[F32]:
        for i, sound in enumerate(sounds(5.0, 31.0, 3.0)):
            if i:
                assert wanted.get(timeout=60) == i - 1
            yield sound

    order = []
    for i, transcript in model.transcribe_many(slow(), batch_size=8, **PLAIN):
        order.append(i)
        assert transcript == quiet_model().transcribe(sounds(5.0, 31.0, 3.0)[i], **PLAIN)
        wanted.put(i)
    assert order == [0, 1, 2]


def test_errors_of_the_source_are_raised(model: Whisper, watched: WatchedBackend) -> None:
    def audios() -> Iterator[F32]:
        yield noise(31.0)
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        many(model, audios(), **PLAIN)
    assert watched.sessions == []


def test_dropping_the_results_ends_the_reading(model: Whisper) -> None:
    closed = threading.Event()

    def audios() -> Iterator[F32]:
        try:
            while True:
                yield noise(3.0)
        finally:
            closed.set()

    results = model.transcribe_many(audios(), batch_size=1, **PLAIN)
    next(results)
    del results
    gc.collect()
    assert closed.wait(30)
