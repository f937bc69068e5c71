"""The public names of the package."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

import whisper_opt
from whisper_opt.core import errors
from whisper_opt.core.remedies import install_hint, repair_hint


def test_public_names() -> None:
    assert sorted(whisper_opt.__all__) == [
        "Alignment",
        "AudioError",
        "BackendUnavailable",
        "CheckpointError",
        "Committed",
        "Dropped",
        "EngineClosed",
        "EngineError",
        "Failed",
        "LANGUAGES",
        "LANGUAGE_CODES",
        "Lag",
        "Live",
        "LiveEvent",
        "LiveOptions",
        "LiveSessionLost",
        "LiveSessionsFull",
        "LoadOptions",
        "ModelDims",
        "OptionError",
        "Partial",
        "QueueFull",
        "Segment",
        "Span",
        "Speakers",
        "SpeechStarted",
        "SpeechStopped",
        "Stream",
        "StreamError",
        "SubtitleOptions",
        "TranscribeOptions",
        "Transcript",
        "TranscriptionCancelled",
        "Turn",
        "Utterance",
        "VadOptions",
        "VerificationError",
        "Whisper",
        "WhisperOptError",
        "Word",
        "__version__",
        "align_text",
        "available_models",
        "decode_windows",
        "detect_speech",
        "load_audio",
        "log_mel_spectrogram",
        "render",
        "window_languages",
        "write",
    ]


def test_every_public_name_exists_and_is_documented() -> None:
    tables = {"LANGUAGES", "LANGUAGE_CODES"}
    for name in set(whisper_opt.__all__) - {"__version__", *tables}:
        value = getattr(whisper_opt, name)
        assert (value.__doc__ or "").strip(), name
        assert value.__name__ == name


def test_every_error_is_public_and_of_one_tree() -> None:
    assert set(errors.__all__) <= set(whisper_opt.__all__)
    for name in errors.__all__:
        assert issubclass(getattr(whisper_opt, name), whisper_opt.WhisperOptError)
    assert issubclass(whisper_opt.OptionError, ValueError)
    assert issubclass(whisper_opt.VerificationError, whisper_opt.EngineError)


def test_version() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+|rc\d+)?", whisper_opt.__version__)


def test_remedies_are_commands_that_work_without_an_index(monkeypatch: pytest.MonkeyPatch) -> None:
    assert install_hint("cpu").startswith("pip install '.[cpu]' in a clone of whisper-opt")
    either = install_hint("cuda13", "cuda12", arguments="--upgrade")
    assert either.startswith("pip install --upgrade '.[cuda13]' or '.[cuda12]' in a clone")
    assert "pip install --force-reinstall --no-deps ." in repair_hint()
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    for said in (install_hint("cpu"), repair_hint()):
        assert "build it again" in said
        assert "pip" not in said


def test_no_other_message_names_an_extra() -> None:
    """They all use :func:`whisper_opt.core.remedies.install_hint`."""
    package = Path(whisper_opt.__file__).parent
    for path in package.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert path.name == "remedies.py" or not re.search(r"pip install\W*whisper.opt", text), path
