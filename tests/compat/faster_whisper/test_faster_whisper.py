"""The interface of faster-whisper on a tiny random model."""

from __future__ import annotations

import dataclasses
import inspect
import io
import math
import subprocess
import sys
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import whisper_opt
import whisper_opt.compat.faster_whisper as faster_whisper
from tests.conftest import Engines
from tests.support.engines import random_engine
from tests.support.models import random_dims
from whisper_opt import OptionError
from whisper_opt.compat.faster_whisper import audio, tokenizer, transcribe, utils, vad
from whisper_opt.compat.faster_whisper.feature_extractor import FeatureExtractor

SPEECH = Path(__file__).parents[2] / "data" / "speech"
JFK = SPEECH / "en" / "en-jfk.flac"
QUICK: dict[str, Any] = {"temperature": 0.0, "max_new_tokens": 12, "no_speech_threshold": None}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> faster_whisper.WhisperModel:
    engine = random_engine(tmp_path_factory.mktemp("engine") / "tiny", random_dims())
    return faster_whisper.WhisperModel(str(engine.path), device="cpu", cpu_threads=1)


@pytest.fixture(scope="module")
def samples() -> Any:
    return whisper_opt.load_audio(JFK)


# segments


def expected(model: faster_whisper.WhisperModel, samples: Any, **options: Any) -> list[Any]:
    """Segments with text of the library itself."""
    return [s for s in model.model.transcribe(samples, **options) if s.text.strip()]


def test_segments_are_those_of_the_library(
    model: faster_whisper.WhisperModel, samples: Any
) -> None:
    segments, info = model.transcribe(samples, language="en", word_timestamps=True, **QUICK)
    found = list(segments)
    same = expected(
        model,
        samples,
        language="en",
        word_timestamps=True,
        vad="off",
        beam_size=5,
        patience=1.0,
        temperature=0.0,
        max_new_tokens=12,
        no_speech_threshold=None,
    )
    assert [segment.id for segment in found] == list(range(1, len(same) + 1))
    assert found
    names = [f.name for f in dataclasses.fields(faster_whisper.Segment)]
    for mine, theirs in zip(found, same):
        for name in set(names) - {"id", "tokens", "words"}:
            assert getattr(mine, name) == getattr(theirs, name)
        assert mine.tokens == list(theirs.tokens)
        assert theirs.words is not None
        assert mine.words is not None
        assert [dataclasses.asdict(w) for w in mine.words] == [w.to_dict() for w in theirs.words]
    assert (info.language, info.language_probability, info.all_language_probs) == ("en", 1, None)
    assert info.duration == info.duration_after_vad == 11.0


