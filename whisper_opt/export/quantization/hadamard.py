"""Queries and keys in a Hadamard basis of each head, in which rounding errors are smaller.

A score ``q @ k`` is the same in every orthonormal basis. Rounding ``q`` and ``k`` changes it by
about the root of ``sum(q_j ** 2 * k_j ** 2)`` float16 steps, which is large if both have most of
their norm in the same few channels. Whisper's often do: the bias of a query reaches 8 in single
channels of a head, and is below 1 in the others. A Hadamard matrix spreads the norm about evenly
over the channels. It is multiplied into the weights of the projections and costs nothing at run
time. QuaRot does the same for language models (Ashkboos et al. 2024, arXiv:2404.00456).
"""

from __future__ import annotations

import numpy as np

from whisper_opt.core.arrays import F32
from whisper_opt.core.dims import HEAD_DIM

__all__ = ["apply_hadamard"]


def apply_hadamard(values: F32) -> F32:
    """Multiply each head's channels by the Hadamard matrix of order 64 over 8.

    Args:
        values: float32 [..., n_head * 64], a projection's weights as [n_in, n_out] or its bias.

    Returns:
        float32 of the same shape. The order of summation is the same on every machine.
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
