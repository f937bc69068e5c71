"""Language detection: for a recording, and for every window."""

from __future__ import annotations

import collections
import dataclasses
import functools
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from tests.audio.test_vad import made_up
from tests.support.models import tokenizer_json
from tests.support.reference_windows import DIMS as ENGLISH
from tests.support.watched_backend import PLAIN, WatchedBackend, engine, many, noise, spoken
from tests.transcription.test_chunking import plateaus
from whisper_opt import OptionError, TranscribeOptions, Whisper
from whisper_opt.audio.features import log_mel
from whisper_opt.audio.vad import SpeechDetector, pack
from whisper_opt.core.arrays import F32
from whisper_opt.core.dims import N_SAMPLES
from whisper_opt.text.vocabulary import Vocab

DIMS = dataclasses.replace(ENGLISH, n_vocab=51865)
VOCAB = Vocab(tokenizer_json(DIMS), DIMS)
SHORT: dict[str, Any] = {**PLAIN, "max_new_tokens": 6}


class Polyglot:
    """Scores of a model that detects a language in each window.

    ``probabilities`` are those of some windows; other windows have one of three languages. Windows
    in ``silent`` have a high no-speech probability.
    """

    def __init__(self) -> None:
        self.probabilities: dict[int, dict[str, float]] = {}
        self.silent: set[int] = set()

    def language(self, seed: int) -> str:
        probabilities = self.probabilities.get(seed, {["de", "fr", "ja"][seed % 3]: 1.0})
        return max(probabilities, key=lambda code: probabilities[code])

    def __call__(self, seed: int, tokens: Sequence[int]) -> F32:
        if list(tokens) == [VOCAB.sot]:
            scores = np.full(DIMS.n_vocab, -30, np.float32)
            for code, p in self.probabilities.get(seed, {self.language(seed): 1.0}).items():
                scores[VOCAB.languages[code]] = np.log(p)
            if seed in self.silent:
                scores[VOCAB.no_speech] = 3
            return scores
        state = zlib.crc32(np.array(tokens, np.int64).tobytes(), seed)
        drawn = np.random.default_rng(state).standard_normal(DIMS.n_vocab, np.float32)
        drawn *= np.float32(4)
        drawn[VOCAB.eot] += 12
        return drawn


@pytest.fixture
def polyglot() -> Polyglot:
    return Polyglot()


@pytest.fixture
def watched(polyglot: Polyglot) -> WatchedBackend:
    return WatchedBackend(DIMS, polyglot)


@pytest.fixture
def model(watched: WatchedBackend) -> Whisper:
    return Whisper(engine(DIMS.n_vocab), watched)


@functools.cache
def sound() -> F32:
    """Three and a third windows."""
    return noise(100.0, 7)


def heads(samples: F32) -> list[int]:
    """Seeds of the windows of 30 s that detection uses."""
    mel = log_mel(samples, DIMS.n_mels)
    return [zlib.crc32(mel.head(start).tobytes()) for start in range(0, mel.n_frames, 3000)]


# --- one language for a recording ----------------------------------------------------------------

WINDOWS: list[dict[str, float]] = [
    {"en": 0.4, "de": 0.35, "fr": 0.25},
    {"en": 0.1, "de": 0.45, "fr": 0.45},
    {"en": 0.0625, "de": 0.875, "fr": 0.0625},
    {"en": 1.0},
]


