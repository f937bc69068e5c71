"""Read PyTorch's zip files (``.pt``, ``.bin``) without PyTorch and without running their code.

A file of ``torch.save`` is a zip archive of a pickle, ``data.pkl``, and one uncompressed member for
each storage (layout: pytorch, torch/serialization.py). A pickle can name any function to call; the
reader here knows only the handful that tensors need and refuses every other by name. Storages stay
in the file until a tensor is read.
"""

from __future__ import annotations

import collections
import io
import math
import pickle
import zipfile
from pathlib import Path
from typing import Any

from whisper_opt.core.errors import CheckpointError
from whisper_opt.export.checkpoints.blob import ITEM_BYTES, Blob

__all__ = ["is_torch_file", "read_torch"]

_STORAGES = {
    ("torch", "FloatStorage"): "float32",
    ("torch", "HalfStorage"): "float16",
    ("torch", "BFloat16Storage"): "bfloat16",
}
# First bytes of torch.save before 1.6: a pickled magic number.
_LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
_MAX_PICKLE_BYTES = 1 << 28
_LOCAL_HEADER_BYTES = 30


def is_torch_file(path: Path) -> bool:
    """Whether a file starts like one of ``torch.save``, old or new."""
    try:
        with path.open("rb") as file:
            start = file.read(len(_LEGACY))
    except OSError:
        return False
    return start.startswith(b"PK") or start == _LEGACY


def read_torch(path: Path) -> Any:
    """The object saved in a file, its tensors as unread :class:`Blob`.

    Raises:
        CheckpointError: the file is not a zip of ``torch.save``, is damaged, has tensors of an
            unsupported type, or its pickle names anything else than tensors and plain containers.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            storages = _Storages(path, archive)
            pickled = storages.pickle()
            return _Unpickler(pickled, storages).load()
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"cannot read {path.name}: {error.strerror}") from error
    except zipfile.BadZipFile as error:
        raise CheckpointError(_not_a_zip(path)) from error
    except Exception as error:  # a damaged pickle can fail in any way
        raise CheckpointError(
            f"{path.name} is damaged: its pickle cannot be read ({type(error).__name__}: {error});"
            " fetch it again"
        ) from error


def _not_a_zip(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(len(_LEGACY))
    if start == _LEGACY:
        return (
            f"{path.name} has PyTorch's format from before 1.6, which cannot be read lazily; load"
            " and save it again with a newer PyTorch: torch.save(torch.load(file), file)"
        )
    if start.startswith(b"PK"):
        return f"{path.name} is a truncated or damaged zip archive: fetch it again"
    return f"{path.name} is not a file of torch.save: expected a zip archive"


class _Storages:
    """Members of the archive, located but not read."""

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
        if order is not None and archive.read(order) != b"little":
            raise CheckpointError(
                f"{path.name} was saved on a big-endian machine; save it again on a little-endian"
                " one"
            )

    def pickle(self) -> io.BytesIO:
        info = self._members[f"{self._root}data.pkl"]
        if info.file_size > _MAX_PICKLE_BYTES:
            raise CheckpointError(
                f"{self._path.name} has a pickle of {info.file_size} bytes; tensors belong outside"
                " it: save the model again with torch.save"
            )
        return io.BytesIO(self._archive.read(info))

    def blob(self, key: str, dtype: str, n_items: int) -> Blob:
        """The storage ``key`` as one flat array.

        Members are stored uncompressed, so the data is found by reading the member's own header.
        """
        info = self._members.get(f"{self._root}data/{key}")
        if info is None:
            raise CheckpointError(
                f"{self._path.name} lacks the data of storage {key!r}; fetch it again"
            )
        n_bytes = n_items * ITEM_BYTES[dtype]
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise CheckpointError(
                f"{self._path.name} has compressed or encrypted data; torch.save stores it plain:"
                " save the model again"
            )
        if info.file_size < n_bytes:
            raise CheckpointError(
                f"{self._path.name} has {info.file_size} bytes for storage {key!r}, {n_bytes} are"
                " declared; fetch it again"
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


class _Unpickler(pickle.Unpickler):
    """Unpickler that can make tensors and containers, and nothing else."""

    def __init__(self, file: io.BytesIO, storages: _Storages) -> None:
        super().__init__(file)
        self._storages = storages
        self._known: dict[tuple[str, str], Any] = {
            ("collections", "OrderedDict"): collections.OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): _RebuildTensor(),
            ("torch._utils", "_rebuild_parameter"): _RebuildParameter(),
            **_STORAGES,
        }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._known[module, name]
        except KeyError:
            pass
        if module == "torch" and name.endswith("Storage"):
            expected = ", ".join(storage for _, storage in _STORAGES)
            raise CheckpointError(f"the file has tensors of torch.{name}; expected {expected}")
        raise CheckpointError(
            f"the file asks to run {module}.{name}, which no checkpoint of plain tensors needs;"
            " refused. If you trust it, save its state_dict alone with torch.save"
        )

    def persistent_load(self, pid: Any) -> Blob:
        tag, dtype, key, _, n_items = pid
        if tag != "storage" or dtype not in ITEM_BYTES or not _sizes((n_items,)):
            raise pickle.UnpicklingError(f"unknown persistent id {pid!r:.80}")
        return self._storages.blob(str(key), dtype, n_items)


class _RebuildTensor:
    """Stands for torch._utils._rebuild_tensor_v2.

    Without slots or dictionary: a pickle can try to set attributes on what it names, and a plain
    function would keep them after the reading.
    """

    __slots__ = ()

    def __call__(self, storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Blob:
        if not isinstance(storage, Blob) or not _sizes((offset, *size, *stride)):
            raise pickle.UnpicklingError("a tensor without storage, offset, size or stride")
        if len(size) != len(stride):
            raise pickle.UnpicklingError("a tensor with as many sizes as strides was expected")
        last = offset + sum((n - 1) * step for n, step in zip(size, stride))
        if math.prod(size) and last >= storage.n_items:
            raise pickle.UnpicklingError("a tensor reaches outside its storage")
        return Blob(
            storage.path,
            storage.offset + offset * ITEM_BYTES[storage.dtype],
            storage.dtype,
            tuple(size),
            None if _is_contiguous(size, stride) else tuple(stride),
        )


class _RebuildParameter:
    """Stands for torch._utils._rebuild_parameter."""

    __slots__ = ()

    def __call__(self, data: Any, *_: Any) -> Any:
        return data


def _sizes(values: tuple[Any, ...]) -> bool:
    return all(type(value) is int and value >= 0 for value in values)


def _is_contiguous(size: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    step = 1
    for n, found in zip(reversed(size), reversed(stride)):
        if n != 1 and found != step:
            return False
        step *= n
    return True
