"""``Blob``: one array inside a weight file, read on demand.

All supported formats hold arrays of little-endian floats at known offsets. They are read and
converted in small blocks. Nothing is memory-mapped, because touched pages of a mapping count
towards the peak memory of the process.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from whisper_opt.core.arrays import F32
from whisper_opt.core.errors import CheckpointError
from whisper_opt.export.checkpoints.checkpoint import Source, Tensor
from whisper_opt.runtime.engine import sha256

__all__ = ["ITEM_BYTES", "Blob", "make_source", "same_values", "sha256_file"]

ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
"""Bytes of one value for each storage type that converts to float32 without loss."""
_CHUNK_ITEMS = 1 << 20


@dataclasses.dataclass(frozen=True)
class Blob:
    """An array stored in a file.

    Attributes:
        path: the weight file.
        offset: first byte of the data.
        dtype: storage type, a key of :data:`ITEM_BYTES`.
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

    def rows(self, start: int, stop: int) -> Blob:
        """The sub-array ``[start:stop]`` of a contiguous blob's first axis, still unread."""
        row_bytes = math.prod(self.shape[1:]) * ITEM_BYTES[self.dtype]
        return dataclasses.replace(
            self, offset=self.offset + start * row_bytes, shape=(stop - start, *self.shape[1:])
        )

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
        item_bytes = ITEM_BYTES[self.dtype]
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset)
                for start in range(0, n_items, _CHUNK_ITEMS):
                    stop = min(start + _CHUNK_ITEMS, n_items)
                    raw = file.read((stop - start) * item_bytes)
                    if len(raw) != (stop - start) * item_bytes:
                        raise CheckpointError(
                            f"{self.path.name} ends before byte"
                            f" {self.offset + n_items * item_bytes}; the copy is incomplete:"
                            " fetch it again"
                        )
                    values[start:stop] = _to_float32(raw, self.dtype)
        except OSError as error:
            raise CheckpointError(f"cannot read {self.path.name}: {error.strerror}") from error
        return values

    def tensor(self) -> Tensor:
        """The canonical lazy tensor over this blob."""
        return Tensor(shape=self.shape, read=self.read)


def _to_float32(raw: bytes, dtype: str) -> npt.NDArray[Any]:
    if dtype == "bfloat16":  # the upper half of a float32
        return (np.frombuffer(raw, dtype="<u2").astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(raw, dtype="<f4" if dtype == "float32" else "<f2")


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


def same_values(a: Blob, b: Blob) -> bool:
    """Whether two tensors hold the same values, compared by blocks of rows."""
    if a == b:
        return True
    if a.shape != b.shape:
        return False
    if a.strides is not None or b.strides is not None:
        return np.array_equal(a.read(), b.read())
    step = 4096
    return all(
        np.array_equal(a.rows(i, j).read(), b.rows(i, j).read())
        for i in range(0, a.shape[0], step)
        for j in (min(i + step, a.shape[0]),)
    )
