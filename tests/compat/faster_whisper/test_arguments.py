"""Every argument of faster-whisper is mapped, without effect, or refused by name."""

from __future__ import annotations

import dataclasses
import importlib
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest

import whisper_opt
import whisper_opt.compat.faster_whisper as faster_whisper
from tests.support.engines import random_engine
from tests.support.models import random_dims
from tests.support.signatures import Argument, arguments_of, check_argument, originals
from whisper_opt import EngineError, OptionError, WhisperOptError
from whisper_opt.compat.faster_whisper import calls
from whisper_opt.compat.faster_whisper.vad import VadOptions, library_options

ORIGINALS = originals("faster_whisper")
HOME = "faster_whisper.transcribe:"


def drop_in(path: str) -> Callable[..., Any]:
    module, _, name = path.partition(":")
    value: Any = importlib.import_module(f"whisper_opt.compat.{module}")
    for part in name.split("."):
        value = getattr(value, part)
    found: Callable[..., Any] = value
    return found


@pytest.mark.parametrize("path", ORIGINALS)
def test_arguments_and_defaults_are_the_originals(path: str) -> None:
    assert arguments_of(drop_in(path)) == ORIGINALS[path]


# a recording fake of the public API

RAMP = (np.arange(70 * 16_000) / 2**21).astype(np.float32)
"""Samples that tell their position."""
SPEECH = [whisper_opt.Span(0, 160_000), whisper_opt.Span(480_000, 640_000)]


