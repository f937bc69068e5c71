"""Queries and keys in a basis of each head in which rounding costs less.

A score is ``q @ k``: the same in every basis that both are in. Rounding them moves it by about the
root of ``sum(q_j ** 2 * k_j ** 2)`` float16 steps, which is large where queries and keys lie in the
same few channels. Whisper's often do: a query's bias reaches 8 in single channels of a head whose
others are below 1. Multiplied by a Hadamard matrix, channels hold about equal shares. The matrix
goes into the projections' weights and costs nothing at run time, whatever the kernel. Quantized
language models are rotated for the same reason (QuaRot: Ashkboos et al. 2024, arXiv:2404.00456).
"""

from __future__ import annotations

import numpy as np

from whisper_opt.core.arrays import F32
from whisper_opt.core.dims import HEAD_DIM

__all__ = ["apply_hadamard"]


def apply_hadamard(values: F32) -> F32:
    """Each head's channels times the Hadamard matrix of order 64 over 8.

    Args:
        values: float32 [..., n_head * 64], a projection's weights as [n_in, n_out] or its bias.

    Returns:
        float32 of the same shape; sums are taken in one order on every machine.
    """
    heads = values.reshape(-1, HEAD_DIM)
    half = 1
    while half < HEAD_DIM:
        pairs = heads.reshape(-1, HEAD_DIM // (2 * half), 2, half)
        first, second = pairs[:, :, 0], pairs[:, :, 1]
        heads = np.stack([first + second, first - second], axis=2).reshape(-1, HEAD_DIM)
        half *= 2
    scale = np.float32(HEAD_DIM**-0.5)  # a power of two: exact
    return np.ascontiguousarray((heads * scale).reshape(values.shape))
