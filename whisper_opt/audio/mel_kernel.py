"""Log-mel spectrograms by the compiled kernels (``runtime/native/log_mel.h``).

They take a fifth of the time of numpy's functions, and have the same bits on all processors.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any, NamedTuple

import numpy as np

from whisper_opt.core.arrays import F32, NDArray
from whisper_opt.core.dims import N_FFT
from whisper_opt.core.native_library import load_kernels

__all__ = ["SparseFilters", "log_frames"]

_SIZES = ("n_samples", "n_frames", "n_mels")
_ARRAYS = ("samples", "window", "turns", "first_bin", "n_bins", "weights", "frames", "floor")


class _Arguments(ctypes.Structure):
    """``LogMel`` of ``kernels.h``."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in _SIZES),
        *((name, ctypes.c_void_p) for name in _ARRAYS),
    )


class SparseFilters(NamedTuple):
    """Mel filters without the bins on which they are zero.

    Attributes:
        first_bin: I32 [n_mels].
        n_bins: I32 [n_mels].
        weights: F32 [sum of n_bins], of one filter after the other.
    """

    first_bin: NDArray
    n_bins: NDArray
    weights: F32

    @classmethod
    def of(cls, filters: F32) -> SparseFilters:
        """Of filters [n_mels, n_bins], each of which is non-zero on neighbouring bins."""
        used = filters != 0
        n_bins = used.sum(axis=1).astype(np.int32)
        return cls(used.argmax(axis=1).astype(np.int32), n_bins, filters[used])


def log_frames(
    samples: F32, n_frames: int, window: F32, filters: SparseFilters
) -> tuple[F32, np.float32] | None:
    """The first frames of a spectrogram, clamped to 8 below their maximum and scaled.

    Args:
        samples: F32 [n_samples], contiguous; reflected at the first one, followed by zeros.
        n_frames: number of frames; their centres are 160 samples apart.
        window: F32 [400].
        filters: of 201 bins.

    Returns:
        F32 [n_mels, n_frames], and the clamp before scaling, which is no number if a power is not
        finite. None if there are no kernels for this processor.
    """
    compute = _function()
    if compute is None:
        return None
    n_mels = len(filters.n_bins)
    frames, floor = np.empty((n_mels, n_frames), np.float32), np.empty(1, np.float32)
    arrays = (samples, window, _turns(), *filters, frames, floor)
    addresses = (array.ctypes.data for array in arrays)
    result = compute(ctypes.byref(_Arguments(len(samples), n_frames, n_mels, *addresses)))
    if result < 0:
        return None
    return frames, np.float32(np.nan) if result else floor[0]


@functools.lru_cache(maxsize=1)
def _function() -> Any:
    library, _ = load_kernels()
    return None if library is None else library.whisper_opt_log_mel


@functools.lru_cache(maxsize=1)
def _turns() -> F32:
    """exp(-2 pi i n / 400), F32 [400, 2]."""
    phase = -2 * np.pi * np.arange(N_FFT) / N_FFT
    turns: F32 = np.stack([np.cos(phase), np.sin(phase)], axis=1).astype(np.float32)
    return turns
