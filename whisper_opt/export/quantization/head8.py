"""Quantizes the output head to 8 bits, for integer engines and for two-stage output heads.

:mod:`whisper_opt.runtime.head_bounds` describes the two stages: approximate 8-bit scores select
candidates, which are then scored exactly.
"""

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
        scale: float32 [n_vocab], scale of each token's weights.
        mean: float32 [n_text_state], mean row, which is subtracted before quantization.
        shrink: float32 [n_text_state], factors of the input. The weights were divided by them.
        error: float32 [n_vocab], norm of each row's rounding error.
        norm: float32 [1], largest norm of a quantized row.
    """

    weight: NDArray
    scale: F32
    mean: F32
    shrink: F32
    error: F32
    norm: F32


def mean_and_channel_scale(rows: F32, gain: F32, bias: F32) -> tuple[F32, F32]:
    """The mean row and the channel scales that are taken out of the head before quantization.

    SmoothQuant (Xiao et al. 2022, arXiv:2211.10438): the input is divided by the channel scales and
    the weights are multiplied by them, which makes both equally uneven.

    Args:
        rows: float32 [n_vocab, n_text_state] token embedding.
        gain: float32 [n_text_state] weight of the layer norm before the head.
        bias: float32 [n_text_state] bias of it.

    Returns:
        float32 [n_text_state] mean row and float32 [n_text_state] channel scales.
    """
    n_vocab = np.float32(len(rows))
    mean: F32 = np.add.reduce(rows, axis=0) / n_vocab
    input_size = np.sqrt(gain**2 + bias**2)
    deviation = np.sqrt(np.einsum("vn,vn->n", rows, rows) / n_vocab - mean**2)
    channel_scale = np.sqrt(np.maximum(input_size, 1e-6) / np.maximum(deviation, 1e-6)).astype(
        np.float32
    )
    return mean, channel_scale


def quantize_head(embedding: Tensor, gain: Tensor, bias: Tensor) -> QuantizedHead:
    """Quantize the head to 8 bits per weight, with one scale per token.

    Args:
        embedding: [n_vocab, n_text_state] token embedding.
        gain: [n_text_state] weight of the layer norm before the head.
        bias: [n_text_state] bias of it.
    """
    rows = embedding.read()
    n_vocab, n_state = rows.shape
    mean, channel_scale = mean_and_channel_scale(rows, gain.read(), bias.read())
    weight = np.empty((n_state, n_vocab), np.int8)
    scale, error, norm = (np.empty(n_vocab, np.float32) for _ in range(3))
    for begin in range(0, n_vocab, _BLOCK):  # blocks fit in the CPU cache
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
