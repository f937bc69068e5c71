"""``Whisper`` on engines exported from random weights."""

from __future__ import annotations

import dataclasses
import io
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from tests.support.fake_backend import FakeBackend
from tests.support.models import random_checkpoint, random_dims
from tests.support.watched_backend import noise
from whisper_opt import (
    AudioError,
    EngineError,
    OptionError,
    Stream,
    StreamError,
    TranscribeOptions,
    Transcript,
    Whisper,
)
from whisper_opt.core.arrays import F32
from whisper_opt.export import export
from whisper_opt.runtime.engine import Engine, read_engine
from whisper_opt.runtime.onnxruntime.backend import OrtBackend
from whisper_opt.text.vocabulary import Vocab

NARROW = {"n_audio_state": 64, "n_text_state": 64, "n_audio_layer": 1, "n_text_layer": 1}
SHORT: dict[str, Any] = {
    "max_new_tokens": 12,
    "no_speech_threshold": None,
    "vad": "off",
    "temperature": 0.0,
}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    checkpoint = random_checkpoint(random_dims(n_vocab=2000, **NARROW), seed=3)
    return export(checkpoint, tmp_path_factory.mktemp("model") / "english")


@pytest.fixture(scope="module")
def model(engine: Engine) -> Iterator[Whisper]:
    """An English-only model."""
    with Whisper.load(engine.path, threads=1) as model:
        yield model


@pytest.fixture(scope="module")
def polyglot(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Whisper]:
    """A multilingual model."""
    checkpoint = random_checkpoint(random_dims(**NARROW), seed=4)
    path = export(checkpoint, tmp_path_factory.mktemp("model") / "polyglot").path
    with Whisper.load(path, threads=1) as model:
        yield model


@pytest.fixture(scope="module")
def sound() -> F32:
    """41.5 s of noise, two windows."""
    return noise(41.5)


@pytest.fixture(scope="module")
def expected(model: Whisper, sound: F32) -> Transcript:
    return model.transcribe(sound, **SHORT)


def test_a_recording_of_two_windows(expected: Transcript) -> None:
    assert len({segment.seek for segment in expected}) >= 2
    assert [segment.id for segment in expected] == list(range(len(expected)))
    assert [segment.start for segment in expected] == sorted(segment.start for segment in expected)
    assert any(segment.tokens for segment in expected)
    assert expected.language == "en"
    assert expected.language_probability is None
    assert expected.duration == 41.5
    assert expected.text.strip()


def test_transcribe_is_a_stream_collected(model: Whisper, sound: F32, expected: Transcript) -> None:
    stream = model.stream(sound, **SHORT)
    assert isinstance(stream, Stream)
    assert (stream.language, stream.language_probability, stream.duration) == ("en", None, 41.5)
    assert tuple(stream) == expected.segments
    assert list(stream) == []


def test_options_and_overrides(model: Whisper, sound: F32, expected: Transcript) -> None:
    options = TranscribeOptions(**SHORT)
    assert model.transcribe(sound, options=options) == expected
    longer = dataclasses.replace(options, max_new_tokens=40, without_timestamps=True)
    assert model.transcribe(sound, options=longer) != expected
    back: dict[str, Any] = {"max_new_tokens": 12, "without_timestamps": False}
    assert model.transcribe(sound, options=longer, **back) == expected
    assert longer.max_new_tokens == 40


