"""Log-mel filter banks of Kaldi, which the embedding network was trained with.

Frames of 25 ms every 10 ms, only those that are complete; each without its mean, with pre-emphasis
0.97 and the window of Povey (Hann to the power of 0.85); power spectrum of 512 points; 80
triangular bands from 20 Hz to 8 kHz on the mel scale 1127 ln(1 + f / 700); natural logarithm.
Method: Kaldi, feat/feature-fbank and feat/mel-computations, without dither.
"""

from __future__ import annotations

import functools

import numpy as np

from whisper_opt.core.arrays import F32
from whisper_opt.core.dims import SAMPLE_RATE

__all__ = ["FRAME_SHIFT", "N_MELS", "FilterBanks"]

N_MELS = 80
FRAME_SHIFT = SAMPLE_RATE // 100
"""Samples from frame to frame."""
_LENGTH = SAMPLE_RATE // 40
_FFT = 512
_EMPHASIS = np.float32(0.97)
_LOWEST, _HIGHEST = 20.0, SAMPLE_RATE / 2
_FLOOR = np.float32(np.finfo(np.float32).eps)
_AT_ONCE = 4096
"""Frames per transform, which bounds the memory."""


@functools.lru_cache(maxsize=1)
def _window() -> F32:
    phase = 2 * np.pi * np.arange(_LENGTH) / (_LENGTH - 1)
    window: F32 = ((0.5 - 0.5 * np.cos(phase)) ** 0.85).astype(np.float32)
    return window


def _mel(hertz: float) -> float:
    return float(1127 * np.log1p(hertz / 700))


@functools.lru_cache(maxsize=1)
def _bands() -> F32:
    """Weights of the bins of the spectrum in the bands, F32 [257, 80]."""
    edges = np.linspace(_mel(_LOWEST), _mel(_HIGHEST), N_MELS + 2)
    bins = 1127 * np.log1p(np.arange(_FFT // 2 + 1) * (SAMPLE_RATE / _FFT) / 700)[:, None]
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    up, down = (bins - left) / (centre - left), (right - bins) / (right - centre)
    weights: F32 = np.maximum(0, np.minimum(up, down)).astype(np.float32)
    weights[-1] = 0  # Kaldi leaves the last bin out
    return weights


def _banks(frames: F32) -> F32:
    """F32 [n, 400] -> F32 [n, 80]."""
    frames = frames - frames.mean(axis=1, keepdims=True)
    emphasized = np.empty_like(frames)
    emphasized[:, 1:] = frames[:, 1:] - _EMPHASIS * frames[:, :-1]
    emphasized[:, 0] = frames[:, 0] * (1 - _EMPHASIS)
    spectrum = np.fft.rfft(emphasized * _window(), _FFT, axis=1)
    power = np.square(spectrum.real, dtype=np.float32) + np.square(spectrum.imag, dtype=np.float32)
    found: F32 = np.log(np.maximum(power @ _bands(), _FLOOR))
    return found


class FilterBanks:
    """The frames of a recording that comes in blocks."""

    def __init__(self) -> None:
        """No samples yet."""
        self._rest = np.empty(0, np.float32)

    def feed(self, samples: F32) -> F32:
        """Add F32 [n] at 16 kHz, any n; returns the frames that are complete, F32 [m, 80]."""
        joined = np.concatenate([self._rest, samples])
        n = max(0, (len(joined) - _LENGTH) // FRAME_SHIFT + 1)
        self._rest = joined[n * FRAME_SHIFT :].copy()
        if not n:
            return np.empty((0, N_MELS), np.float32)
        frames = np.lib.stride_tricks.sliding_window_view(joined, _LENGTH)[::FRAME_SHIFT][:n]
        return np.concatenate([_banks(frames[i : i + _AT_ONCE]) for i in range(0, n, _AT_ONCE)])