def test_segments_are_decoded_as_they_are_taken(
    model: faster_whisper.WhisperModel, samples: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []
    stream = type(model.model).stream

    def counted(segments: Any) -> Any:
        for segment in segments:
            steps.append(1)
            yield segment

    def watched(self: Any, *args: Any, **given: Any) -> Any:
        found = stream(self, *args, **given)
        found.segments = counted(found.segments)
        return found

    monkeypatch.setattr(type(model.model), "stream", watched)
    segments, _ = model.transcribe(np.tile(samples, 6), language="en", **QUICK)
    assert inspect.isgenerator(segments)
    assert steps == []
    next(segments)
    assert len(steps) < 6
    segments.close()


def test_the_language_is_known_before_the_segments(
    model: faster_whisper.WhisperModel, samples: Any
) -> None:
    _, info = model.transcribe(samples)
    assert info.all_language_probs is not None
    assert len(info.all_language_probs) == 99
    assert (info.language, info.language_probability) == info.all_language_probs[0]
    assert model.detect_language(samples) == (
        info.language,
        info.language_probability,
        info.all_language_probs,
    )
    assert info.transcription_options.temperatures == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert set(info.transcription_options.suppress_tokens or ()) == {
        *model.model.vocab.non_speech_tokens(),
        *model.model.vocab.never_sampled(),
    }


@pytest.mark.parametrize("batched", [False, True])
def test_an_empty_recording_has_no_segments(
    batched: bool, model: faster_whisper.WhisperModel
) -> None:
    pipeline = faster_whisper.BatchedInferencePipeline(model) if batched else model
    segments, info = pipeline.transcribe(np.zeros(0, np.float32))
    assert (list(segments), info.duration, info.duration_after_vad) == ([], 0, 0)


def test_voice_activity_detection_is_reported(
    model: faster_whisper.WhisperModel, samples: Any
) -> None:
    silence = np.zeros(160_000, np.float32)
    sound = np.concatenate([silence, samples, silence])
    parameters = {"min_silence_duration_ms": 500, "speech_pad_ms": 200}
    _, info = model.transcribe(sound, language="en", vad_filter=True, vad_parameters=parameters)
    assert info.vad_options == faster_whisper.VadOptions(
        min_silence_duration_ms=500, speech_pad_ms=200
    )
    assert 9 < info.duration_after_vad < 12
    assert info.duration == 31.0
    pipeline = faster_whisper.BatchedInferencePipeline(model)
    _, info = pipeline.transcribe(sound, language="en")
    assert info.vad_options == faster_whisper.VadOptions(
        min_silence_duration_ms=160, max_speech_duration_s=30.0
    )
    assert 9 < info.duration_after_vad < 12


def test_clips_of_the_pipeline_are_segments(
    model: faster_whisper.WhisperModel, samples: Any
) -> None:
    pipeline = faster_whisper.BatchedInferencePipeline(model)
    clips = [{"start": 1.0, "end": 4.5}, {"start": 5.0, "end": 9.0}]
    segments, info = pipeline.transcribe(
        samples, language="en", clip_timestamps=clips, max_new_tokens=12
    )
    assert [(s.start, s.end) for s in segments] == [(1.0, 4.5), (5.0, 9.0)]
    assert info.duration_after_vad == 7.5


def test_the_prompt_may_be_ids_of_a_text(model: faster_whisper.WhisperModel, samples: Any) -> None:
    ids = model.hf_tokenizer.encode(" My fellow Americans").ids
    found = [
        [s.text for s in model.transcribe(samples, language="en", initial_prompt=p, **QUICK)[0]]
        for p in (ids, "My fellow Americans")
    ]
    assert found[0] == found[1]
    with pytest.raises(OptionError, match="initial_prompt is a list of ids"):
        model.transcribe(samples, language="en", initial_prompt=[model.model.vocab.sot])


def test_an_english_only_model_warns_and_uses_english(
    tmp_path: Path, samples: Any, caplog: pytest.LogCaptureFixture
) -> None:
    engine = random_engine(tmp_path / "tiny.en", random_dims(n_vocab=51864))
    model = faster_whisper.WhisperModel(str(engine.path), device="cpu", cpu_threads=1)
    assert model.supported_languages == ["en"]
    _, info = model.transcribe(samples, language="de", task="translate", multilingual=True)
    assert (info.language, info.language_probability, info.all_language_probs) == ("en", 1, None)
    assert len([r for r in caplog.records if "English-only" in r.message]) == 3
    with pytest.raises(OptionError, match="English-only"):
        model.detect_language(samples)


def test_other_parts_of_a_model_are_refused(model: faster_whisper.WhisperModel) -> None:
    with pytest.raises(AttributeError, match="no 'generate_segments': it runs ONNX engines"):
        model.generate_segments  # noqa: B018


# language


class Voices:
    """Languages of windows, one after another."""

    def __init__(self, *windows: dict[str, float]) -> None:
        self.left = list(windows)

    def __call__(self, model: Any, mels: Any) -> list[dict[str, float]]:
        assert mels.shape == (1, 80, 3000)
        return [self.left.pop(0)]


@pytest.mark.parametrize(
    ("threshold", "language", "probability", "left"),
    [(0.5, "fr", 0.6, 1), (0.9, "de", 0.4, 0), (None, "de", 0.4, 0)],
)
def test_the_language_is_that_of_most_windows(
    threshold: float | None,
    language: str,
    probability: float,
    left: int,
    model: faster_whisper.WhisperModel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    voices = Voices({"de": 0.3, "fr": 0.2}, {"fr": 0.6, "de": 0.4}, {"de": 0.4, "fr": 0.1})
    monkeypatch.setattr(whisper_opt, "window_languages", voices)
    found = model.detect_language(
        np.zeros(90 * 16_000, np.float32),
        language_detection_segments=3,
        language_detection_threshold=threshold,
    )
    assert found[:2] == (language, probability)
    assert found[2][0] == ((language, probability) if left else ("de", 0.4))
    assert len(voices.left) == left


def test_the_language_of_frames_and_of_speech(
    model: faster_whisper.WhisperModel, samples: Any
) -> None:
    padded = np.concatenate([samples, np.zeros(19 * 16_000, np.float32)])
    frames = model.feature_extractor(padded, padding=0)
    assert model.detect_language(features=frames) == model.detect_language(samples)
    late = np.concatenate([np.zeros(40 * 16_000, np.float32), samples])
    (speech,) = vad.get_speech_timestamps(late, speech_pad_ms=0, min_silence_duration_ms=5000)
    spoken = late[speech["start"] : speech["end"]]
    options = faster_whisper.VadOptions(speech_pad_ms=0, min_silence_duration_ms=5000)
    found = model.detect_language(late, vad_filter=True, vad_parameters=options)
    assert found == model.detect_language(spoken)


def test_without_a_recording_no_language_is_detected(model: faster_whisper.WhisperModel) -> None:
    with pytest.raises(OptionError, match="audio is None, and so is features"):
        model.detect_language()


# audio, frames, speech


def stereo(left: Any, right: Any) -> io.BytesIO:
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(2)
        out.setsampwidth(2)
        out.setframerate(16_000)
        out.writeframes(np.stack([left, right], axis=1).astype("<i2").tobytes())
    file.seek(0)
    return file


def test_channels_are_split() -> None:
    left, right = np.arange(1000), -np.arange(1000) * 2
    found = faster_whisper.decode_audio(stereo(left, right), split_stereo=True)
    assert np.array_equal(found[0] * 32768, left)
    assert np.array_equal(found[1] * 32768, right)
    mixed = faster_whisper.decode_audio(stereo(left, right))
    assert np.array_equal(mixed * 32768 * 2, left + right)


def test_one_channel_is_both() -> None:
    path = str(SPEECH / "formats" / "jfk-16k-mono-s16.wav")
    left, right = faster_whisper.decode_audio(path, split_stereo=True)
    assert np.array_equal(left, right)
    assert np.array_equal(left, faster_whisper.decode_audio(path))


def test_another_rate_is_refused(samples: Any) -> None:
    with pytest.raises(OptionError, match="sampling_rate is 8000; expected 16000"):
        faster_whisper.decode_audio(str(JFK), sampling_rate=8000)
    with pytest.raises(OptionError, match="sampling_rate is 8000; expected 16000"):
        vad.get_speech_timestamps(samples, sampling_rate=8000)


@pytest.mark.parametrize(
    ("name", "value"),
    [("sampling_rate", 8000), ("hop_length", 80), ("chunk_length", 10), ("n_fft", 512)],
)
def test_frames_of_another_shape_are_refused(name: str, value: int) -> None:
    with pytest.raises(OptionError, match=f"{name} is {value}; expected"):
        FeatureExtractor(**{name: value})


def test_frames(samples: Any) -> None:
    extractor = FeatureExtractor(128)
    assert extractor(samples).shape == (128, 1101)
    assert extractor(samples, padding=0).shape == (128, 1100)
    with pytest.raises(OptionError, match="chunk_length is 10; windows have 30 s"):
        extractor(samples, chunk_length=10)
    assert (extractor.n_samples, extractor.nb_max_frames) == (480_000, 3000)
    assert audio.pad_or_trim(extractor(samples)).shape == (128, 3000)


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({"threshold": 0.7}, {"threshold": 0.7}),
        ({"neg_threshold": 0.35}, {}),
        ({"min_speech_duration_ms": 250}, {"min_speech_duration": 0.25}),
        ({"max_speech_duration_s": 20}, {"max_speech_duration": 20}),
        ({"min_silence_duration_ms": 100}, {"min_silence_duration": 0.1}),
        ({"speech_pad_ms": 30}, {"speech_pad": 0.03}),
    ],
    ids=str,
)
def test_options_of_speech_detection(given: dict[str, Any], found: dict[str, Any]) -> None:
    assert vad.library_options(faster_whisper.VadOptions(**given)) == whisper_opt.VadOptions(
        **{
            "threshold": 0.5,
            "min_speech_duration": 0.0,
            "max_speech_duration": math.inf,
            "min_silence_duration": 2.0,
            "speech_pad": 0.4,
            **found,
        }
    )


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("neg_threshold", 0.2, "neg_threshold is 0.2, but speech ends 0.15 below"),
        ("speech_pad_ms", 9000, "speech_pad_ms=9000.*from 0 to 5"),
        ("max_speech_duration_s", 0.5, "max_speech_duration_s=0.5.*from 1 to inf"),
    ],
)
def test_options_of_speech_detection_out_of_range(name: str, value: Any, reason: str) -> None:
    with pytest.raises(OptionError, match=reason):
        vad.library_options(faster_whisper.VadOptions(**{name: value}))


