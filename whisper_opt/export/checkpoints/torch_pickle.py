"""Reader of PyTorch's zip files (``.pt``, ``.bin``): needs no PyTorch, runs no code from them.

A file of ``torch.save`` is a zip archive of a pickle, ``data.pkl``, and one uncompressed member per
storage (layout: pytorch, torch/serialization.py). A pickle can name any function to call. This
reader accepts only the names that tensors need and the opcodes of plain containers. Storages are
read when a tensor is.
"""

from __future__ import annotations

import collections
import io
import math
import pickle
import reprlib
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Callable, ClassVar

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
_MAX_PICKLE_BYTES = 1 << 23
"""The largest model has 0.3 MB; objects take 64 bytes and more in memory."""
_MAX_AXES = 8
_LOCAL_HEADER_BYTES = 30


def is_torch_file(path: Path) -> bool:
    """Whether a file starts as ``torch.save`` writes it, before or after 1.6."""
    try:
        with path.open("rb") as file:
            start = file.read(len(_LEGACY))
    except OSError:
        return False
    return start.startswith(b"PK") or start == _LEGACY


def read_torch(path: Path) -> Any:
    """The saved object, with tensors as unread :class:`Blob`.

    Raises:
        CheckpointError: the file is not a zip of ``torch.save``, is damaged, has tensors of an
            unsupported type, or its pickle holds anything but tensors and plain containers.
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
            f"{path.name} is damaged: its pickle cannot be read"
            f" ({type(error).__name__}: {str(error)[:200]}); fetch it again"
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
        return io.BytesIO(self._read(self._members[f"{self._root}data.pkl"], _MAX_PICKLE_BYTES))

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
        n_bytes = n_items * ITEM_BYTES[dtype]
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


_OPCODES = (
    *(pickle.PROTO, pickle.FRAME, pickle.MARK, pickle.GLOBAL, pickle.STACK_GLOBAL),
    *(pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE, pickle.BINFLOAT),
    *(pickle.BININT, pickle.BININT1, pickle.BININT2, pickle.LONG1),
    *(pickle.BINUNICODE, pickle.SHORT_BINUNICODE, pickle.BINSTRING, pickle.SHORT_BINSTRING),
    *(pickle.BINBYTES, pickle.SHORT_BINBYTES),
    *(pickle.EMPTY_DICT, pickle.EMPTY_LIST, pickle.EMPTY_TUPLE, pickle.TUPLE),
    *(pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3, pickle.APPEND, pickle.APPENDS),
    *(pickle.BINPUT, pickle.LONG_BINPUT, pickle.MEMOIZE, pickle.BINGET, pickle.LONG_BINGET),
    *(pickle.BINPERSID, pickle.STOP),
)
"""Opcodes of plain containers and tensors, besides those that :class:`_Unpickler` defines."""


class _Unpickler(pickle._Unpickler):
    """Unpickler of tensors and plain containers only.

    It is derived from the Python implementation, whose opcodes can be restricted. With the C
    implementation a pickle of a few bytes can allocate gigabytes (a large memo index), set any
    attribute of an object it made, and crash the process with a key of nested tuples, which are
    hashed recursively.
    """

    stack: list[Any]
    pop_mark: Callable[[], list[Any]]
    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {
        code[0]: pickle._Unpickler.dispatch[code[0]] for code in _OPCODES
    }

    def __init__(self, file: io.BytesIO, storages: _Storages) -> None:
        super().__init__(file)
        self._storages = storages
        self._known: dict[tuple[str, str], Any] = {
            ("collections", "OrderedDict"): _NewDict(),
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
            raise CheckpointError(f"the file has tensors of torch.{name:.80}; expected {expected}")
        raise CheckpointError(
            f"the file asks to run {module:.80}.{name:.80}, which no checkpoint of plain tensors"
            " needs; refused. If you trust it, save its state_dict alone with torch.save"
        )

    def persistent_load(self, pid: Any) -> Blob:
        tag, dtype, key, _, n_items = pid
        known = type(dtype) is str and dtype in ITEM_BYTES and type(key) in (str, int)
        if tag != "storage" or not known or not _sizes((n_items,)):
            raise pickle.UnpicklingError(f"unknown persistent id {reprlib.repr(pid)}")
        return self._storages.blob(str(key), dtype, n_items)

    def _set_items(self, target: Any, items: list[Any]) -> None:
        if not isinstance(target, dict):
            raise pickle.UnpicklingError("items of something that is not a dictionary")
        for key, value in zip(items[::2], items[1::2]):
            if type(key) not in (str, int):
                raise pickle.UnpicklingError(f"a key is a {type(key).__name__}")
            target[key] = value

    def _load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set_items(self.stack[-1], [key, value])

    def _load_setitems(self) -> None:
        items = self.pop_mark()
        self._set_items(self.stack[-1], items)

    def _load_reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, (_NewDict, _RebuildTensor, _RebuildParameter)):
            raise pickle.UnpicklingError(f"a {type(function).__name__} is not callable")
        self.stack.append(function(*arguments))

    def _load_build(self) -> None:
        """Skip the state of a dictionary: ``_metadata`` of a ``state_dict``."""
        self.stack.pop()
        if not isinstance(self.stack[-1], dict):
            raise pickle.UnpicklingError("attributes of something that is not a dictionary")

    dispatch.update(
        {
            pickle.SETITEM[0]: _load_setitem,
            pickle.SETITEMS[0]: _load_setitems,
            pickle.REDUCE[0]: _load_reduce,
            pickle.BUILD[0]: _load_build,
        }
    )


class _NewDict:
    """Replaces collections.OrderedDict; its items follow."""

    __slots__ = ()

    def __call__(self) -> dict[Any, Any]:
        return collections.OrderedDict()


class _RebuildTensor:
    """Replaces torch._utils._rebuild_tensor_v2.

    An object without attributes, because a pickle can try to set some, and a plain function would
    keep them.
    """

    __slots__ = ()

    def __call__(self, storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Blob:
        if not isinstance(storage, Blob) or not isinstance(size, (tuple, list)):
            raise pickle.UnpicklingError("a tensor without storage, offset, size or stride")
        if not isinstance(stride, (tuple, list)) or not len(size) == len(stride) <= _MAX_AXES:
            raise pickle.UnpicklingError("a tensor with as many sizes as strides was expected")
        if not _sizes((offset, *size, *stride)):
            raise pickle.UnpicklingError("a tensor whose offset, size or stride is no integer")
        last = offset + sum((n - 1) * step for n, step in zip(size, stride))
        n_items = math.prod(size)
        if n_items > storage.n_items or (n_items and last >= storage.n_items):
            raise pickle.UnpicklingError("a tensor reaches outside its storage")
        return Blob(
            storage.path,
            storage.offset + offset * ITEM_BYTES[storage.dtype],
            storage.dtype,
            tuple(size),
            None if _is_contiguous(size, stride) else tuple(stride),
        )


class _RebuildParameter:
    """Replaces torch._utils._rebuild_parameter."""

    __slots__ = ()

    def __call__(self, data: Any, *_: Any) -> Any:
        return data


def _sizes(values: tuple[Any, ...]) -> bool:
    return all(type(value) is int and 0 <= value < 1 << 63 for value in values)


def _is_contiguous(size: Sequence[int], stride: Sequence[int]) -> bool:
    step = 1
    for n, found in zip(reversed(size), reversed(stride)):
        if n != 1 and found != step:
            return False
        step *= n
    return True
