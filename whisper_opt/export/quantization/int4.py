"""Products with weights of 4 bits, in blocks that share a scale (``MatMulNBits``).

ONNX Runtime rounds each block of an input row to 8 bits itself, so that rows do not disturb each
other, and with blocks of 32 its sums are the same bits for any number of rows.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from whisper_opt.core.arrays import F32, NDArray
from whisper_opt.export.checkpoints.checkpoint import OUTPUT_HEAD, Tensor
from whisper_opt.export.graphs.builder import MICROSOFT, GraphBuilder
from whisper_opt.export.graphs.groups import CROSS, HEAD, chosen, group_of
from whisper_opt.export.graphs.linear import Linear
from whisper_opt.export.quantization.head8 import evened

__all__ = [
    "BLOCK",
    "EMBEDDING",
    "SPECIAL",
    "NibbleHead",
    "NibbleLinear",
    "as_stored",
    "nibble_product",
    "pack",
    "unpack",
]

EMBEDDING = "decoder.token_embedding.weight"
BLOCK = 32
"""Weights that share a scale, along the input."""
_SHRINK = (1.05, 1.0, 0.96, 0.92, 0.88, 0.84, 0.8, 0.75)
"""Steps tried for each block, as shares of the one that reaches its largest weight."""
_ROWS = 1024
_LEAST = 1e-6
"""Blocks smaller than this are zeros; an eighth of it is a float16 number."""
SPECIAL = 1632
"""Rows at the end of the embedding that stay float16: times and special tokens, about 1,610. A text
ends, and a segment too, where one of them beats all words; 4 bits make it miss its end."""


def pack(weight: F32) -> tuple[NDArray, F32]:
    """Round float32 [n_out, n_in] to 4 bits, each block by the step that costs least.

    Returns:
        uint8 [n_out, n_in / BLOCK, BLOCK / 2], two weights a byte, the first in the low half, 8
        standing for zero; and float32 [n_out, n_in / BLOCK] steps that float16 can hold, negative
        where the largest weight of a block is positive (-8 is one step further from zero than 7).
    """
    n_out, n_in = weight.shape
    packed = np.empty((n_out, n_in // BLOCK, BLOCK // 2), np.uint8)
    steps = np.empty((n_out, n_in // BLOCK), np.float32)
    for begin in range(0, n_out, _ROWS):
        here = slice(begin, begin + _ROWS)
        blocks = weight[here].reshape(-1, n_in // BLOCK, BLOCK)
        best, steps[here] = _rounded(blocks)
        packed[here] = best[..., 0::2] | best[..., 1::2] << 4
    return packed, steps


def _rounded(blocks: F32) -> tuple[NDArray, F32]:
    """Integers 0 to 15 of the shape of ``blocks`` and the steps of the blocks."""
    peak = np.take_along_axis(blocks, np.abs(blocks).argmax(-1)[..., None], -1)
    widest = np.where(np.abs(peak) > _LEAST, peak, np.float32(-_LEAST)) / np.float32(-8)
    found = np.zeros(blocks.shape, np.uint8)
    step = np.zeros_like(widest)
    least = np.full_like(widest, np.inf)
    for share in _SHRINK:
        trial = (widest * np.float32(share)).astype(np.float16).astype(np.float32)
        integers = np.clip(np.rint(blocks / trial), -8, 7)
        cost = ((integers * trial - blocks) ** 2).sum(-1, keepdims=True)
        better = cost < least
        least, step = np.where(better, cost, least), np.where(better, trial, step)
        found = np.where(better, (integers + 8).astype(np.uint8), found)
    return found, step[..., 0].astype(np.float32)


def unpack(packed: NDArray, steps: F32) -> F32:
    """Float32 [n_out, n_in] that :func:`pack` stands for."""
    integers = np.stack([packed & 15, packed >> 4], -1).reshape(*steps.shape, BLOCK)
    values: F32 = (integers.astype(np.float32) - 8) * steps[..., None]
    return values.reshape(len(values), -1)


class NibbleHead:
    """The embedding, or a head of its own, in 4 bits, but for its last rows.

    Attributes:
        packed, steps: as of :func:`pack`, of the rows before the last.
        mean: float32 [n_text_state], mean row, taken out before rounding.
        shrink: float32 [n_text_state], factors of the input; weights were divided by them.
        special: float32 [SPECIAL, n_text_state], the last rows as float16 numbers.
    """

    def __init__(self, tensors: Mapping[str, Tensor], matrix: str = EMBEDDING) -> None:
        """Round ``matrix`` of a checkpoint."""
        rows = tensors[matrix].read()
        gain, bias = (tensors[f"decoder.ln.{part}"].read() for part in ("weight", "bias"))
        self.mean, grow = evened(rows, gain, bias)
        self.shrink: F32 = np.float32(1) / grow
        words = len(rows) - SPECIAL
        self.packed, self.steps = pack((rows[:words] - self.mean) * grow)
        self.special: F32 = rows[words:].astype(np.float16).astype(np.float32)

    def rows(self) -> F32:
        """The matrix [n_vocab, n_text_state] that this stands for."""
        words = unpack(self.packed, self.steps) * self.shrink + self.mean
        return np.concatenate([words, self.special])


def as_stored(tensors: Mapping[str, Tensor], kept: Collection[str] = ()) -> dict[str, Tensor]:
    """Checkpoint tensors with those of the decoder that get 4 bits replaced by what they become.

    ``kept``: groups (:func:`whisper_opt.export.graphs.groups.chosen`) that are left alone.
    """

    def stored(name: str, tensor: Tensor) -> Tensor:
        if name in (EMBEDDING, OUTPUT_HEAD):
            if chosen(HEAD, kept):
                return tensor
            rows = functools.lru_cache(1)(lambda: NibbleHead(tensors, name).rows())
            return Tensor(tensor.shape, rows)
        group = group_of(name[:-7])
        if not name.startswith("decoder.blocks.") or group == CROSS or chosen(group, kept):
            return tensor
        if len(tensor.shape) == 1:
            return tensor
        return Tensor(tensor.shape, lambda: unpack(*pack(tensor.read())))

    return {name: stored(name, tensor) for name, tensor in tensors.items()}


def nibble_product(
    builder: GraphBuilder, value: str, weight: str, steps: str, k: int, n: int
) -> str:
    """``value`` [.., k] times packed weights [n, k]; ``steps`` are float16."""
    # constant: ONNX Runtime converts them once, when it loads the graph
    steps = builder.reshape(builder.cast(steps, np.float16, np.float32), [-1])
    return builder.node(
        "MatMulNBits",
        value,
        weight,
        steps,
        domain=MICROSOFT,
        K=k,
        N=n,
        bits=4,
        block_size=BLOCK,
        accuracy_level=4,
    )


class NibbleLinear(Linear):
    """Projections as :class:`~whisper_opt.export.graphs.linear.Linear`, with weights of 4 bits."""

    def __call__(self, value: str, name: str, *, bias: bool = True) -> str:
        """As of :class:`Linear`."""
        product = self._nibbles(value, name, [name])
        return self.builder.node("Add", product, self.vector(f"{name}.bias")) if bias else product

    def _qkv(self, value: str, name: str) -> str:
        parts = [f"{name}.{part}" for part in ("query", "key", "value")]
        product = self._nibbles(value, f"{name}.qkv", parts)
        return self.builder.node("Add", product, self.qkv_bias(name))

    def _nibbles(self, value: str, name: str, parts: Sequence[str]) -> str:
        shapes = [self.tensors[f"{part}.weight"].shape for part in parts]
        n_in, n_out = shapes[0][1], sum(shape[0] for shape in shapes)

        @functools.lru_cache(maxsize=1)
        def packed() -> tuple[NDArray, F32]:
            return pack(np.concatenate([self.tensors[f"{p}.weight"].read() for p in parts]))

        blocks = n_in // BLOCK
        weight = self.builder.weight(
            f"{name}.weight", (n_out, blocks, BLOCK // 2), lambda: packed()[0], np.uint8
        )
        steps = self.builder.weight(
            f"{name}.steps", (n_out, blocks), lambda: packed()[1], np.float16
        )
        return nibble_product(self.builder, value, weight, steps, n_in, n_out)