class Recorder:
    """What the public API receives in one call."""

    def __init__(self) -> None:
        self.seen: dict[str, Any] = {}

    def load(self, source: Any, **options: Any) -> Any:
        self.seen.update(options, source=source)
        return self.model

    def stream(self, samples: Any, *, options: Any, on_progress: Any) -> Any:
        self.seen.update(dataclasses.asdict(options), n_samples=len(samples))
        return _Closed()

    def window_languages(self, model: Any, mels: Any) -> list[dict[str, float]]:
        self.seen["n_windows"] = self.seen.get("n_windows", 0) + len(mels)
        return [{"en": 0.4, "de": 0.3}]

    def log_mel_spectrogram(self, samples: Any, n_mels: int, padding: int) -> Any:
        self.seen["detected"] = (round(float(samples[0]) * 2**21), len(samples))
        return np.zeros((n_mels, (len(samples) + padding) // 160), np.float32)

    def detect_speech(self, samples: Any, *, options: Any) -> Any:
        self.seen["speech"] = dataclasses.asdict(options)
        return SPEECH

    def progress(self, **given: Any) -> Any:
        self.seen["progress"] = not given["disable"]
        return types.SimpleNamespace(n=0, close=lambda: None)

    model: Any


class _Closed:
    """A stream without segments."""

    def __enter__(self) -> list[Any]:
        return []

    def __exit__(self, *error: object) -> None:
        pass

    def __iter__(self) -> Any:
        return iter(())


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> whisper_opt.Whisper:
    engine = random_engine(tmp_path_factory.mktemp("engine") / "tiny", random_dims())
    return whisper_opt.Whisper.load(engine.path, device="cpu", threads=1)


@pytest.fixture
def recorder(real: whisper_opt.Whisper, monkeypatch: pytest.MonkeyPatch) -> Recorder:
    found = Recorder()
    found.model = types.SimpleNamespace(
        vocab=real.vocab,
        dims=real.dims,
        languages=real.languages,
        is_multilingual=True,
        stream=found.stream,
    )
    monkeypatch.setattr(whisper_opt.Whisper, "load", found.load)
    monkeypatch.setattr(whisper_opt, "window_languages", found.window_languages)
    monkeypatch.setattr(whisper_opt, "log_mel_spectrogram", found.log_mel_spectrogram)
    monkeypatch.setattr(whisper_opt, "detect_speech", found.detect_speech)
    monkeypatch.setattr(calls, "tqdm", found.progress)
    return found


# loading a model

LOADING = (
    Argument("model_size_or_path", "large-v3", {"source": "large-v3"}),
    Argument("device", "cuda", {"device": "cuda"}),
    Argument("device_index", 1, {"device_index": 1}),
    Argument("device_index", [1], {"device_index": 1}),
    Argument("device_index", [0, 1], refused="one model per GPU"),
    Argument("compute_type", "auto"),
    Argument("compute_type", "int8", {"precision": "int8"}),
    Argument("compute_type", "int8_float16", {"precision": "int8"}),
    Argument("compute_type", "float16", {"precision": "fp16"}),
    Argument("compute_type", "float32", {"precision": "fp32"}),
    Argument("compute_type", "int16", refused="expected one of default, auto, int8"),
    Argument("cpu_threads", 3, {"threads": 3}),
    Argument("num_workers", 4),
    Argument("download_root", "cache", {"cache_dir": "cache"}),
    Argument("local_files_only", True, {"local_files_only": True}),
    Argument("files", {"model.bin": b""}, refused="write the files to a directory"),
    Argument("revision", "main", {"revision": "main"}),
    Argument("use_auth_token", True),
    Argument("use_auth_token", "hf_secret", refused="HF_TOKEN"),
    Argument("use_auth_token", False, refused="HF_HUB_DISABLE_IMPLICIT_TOKEN"),
    Argument("kernels", "off", {"kernels": "off"}),
    Argument("flash_attention", True, refused="argument of CTranslate2"),
)


@pytest.mark.parametrize("argument", LOADING, ids=str)
def test_arguments_of_a_model(argument: Argument, recorder: Recorder) -> None:
    def call(**given: Any) -> Mapping[str, Any]:
        recorder.seen = {}
        faster_whisper.WhisperModel(**{"model_size_or_path": "base", **given})
        return recorder.seen

    check_argument(argument, call)


def test_a_token_is_not_in_the_message(recorder: Recorder) -> None:
    with pytest.raises(OptionError) as caught:
        faster_whisper.WhisperModel("base", use_auth_token="hf_secret")
    assert "hf_secret" not in str(caught.value)


def test_a_model_that_is_not_cached_is_an_os_error(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(source: str, **options: Any) -> Any:
        raise EngineError(f"no engine at {source}")

    monkeypatch.setattr(whisper_opt.Whisper, "load", missing)
    with pytest.raises(FileNotFoundError, match="no engine at base") as caught:
        faster_whisper.WhisperModel("base", local_files_only=True)
    assert isinstance(caught.value, WhisperOptError)
    with pytest.raises(EngineError):
        faster_whisper.WhisperModel("base")


def test_a_directory_has_no_revision(recorder: Recorder, tmp_path: Path) -> None:
    faster_whisper.WhisperModel(str(tmp_path), revision="main")
    assert "revision" not in recorder.seen


DOWNLOADING = (
    Argument("size_or_id", "large-v3", {"source": "large-v3"}),
    Argument("output_dir", "engines/base", refused="whisper-opt export"),
    Argument("local_files_only", True, {"local_files_only": True}),
    Argument("cache_dir", "cache", {"cache_dir": "cache"}),
    Argument("revision", "main", {"revision": "main"}),
    Argument("use_auth_token", "hf_secret", refused="HF_TOKEN"),
)


@pytest.mark.parametrize("argument", DOWNLOADING, ids=str)
def test_arguments_of_download_model(
    argument: Argument, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Loaded:
        engine = types.SimpleNamespace(path="cache/engine")

        def __enter__(self) -> Loaded:
            return self

        def __exit__(self, *error: object) -> None:
            recorder.seen["closed"] = True

    recorder.model = Loaded()

    def call(**given: Any) -> Mapping[str, Any]:
        recorder.seen = {}
        assert faster_whisper.download_model(**{"size_or_id": "base", **given}) == "cache/engine"
        assert recorder.seen["closed"]
        return recorder.seen

    check_argument(argument, call)


# transcribing

WORDS = {"word_timestamps": True}
BOTH = (
    Argument("language", "de", {"language": "de", "n_windows": None, "detected": None}),
    Argument("task", "translate", {"task": "translate"}),
    Argument("log_progress", True, {"progress": True}),
    Argument("beam_size", 3, {"beam_size": 3}),
    Argument("beam_size", 1, {"beam_size": None, "patience": None}),
    Argument("patience", 2.0, {"patience": 2.0}),
    Argument("length_penalty", 0.0, {"length_penalty": 0.0}),
    Argument("length_penalty", 0.6, refused="expected 1 or 0"),
    Argument("repetition_penalty", 1.2, {"repetition_penalty": 1.2}),
    Argument("no_repeat_ngram_size", 3, {"no_repeat_ngram_size": 3}),
    Argument("suppress_blank", False, {"suppress_blank": False}),
    Argument("suppress_tokens", [220], {"suppress_tokens": (220,)}),
    Argument("suppress_tokens", None, {"suppress_tokens": ()}),
    Argument("word_timestamps", True, {"word_timestamps": True}),
    Argument("prepend_punctuations", "(", {"prepend_punctuations": "("}, given=WORDS),
    Argument("append_punctuations", ")", {"append_punctuations": ")"}, given=WORDS),
    Argument("prepend_punctuations", "("),
    Argument("multilingual", True, {"multilingual": True, "language": None}),
    Argument("max_new_tokens", 50, {"max_new_tokens": 50}),
    Argument("chunk_length", 30),
    Argument("chunk_length", 10, refused="windows have 30 s"),
    Argument("hotwords", "ONNX", {"hotwords": "ONNX"}),
    Argument("language_detection_segments", 0, refused="expected 1 or more"),
)
ONE_SPAN = {"threshold": 0.6, "min_speech_duration_ms": 250, "speech_pad_ms": 100}
SEQUENTIAL = (
    *BOTH,
    Argument("audio", RAMP[:160_000], {"n_samples": 160_000, "detected": (0, 160_000)}),
    Argument("best_of", 3, {"best_of": 3}),
    Argument("temperature", [0.0, 0.5], {"temperature": (0.0, 0.5)}),
    Argument("temperature", 0.0, {"temperature": (0.0,), "best_of": None}),
    Argument("compression_ratio_threshold", 2.0, {"compression_ratio_threshold": 2.0}),
    Argument("log_prob_threshold", -0.5, {"logprob_threshold": -0.5}),
    Argument("no_speech_threshold", None, {"no_speech_threshold": None}),
    Argument("condition_on_previous_text", False, {"condition_on_previous_text": False}),
    Argument("prompt_reset_on_temperature", 0.8, refused="expected 0.5"),
    Argument("prompt_reset_on_temperature", 0.8, given={"condition_on_previous_text": False}),
    Argument("initial_prompt", "Quilter", {"initial_prompt": "Quilter"}),
    Argument("prefix", "And", {"transcript_prefix": "And"}),
    Argument("prefix", "And", {"transcript_prefix": "And"}, given={"clip_timestamps": "0,2"}),
    Argument("prefix", "And", given={"clip_timestamps": "1,2"}),
    Argument("without_timestamps", True, {"without_timestamps": True}),
    Argument("max_initial_timestamp", 0.5, {"max_initial_timestamp": 0.5}),
    Argument("max_initial_timestamp", 0.0, {"max_initial_timestamp": 0.001}),
    Argument(
        "vad_filter",
        True,
        {
            "vad": "cut",
            "vad_threshold": 0.5,
            "vad_min_speech_duration": 0.0,
            "vad_min_silence_duration": 2.0,
            "vad_speech_pad": 0.4,
            "vad_max_speech_duration": float("inf"),
            "speech": dataclasses.asdict(library_options(VadOptions())),
            "detected": (0, 320_000),
        },
    ),
    Argument("vad_filter", True, given={"clip_timestamps": "1,2"}),
    Argument("vad_parameters", {"threshold": 0.6}),
    Argument(
        "vad_parameters",
        ONE_SPAN,
        {
            "vad_threshold": 0.6,
            "vad_min_speech_duration": 0.25,
            "vad_speech_pad": 0.1,
            "speech": dataclasses.asdict(library_options(VadOptions(**ONE_SPAN))),  # type: ignore[arg-type]
        },
        given={"vad_filter": True},
    ),
    Argument("vad_parameters", [], refused="expected VadOptions", given={"vad_filter": True}),
    Argument("vad_parameters", {"pad": 1}, refused="speech_pad_ms", given={"vad_filter": True}),
    Argument("clip_timestamps", "0"),
    Argument(
        "clip_timestamps", "1,2", {"clip_timestamps": (1.0, 2.0), "detected": (16_000, 480_000)}
    ),
    Argument("clip_timestamps", [0, 2], {"clip_timestamps": (0.0, 2.0)}),
    Argument("clip_timestamps", "one", refused="in seconds, as text or a list"),
    Argument(
        "hallucination_silence_threshold",
        2.0,
        {"hallucination_silence_threshold": 2.0},
        given=WORDS,
    ),
    Argument("language_detection_segments", 2, {"n_windows": 2, "detected": (0, 960_000)}),
    Argument(
        "language_detection_threshold",
        0.3,
        {"n_windows": 1},
        given={"language_detection_segments": 2},
    ),
)
CLIPS = [{"start": 1.0, "end": 2.5}, {"start": 3.0, "end": 4.0}]
BATCHED = (
    *BOTH,
    Argument("audio", RAMP[:-16_000], {"n_samples": 69 * 16_000}),
    Argument("best_of", 3, {"best_of": 3}, given={"temperature": 0.5}),
    Argument("best_of", 3),
    Argument(
        "temperature",
        [0.5, 0.8],
        {"temperature": (0.5,), "beam_size": None, "patience": None, "best_of": 5},
    ),
    Argument("compression_ratio_threshold", 2.0),
    Argument("log_prob_threshold", -0.5),
    Argument("no_speech_threshold", 0.1),
    Argument("condition_on_previous_text", False),
    Argument("prompt_reset_on_temperature", 0.8),
    Argument(
        "initial_prompt", "Quilter", {"initial_prompt": "Quilter", "carry_initial_prompt": True}
    ),
    Argument("prefix", "And"),
    Argument("without_timestamps", False, {"without_timestamps": False}),
    Argument("max_initial_timestamp", 0.5),
    Argument(
        "vad_filter",
        False,
        {
            "vad": "off",
            "clip_timestamps": (0.0, 10.0),
            "speech": None,
            "vad_threshold": 0.35,
            "vad_min_speech_duration": 0.1,
            "vad_min_silence_duration": 0.5,
            "vad_speech_pad": 0.2,
        },
        given={"audio": RAMP[:160_000], "language": "en"},
    ),
    Argument("vad_filter", False, refused="where to cut"),
    Argument(
        "vad_parameters",
        {"threshold": 0.6},
        {
            "vad_threshold": 0.6,
            "vad_min_silence_duration": 2.0,
            "speech": dataclasses.asdict(
                library_options(VadOptions(threshold=0.6, max_speech_duration_s=30.0))
            ),
        },
    ),
    Argument(
        "clip_timestamps",
        CLIPS,
        {"clip_timestamps": (1.0, 2.5, 3.0, 4.0)},
        given={"vad_filter": False, "audio": RAMP[:160_000], "language": "en"},
    ),
    Argument("clip_timestamps", "1,2", refused="dictionaries with start and end"),
    Argument("hallucination_silence_threshold", 2.0, given=WORDS),
    Argument("batch_size", 16, {"batch_size": 16}),
    Argument("language_detection_segments", 2),  # 20 s of speech: one window
    Argument("language_detection_threshold", 0.3),
)


def changes(cases: tuple[Argument, ...], path: str) -> set[str]:
    """Arguments of the original that no case is about."""
    return {name for name in ORIGINALS[path] if name[0] != "*"} - {case.name for case in cases}


@pytest.mark.parametrize(
    ("cases", "path"),
    [
        (LOADING, f"{HOME}WhisperModel.__init__"),
        (SEQUENTIAL, f"{HOME}WhisperModel.transcribe"),
        (BATCHED, f"{HOME}BatchedInferencePipeline.transcribe"),
        (DOWNLOADING, "faster_whisper.utils:download_model"),
    ],
    ids=["loading", "sequential", "batched", "downloading"],
)
def test_every_argument_has_a_case(cases: tuple[Argument, ...], path: str) -> None:
    assert changes(cases, path) == set()


def _transcribe(recorder: Recorder, *, batched: bool) -> Callable[..., Mapping[str, Any]]:
    model = faster_whisper.WhisperModel("base")
    pipeline = faster_whisper.BatchedInferencePipeline(model) if batched else model

    def call(**given: Any) -> Mapping[str, Any]:
        recorder.seen = {}
        segments, _ = pipeline.transcribe(**{"audio": RAMP, **given})
        assert list(segments) == []
        return recorder.seen

    return call


@pytest.mark.parametrize("argument", SEQUENTIAL, ids=str)
def test_arguments_of_transcribe(argument: Argument, recorder: Recorder) -> None:
    check_argument(argument, _transcribe(recorder, batched=False))


@pytest.mark.parametrize("argument", BATCHED, ids=str)
def test_arguments_of_the_batched_pipeline(argument: Argument, recorder: Recorder) -> None:
    check_argument(argument, _transcribe(recorder, batched=True))


def test_the_docs_say_what_every_argument_does() -> None:
    """Those with another name or meaning than here are in the table of drop-ins."""
    docs = Path(__file__).parents[3] / "docs"
    listed = (docs / "compat.md").read_text("utf-8").split("## openai-whisper")[0]
    options = (docs / "options.md").read_text("utf-8")
    for path, names in ORIGINALS.items():
        if path.endswith((".__init__", ".transcribe", ":download_model", ":VadOptions")):
            for name in names:
                assert name in listed or f"`{name}`" in options, name