@pytest.mark.parametrize(
    ("segments", "threshold", "n_used", "language", "probability"),
    [
        (1, 0.5, 1, "en", 0.4),
        (1, 0.4, 1, "en", 0.4),
        (2, 0.5, 2, "de", 0.4),
        (3, 0.5, 3, "de", 0.5583333),
        (4, 0.9, 4, "de", 0.41875),
        (4, 0.3, 1, "en", 0.4),  # sure at once
        (4, 0.4, 1, "en", 0.4),  # the threshold itself is enough
        (4, 0.45, 3, "de", 0.5583333),  # 0.4, 0.4, then sure: the mean counts, not one window
        (9, 0.9, 4, "de", 0.41875),  # there are no more
    ],
)
def test_windows_are_averaged_until_one_is_sure(
    model: Whisper,
    watched: WatchedBackend,
    polyglot: Polyglot,
    segments: int,
    threshold: float,
    n_used: int,
    language: str,
    probability: float,
) -> None:
    expected = heads(sound())
    polyglot.probabilities = dict(zip(expected, WINDOWS))
    found = model.detect_language(sound(), windows=segments, threshold=threshold)
    assert watched.windows == expected[:n_used]
    assert watched.sessions == []
    assert len(found) == 99
    assert list(found.values()) == sorted(found.values(), reverse=True)
    assert sum(found.values()) == pytest.approx(1, abs=1e-5)
    for code in ("en", "de", "fr"):
        mean = np.mean([window.get(code, 0) for window in WINDOWS[:n_used]])
        assert found[code] == pytest.approx(mean, abs=1e-5)
    assert next(iter(found)) == language
    assert found[language] == pytest.approx(probability, abs=1e-5)

    watched.diary.clear()
    transcript = model.transcribe(
        sound(),
        language_detection_segments=segments,
        language_detection_threshold=threshold,
        **SHORT,
    )
    assert transcript.language == language
    assert transcript.language_probability == pytest.approx(probability, abs=1e-5)
    assert watched.windows[:n_used] == expected[:n_used]
    # the prompts have the language; detection and decoding encode the same windows
    assert {prompt[prompt.index(VOCAB.sot) + 1] for _, prompt in watched.prompts} == {
        VOCAB.languages[language]
    }
    assert len(watched.windows) == n_used + len(watched.prompts)
    assert {segment.language for segment in transcript} == {None}


@pytest.mark.parametrize(
    "options",
    [
        {"language_detection_segments": 0},
        {"language_detection_threshold": 1.5},
        {"language": "de", "multilingual": True},
        {"language": "de", "language_detection_segments": 3},
    ],
)
def test_contradictions_are_refused(model: Whisper, options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=r"language|multilingual"):
        model.transcribe(sound(), **options)


def test_a_language_that_is_given_is_not_detected(model: Whisper, watched: WatchedBackend) -> None:
    found = model.transcribe(sound(), language="Finnish", task="translate", **SHORT)
    assert (found.language, found.language_probability) == ("fi", None)
    starts = {prompt[prompt.index(VOCAB.sot) :] for _, prompt in watched.prompts}
    assert starts == {(VOCAB.sot, VOCAB.languages["fi"], VOCAB.translate)}
    assert len(watched.windows) == len(watched.prompts)


@made_up()
@pytest.mark.parametrize(("segments", "n_used"), [(1, 1), (2, 2), (9, 3)])
def test_batched_detection_uses_speech(
    model: Whisper, watched: WatchedBackend, polyglot: Polyglot, segments: int, n_used: int
) -> None:
    """It uses the first chunks, wherever they begin, and they are decoded nevertheless."""
    recording = spoken([40, 60, 70, 88, 110, 125], 130.0)
    spans = list(pack(SpeechDetector().spans(recording), N_SAMPLES))
    assert len(spans) == 3
    expected = [heads(recording[span.start : span.end])[0] for span in spans]
    polyglot.probabilities = dict(zip(expected, WINDOWS))
    found = model.transcribe(
        recording,
        strategy="batched",
        language_detection_segments=segments,
        language_detection_threshold=1.0,
        max_new_tokens=6,
        temperature=0.0,
        no_speech_threshold=None,
    )
    assert watched.windows[:n_used] == expected[:n_used]
    assert found.language == ("en" if n_used == 1 else "de")
    mean = np.mean([window[found.language] for window in WINDOWS[:n_used]])
    assert found.language_probability == pytest.approx(mean, abs=1e-5)
    assert len({segment.seek for segment in found}) >= 3
    assert len(watched.windows) == n_used + len(watched.prompts)


def late_speech(start: float) -> F32:
    """100 s in which speech (``made_up``) begins at a time."""
    return spoken([start, start + 20, 80, 95], 100.0, 3)


