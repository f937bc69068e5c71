"""Whisper speech recognition on verified ONNX engines, without torch or transformers.

>>> import whisper_opt
>>> model = whisper_opt.Whisper.load("engines/tiny.en")  # doctest: +SKIP
>>> for segment in model.transcribe("talk.mp3"):  # doctest: +SKIP
...     print(segment.start, segment.end, segment.text)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from whisper_opt.core.errors import (
    AudioError,
    BackendUnavailable,
    CheckpointError,
    EngineClosed,
    EngineError,
    LiveSessionLost,
    LiveSessionsFull,
    OptionError,
    QueueFull,
    StreamError,
    TranscriptionCancelled,
    VerificationError,
    WhisperOptError,
)
from whisper_opt.core.version import __version__

if TYPE_CHECKING:
    from whisper_opt.audio.decode import load_audio
    from whisper_opt.audio.features import log_mel_spectrogram
    from whisper_opt.audio.vad import Span, detect_speech
    from whisper_opt.core.dims import ModelDims
    from whisper_opt.core.model_names import available_models
    from whisper_opt.core.options import (
        LiveOptions,
        LoadOptions,
        SubtitleOptions,
        TranscribeOptions,
        VadOptions,
    )
    from whisper_opt.serving.live.live import Live
    from whisper_opt.text.languages import LANGUAGE_CODES, LANGUAGES
    from whisper_opt.text.live_events import (
        Committed,
        Failed,
        Lag,
        LiveEvent,
        Partial,
        Speakers,
        SpeechStarted,
        SpeechStopped,
        Utterance,
    )
    from whisper_opt.text.results import Dropped, Segment, Transcript, Turn, Word
    from whisper_opt.text.writers import render, write
    from whisper_opt.transcription.forced_alignment import Alignment, align_text
    from whisper_opt.transcription.mel_windows import decode_windows, window_languages
    from whisper_opt.transcription.model import Whisper
    from whisper_opt.transcription.stream import Stream

__all__ = [
    "LANGUAGES",
    "LANGUAGE_CODES",
    "Alignment",
    "AudioError",
    "BackendUnavailable",
    "CheckpointError",
    "Committed",
    "Dropped",
    "EngineClosed",
    "EngineError",
    "Failed",
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

_HOME = {
    "ModelDims": "core.dims",
    "available_models": "core.model_names",
    "Whisper": "transcription.model",
    "Stream": "transcription.stream",
    **dict.fromkeys(
        ("LiveOptions", "LoadOptions", "SubtitleOptions", "TranscribeOptions", "VadOptions"),
        "core.options",
    ),
    **dict.fromkeys(("Committed", "Failed", "Lag", "LiveEvent", "Partial"), "text.live_events"),
    **dict.fromkeys(
        ("Speakers", "SpeechStarted", "SpeechStopped", "Utterance"), "text.live_events"
    ),
    "Live": "serving.live.live",
    **dict.fromkeys(("Dropped", "Segment", "Transcript", "Turn", "Word"), "text.results"),
    **dict.fromkeys(("LANGUAGES", "LANGUAGE_CODES"), "text.languages"),
    **dict.fromkeys(("render", "write"), "text.writers"),
    "load_audio": "audio.decode",
    "log_mel_spectrogram": "audio.features",
    **dict.fromkeys(("decode_windows", "window_languages"), "transcription.mel_windows"),
    **dict.fromkeys(("Alignment", "align_text"), "transcription.forced_alignment"),
    **dict.fromkeys(("Span", "detect_speech"), "audio.vad"),
}
"""Modules of the names that are imported at first use; importing numpy alone takes 0.1 s."""

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """Import a name or a module of the package at its first use (PEP 562)."""
        import importlib

        if name.startswith("_"):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        home = f"{__name__}.{_HOME.get(name, name)}"
        try:
            module = importlib.import_module(home)
        except ModuleNotFoundError as error:
            if error.name != home:  # a dependency of the module is missing
                raise
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
        value = getattr(module, name) if name in _HOME else module
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        """All public names, whether imported or not."""
        return sorted({*globals(), *__all__})