@pytest.mark.parametrize("name", ["transcribe", "stream"])
def test_an_unknown_option_names_the_known_ones(model: Whisper, sound: F32, name: str) -> None:
    with pytest.raises(OptionError, match="unknown option 'langage'; expected one of") as raised:
        getattr(model, name)(sound, langage="en")
    for field in dataclasses.fields(TranscribeOptions):
        assert field.name in str(raised.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"language": "German"}, "English-only"),
        ({"language": "xx"}, "unknown language"),
        ({"task": "translate"}, "only transcribe"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
    ],
)
def test_bad_options_are_refused_before_any_work(
    model: Whisper, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        model.stream("no such file.wav", **options)


def test_bad_audio_is_refused_at_once(model: Whisper) -> None:
    with pytest.raises(AudioError, match="no such file"):
        model.stream("no such file.wav")
    with pytest.raises(AudioError, match="sample_rate"):
        model.transcribe("sound.wav", sample_rate=8000)


def test_arrays_bytes_and_files_are_equal(model: Whisper, tmp_path: Path) -> None:
    sound = np.round(noise(3.0) * 32767).astype(np.int16)
    file = tmp_path / "sound.wav"
    soundfile.write(file, sound, 16000)
    data = file.read_bytes()
    expected = model.transcribe(sound.astype(np.float32) / 32768, **SHORT)
    assert expected.duration == 3.0
    assert len(expected) > 0
    for source in (sound, sound[:, None], file, str(file), data, io.BytesIO(data)):
        assert model.transcribe(source, **SHORT) == expected


def test_the_rate_of_an_array_is_used(model: Whisper) -> None:
    assert model.transcribe(noise(2.0), sample_rate=8000, **SHORT).duration == 4.0


@pytest.mark.parametrize("seconds", [0.0001, 0.0099])
def test_a_recording_too_short_for_a_frame_has_no_text(model: Whisper, seconds: float) -> None:
    found = model.transcribe(noise(seconds))
    assert (len(found), found.text) == (0, "")


def test_progress_grows_to_the_duration(model: Whisper, sound: F32) -> None:
    steps: list[tuple[float, float]] = []
    found = model.transcribe(sound, on_progress=lambda *step: steps.append(step), **SHORT)
    done = [seconds for seconds, _ in steps]
    assert done == sorted(set(done))
    assert len(done) >= 2
    assert steps[-1] == (found.duration, found.duration)
    assert {total for _, total in steps} == {found.duration}


def test_an_interrupt_leaves_the_model_usable(
    model: Whisper, sound: F32, expected: Transcript
) -> None:
    def interrupt(done: float, total: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.transcribe(sound, on_progress=interrupt, **SHORT)
    assert model.transcribe(sound, **SHORT) == expected


def test_a_stream_left_early_leaves_the_model_usable(
    model: Whisper, sound: F32, expected: Transcript
) -> None:
    left: Any = model.stream(sound, **SHORT)
    assert next(left.segments) == expected[0]
    left.segments.close()
    unread = model.stream(sound, **SHORT)
    half: Any = model.stream(sound, **SHORT)
    next(half.segments)
    assert model.transcribe(sound, **SHORT) == expected
    assert tuple(unread) == expected.segments
    assert tuple(half) == expected.segments[1:]


def test_earlier_calls_do_not_matter(model: Whisper, sound: F32, expected: Transcript) -> None:
    other = model.transcribe(noise(33.0, seed=9), **SHORT)
    assert other.text != expected.text
    model.transcribe(noise(1.0, seed=8), initial_prompt="Ann", without_timestamps=True)
    assert model.transcribe(sound, **SHORT) == expected
    assert model.transcribe(noise(33.0, seed=9), **SHORT) == other


def test_the_samples_are_left_alone(model: Whisper) -> None:
    sound = noise(1.0)
    kept = sound.copy()
    model.transcribe(sound, **SHORT)
    assert (sound == kept).all()


USES: dict[str, Callable[[Whisper, F32], Any]] = {
    "transcribe": lambda model, sound: model.transcribe(sound),
    "stream": lambda model, sound: model.stream(sound),
    "detect_language": lambda model, sound: model.detect_language(sound),
}


@pytest.mark.parametrize("use", USES)
def test_a_closed_model_raises_an_error(engine: Engine, use: str) -> None:
    with Whisper.load(engine.path, threads=1) as model:
        assert model.transcribe(noise(0.5), **SHORT).duration == 0.5
    with pytest.raises(EngineError, match="closed; load it again"):
        USES[use](model, noise(0.5))
    model.close()
    assert model.dims.n_vocab == 2000


def test_an_error_inside_the_block_passes_and_closes(engine: Engine) -> None:
    with pytest.raises(RuntimeError, match="mine"), Whisper.load(engine.path, threads=1) as model:
        raise RuntimeError("mine")
    with pytest.raises(EngineError, match="closed"):
        model.transcribe(noise(0.5))


def test_properties_of_a_model(model: Whisper, polyglot: Whisper) -> None:
    assert not model.is_multilingual
    assert model.languages == ("en",)
    assert polyglot.is_multilingual
    assert len(polyglot.languages) == 99
    assert polyglot.languages[:3] == ("en", "zh", "de")
    assert polyglot.dims == polyglot.engine.manifest.dims


def test_the_language_is_detected_unless_given(polyglot: Whisper) -> None:
    sound = noise(2.0)
    probs = polyglot.detect_language(sound)
    assert sorted(probs) == sorted(polyglot.languages)
    assert sum(probs.values()) == pytest.approx(1.0, abs=1e-5)
    detected = polyglot.transcribe(sound, **SHORT)
    best = max(probs, key=lambda code: probs[code])
    assert detected.language == best
    assert detected.language_probability == probs[best]
    told = polyglot.transcribe(sound, language=best.upper(), **SHORT)
    assert told.language_probability is None
    assert told.segments == detected.segments
    assert polyglot.transcribe(sound, language="Finnish", **SHORT).language == "fi"


def test_language_and_task_reach_the_prompt(polyglot: Whisper) -> None:
    sound = noise(2.0)
    found = {
        polyglot.transcribe(sound, language=language, task=task, **SHORT).segments
        for language in ("fi", "ja")
        for task in ("transcribe", "translate")
    }
    assert len(found) == 4


def test_an_english_model_detects_nothing(model: Whisper) -> None:
    with pytest.raises(OptionError, match="English-only"):
        model.detect_language(noise(0.5))


def first_choices(engine: Engine, tmp_path: Path, **lists: Any) -> tuple[int, int]:
    """First and second token of a model that prefers ids in descending order."""
    checkpoint = random_checkpoint(random_dims(n_vocab=2000, **NARROW), seed=3)
    path = export(dataclasses.replace(checkpoint, **lists), tmp_path / "engine").path

    def scores(seed: int, tokens: Sequence[int]) -> F32:
        return np.arange(2000, 0, -1).astype(np.float32)

    model = Whisper(read_engine(path), FakeBackend(engine.manifest.dims, scores))
    options: dict[str, Any] = {
        "max_new_tokens": 2,
        "vad": "off",
        "without_timestamps": True,
        "no_speech_threshold": None,
    }
    (segment,) = model.transcribe(noise(0.5), **options)
    return segment.tokens[0], segment.tokens[1]


def test_the_lists_of_the_checkpoint_are_suppressed(engine: Engine, tmp_path: Path) -> None:
    lists = {"suppress_tokens": (0, 1, 3), "begin_suppress_tokens": (2, 4)}
    assert first_choices(engine, tmp_path, **lists) == (5, 2)


def test_without_lists_those_of_the_vocabulary_are_used(engine: Engine, tmp_path: Path) -> None:
    vocab = Vocab(engine.tokenizer_json(), engine.manifest.dims)
    never = set(vocab.non_speech_tokens())
    allowed = [token for token in range(300) if token not in never]
    assert 0 in allowed
    assert 1 in never
    for said in (None, ()):  # the second as in engines of fine-tuned models
        lists = {"suppress_tokens": said, "begin_suppress_tokens": said}
        assert first_choices(engine, tmp_path / str(said), **lists) == (allowed[0], allowed[0])


def test_threads_must_be_positive(engine: Engine) -> None:
    with pytest.raises(OptionError, match="threads is 0"):
        Whisper.load(engine.path, threads=0)


# --- closed and failed streams ---------- -------------------------------------------------------


@pytest.mark.parametrize("n_read", [0, 1])
def test_a_closed_stream_has_no_transcript(model: Whisper, sound: F32, n_read: int) -> None:
    stream = model.stream(sound, **SHORT)
    for _ in range(n_read):
        next(iter(stream))
    stream.close()
    for _ in range(2):
        with pytest.raises(StreamError, match=rf"was closed after {n_read} segment\(s\)"):
            stream.transcript()


def test_a_failed_stream_has_no_transcript(model: Whisper, sound: F32) -> None:
    def fail(*_: float) -> None:
        raise LookupError("mine")

    stream = model.stream(sound, on_progress=fail, **SHORT)
    with pytest.raises(LookupError, match="mine"):
        stream.transcript()
    with pytest.raises(StreamError, match=r"failed \(LookupError: mine\) after") as caught:
        stream.transcript()
    assert isinstance(caught.value.__cause__, LookupError)


def test_a_stream_that_was_read_has_a_transcript(
    model: Whisper, sound: F32, expected: Transcript
) -> None:
    with model.stream(sound, **SHORT) as stream:
        assert tuple(stream) == expected.segments
        assert stream.transcript() == expected
    assert stream.transcript() == expected  # it stays available


def test_a_stream_is_closed_at_the_end_of_its_block(model: Whisper, sound: F32) -> None:
    with model.stream(sound, **SHORT) as stream:
        next(iter(stream))
    with pytest.raises(StreamError, match="was closed"):
        stream.transcript()


def test_a_stream_of_a_closed_model(engine: Engine, sound: F32) -> None:
    """A stream that has started continues, one that has not started raises an error."""
    model = Whisper.load(engine.path, threads=1)
    expected = model.transcribe(sound, **SHORT)
    begun, other = model.stream(sound, **SHORT), model.stream(sound, **SHORT)
    next(iter(begun))
    model.close()
    assert begun.transcript() == expected
    with pytest.raises(EngineError, match="closed; load it again"):
        other.transcript()


def test_a_bad_tokenizer_closes_what_was_opened(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = shutil.copytree(engine.path, tmp_path / "engine")
    tokenizer = path / "tokenizer.json"
    tokenizer.write_text(" " * tokenizer.stat().st_size)
    n_closed = 0

    def close(backend: object) -> None:
        nonlocal n_closed
        n_closed += 1

    monkeypatch.setattr(OrtBackend, "close", close, raising=False)
    with pytest.raises(EngineError, match=r"tokenizer\.json"):
        Whisper.load(path, threads=1)
    assert n_closed == 1