@made_up()
@pytest.mark.parametrize(("start", "first"), [(0.0, 0.0), (14.0, 0.0), (20.0, 19.8), (42.0, 41.8)])
def test_the_language_is_that_of_speech(
    model: Whisper, watched: WatchedBackend, polyglot: Polyglot, start: float, first: float
) -> None:
    """Not that of the silence or music before it; the reference's window if it holds speech."""
    recording = late_speech(start)
    mel = log_mel(recording, DIMS.n_mels)
    window = zlib.crc32(mel.head(round(first * 100)).tobytes())
    polyglot.probabilities = {seed: {"fi": 1.0} for seed in heads(recording)}
    polyglot.probabilities[window] = {"de": 1.0}
    checked = {**SHORT, "vad": "check"}
    # frames of 32 ms do not begin where the windows of 10 ms do
    starts = [round(first * 100) + i for i in range(-3, 4)] if first else [0]
    for at in starts:
        polyglot.probabilities[zlib.crc32(mel.head(at).tobytes())] = {"de": 1.0}
    assert next(iter(model.detect_language(recording))) == "de"
    assert model.transcribe(recording, **checked).language == "de"
    assert model.transcribe(recording, **{**SHORT, "vad": "cut"}).language == "de"
    assert model.transcribe(recording, **SHORT).language == ("de" if not first else "fi")


@made_up()
def test_below_the_threshold_more_speech_is_used(
    model: Whisper, watched: WatchedBackend, polyglot: Polyglot
) -> None:
    recording = plateaus([0, 28, 62, 90], 100.0)
    mel = log_mel(recording, DIMS.n_mels)
    first, silent, *_ = heads(recording)
    near = {zlib.crc32(mel.head(at).tobytes()) for at in range(6175, 6186)}
    polyglot.probabilities = {seed: {"de": 1.0} for seed in near}
    polyglot.probabilities |= {first: {"en": 0.4, "de": 0.35, "fr": 0.25}, silent: {"en": 1.0}}
    found = model.detect_language(recording)
    assert watched.windows[0] == first
    assert len(watched.windows) == 2
    assert watched.windows[1] in near
    assert next(iter(found)) == "de"
    assert found["de"] == pytest.approx(0.675, abs=1e-5)


def test_without_vad_windows_with_a_high_no_speech_probability_do_not_count(
    model: Whisper, polyglot: Polyglot
) -> None:
    first, second, *_ = heads(sound())
    polyglot.probabilities = {first: {"en": 1.0}, second: {"de": 1.0}}
    options = {**SHORT, "no_speech_threshold": 0.6}
    assert model.transcribe(sound(), **options).language == "en"
    polyglot.silent = {first}
    found = model.transcribe(sound(), **options)
    assert found.language == "de"
    assert found.language_probability == pytest.approx(1.0, abs=1e-5)
    assert model.transcribe(sound(), **SHORT).language == "en"  # no threshold
    polyglot.silent = set(heads(sound()))
    assert model.transcribe(sound(), **options).language == "en"  # as the reference


@made_up()
def test_clips_without_speech_are_not_used(model: Whisper, polyglot: Polyglot) -> None:
    recording = spoken([45, 70], 100.0, 3)
    silent, loud = heads(recording[: 30 * 16000])[0], heads(recording[40 * 16000 : 70 * 16000])[0]
    polyglot.probabilities = {silent: {"en": 1.0}, loud: {"de": 1.0}}
    options: dict[str, Any] = {**SHORT, "strategy": "batched", "vad": "check"}
    found = model.transcribe(recording, clip_timestamps=(0, 30, 40, 70), **options)
    assert found.language == "de"


@made_up()
@pytest.mark.parametrize("multilingual", [False, True])
def test_without_speech_no_language_is_detected(
    model: Whisper, watched: WatchedBackend, multilingual: bool
) -> None:
    found = model.transcribe(spoken([], 70.0), strategy="batched", multilingual=multilingual)
    assert (found.language, found.language_probability) == ("en", None)
    assert (len(found), found.duration) == (0, 70.0)
    assert watched.diary == []


def test_recordings_of_a_batch_have_their_own_languages(
    model: Whisper, watched: WatchedBackend, polyglot: Polyglot
) -> None:
    audios = [noise(35.0, seed) for seed in range(5)]
    expected = [polyglot.language(heads(each)[0]) for each in audios]
    assert len(set(expected)) > 1
    found = many(model, audios, batch_size=3, **SHORT)
    assert [found[i].language for i in range(5)] == expected
    for i, each in enumerate(audios):
        assert found[i] == model.transcribe(each, **SHORT)


# --- a language for every window -----------------------------------------------------------------


def language_of(prompt: Sequence[int]) -> str:
    token = prompt[list(prompt).index(VOCAB.sot) + 1]
    (code,) = (code for code, each in VOCAB.languages.items() if each == token)
    return code


