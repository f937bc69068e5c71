"""Quantizes the output head for screening; the method is in :mod:`whisper_opt.screen`."""

from __future__ import annotations

import dataclasses

import numpy as np

from whisper_opt.arrays import F32, NDArray
from whisper_opt.checkpoints.checkpoint import Tensor

__all__ = ["QuantizedHead", "quantize_head"]


@dataclasses.dataclass(frozen=True)
class QuantizedHead:
    """The output head in 8 bits.

    Attributes:
        weight: int8 [n_text_state, n_vocab].
        scale: float32 [n_vocab], what one step of a token's weights is worth.
        mean: float32 [n_text_state], mean row, taken out before rounding.
        shrink: float32 [n_text_state], factors of the input; weights were divided by them.
        error: float32 [n_vocab], norm of what rounding took from each row.
        norm: float32 [1], largest norm of a rounded row.
    """

    weight: NDArray
    scale: F32
    mean: F32
    shrink: F32
    error: F32
    norm: F32


def quantize_head(embedding: Tensor, gain: Tensor, bias: Tensor) -> QuantizedHead:
    """Round the head to 8 bits a weight, one scale a token.

    Args:
        embedding: [n_vocab, n_text_state] token embedding.
        gain: [n_text_state] weight of the layer norm before the head: how large each channel gets.
        bias: [n_text_state] bias of it.
    """
    rows = embedding.read()
    mean = rows.mean(axis=0, dtype=np.float64).astype(np.float32)
    rows = rows - mean
    # both sides of the product get the same spread in every channel
    loud = np.sqrt(gain.read().astype(np.float64) ** 2 + bias.read().astype(np.float64) ** 2)
    spread = rows.std(axis=0, dtype=np.float64)
    grow = np.sqrt(np.maximum(loud, 1e-6) / np.maximum(spread, 1e-6)).astype(np.float32)
    rows *= grow
    scale = np.maximum(np.abs(rows).max(axis=1) / np.float32(127), np.float32(1e-12))
    rounded = np.rint(rows / scale[:, None])
    weight = np.ascontiguousarray(rounded.T.astype(np.int8))
    rounded *= scale[:, None]
    norm = np.linalg.norm(rounded, axis=1).max(keepdims=True)
    rows -= rounded
    error = np.linalg.norm(rows, axis=1)
    shrink = np.float32(1) / grow
    return QuantizedHead(weight, scale, mean, shrink, error, norm)
