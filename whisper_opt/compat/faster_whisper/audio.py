"""``faster_whisper.audio``: recordings as samples."""

from __future__ import annotations

from typing import Any, BinaryIO

import numpy as np

import whisper_opt

__all__ = ["SAMPLING_RATE", "Samples", "decode_audio", "pad_or_trim"]

SAMPLING_RATE = 16_000

Samples = Any
"""Float32 array [n]."""


def decode_audio(
    input_file: str | BinaryIO, sampling_rate: int = SAMPLING_RATE, split_stereo: bool = False
) -> Samples | tuple[Samples, Samples]:
    """A recording as mono samples, float32 [n] at 16 kHz.

    Args:
        input_file: path, or another source of :func:`whisper_opt.load_audio`.
        sampling_rate: 16,000; another rate is refused.
        split_stereo: return the left and the right channel instead of their mean; both are the
            same if there is only one.

    Raises:
        AudioError: the recording cannot be read.
        OptionError: ``sampling_rate`` is another rate.
    """
    check_rate(sampling_rate)
    if not split_stereo:
        return whisper_opt.load_audio(input_file)
    source: Any = input_file.read() if hasattr(input_file, "read") else input_file
    left = whisper_opt.load_audio(source, channel=0)
    try:
        return left, whisper_opt.load_audio(source, channel=1)
    except whisper_opt.AudioError:  # there is no second channel
        return left, left


def check_rate(sampling_rate: int) -> None:
    """Refuse a rate other than that of the models; raises OptionError."""
    if sampling_rate != SAMPLING_RATE:
        raise whisper_opt.OptionError(
            f"sampling_rate is {sampling_rate}; expected {SAMPLING_RATE}, the rate of the models;"
            " resample with soxr or scipy"
        )


def pad_or_trim(array: Any, length: int = 3000, *, axis: int = -1) -> Any:
    """``array`` cut, or padded with zeros, to ``length`` along ``axis``."""
    array = np.asarray(array)
    array = array.take(range(min(length, array.shape[axis])), axis)
    padding = [(0, 0)] * array.ndim
    padding[axis] = (0, length - array.shape[axis])
    return np.pad(array, padding)
