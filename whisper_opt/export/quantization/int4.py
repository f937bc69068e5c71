"""Weights of 4 bits, in blocks that share a scale (``export/graphs/int4_operators.py``)."""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from whisper_opt.core.arrays import F32, NDArray
from whisper_opt.export.checkpoints.checkpoint import EMBEDDING, OUTPUT_HEAD, Tensor
from whisper_opt.export.graphs.builder import Together
from whisper_opt.export.graphs.groups import CROSS, HEAD, group_of, matches
from whisper_opt.export.graphs.int4_operators import BLOCK, LINEARS4
from whisper_opt.export.quantization.fused import FusedLinear
from whisper_opt.export.quantization.head8 import mean_and_channel_scale

__all__ = [
    "BLOCK",
    "N_SPECIAL",
    "Int4Head",
    "Int4Linear",
    "dequantized",
    "pack_int4",
    "unpack_int4",
]

_RATIOS = (1.05, 1.0, 0.96, 0.92, 0.88, 0.84, 0.8, 0.75)
"""Scales tried for each block, relative to the one that reaches its largest weight."""
_ROWS = 1024
_MIN_PEAK = 1e-6
"""Blocks smaller than this become zeros; an eighth of it is a float16 number."""
N_SPECIAL = 1632
"""Rows at the end of the embedding that stay float16: timestamps and special tokens, about 1,610.

A text or a segment ends if one of them beats all words. With 4 bits models miss the end."""


def pack_int4(weight: F32) -> tuple[NDArray, F32]:
    """Quantize float32 [n_out, n_in] to 4 bits, each block with the scale of least squared error.

    Returns:
        uint8 [n_out, n_in / BLOCK, BLOCK / 2], two weights per byte, the first in the low half,
        zero point 8; and float32 [n_out, n_in / BLOCK] scales, which are exact in float16. A scale
        is negative if the largest weight of its block is positive, since -8 is further from zero
        than 7.
    """
    n_out, n_in = weight.shape
    packed = np.empty((n_out, n_in // BLOCK, BLOCK // 2), np.uint8)
    steps = np.empty((n_out, n_in // BLOCK), np.float32)
    for begin in range(0, n_out, _ROWS):
        here = slice(begin, begin + _ROWS)
        blocks = weight[here].reshape(-1, n_in // BLOCK, BLOCK)
        best, steps[here] = _quantize_blocks(blocks)
        packed[here] = best[..., 0::2] | best[..., 1::2] << 4
    return packed, steps


def _quantize_blocks(blocks: F32) -> tuple[NDArray, F32]:
    """Integers 0 to 15 of the shape of ``blocks`` and the scales of the blocks."""
    peak = np.take_along_axis(blocks, np.abs(blocks).argmax(-1)[..., None], -1)
    widest = np.where(np.abs(peak) > _MIN_PEAK, peak, np.float32(-_MIN_PEAK)) / np.float32(-8)
    found = np.zeros(blocks.shape, np.uint8)
    step = np.zeros_like(widest)
    least = np.full_like(widest, np.inf)
    for ratio in _RATIOS:
        trial = (widest * np.float32(ratio)).astype(np.float16).astype(np.float32)
        integers = np.clip(np.rint(blocks / trial), -8, 7)
        cost = ((integers * trial - blocks) ** 2).sum(-1, keepdims=True)
        better = cost < least
        least, step = np.where(better, cost, least), np.where(better, trial, step)
        found = np.where(better, (integers + 8).astype(np.uint8), found)
    return found, step[..., 0].astype(np.float32)


def unpack_int4(packed: NDArray, steps: F32) -> F32:
    """Float32 [n_out, n_in] of the results of :func:`pack_int4`."""
    integers = np.stack([packed & 15, packed >> 4], -1).reshape(*steps.shape, BLOCK)
    values: F32 = (integers.astype(np.float32) - 8) * steps[..., None]
    return values.reshape(len(values), -1)


class Int4Head:
    """The embedding, or a separate head, in 4 bits except for its last rows.

    Attributes:
        packed, steps: results of :func:`pack_int4` for the first rows.
        mean: float32 [n_text_state], mean row, which is subtracted before quantization.
        shrink: float32 [n_text_state], factors of the input. The weights were divided by them.
        special: float32 [N_SPECIAL, n_text_state], the last rows, rounded to float16.
    """

    def __init__(self, tensors: Mapping[str, Tensor], matrix: str = EMBEDDING) -> None:
        """Quantize ``matrix`` of a checkpoint."""
        rows = tensors[matrix].read()
        gain, bias = (tensors[f"decoder.ln.{part}"].read() for part in ("weight", "bias"))
        self.mean, channel_scale = mean_and_channel_scale(rows, gain, bias)
        self.shrink: F32 = np.float32(1) / channel_scale
        words = len(rows) - N_SPECIAL
        self.packed, self.steps = pack_int4((rows[:words] - self.mean) * channel_scale)
        self.special: F32 = rows[words:].astype(np.float16).astype(np.float32)

    def rows(self) -> F32:
        """The matrix [n_vocab, n_text_state] as floats."""
        words = unpack_int4(self.packed, self.steps) * self.shrink + self.mean
        return np.concatenate([words, self.special])


def dequantized(tensors: Mapping[str, Tensor], kept: Collection[str] = ()) -> dict[str, Tensor]:
    """Checkpoint tensors as after quantization of the decoder to 4 bits.

    ``kept``: patterns of groups (:func:`whisper_opt.export.graphs.groups.matches`) that keep their
    values.
    """

    def stored(name: str, tensor: Tensor) -> Tensor:
        if name in (EMBEDDING, OUTPUT_HEAD):
            if matches(HEAD, kept):
                return tensor
            rows = functools.lru_cache(1)(lambda: Int4Head(tensors, name).rows())
            return Tensor(tensor.shape, rows)
        group = group_of(name[:-7])
        if not name.startswith("decoder.blocks.") or group == CROSS or matches(group, kept):
            return tensor
        if len(tensor.shape) == 1:
            return tensor
        return Tensor(tensor.shape, lambda: unpack_int4(*pack_int4(tensor.read())))

    return {name: stored(name, tensor) for name, tensor in tensors.items()}


class Int4Linear(FusedLinear):
    """Projections as :class:`~whisper_opt.export.graphs.linear.Linear`, with weights of 4 bits."""

    operators = LINEARS4

    def _declare_weights(
        self, name: str, parts: Sequence[str], shape: tuple[int, int]
    ) -> Sequence[str]:
        def pack() -> tuple[NDArray, F32]:
            return pack_int4(np.concatenate([self.tensors[f"{p}.weight"].read() for p in parts]))

        packed = Together(pack)
        integers = packed.part("weight", lambda found: found[0])
        scales = packed.part("steps", lambda found: found[1])
        n_out, blocks = shape[1], shape[0] // BLOCK
        sizes = (n_out, blocks, BLOCK // 2)
        return (
            self.builder.weight(f"{name}.weight", sizes, integers, np.uint8),
            self.builder.weight(f"{name}.steps", (n_out, blocks), scales, np.float16),
        )

    def _attributes(self, shape: tuple[int, int]) -> Mapping[str, int]:
        return {"n_in": shape[0], "n_out": shape[1]}
