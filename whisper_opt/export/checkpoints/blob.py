"""``Blob``: one array inside a weight file, read on demand.

Most formats hold arrays of little-endian numbers at known offsets. They are read and converted in
small blocks. Quantized arrays are in ``quantized``. Nothing is memory-mapped, because touched pages
of a mapping count towards the peak memory of the process.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from whisper_opt.core.arrays import F32
from whisper_opt.core.errors import CheckpointError
from whisper_opt.export.checkpoints.checkpoint import Source, Tensor
from whisper_opt.runtime.engine import sha256

__all__ = [
    "ITEM_BYTES",
    "STORAGE_BYTES",
    "Blob",
    "Stored",
    "make_source",
    "read_chunks",
    "same_values",
    "sha256_file",
]

ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
"""Bytes of one value for each storage type that converts to float32 without loss."""
STORAGE_BYTES = {**ITEM_BYTES, "int64": 8}
"""The same with the type of counters, which only some checkpoints may have."""
_NUMBERS = {
    **{"float32": "<f4", "float16": "<f2", "bfloat16": "<u2"},
    **{"int8": "<i1", "int16": "<i2", "int64": "<i8"},
}
_CHUNK_ITEMS = 1 << 20


class Stored(Protocol):
    """An array in a weight file, not yet read."""

    @property
    def dtype(self) -> str:
        """Storage type."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Dimensions."""

    def rows(self, start: int, stop: int) -> Stored:
        """The sub-array ``[start:stop]`` of the first axis, still unread."""

    def read(self) -> F32:
        """The values as a C-contiguous float32 array; CheckpointError if the file is damaged."""

    def tensor(self) -> Tensor:
        """The canonical lazy tensor over this array."""


@dataclasses.dataclass(frozen=True)
class Blob:
    """An array of numbers stored in a file.

    Attributes:
        path: the weight file.
        offset: first byte of the data.
        dtype: storage type: a key of :data:`STORAGE_BYTES`, or ``int8`` or ``int16``.
        shape: dimensions.
        strides: step of each axis in values, or None if the data is C-contiguous.
    """

    path: Path
    offset: int
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None = None

    @property
    def n_items(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def item_bytes(self) -> int:
        """Bytes of one value."""
        return np.dtype(_NUMBERS[self.dtype]).itemsize

    @property
    def n_bytes(self) -> int:
        """Bytes of all values, stored without gaps."""
        return self.n_items * self.item_bytes

    def rows(self, start: int, stop: int) -> Blob:
        """The sub-array ``[start:stop]`` of the first axis, still unread."""
        step = math.prod(self.shape[1:]) if self.strides is None else self.strides[0]
        offset = self.offset + start * step * self.item_bytes
        return dataclasses.replace(self, offset=offset, shape=(stop - start, *self.shape[1:]))

    def read(self) -> F32:
        """Read the values as float32.

        Returns:
            C-contiguous float32 array of ``shape``.

        Raises:
            CheckpointError: the file cannot be opened or ends before the data does.
        """
        if self.strides is None or not self.n_items:
            return self._read_run(self.n_items).reshape(self.shape)
        n_span = 1 + sum((n - 1) * step for n, step in zip(self.shape, self.strides))
        run = self._read_run(n_span)
        steps = tuple(step * run.itemsize for step in self.strides)
        return np.ascontiguousarray(np.lib.stride_tricks.as_strided(run, self.shape, steps))

    def _read_run(self, n_items: int) -> F32:
        values = np.empty(n_items, dtype=np.float32)
        step = _CHUNK_ITEMS * self.item_bytes
        start = 0
        for raw in read_chunks(self.path, self.offset, n_items * self.item_bytes, step):
            found = _to_float32(raw, self.dtype)
            values[start : start + found.size] = found
            start += found.size
        return values

    def tensor(self) -> Tensor:
        """The canonical lazy tensor over this blob."""
        return Tensor(shape=self.shape, read=self.read)


def read_chunks(path: Path, offset: int, n_bytes: int, step: int) -> Iterator[bytes]:
    """``n_bytes`` bytes of a file from ``offset`` on, ``step`` at a time.

    Raises:
        CheckpointError: the file cannot be opened or ends before.
    """
    try:
        with path.open("rb") as file:
            file.seek(offset)
            for start in range(0, n_bytes, step):
                size = min(step, n_bytes - start)
                raw = file.read(size)
                if len(raw) != size:
                    raise CheckpointError(
                        f"{path.name} ends before byte {offset + n_bytes}; the copy is incomplete:"
                        " fetch it again"
                    )
                yield raw
    except OSError as error:
        raise CheckpointError(f"cannot read {path.name}: {error.strerror}") from error


def _to_float32(raw: bytes, dtype: str) -> npt.NDArray[Any]:
    values: npt.NDArray[Any] = np.frombuffer(raw, dtype=_NUMBERS[dtype])
    if dtype == "bfloat16":  # the upper half of a float32
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file.

    Raises:
        CheckpointError: the file cannot be read.
    """
    try:
        return sha256(path)
    except OSError as error:
        raise CheckpointError(f"cannot read {path.name}: {error.strerror}") from error


def make_source(kind: str, name: str, dtypes: Iterable[str], files: Iterable[Path]) -> Source:
    """Provenance of a checkpoint; mixed ``dtypes`` are joined, as in ``float16+float32``."""
    return Source(
        format=kind,
        name=name,
        dtype="+".join(sorted(set(dtypes))),
        sha256={path.name: sha256_file(path) for path in files},
    )


def same_values(a: Stored, b: Stored) -> bool:
    """Whether two tensors hold the same values, compared by blocks of rows."""
    if a == b:
        return True
    if a.shape != b.shape:
        return False
    if not a.shape or _is_strided(a) or _is_strided(b):
        return np.array_equal(a.read(), b.read())
    step = 4096
    return all(
        np.array_equal(a.rows(i, j).read(), b.rows(i, j).read())
        for i in range(0, a.shape[0], step)
        for j in (min(i + step, a.shape[0]),)
    )


def _is_strided(array: Stored) -> bool:
    """Whether rows of an array are not neighbours in the file."""
    return isinstance(array, Blob) and array.strides is not None
