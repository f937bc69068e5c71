"""What the package promises: its public names."""

from __future__ import annotations

import re

import whisper_opt
from whisper_opt.core import errors


def test_public_names() -> None:
    assert sorted(whisper_opt.__all__) == [
        "AudioError",
        "BackendUnavailable",
        "CheckpointError",
        "EngineError",
        "LoadOptions",
        "OptionError",
        "Segment",
        "Stream",
        "StreamError",
        "SubtitleOptions",
        "TranscribeOptions",
        "Transcript",
        "VadOptions",
        "VerificationError",
        "Whisper",
        "WhisperOptError",
        "Word",
        "__version__",
        "detect_speech",
        "load_audio",
        "write",
    ]


def test_every_public_name_is_there_and_documented() -> None:
    for name in set(whisper_opt.__all__) - {"__version__"}:
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
