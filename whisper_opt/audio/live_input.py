"""Samples of a live session: blocks of any size, rate, type and number of channels."""

from __future__ import annotations

from typing import Any, Union

import numpy as np

from whisper_opt.audio.arrays import MAX_SAMPLE, integer_rate, too_loud
from whisper_opt.audio.decode import checked_rate, resampler_of
from whisper_opt.audio.media import MAX_CHANNELS, as_float
from whisper_opt.core.arrays import F32, NDArray
from whisper_opt.core.dims import SAMPLE_RATE
from whisper_opt.core.errors import AudioError

__all__ = ["LiveInput", "LiveSamples", "as_block", "check_rate"]

LiveSamples = Union[NDArray, bytes, bytearray, memoryview]
"""Samples [n] or [n, channels], floats or integers; or bytes of 16 bits, little endian."""


def as_block(samples: LiveSamples, channels: int) -> NDArray:
    """Samples as an array [n, channels] that nobody else changes.

    Args:
        samples: see :data:`LiveSamples`.
        channels: number of interleaved channels in bytes, or in an array [n].

    Raises:
        AudioError: they are not samples, or not finite, or their number does not fit the channels.
    """
    if isinstance(samples, (bytes, bytearray, memoryview)):
        data = bytes(samples)
        if len(data) % (2 * channels):
            raise AudioError(
                f"{len(data)} bytes are not a whole number of samples of 16 bits in {channels}"
                " channel(s); hold the rest back until its other bytes arrive"
            )
        return np.frombuffer(data, "<i2").reshape(-1, channels)
    if not isinstance(samples, np.ndarray) or samples.dtype.kind not in "iuf":
        raise AudioError(
            f"samples are {type(samples).__name__} {getattr(samples, 'dtype', '')}; expected bytes,"
            " or a numpy array of floats or integers"
        )
    if samples.ndim == 1 and len(samples) % channels == 0:
        samples = samples.reshape(-1, channels)
    if samples.ndim != 2 or not 0 < samples.shape[1] <= MAX_CHANNELS:
        raise AudioError(
            f"samples have shape {list(samples.shape)}; expected [n] (a multiple of {channels}) or"
            " [n, channels]"
        )
    if samples.dtype.kind == "f" and samples.size:
        peak = float(np.abs(samples).max())
        if not np.isfinite(peak):
            raise AudioError("samples hold NaN or infinity; expected finite ones")
        if peak > MAX_SAMPLE:
            raise AudioError(too_loud("the block", peak))
    block: NDArray = samples.copy()
    return block


class LiveInput:
    """Mixes blocks to mono and resamples them to 16 kHz."""

    def __init__(self) -> None:
        """Nothing was added."""
        self._rate = SAMPLE_RATE
        self._resampler: Any = None

    def feed(self, block: NDArray, rate: int) -> F32:
        """Add a block [n, channels] of any rate in Hz; returns F32 [m]."""
        mono = as_float(block).mean(axis=1, dtype=np.float32)
        before = self.finish() if rate != self._rate else np.empty(0, np.float32)
        if rate != self._rate:
            self._rate, self._resampler = rate, resampler_of(rate)
        found: F32 = self._resampler.resample_chunk(mono) if self._resampler else mono
        return np.concatenate([before, found]) if len(before) else found

    def finish(self) -> F32:
        """What is held back of the samples so far."""
        if self._resampler is None:
            return np.empty(0, np.float32)
        rest: F32 = self._resampler.resample_chunk(np.empty(0, np.float32), last=True)
        self._resampler = resampler_of(self._rate)
        return rest


def check_rate(rate: int) -> int:
    """The rate of a session in Hz.

    Raises:
        AudioError: it is no rate.
    """
    return checked_rate(integer_rate(rate), "the session")
