"""Arrays that are stored as small integers with scales; reading gives the values they stand for.

Dequantizing loses nothing, but the rounding of the file remains: an export of it computes with
the rounded weights. :func:`report_rounding` says so.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from whisper_opt.core.arrays import F32
from whisper_opt.core.errors import CheckpointError
from whisper_opt.export.checkpoints.blob import Blob, Stored, read_chunks
from whisper_opt.export.checkpoints.checkpoint import Tensor

__all__ = ["BLOCKS", "BLOCK_ITEMS", "BlockBlob", "ScaledBlob", "report_rounding"]

_log = logging.getLogger(__name__)

BLOCK_ITEMS = 32
"""Values in one block of ggml's simple types; a row has a whole number of blocks."""
_SCALE, _LEAST = ("scale", "<f2"), ("least", "<f2")
_HIGH, _LOW = ("high", "u1", (4,)), ("low", "u1", (16,))
BLOCKS: Mapping[str, np.dtype[Any]] = MappingProxyType(
    {
        "q4_0": np.dtype([_SCALE, _LOW]),
        "q4_1": np.dtype([_SCALE, _LEAST, _LOW]),
        "q5_0": np.dtype([_SCALE, _HIGH, _LOW]),
        "q5_1": np.dtype([_SCALE, _LEAST, _HIGH, _LOW]),
        "q8_0": np.dtype([_SCALE, ("values", "i1", (BLOCK_ITEMS,))]),
    }
)
"""Layouts of blocks (ggml, src/ggml-common.h).

``low`` has the lower four bits of values 0 to 15 in the lower halves of its bytes, and of values 16
to 31 in the upper halves; bit i of ``high`` is the fifth bit of value i. A value is (integer -
centre) * scale, or integer * scale + ``least``.
"""
_CENTRES = {"q4_0": 8, "q5_0": 16, "q8_0": 0}
_CHUNK_BLOCKS = 1 << 14


@dataclasses.dataclass(frozen=True)
class ScaledBlob:
    """Integers and one scale per row, or one for all: value = integer / scale.

    Attributes:
        values: ``int8`` or ``int16``, contiguous.
        scales: floats [n_rows], or of shape [].
    """

    values: Blob
    scales: Blob

    @property
    def dtype(self) -> str:
        """Storage type of the integers."""
        return self.values.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Dimensions."""
        return self.values.shape

    def rows(self, start: int, stop: int) -> ScaledBlob:
        """The sub-array ``[start:stop]`` of the first axis, still unread."""
        scales = self.scales.rows(start, stop) if self.scales.shape else self.scales
        return ScaledBlob(self.values.rows(start, stop), scales)

    def read(self) -> F32:
        """The values in float32.

        Raises:
            CheckpointError: the file is damaged, or a scale is not a positive number.
        """
        scales = self.scales.read()
        if not (np.isfinite(scales) & (scales > 0)).all():
            raise CheckpointError(
                f"{self.values.path.name} has a scale of quantized weights that is not a positive"
                " number; it is damaged: fetch it again"
            )
        values = self.values.read()
        values /= scales.reshape(scales.shape + (1,) * (values.ndim - scales.ndim))
        return values

    def tensor(self) -> Tensor:
        """The canonical lazy tensor over this array."""
        return Tensor(shape=self.shape, read=self.read)


@dataclasses.dataclass(frozen=True)
class BlockBlob:
    """An array in ggml's blocks of 32 values.

    Attributes:
        path: the weight file.
        offset: first byte of the data.
        dtype: a key of :data:`BLOCKS`.
        shape: dimensions; the last is a multiple of 32.
    """

    path: Path
    offset: int
    dtype: str
    shape: tuple[int, ...]

    @property
    def n_bytes(self) -> int:
        """Bytes of all blocks."""
        return math.prod(self.shape) // BLOCK_ITEMS * BLOCKS[self.dtype].itemsize

    def rows(self, start: int, stop: int) -> BlockBlob:
        """The sub-array ``[start:stop]`` of the first axis, still unread."""
        shape = (stop - start, *self.shape[1:])
        before = dataclasses.replace(self, shape=(start, *self.shape[1:])).n_bytes
        return dataclasses.replace(self, offset=self.offset + before, shape=shape)

    def read(self) -> F32:
        """The values in float32.

        Raises:
            CheckpointError: the file cannot be opened or ends before the data does.
        """
        values = np.empty((math.prod(self.shape) // BLOCK_ITEMS, BLOCK_ITEMS), np.float32)
        layout, start = BLOCKS[self.dtype], 0
        step = _CHUNK_BLOCKS * layout.itemsize
        for raw in read_chunks(self.path, self.offset, self.n_bytes, step):
            blocks = np.frombuffer(raw, layout)
            values[start : start + len(blocks)] = _dequantized(blocks, self.dtype)
            start += len(blocks)
        return values.reshape(self.shape)

    def tensor(self) -> Tensor:
        """The canonical lazy tensor over this array."""
        return Tensor(shape=self.shape, read=self.read)


def _dequantized(blocks: npt.NDArray[Any], dtype: str) -> F32:
    """Values [n, 32] of blocks [n]."""
    scales = blocks["scale"].astype(np.float32)[:, None]
    integers = _integers(blocks).astype(np.float32)
    with np.errstate(invalid="ignore"):  # a damaged scale may be infinite
        if dtype in _CENTRES:
            values: F32 = (integers - np.float32(_CENTRES[dtype])) * scales
        else:
            values = integers * scales + blocks["least"].astype(np.float32)[:, None]
    return values


def _integers(blocks: npt.NDArray[Any]) -> npt.NDArray[Any]:
    names = blocks.dtype.names or ()
    if "values" in names:
        return blocks["values"]
    integers = np.concatenate([blocks["low"] & 15, blocks["low"] >> 4], axis=1)
    if "high" in names:
        integers |= np.unpackbits(blocks["high"], axis=1, bitorder="little") << 4
    return integers


def report_rounding(name: str, arrays: Iterable[Stored]) -> None:
    """Log a warning if some of the weights of a checkpoint are stored rounded."""
    found = sorted({array.dtype for array in arrays if isinstance(array, (ScaledBlob, BlockBlob))})
    if found:
        _log.warning(
            "the weights of %s were rounded to %s when it was made; an export computes with the"
            " rounded values, so words can differ from those of the original checkpoint",
            name,
            " and ".join(found),
        )
