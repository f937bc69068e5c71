"""Index of a Flax ``.msgpack`` file, as transformers' ``FlaxWhisper...`` models are saved.

The file is one MessagePack map of nested maps (flax, flax/serialization.py). An array is an
extension of type 1 whose payload is again MessagePack: [shape, name of the type, bytes]. Nothing
else is needed, so nothing else is read. Names become those of the PyTorch model: ``kernel``,
``scale`` and ``embedding`` are its ``weight``; Flax stores kernels with the input first, so their
axes are reversed here.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import BinaryIO

from whisper_opt.core.errors import CheckpointError
from whisper_opt.export.checkpoints.blob import ITEM_BYTES, Blob

__all__ = ["pytorch_name", "read_flax"]

_MAX_DEPTH, _MAX_AXES, _MAX_NAME = 16, 8, 256
_MAX_ARRAYS = 10_000
"""The largest model has 1,300."""
_NDARRAY = 1
_CHUNKED = "__msgpack_chunked_array__"
_WEIGHTS = ("kernel", "embedding", "scale")
# Sizes of the length that follows a type byte.
_STRINGS = {0xD9: 1, 0xDA: 2, 0xDB: 4}
_BYTES = {0xC4: 1, 0xC5: 2, 0xC6: 4}
_ARRAYS = {0xDC: 2, 0xDD: 4}
_MAPS = {0xDE: 2, 0xDF: 4}
_EXTENSIONS = {0xC7: 1, 0xC8: 2, 0xC9: 4}
_FIXED_EXTENSIONS = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}
_INTEGERS = {0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8}


def read_flax(path: Path) -> dict[str, Blob]:
    """Unread tensors of a file, under the names and in the layouts of the PyTorch model.

    Raises:
        CheckpointError: the file is truncated, is not MessagePack of nested maps of arrays, or has
            arrays of an unsupported type.
    """
    try:
        with path.open("rb") as file:
            reader = _Reader(file, path)
            found: dict[str, Blob] = {}
            reader.read_map((), found)
            reader.check_end()
    except OSError as error:
        raise CheckpointError(f"cannot read {path.name}: {error.strerror}") from error
    return {pytorch_name(name): _pytorch_layout(name, blob) for name, blob in found.items()}


def pytorch_name(name: str) -> str:
    """``model/encoder/.../kernel`` -> ``model.encoder....weight``."""
    *path, last = name.split("/")
    if path == ["lm_head"]:
        path = ["proj_out"]
    return ".".join([*path, "weight" if last in _WEIGHTS else last])


def _pytorch_layout(name: str, blob: Blob) -> Blob:
    """A kernel with its axes reversed, by strides."""
    if not name.endswith("/kernel"):
        return blob
    steps = [math.prod(blob.shape[i + 1 :]) for i in range(len(blob.shape))]
    return Blob(blob.path, blob.offset, blob.dtype, blob.shape[::-1], tuple(steps[::-1]))


class _Reader:
    """Reader of the few MessagePack types of such files; data of arrays is stepped over."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file = file
        self._path = path
        self._size = os.fstat(file.fileno()).st_size

    def read_map(self, path: tuple[str, ...], found: dict[str, Blob]) -> None:
        """Read one map of maps and arrays into ``found``."""
        code = self._byte()
        n = code & 15 if 0x80 <= code <= 0x8F else self._length(code, _MAPS, "a map")
        if len(path) > _MAX_DEPTH:
            raise self._damaged(f"nests maps deeper than {_MAX_DEPTH}")
        for _ in range(n):
            inner = (*path, self._string())
            name = "/".join(inner)
            if inner[-1] == _CHUNKED:
                raise CheckpointError(
                    f"{self._path.name} stores an array in chunks, as Flax does above 1 GiB; no"
                    " Whisper model has one so large: expected plain arrays"
                )
            if self._next_is_map():
                self.read_map(inner, found)
                continue
            if name in found or len(found) >= _MAX_ARRAYS:
                raise self._damaged(f"has {name!r:.80} twice, or more than {_MAX_ARRAYS} arrays")
            found[name] = self._array(name)

    def check_end(self) -> None:
        if self._file.tell() != self._size:
            raise self._damaged("goes on after its last entry")

    def _array(self, name: str) -> Blob:
        code = self._byte()
        if code in _FIXED_EXTENSIONS:
            n_bytes = _FIXED_EXTENSIONS[code]
        else:
            n_bytes = self._length(code, _EXTENSIONS, f"an array as {name!r:.80}")
        kind = self._byte()
        if kind != _NDARRAY:
            raise CheckpointError(
                f"{self._path.name} has {name!r:.80} as an extension of type {kind}; expected"
                f" {_NDARRAY}, an array: save the parameters alone with save_pretrained"
            )
        end = self._file.tell() + n_bytes
        if self._byte() != 0x93:  # an array of 3
            raise self._damaged(f"has {name!r:.80} as something else than shape, type and data")
        shape, dtype = self._shape(), self._string()
        if dtype not in ITEM_BYTES:
            raise CheckpointError(
                f"{self._path.name} stores {name!r:.80} as {dtype!r:.40}; expected"
                f" {', '.join(ITEM_BYTES)}"
            )
        n_data = self._length(self._byte(), _BYTES, "data")
        blob = Blob(self._path, self._file.tell(), dtype, shape)
        if n_data != blob.n_bytes or blob.offset + n_data != end or end > self._size:
            raise self._damaged(
                f"has {n_data} bytes for {dtype} {list(shape)} of {name!r:.80}, up to byte {end} of"
                f" {self._size}"
            )
        self._file.seek(end)
        return blob

    def _shape(self) -> tuple[int, ...]:
        code = self._byte()
        n = code & 15 if 0x90 <= code <= 0x9F else self._length(code, _ARRAYS, "a shape")
        if n > _MAX_AXES:
            raise self._damaged(f"has an array of {n} axes")
        shape = tuple(self._integer() for _ in range(n))
        if not all(shape):
            raise self._damaged("has an array without values")
        return shape

    def _integer(self) -> int:
        code = self._byte()
        return code if code < 0x80 else self._length(code, _INTEGERS, "a size")

    def _string(self) -> str:
        code = self._byte()
        n = code & 31 if 0xA0 <= code <= 0xBF else self._length(code, _STRINGS, "a name")
        if n > _MAX_NAME:
            raise self._damaged(f"has a name of {n} bytes")
        try:
            return self._bytes(n).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self._damaged("has a name that is not text") from error

    def _next_is_map(self) -> bool:
        code = self._byte()
        self._file.seek(-1, os.SEEK_CUR)
        return 0x80 <= code <= 0x8F or code in _MAPS

    def _length(self, code: int, sizes: dict[int, int], what: str) -> int:
        if code not in sizes:
            raise self._damaged(f"has a value of MessagePack type 0x{code:02x}, expected {what}")
        return int.from_bytes(self._bytes(sizes[code]), "big")

    def _byte(self) -> int:
        return self._bytes(1)[0]

    def _bytes(self, n: int) -> bytes:
        raw = self._file.read(n)
        if len(raw) != n:
            raise self._damaged("ends inside its index")
        return raw

    def _damaged(self, what: str) -> CheckpointError:
        return CheckpointError(
            f"{self._path.name} {what}; it is incomplete or damaged, or is not a file of Flax"
            " parameters: fetch it again"
        )
