"""Reader of PyTorch's files from before 1.6, which ``torch.save`` still writes on request.

Layout (pytorch, torch/serialization.py, ``_legacy_save``): pickles of a magic number, a version,
facts about the machine, the object, and the list of its storages; then the data of each storage in
that order, after its number of values as 64 bits. Offsets are known only after the object is read,
so it is read twice: its pickle is small.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any, BinaryIO

from whisper_opt.core.errors import CheckpointError
from whisper_opt.export.checkpoints.blob import Blob
from whisper_opt.export.checkpoints.torch_unpickler import MAX_PICKLE_BYTES, unpickle

__all__ = ["is_legacy_file", "read_legacy"]

_MAGIC, _VERSION = 0x1950A86A20F9469CFC6C, 1001
# The magic number as pickle protocol 2 writes it.
_START = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
_TAR_MAGIC, _TAR_OFFSET = b"ustar", 257


def is_legacy_file(path: Path) -> bool:
    """Whether a file starts as ``torch.save`` before 1.6 wrote it, also as a tar archive."""
    try:
        with path.open("rb") as file:
            start = file.read(_TAR_OFFSET + len(_TAR_MAGIC))
    except OSError:
        return False
    return start.startswith(_START) or start[_TAR_OFFSET:] == _TAR_MAGIC


def read_legacy(path: Path, *, counters: bool = False) -> Any:
    """The saved object, with tensors as unread :class:`Blob`.

    ``counters``: accept tensors of int64 too.

    Raises:
        CheckpointError: the file is damaged, or it is a tar archive.
        Exception: of any kind, if a pickle is damaged.
    """
    with path.open("rb") as file:
        stream = io.BytesIO(file.read(MAX_PICKLE_BYTES))
        if not stream.getvalue().startswith(_START):
            raise CheckpointError(
                f"{path.name} is a tar archive, in which weights cannot be found one by one: unpack"
                " it if it holds a model's files; if torch.save of PyTorch before 0.2 wrote it,"
                " load it there and save it again with a newer one"
            )
        storages = _Storages(path)
        _check_header([unpickle(stream, storages) for _ in range(3)], path)
        start = stream.tell()
        unpickle(stream, storages, counters=counters)
        keys = unpickle(stream, storages)
        storages.locate(file, keys, stream.tell())
        stream.seek(start)
        return unpickle(stream, storages, counters=counters)


def _check_header(header: list[Any], path: Path) -> None:
    magic, version, machine = header
    if magic != _MAGIC or version != _VERSION or not isinstance(machine, dict):
        raise CheckpointError(
            f"{path.name} has version {version!r:.40} of torch.save's old format; expected"
            f" {_VERSION}: it is damaged, or save it again with a newer PyTorch"
        )
    if machine.get("little_endian") is not True:
        raise CheckpointError(
            f"{path.name} was saved on a big-endian machine; save it again on a little-endian one"
        )


class _Storages:
    """Storages that an object names, and where they are once that is known."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._named: dict[str, Blob] = {}
        self._located = False

    def blob(self, key: str, dtype: str, n_items: int) -> Blob:
        """The storage ``key``; its offset is 0 until :meth:`locate`."""
        blob = Blob(self._path, 0, dtype, (n_items,))
        if not self._located:
            blob = self._named.setdefault(key, blob)
        found = self._named[key]
        if (found.dtype, found.shape) != (dtype, (n_items,)):
            raise CheckpointError(
                f"{self._path.name} names storage {key!r:.80} with two types or sizes; it is"
                " damaged: fetch it again"
            )
        return found

    def locate(self, file: BinaryIO, keys: Any, offset: int) -> None:
        """Find the data of all storages, the first of which is at ``offset``."""
        size = os.fstat(file.fileno()).st_size
        if not isinstance(keys, list) or set(map(str, keys)) != set(self._named):
            raise self._damaged("has another list of storages than its tensors name")
        located: dict[str, Blob] = {}
        for key in map(str, keys):
            blob = self._named[key]
            file.seek(offset)
            n_items = int.from_bytes(file.read(8), "little")
            offset += 8
            if blob.shape != (n_items,) or offset + blob.n_bytes > size:
                raise self._damaged(
                    f"has {size} bytes and {n_items} values in storage {key!r:.80},"
                    f" {blob.n_items} values at byte {offset} are declared"
                )
            located[key] = Blob(self._path, offset, blob.dtype, blob.shape)
            offset += blob.n_bytes
        self._named, self._located = located, True

    def _damaged(self, what: str) -> CheckpointError:
        return CheckpointError(
            f"{self._path.name} {what}; it is incomplete or damaged: fetch it again"
        )