def test_speech_is_that_of_the_library(samples: Any) -> None:
    found = vad.get_speech_timestamps(samples, min_silence_duration_ms=200)
    options = vad.library_options(faster_whisper.VadOptions(min_silence_duration_ms=200))
    spans = whisper_opt.detect_speech(samples, options=options)
    assert found == [{"start": span.start, "end": span.end} for span in spans]
    assert vad.get_speech_timestamps(samples[:0]) == []


def test_chunks_are_joined_up_to_a_duration() -> None:
    parts = [{"start": a, "end": b} for a, b in ((1, 4), (6, 8), (10, 19), (20, 21))]
    joined, described = vad.collect_chunks(np.arange(30), parts, 1, max_duration=5)
    assert [list(chunk) for chunk in joined] == [[1, 2, 3, 6, 7], list(range(10, 19)), [20]]
    assert [(d["offset"], d["duration"]) for d in described] == [(0, 5), (5, 9), (14, 1)]
    assert [part for d in described for part in d["segments"]] == parts
    ((empty,), _) = vad.collect_chunks(np.arange(30), [])
    assert empty.size == 0


@settings(deadline=None)
@given(
    gaps=st.lists(st.tuples(st.integers(0, 99), st.integers(1, 99)), min_size=1, max_size=6),
    late=st.integers(0, 40),
)
def test_times_in_joined_parts_are_those_of_the_recording(
    gaps: list[tuple[int, int]], late: int
) -> None:
    """Every sample of the joined parts, at 8 Hz, where times are exact."""
    rate, points = 8, np.cumsum(gaps)
    parts = [{"start": int(a), "end": int(b)} for a, b in zip(points[::2], points[1::2])]
    times = vad.SpeechTimestampsMap(parts, rate, time_precision=3)
    assert times.chunk_end_sample[-1] == sum(size for _, size in gaps)
    n_joined = 0
    for index, part in enumerate(parts):
        for sample in range(part["start"], part["end"]):
            assert times.get_chunk_index(n_joined / rate) == index
            assert times.get_original_time(n_joined / rate) == sample / rate
            n_joined += 1
        assert times.get_original_time(n_joined / rate, is_end=True) == part["end"] / rate
        assert times.get_original_time(n_joined / rate, index) == part["end"] / rate
    after = (n_joined + late) / rate
    assert times.get_original_time(after) == (parts[-1]["end"] + late) / rate


