"""Names of the files that an ONNX graph reads its weights from.

ONNX Runtime opens whatever file a graph names. A graph from an untrusted source must therefore be
checked first, and without the package ``onnx``: only export has it. This module reads just enough
of the protobuf encoding (protobuf.dev/programming-guides/encoding) to visit every tensor of an ONNX
model (onnx/onnx.proto), including those in subgraphs and functions.
"""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Union

from whisper_opt.core.errors import EngineError

__all__ = ["external_files"]

_MAX_DEPTH = 64
"""Nested graphs of a real model: 2."""
_MAX_FILE = 2 << 30
"""The largest possible protobuf file; larger models have their weights in other files."""

# message -> field number -> message of that field, for all fields that can contain a tensor
_FIELDS: Mapping[str, Mapping[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_Buffer = Union[mmap.mmap, bytes]


def external_files(path: Path) -> set[str]:
    """The names of all external data files of an ONNX model, relative to its directory.

    Raises:
        EngineError: the file cannot be read, or is not a protobuf message.
    """
    try:
        size = path.stat().st_size
        if not 0 < size <= _MAX_FILE:
            raise ValueError(f"it has {size} bytes; expected 1 to {_MAX_FILE}")
        with contextlib.ExitStack() as stack:
            stream = stack.enter_context(path.open("rb"))
            data = stack.enter_context(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
            return set(_locations(data, 0, len(data), "model", 0))
    except (OSError, ValueError) as error:
        raise EngineError(
            f"{path} is not an ONNX model ({error}); copy or download it again"
        ) from error


def _locations(data: _Buffer, start: int, stop: int, message: str, depth: int) -> Iterator[str]:
    """Values of all entries ``location`` of external data within a message."""
    if depth > _MAX_DEPTH:
        raise ValueError(f"messages are nested deeper than {_MAX_DEPTH}")
    inner = _FIELDS[message]
    for number, begin, end in _fields(data, start, stop):
        kind = inner.get(number)
        if kind == "entry":
            key, value = _entry(data, begin, end)
            if key == b"location":
                yield value.decode("utf-8")
        elif kind is not None:
            yield from _locations(data, begin, end, kind, depth + 1)


def _entry(data: _Buffer, start: int, stop: int) -> tuple[bytes, bytes]:
    """Key and value of a StringStringEntryProto."""
    found = {number: data[begin:end] for number, begin, end in _fields(data, start, stop)}
    return found.get(1, b""), found.get(2, b"")


def _fields(data: _Buffer, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """Number, begin and end of each length-delimited field of a message; others are skipped."""
    while start < stop:
        tag, start = _varint(data, start, stop)
        kind, begin = tag & 7, start
        if kind == _VARINT:
            _, start = _varint(data, start, stop)
        elif kind == _BYTES:
            length, begin = _varint(data, start, stop)
            start = begin + length
        elif kind in (_FIXED64, _FIXED32):
            start += 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(f"wire type {kind} at byte {begin}")
        if start > stop:
            raise ValueError(f"the field at byte {begin} is cut off")
        if kind == _BYTES:
            yield tag >> 3, begin, start


def _varint(data: _Buffer, start: int, stop: int) -> tuple[int, int]:
    """An integer of up to 64 bits and the position after it."""
    value = 0
    for i in range(10):
        if start + i >= stop:
            break
        byte = data[start + i]
        value |= (byte & 0x7F) << 7 * i
        if byte < 0x80:
            return value, start + i + 1
    raise ValueError(f"no integer at byte {start}")
