"""Tensors that the runtime itself reads from the weights of an engine."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Union

import numpy as np

from whisper_opt.core.arrays import NDArray
from whisper_opt.core.dims import ModelDims
from whisper_opt.core.errors import EngineError
from whisper_opt.core.json_files import plain_name, text, whole
from whisper_opt.runtime.head_names import EMBEDDING, ERROR, MEAN, NORM, OWN_HEAD, SHRINK

__all__ = ["TENSOR_SHAPES", "TensorEntry", "map_tensor", "parse_tensors"]

TENSOR_SHAPES: Mapping[str, tuple[Union[str, int], ...]] = {
    EMBEDDING: ("n_vocab", "n_text_state"),
    OWN_HEAD: ("n_vocab", "n_text_state"),
    MEAN: ("n_text_state",),
    SHRINK: ("n_text_state",),
    ERROR: ("n_vocab",),
    NORM: (1,),
}
"""Sizes of the tensors that an engine may list, as names of dims or numbers. An engine lists none,
or all of them with only one of the first two (:mod:`whisper_opt.runtime.head_bounds`)."""
_DTYPES = ("float32", "float16")


@dataclasses.dataclass(frozen=True)
class TensorEntry:
    """Position of a tensor in an engine file: little-endian, in row-major order."""

    file: str
    offset: int
    shape: tuple[int, ...]
    dtype: str

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TensorEntry:
        """Parse a manifest entry; raises KeyError, TypeError or ValueError."""
        return cls(
            plain_name(values["file"]),
            whole(values["offset"], "offset"),
            tuple(whole(size, "shape", low=1) for size in values["shape"]),
            text(values["dtype"], "dtype"),
        )

    def check(self, size: int) -> None:
        """Check the entry against the size of its file in bytes.

        Raises:
            ValueError: not a tensor of floating-point numbers within the file.
        """
        if self.dtype not in _DTYPES:
            raise ValueError(f"dtype is {self.dtype[:50]!r}; expected {' or '.join(_DTYPES)}")
        plain_name(self.file)
        for value in (self.offset, *self.shape):
            whole(value, "an offset or shape")
        end = self.offset + math.prod(self.shape) * np.dtype(self.dtype).itemsize
        if not self.shape or 0 in self.shape or end > size:
            raise ValueError(
                f"{list(self.shape)} {self.dtype} at {self.offset} is not within {self.file}, which"
                f" has {size} bytes"
            )


def parse_tensors(
    values: Mapping[str, Any], dims: ModelDims, sizes: Mapping[str, int]
) -> dict[str, TensorEntry]:
    """Parse the tensors of a manifest: those that the runtime uses, each within a listed file.

    Args:
        values: entries by name.
        dims: model dimensions.
        sizes: bytes of every file.

    Raises:
        KeyError, TypeError, ValueError: malformed or unexpected entries.
    """
    entries = {name: TensorEntry.from_dict(entry) for name, entry in values.items()}
    known = set(TENSOR_SHAPES)
    if OWN_HEAD in entries:  # the output head is a separate matrix
        known.remove(EMBEDDING)
    else:
        known.remove(OWN_HEAD)
    if entries and entries.keys() != known:
        raise ValueError(f"tensors: expected {', '.join(sorted(known))}, or none")
    dim_sizes = dims.to_dict()
    for name, entry in entries.items():
        expected = tuple(dim_sizes[n] if isinstance(n, str) else n for n in TENSOR_SHAPES[name])
        if entry.shape != expected:
            raise ValueError(f"{name} has shape {list(entry.shape)}; expected {list(expected)}")
        entry.check(sizes[entry.file])
    return entries


def map_tensor(folder: Path, entry: TensorEntry) -> NDArray:
    """A tensor in an engine file, mapped read-only: pages are read from disk when they are used.

    Raises:
        EngineError: the file is missing, or does not hold such a tensor.
    """
    try:
        entry.check((folder / entry.file).stat().st_size)
        return np.memmap(
            folder / entry.file,
            np.dtype(entry.dtype).newbyteorder("<"),
            mode="r",
            offset=entry.offset,
            shape=entry.shape,
        ).view(np.ndarray)
    except (OSError, OverflowError, TypeError, ValueError) as error:
        raise EngineError(
            f"cannot read a tensor at {entry.offset} of {folder / entry.file}: {error};"
            " export the engine again"
        ) from error
