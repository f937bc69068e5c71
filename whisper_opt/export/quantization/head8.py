"""Quantizes the output head for screening; the method is in :mod:`whisper_opt.runtime.head_bounds`."""

from __future__ import annotations

import dataclasses

import numpy as np

from whisper_opt.core.arrays import F32, NDArray
from whisper_opt.export.checkpoints.checkpoint import Tensor

__all__ = ["QuantizedHead", "mean_and_channel_scale", "quantize_head"]

_BLOCK = 1024


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


def mean_and_channel_scale(rows: F32, gain: F32, bias: F32) -> tuple[F32, F32]:
    """What is done to the head before it is rounded.

    Args:
        rows: float32 [n_vocab, n_text_state] token embedding.
        gain: float32 [n_text_state] weight of the layer norm before the head.
        bias: float32 [n_text_state] bias of it.

    Returns:
        float32 [n_text_state] mean row, which is taken out, and factors of the channels, by which
        the input is divided: both sides of the product then have the same spread in every channel.
    """
    n_vocab = np.float32(len(rows))
    mean: F32 = np.add.reduce(rows, axis=0) / n_vocab
    loud = np.sqrt(gain**2 + bias**2)
    spread = np.sqrt(np.einsum("vn,vn->n", rows, rows) / n_vocab - mean**2)
    channel_scale = np.sqrt(np.maximum(loud, 1e-6) / np.maximum(spread, 1e-6)).astype(np.float32)
    return mean, channel_scale


def quantize_head(embedding: Tensor, gain: Tensor, bias: Tensor) -> QuantizedHead:
    """Round the head to 8 bits a weight, one scale a token.

    Args:
        embedding: [n_vocab, n_text_state] token embedding.
        gain: [n_text_state] weight of the layer norm before the head: how large each channel gets.
        bias: [n_text_state] bias of it.
    """
    rows = embedding.read()
    n_vocab, n_state = rows.shape
    mean, channel_scale = mean_and_channel_scale(rows, gain.read(), bias.read())
    weight = np.empty((n_state, n_vocab), np.int8)
    scale, error, norm = (np.empty(n_vocab, np.float32) for _ in range(3))
    for begin in range(0, n_vocab, _BLOCK):  # in pieces that stay in the cache
        block = (rows[begin : begin + _BLOCK] - mean) * channel_scale
        here = slice(begin, begin + len(block))
        scale[here] = np.maximum(np.abs(block).max(axis=1) / np.float32(127), 1e-12)
        rounded = np.rint(block / scale[here, None])
        weight[:, here] = rounded.T
        rounded *= scale[here, None]
        norm[here] = np.sqrt(np.einsum("vn,vn->v", rounded, rounded))
        block -= rounded
        error[here] = np.sqrt(np.einsum("vn,vn->v", block, block))
    return QuantizedHead(
        weight, scale, mean, np.float32(1) / channel_scale, error, norm.max(keepdims=True)
    )