# tokens


def test_tokens(model: faster_whisper.WhisperModel) -> None:
    hf, vocab = model.hf_tokenizer, model.model.vocab
    found = tokenizer.Tokenizer(hf, multilingual=True, task="translate", language="de")
    assert found.sot_sequence == [vocab.sot, vocab.languages["de"], vocab.translate]
    assert found.language_code == "de"
    ids = [found.timestamp_begin, *found.encode(" A"), found.timestamp_begin + 54]
    assert found.decode(ids) == " A"
    assert found.decode_with_timestamps(ids) == "<|0.00|> A<|1.08|>"
    assert found.split_to_word_tokens(found.encode(" A A"))[0] == [" A", " A"]
    assert tokenizer.Tokenizer(hf, multilingual=False).sot_sequence == [vocab.sot]
    for name, token in {
        "<|de|>": vocab.languages["de"],
        "<|nospeech|>": vocab.no_speech,
        "<|1.08|>": vocab.times[54],
        "<|none|>": None,
        "A": hf.encode("A").ids[0],
        "<|endoftext|>": vocab.eot,
    }.items():
        assert hf.token_to_id(name) == token


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"task": "sing"}, "task is 'sing'; expected one of transcribe, translate"),
        ({"task": "transcribe", "language": "xx"}, "language is 'xx'; expected one of en, zh"),
        ({"tokenizer": "tiny"}, "tokenizer is a str; expected hf_tokenizer of a model"),
    ],
)
def test_a_tokenizer_of_nothing(
    given: dict[str, Any], reason: str, model: faster_whisper.WhisperModel
) -> None:
    with pytest.raises(OptionError, match=reason):
        tokenizer.Tokenizer(**{"tokenizer": model.hf_tokenizer, "multilingual": True, **given})


