"""Recordings that are given as arrays."""

from __future__ import annotations

import numpy as np

from whisper_opt.audio.media import BLOCK, MAX_CHANNELS, Blocks, Piece, as_float
from whisper_opt.core.arrays import NDArray
from whisper_opt.core.dims import SAMPLE_RATE
from whisper_opt.core.errors import AudioError

__all__ = ["MAX_SAMPLE", "array_blocks", "integer_rate", "too_loud"]

MAX_SAMPLE = 8.0
"""Largest sample accepted, 18 dB above full scale; larger ones mean that the scale is wrong."""


def integer_rate(rate: int) -> int:
    """A sample rate as an int; raises AudioError if it is none. The range is checked later."""
    if isinstance(rate, bool) or not isinstance(rate, (int, np.integer)):
        raise AudioError(f"sample_rate is {rate!r}; expected an integer number of Hz")
    return int(rate)


def array_blocks(array: NDArray, sample_rate: int | None) -> Blocks:
    """Check an array and cut it into blocks.

    Raises:
        AudioError: its type, shape, scale or rate is not that of audio.
    """
    rate = SAMPLE_RATE if sample_rate is None else integer_rate(sample_rate)
    if array.dtype.kind not in "iuf":
        raise AudioError(f"audio array has dtype {array.dtype}; expected floats or integers")
    shape = list(array.shape)
    if array.ndim not in (1, 2):
        raise AudioError(
            f"audio array has shape {shape}; expected [n_samples] or [n_samples, n_channels]"
        )
    if array.ndim == 1:
        array = array[:, None]
    elif 0 < array.shape[0] < array.shape[1] and array.shape[0] <= 8:
        raise AudioError(
            f"audio array has shape {shape}, which looks like [n_channels, n_samples]; expected"
            " [n_samples, n_channels]: pass its transpose"
        )
    if array.shape[1] > MAX_CHANNELS:
        raise AudioError(
            f"audio array has shape {shape}: {array.shape[1]} channels; expected at"
            f" most {MAX_CHANNELS}"
        )
    _check_scale(array)
    seconds = len(array) / rate if rate > 0 else None
    for start in range(0, array.size and len(array), BLOCK):
        yield Piece(rate, as_float(array[start : start + BLOCK]), seconds)


def _check_scale(array: NDArray) -> None:
    """Refuse samples that were converted from another type without changing their scale."""
    if not array.size:
        return
    with np.errstate(invalid="ignore"):
        low, high = array.min(), array.max()
    if array.dtype.kind == "f":
        peak = max(float(high), -float(low))
        if MAX_SAMPLE < peak <= 2.0**32:
            raise AudioError(too_loud("audio array", peak))
        return
    for bits in (16, 32):
        kind = f"{'u' * (array.dtype.kind == 'u')}int{bits}"
        info = np.iinfo(kind)
        fits = info.min <= int(low) and int(high) <= info.max and (low or high)
        # 24-bit samples shifted up to 32 bits may be this quiet
        if array.dtype.itemsize * 8 > bits and fits and (array & 0xFF).any():
            raise AudioError(
                f"audio array is {array.dtype}, but its samples are from {low} to {high}, the"
                f" range of {kind}; convert it with .astype(numpy.{kind})"
            )


def too_loud(name: str, peak: float) -> str:
    """The error message for a largest sample of ``peak``."""
    return (
        f"{name} has a largest sample of {peak:,.6g}; expected about -1 to 1: divide by the full"
        " scale (32768 for 16-bit samples), or pass integers with their own dtype, such as int16"
    )
