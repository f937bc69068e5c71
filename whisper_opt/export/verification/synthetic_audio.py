"""Synthetic audio for measurements without recordings."""

from __future__ import annotations

from typing import Union

import numpy as np

from whisper_opt.core.arrays import F32, NDArray
from whisper_opt.core.dims import SAMPLE_RATE

__all__ = ["sample_times", "synthetic_voice"]


def sample_times(n_samples: int) -> NDArray:
    """The time of every sample in seconds, float64 [n_samples]."""
    return np.arange(n_samples, dtype=np.float64) / SAMPLE_RATE


def synthetic_voice(
    time: NDArray, pitch: float, pace: float, voiced: Union[NDArray, bool] = True
) -> F32:
    """Tones that glide and pause as speech does, float32 [n_samples].

    Args:
        time: time of every sample, seconds.
        pitch: fundamental frequency, Hz.
        pace: swells per second.
        voiced: bool [n_samples], false where the audio is silent.
    """
    phase = 2 * np.pi * (pitch * time + 8 * np.sin(2 * np.pi * 0.7 * time))
    tones = np.asarray(sum(np.sin(k * phase) / k for k in range(1, 9)))
    envelope = np.clip(np.sin(2 * np.pi * pace * time), 0, 1) * voiced
    samples: F32 = (0.2 * tones * envelope).astype(np.float32)
    return samples