def test_all_suppressed_tokens(model: faster_whisper.WhisperModel) -> None:
    vocab = model.model.vocab
    plain = tokenizer.Tokenizer(model.hf_tokenizer, multilingual=False)
    never = set(vocab.never_sampled())
    assert set(transcribe.get_suppressed_tokens(plain, [13])) == {13, *never}
    symbols = set(vocab.non_speech_tokens())
    assert set(transcribe.get_suppressed_tokens(plain, [-1])) == {*symbols, *never}


# the package


def test_small_functions() -> None:
    assert utils.format_timestamp(3661.5, decimal_marker=",") == "01:01:01,500"
    assert utils.get_end([{"end": 3.0, "words": [{"end": 2.5}]}]) == 2.5
    assert utils.get_end([]) is None
    word = faster_whisper.Word(0.0, 1.0, " A", 0.5)
    with pytest.warns(DeprecationWarning, match="asdict"):
        assert word._asdict()["word"] == " A"
    assert transcribe.get_compression_ratio("a" * 100) > 5


def test_both_ways_to_transcribe_have_the_same_arguments() -> None:
    names = [
        set(inspect.getargs(kind.transcribe.__code__).args)
        for kind in (faster_whisper.WhisperModel, faster_whisper.BatchedInferencePipeline)
    ]
    assert names[1] - names[0] == {"batch_size"}


def test_programs_import_it_under_the_name_of_the_original(tmp_path: Path) -> None:
    (tmp_path / "faster_whisper.py").write_text(
        "from whisper_opt.compat.faster_whisper import install_as_faster_whisper\n"
        "install_as_faster_whisper()\n"
    )
    program = (
        "import faster_whisper, sys\n"
        "from faster_whisper.vad import VadOptions\n"
        "import faster_whisper.transcribe as transcribe\n"
        "assert VadOptions is faster_whisper.VadOptions is transcribe.VadOptions\n"
        "assert faster_whisper.__name__ == 'whisper_opt.compat.faster_whisper'\n"
    )
    subprocess.run(
        [sys.executable, "-c", program],
        check=True,
        env={"PYTHONPATH": f"{tmp_path}:{Path(whisper_opt.__file__).parents[1]}"},
    )


# real speech

CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "words": ({"word_timestamps": True}, {"word_timestamps": True}),
    "vad": (
        {"vad_filter": True, "vad_parameters": {"min_silence_duration_ms": 500}},
        {
            "vad": "cut",
            "vad_threshold": 0.5,
            "vad_min_speech_duration": 0.0,
            "vad_max_speech_duration": math.inf,
            "vad_min_silence_duration": 0.5,
            "vad_speech_pad": 0.4,
        },
    ),
    "clips": ({"clip_timestamps": "2,9"}, {"clip_timestamps": (2.0, 9.0)}),
    "prompts": (
        {"initial_prompt": "A speech.", "hotwords": "Amerricans"},
        {"initial_prompt": "A speech.", "hotwords": "Amerricans"},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_words_are_those_of_the_library(case: str, engines: Engines) -> None:
    given, options = CASES[case]
    plain = engines.model("tiny.en")
    model = faster_whisper.WhisperModel(str(plain.engine.path), cpu_threads=1, device="cpu")
    options = {"vad": "off", "beam_size": 5, "patience": 1.0, "best_of": 5, **options}
    samples = whisper_opt.load_audio(JFK)
    segments, _ = model.transcribe(samples, **given)
    found = list(segments)
    assert [(s.text, s.start, s.end) for s in found] == [
        (s.text, s.start, s.end) for s in plain.transcribe(samples, **options)
    ]
    assert found
    assert all(bool(s.words) == bool(given.get("word_timestamps")) for s in found)
