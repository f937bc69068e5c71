"""The exception tree. Every error a caller can provoke is one of these.

    WhisperOptError
    ├── AudioError              the recording cannot be read, or is no usable audio
    ├── CheckpointError         the source weights are unreadable, incomplete or unsupported
    ├── EngineError             an engine directory is missing, damaged or too new
    │   └── VerificationError   an export does not compute what its checkpoint computes
    ├── BackendUnavailable      an optional dependency or device is not there
    ├── StreamError             a stream was closed, or failed, before its last segment
    └── OptionError             an option is bad or cannot be honoured (also a ValueError)

A message says what was found, what was expected and how to fix it.
"""

from __future__ import annotations

__all__ = [
    "AudioError",
    "BackendUnavailable",
    "CheckpointError",
    "EngineError",
    "OptionError",
    "StreamError",
    "VerificationError",
    "WhisperOptError",
]


class WhisperOptError(Exception):
    """Base of every error this library raises on purpose."""


class AudioError(WhisperOptError):
    """The recording cannot be opened, decoded or used."""


class CheckpointError(WhisperOptError):
    """The source checkpoint cannot be read or does not describe a Whisper model."""


class EngineError(WhisperOptError):
    """The engine directory is missing, damaged, too new or unusable."""


class VerificationError(EngineError):
    """The exported graphs disagree with the reference computation of the checkpoint."""


class BackendUnavailable(WhisperOptError):
    """A package or device needed for what was asked is not installed or not present."""


class StreamError(WhisperOptError):
    """The whole transcript of a stream is wanted, but the stream did not come to its end."""


class OptionError(WhisperOptError, ValueError):
    """An option has an unusable value, or contradicts the model or another option."""
