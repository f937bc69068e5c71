"""Reader of PyTorch's files (``.pt``, ``.bin``): needs no PyTorch, runs no code from them.

A file of ``torch.save`` is a zip archive of a pickle, ``data.pkl``, and one uncompressed member per
storage (layout: pytorch, torch/serialization.py). Files from before PyTorch 1.6 are in
``torch_legacy``. Storages are read when a tensor is.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

from whisper_opt.core.errors import CheckpointError
from whisper_opt.export.checkpoints.blob import STORAGE_BYTES, Blob
from whisper_opt.export.checkpoints.torch_legacy import is_legacy_file, read_legacy
from whisper_opt.export.checkpoints.torch_unpickler import MAX_PICKLE_BYTES, unpickle

__all__ = ["is_torch_file", "read_torch"]

_LOCAL_HEADER_BYTES = 30


def is_torch_file(path: Path) -> bool:
    """Whether a file starts as a version of ``torch.save`` writes it."""
    return _starts_as_zip(path) or is_legacy_file(path)


def _starts_as_zip(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(2) == b"PK"
    except OSError:
        return False


def read_torch(path: Path, *, counters: bool = False) -> Any:
    """The saved object, with tensors as unread :class:`Blob`.

    Args:
        path: the file.
        counters: accept tensors of int64 too: the counters of batch normalizations.

    Raises:
        CheckpointError: the file is not one of ``torch.save``, is damaged, has tensors of an
            unsupported type, or its pickle holds anything but tensors and plain containers.
    """
    try:
        if is_legacy_file(path):
            return read_legacy(path, counters=counters)
        with zipfile.ZipFile(path) as archive:
            storages = _Storages(path, archive)
            return unpickle(storages.pickle(), storages, counters=counters)
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"cannot read {path.name}: {error.strerror}") from error
    except zipfile.BadZipFile as error:
        what = (
            "is a truncated or damaged zip archive: fetch it again"
            if _starts_as_zip(path)
            else "is not a file of torch.save: expected a zip archive"
        )
        raise CheckpointError(f"{path.name} {what}") from error
    except Exception as error:  # a damaged pickle can fail in any way
        raise CheckpointError(
            f"{path.name} is damaged: its pickle cannot be read"
            f" ({type(error).__name__}: {str(error)[:200]}); fetch it again"
        ) from error


class _Storages:
    """Storages of an archive, located but not read."""

    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self._path = path
        self._archive = archive
        self._members = {info.filename: info for info in archive.infolist()}
        pickles = [name for name in self._members if name.split("/")[1:] == ["data.pkl"]]
        if len(pickles) != 1:
            raise CheckpointError(
                f"{path.name} holds {len(pickles)} data.pkl; expected the one of torch.save"
            )
        self._root = pickles[0][: -len("data.pkl")]
        order = self._members.get(f"{self._root}byteorder")
        if order is not None and self._read(order, len(b"little")) != b"little":
            raise CheckpointError(
                f"{path.name} was saved on a big-endian machine; save it again on a little-endian"
                " one"
            )

    def pickle(self) -> io.BytesIO:
        return io.BytesIO(self._read(self._members[f"{self._root}data.pkl"], MAX_PICKLE_BYTES))

    def _read(self, info: zipfile.ZipInfo, most: int) -> bytes:
        """A small, uncompressed member; compressed ones could expand to any size."""
        self._check_plain(info)
        if info.file_size > most:
            raise CheckpointError(
                f"{self._path.name} has {info.file_size} bytes in {info.filename!r:.80}; expected"
                f" at most {most}, as tensors belong outside it: save the model again with"
                " torch.save"
            )
        return self._archive.read(info)

    def _check_plain(self, info: zipfile.ZipInfo) -> None:
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise CheckpointError(
                f"{self._path.name} has compressed or encrypted data; torch.save stores it plain:"
                " save the model again"
            )

    def blob(self, key: str, dtype: str, n_items: int) -> Blob:
        """The storage ``key`` as one flat array.

        Its data follows the member's local header.
        """
        info = self._members.get(f"{self._root}data/{key}")
        if info is None:
            raise CheckpointError(
                f"{self._path.name} lacks the data of storage {key!r:.80}; fetch it again"
            )
        n_bytes = n_items * STORAGE_BYTES[dtype]
        self._check_plain(info)
        if info.file_size < n_bytes:
            raise CheckpointError(
                f"{self._path.name} has {info.file_size} bytes for storage {key!r:.80}, {n_bytes}"
                " are declared; fetch it again"
            )
        with self._path.open("rb") as file:
            file.seek(info.header_offset)
            header = file.read(_LOCAL_HEADER_BYTES)
        if len(header) != _LOCAL_HEADER_BYTES or header[:4] != b"PK\x03\x04":
            raise zipfile.BadZipFile("a member has no local header")
        n_name = int.from_bytes(header[26:28], "little")
        n_extra = int.from_bytes(header[28:30], "little")
        offset = info.header_offset + _LOCAL_HEADER_BYTES + n_name + n_extra
        if offset + n_bytes > self._path.stat().st_size:
            raise zipfile.BadZipFile("a member lies outside the file")
        return Blob(self._path, offset, dtype, (n_items,))
