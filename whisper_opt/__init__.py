"""Whisper speech recognition on verified ONNX engines: no torch, no transformers at run time.

>>> import whisper_opt
>>> model = whisper_opt.Whisper.load("engines/tiny.en")  # doctest: +SKIP
>>> for segment in model.transcribe("talk.mp3"):  # doctest: +SKIP
...     print(segment.start, segment.end, segment.text)
"""

from whisper_opt.errors import (
    AudioError,
    BackendUnavailable,
    CheckpointError,
    EngineError,
    OptionError,
    VerificationError,
    WhisperOptError,
)
from whisper_opt.model import Stream, Whisper
from whisper_opt.options import SubtitleOptions, TranscribeOptions, VadOptions
from whisper_opt.results import Segment, Transcript, Word
from whisper_opt.version import __version__

__all__ = [
    "AudioError",
    "BackendUnavailable",
    "CheckpointError",
    "EngineError",
    "OptionError",
    "Segment",
    "Stream",
    "SubtitleOptions",
    "TranscribeOptions",
    "Transcript",
    "VadOptions",
    "VerificationError",
    "Whisper",
    "WhisperOptError",
    "Word",
    "__version__",
]
