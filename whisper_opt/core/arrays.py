"""Array types, and zeroed arrays aligned to cache lines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["F32", "Bool", "Int", "NDArray", "aligned_zeros", "softmax"]

F32 = npt.NDArray[np.float32]
Int = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]
NDArray = npt.NDArray[Any]

CACHE_LINE = 64
"""Bytes."""


def aligned_zeros(shape: Sequence[int], dtype: Any) -> NDArray:
    """``numpy.zeros`` aligned to a cache line, so that vector loads do not cross lines."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    raw = np.zeros(size + CACHE_LINE, np.uint8)
    start = -raw.ctypes.data % CACHE_LINE
    array: NDArray = raw[start : start + size].view(dtype).reshape(shape)
    return array


def softmax(scores: F32) -> F32:
    """Probabilities over the last axis, float32 as ``scores``."""
    probs: F32 = np.exp(scores - scores.max(axis=-1, keepdims=True))
    probs /= probs.sum(axis=-1, keepdims=True)
    return probs
