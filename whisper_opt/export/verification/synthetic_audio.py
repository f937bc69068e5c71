"""Sound that needs no recording."""

from __future__ import annotations

from typing import Union

import numpy as np

from whisper_opt.core.arrays import F32, NDArray
from whisper_opt.core.dims import SAMPLE_RATE

__all__ = ["sample_times", "synthetic_voice"]


def sample_times(n_samples: int) -> NDArray:
    """The time of every sample [n_samples], float64."""
    return np.arange(n_samples, dtype=np.float64) / SAMPLE_RATE


def synthetic_voice(
    time: NDArray, pitch: float, pace: float, sounding: Union[NDArray, bool] = True
) -> F32:
    """Tones that glide and pause, as voices do, float32 [n_samples].

    Args:
        time: seconds.
        pitch: fundamental, Hz.
        pace: swells a second.
        sounding: bool [n_samples], where there is sound at all.
    """
    phase = 2 * np.pi * (pitch * time + 8 * np.sin(2 * np.pi * 0.7 * time))
    tones = np.asarray(sum(np.sin(k * phase) / k for k in range(1, 9)))
    loud = np.clip(np.sin(2 * np.pi * pace * time), 0, 1) * sounding
    samples: F32 = (0.2 * tones * loud).astype(np.float32)
    return samples
