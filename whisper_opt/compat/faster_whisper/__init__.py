"""faster-whisper's interface on ONNX engines, without CTranslate2.

>>> from whisper_opt.compat.faster_whisper import WhisperModel
>>> segments, info = WhisperModel("base").transcribe("talk.mp3")  # doctest: +SKIP
>>> for segment in segments:  # doctest: +SKIP
...     print(segment.start, segment.end, segment.text)

Modules and names are those of faster-whisper 1.2.1. Every argument is honoured or refused by name;
docs/compat.md lists them. Errors are those of :mod:`whisper_opt`; ``OptionError`` is a
``ValueError``.
"""

from __future__ import annotations

import importlib
import sys

from whisper_opt.compat.faster_whisper.audio import decode_audio
from whisper_opt.compat.faster_whisper.transcribe import (
    BatchedInferencePipeline,
    Segment,
    TranscriptionInfo,
    TranscriptionOptions,
    WhisperModel,
    Word,
)
from whisper_opt.compat.faster_whisper.utils import (
    available_models,
    download_model,
    format_timestamp,
)
from whisper_opt.compat.faster_whisper.vad import VadOptions
from whisper_opt.compat.faster_whisper.version import __version__

__all__ = [
    "BatchedInferencePipeline",
    "Segment",
    "TranscriptionInfo",
    "TranscriptionOptions",
    "VadOptions",
    "WhisperModel",
    "Word",
    "__version__",
    "available_models",
    "decode_audio",
    "download_model",
    "format_timestamp",
    "install_as_faster_whisper",
]

_MODULES = ("audio", "feature_extractor", "tokenizer", "transcribe", "utils", "vad", "version")


def install_as_faster_whisper() -> None:
    """Make ``import faster_whisper`` import this package, for programs that cannot be changed.

    It must be called before they import it. A module ``faster_whisper.py`` on ``PYTHONPATH`` that
    calls this function does so for a program that is started unchanged: docs/compat.md.
    """
    sys.modules["faster_whisper"] = sys.modules[__name__]
    for name in _MODULES:
        module = importlib.import_module(f"{__name__}.{name}")
        sys.modules[f"faster_whisper.{name}"] = module
