"""Checks on the input of every backend."""

from __future__ import annotations

import numpy as np

from whisper_opt.core.arrays import F32, Int
from whisper_opt.core.dims import ModelDims
from whisper_opt.core.errors import EngineError

__all__ = ["check_row_lengths", "checked_mel", "closed_session"]


def closed_session() -> EngineError:
    """The error for a session that is used after it was closed."""
    return EngineError("the session was closed; open another one")


def check_row_lengths(dims: ModelDims, lengths: Int) -> None:
    """Raise EngineError if a row would be longer than the model allows; int64 [n_seq]."""
    longest, limit = int(lengths.max()), dims.n_text_ctx
    if longest > limit:
        raise EngineError(f"a row would grow to {longest} tokens; the model holds {limit}")


def checked_mel(dims: ModelDims, mel: F32) -> F32:
    """A log-mel spectrogram as contiguous float32 [n_audio, n_mels, n_frames].

    Raises:
        EngineError: the shape is wrong, or there are more frames than one window has.
    """
    if mel.ndim != 3 or mel.shape[1] != dims.n_mels:
        raise EngineError(
            f"mel has shape {list(mel.shape)}; this engine expects [n_audio, {dims.n_mels},"
            " n_frames]"
        )
    longest = dims.n_audio_ctx * dims.frames_per_position
    if not 1 <= mel.shape[2] <= longest:
        raise EngineError(
            f"mel has {mel.shape[2]} frames; this engine encodes 1 to {longest} at a time"
        )
    return np.ascontiguousarray(mel, np.float32)
