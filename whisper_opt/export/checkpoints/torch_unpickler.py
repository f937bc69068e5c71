"""Unpickler of tensors and plain containers: runs no code that a pickle names.

A pickle can name any function to call. Only the names that tensors need are accepted, and only the
opcodes of plain containers.
"""

from __future__ import annotations

import collections
import io
import math
import pickle
import reprlib
from collections.abc import Sequence
from typing import Any, Callable, ClassVar, Protocol

from whisper_opt.core.errors import CheckpointError
from whisper_opt.export.checkpoints.blob import STORAGE_BYTES, Blob

__all__ = ["MAX_PICKLE_BYTES", "StorageIndex", "unpickle"]

_STORAGES = {
    ("torch", "FloatStorage"): "float32",
    ("torch", "HalfStorage"): "float16",
    ("torch", "BFloat16Storage"): "bfloat16",
}
_COUNTERS = {("torch", "LongStorage"): "int64"}
MAX_PICKLE_BYTES = 1 << 23
"""The largest model has 0.3 MB; objects take 64 bytes and more in memory."""
_MAX_AXES = 8


class StorageIndex(Protocol):
    """Where the storages of a file are."""

    def blob(self, key: str, dtype: str, n_items: int) -> Blob:
        """The storage ``key`` as one flat array; CheckpointError if it is not in the file."""


def unpickle(stream: io.BytesIO, storages: StorageIndex, *, counters: bool = False) -> Any:
    """The next object of a stream, with tensors as unread :class:`Blob`.

    ``counters``: accept tensors of int64 too.

    Raises:
        CheckpointError: it names something that tensors do not need, or a storage is not there.
        Exception: of any kind, if the pickle is damaged.
    """
    return _Unpickler(stream, storages, counters).load()


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

    def __init__(self, file: io.BytesIO, storages: StorageIndex, counters: bool) -> None:
        super().__init__(file)
        self._storages = storages
        storage_types = {**_STORAGES, **(_COUNTERS if counters else {})}
        self._known: dict[tuple[str, str], Any] = {
            ("collections", "OrderedDict"): _NewDict(),
            ("torch._utils", "_rebuild_tensor_v2"): _RebuildTensor(),
            ("torch._utils", "_rebuild_parameter"): _RebuildParameter(),
            **storage_types,
        }
        self._dtypes = frozenset(storage_types.values())

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
        tag, dtype, key, _, n_items, *view = pid  # views: None since PyTorch 0.4
        known = type(dtype) is str and dtype in self._dtypes and type(key) in (str, int)
        if tag != "storage" or not known or not _sizes((n_items,)) or view not in ([], [None]):
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
            storage.offset + offset * STORAGE_BYTES[storage.dtype],
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
