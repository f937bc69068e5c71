"""The exception tree: all errors that this library raises on purpose.

    WhisperOptError
    ├── AudioError              the recording cannot be read, or is not usable audio
    ├── CheckpointError         the source weights are unreadable, incomplete or unsupported
    ├── EngineError             an engine directory is missing, damaged or too new
    │   └── VerificationError   an export does not match its checkpoint
    ├── BackendUnavailable      an optional package or a device is missing
    ├── StreamError             a stream was closed, or failed, before its last segment
    ├── QueueFull               an engine has as many recordings waiting as it accepts
    │   └── LiveSessionsFull    an engine has as many live sessions as it can serve in time
    ├── LiveSessionLost         a live session cannot be resumed
    ├── TranscriptionCancelled  a transcription was cancelled before its end
    ├── EngineClosed            an engine that transcribes for many callers was closed
    └── OptionError             an option is invalid or not supported (also a ValueError)

Messages say what was found, what was expected and how to fix it.
"""

from __future__ import annotations

__all__ = [
    "AudioError",
    "BackendUnavailable",
    "CheckpointError",
    "EngineClosed",
    "EngineError",
    "LiveSessionLost",
    "LiveSessionsFull",
    "OptionError",
    "QueueFull",
    "StreamError",
    "TranscriptionCancelled",
    "VerificationError",
    "WhisperOptError",
]


class WhisperOptError(Exception):
    """Base class of all errors that this library raises on purpose."""


class AudioError(WhisperOptError):
    """The recording cannot be opened, decoded or used."""


class CheckpointError(WhisperOptError):
    """The source checkpoint cannot be read or does not describe a Whisper model."""


class EngineError(WhisperOptError):
    """The engine directory is missing, damaged, too new or unusable."""


class VerificationError(EngineError):
    """The exported graphs do not match the reference computation of the checkpoint."""


class BackendUnavailable(WhisperOptError):
    """A package or device that is needed for the requested options is missing."""


class StreamError(WhisperOptError):
    """A transcript was requested of a stream that was closed, or failed, before its end."""


class QueueFull(WhisperOptError):
    """As many recordings wait for a :class:`whisper_opt.serving.Engine` as it accepts."""


class LiveSessionsFull(QueueFull):
    """An engine cannot serve another live session without delaying those that it has."""


class LiveSessionLost(WhisperOptError):
    """A live session has ended or is not known, or its audio has a gap: it cannot be resumed."""


class TranscriptionCancelled(WhisperOptError):
    """The result of a transcription was requested, but it was cancelled before its end."""


class EngineClosed(WhisperOptError):
    """A :class:`whisper_opt.serving.Engine` was closed, or accepts no more recordings."""


class OptionError(WhisperOptError, ValueError):
    """An option has an invalid value, or contradicts the model or another option."""