@pytest.mark.parametrize("strategy", ["sequential", "batched"])
def test_every_window_has_its_language(
    model: Whisper, watched: WatchedBackend, polyglot: Polyglot, strategy: str
) -> None:
    clips: dict[str, Any] = {}
    if strategy == "batched":
        clips = {
            "strategy": strategy,
            "batch_size": 3,
            "clip_timestamps": (0, 29, 30, 59, 60, 89, 90, 100),
        }
    found = model.transcribe(noise(200.0, 3), multilingual=True, **SHORT, **clips)
    told = {seed: language_of(prompt) for seed, prompt in watched.prompts}
    assert len(told) >= 4
    assert told == {seed: polyglot.language(seed) for seed in told}
    assert len(set(told.values())) > 1
    # one window to begin with, and each window once: nothing is encoded again to detect
    counts = collections.Counter(watched.windows)
    assert sum(counts.values()) == 1 + len(told)
    languages = {segment.seek: segment.language for segment in found}
    assert len(languages) == len(told)
    assert collections.Counter(languages.values()) == collections.Counter(told.values())
    assert found.language == polyglot.language(watched.windows[0])


def test_segments_carry_the_language_of_their_window(
    model: Whisper, watched: WatchedBackend, polyglot: Polyglot
) -> None:
    recording = noise(130.0, 4)
    found = model.transcribe(recording, multilingual=True, **SHORT)
    mel = log_mel(recording, DIMS.n_mels)
    for segment in found:
        size = min(3000, mel.n_frames - segment.seek)
        window = zlib.crc32(mel.window(segment.seek, size).tobytes())
        assert segment.language == polyglot.language(window)
        assert segment.to_dict()["language"] == segment.language
    assert len({segment.language for segment in found}) > 1


def test_the_text_before_is_kept_across_languages(model: Whisper, watched: WatchedBackend) -> None:
    found = model.transcribe(noise(95.0, 4), multilingual=True, initial_prompt="Ann", **SHORT)
    said = VOCAB.encode(" Ann")
    by_seek: dict[int, list[int]] = collections.defaultdict(list)
    for segment in found:
        by_seek[segment.seek] += segment.tokens
    room = DIMS.n_text_ctx // 2 - 1
    assert len(watched.prompts) == len(by_seek)
    for (_, prompt), tokens in zip(watched.prompts, by_seek.values()):
        assert list(prompt[: prompt.index(VOCAB.sot)]) == [VOCAB.sot_prev, *said[-room:]]
        said += tokens


def test_mixed_language_recordings_in_a_batch_equal_single_runs(model: Whisper) -> None:
    audios = [noise(20.0 + 25 * i, i) for i in range(4)]
    options = [
        TranscribeOptions(**SHORT, multilingual=True),
        TranscribeOptions(**SHORT),
        TranscribeOptions(**SHORT, multilingual=True, beam_size=2, word_timestamps=True),
        TranscribeOptions(**SHORT, language="fi"),
    ]
    found = many(model, audios, options=options, batch_size=4)
    for i, (each, chosen) in enumerate(zip(audios, options)):
        assert found[i] == model.transcribe(each, options=chosen)
    assert {segment.language for segment in found[3]} == {None}
    assert len({segment.language for i in (0, 2) for segment in found[i]}) > 1


def test_a_window_that_falls_back_keeps_its_language(
    model: Whisper, watched: WatchedBackend
) -> None:
    options = {**SHORT, "temperature": (0.0, 0.5), "logprob_threshold": -0.001}
    found = model.transcribe(noise(95.0, 4), multilingual=True, **options)
    assert {segment.temperature for segment in found} == {0.5}
    prompts: dict[int, list[tuple[int, ...]]] = collections.defaultdict(list)
    for seed, prompt in watched.prompts:
        prompts[seed].append(prompt)
    for first, second in prompts.values():
        assert first == second


def test_an_english_model_refuses_other_languages() -> None:
    backend = WatchedBackend()
    english = Whisper(engine(), backend)
    with pytest.raises(OptionError, match="English"):
        english.stream(noise(3.0), multilingual=True)
    good, bad = TranscribeOptions(**PLAIN), TranscribeOptions(**PLAIN, multilingual=True)
    audios = [noise(3.0), noise(4.0), noise(5.0)]
    found = many(english, audios, options=[good, bad, good], return_exceptions=True)
    assert isinstance(found[1], OptionError)
    for i in (0, 2):
        assert found[i] == english.transcribe(noise(3.0 + i), options=good)
    assert backend.sessions == []
