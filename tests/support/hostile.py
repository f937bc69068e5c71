"""Changes of valid files that keep their structure: values in JSON, pickles and zips.

Bytes changed at random (``tests.support.fuzzing``) seldom get past the first check of a reader;
these do. Changes depend only on the given generator, so every input can be made again.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import pickle
import pickletools
import random
import re
import struct
import sys
import zipfile
from collections.abc import Iterator, Sequence
from typing import Any

__all__ = ["hostile_json", "hostile_legacy", "hostile_pickle", "hostile_zip", "only_here"]

_DEEP = "deep below"
_LITERALS = ("1e999", "-1e999", "NaN", "1" * 4000, "9" * 5000, '"\\ud800"', '"\\u0000"')
_VALUES: Sequence[Any] = (
    *(None, True, False, 0, 1, -1, 2, 0.5, -0.0, 1e300, 255, 65536, 1 << 24),
    *((1 << 31) - 1, 1 << 31, (1 << 63) - 1, 1 << 63, -(1 << 63), 1 << 64, 10**30),
    *("", " ", "a", "a" * 3000, "0", "-1", "object", "O", "float64", "i1", "F64", "V8", "U100"),
    *("/etc/passwd", "../outside", "..", ".", "/", "a/../../outside", "C:\\outside", "\\\\host\\x"),
    *([], {}, [[]], [None], [0], [1, 2, 3], {"": {}}, [-1] * 3, [1 << 40] * 3, [1 << 62] * 100),
    _DEEP,
)


def _place(chance: random.Random, value: Any) -> tuple[Any, ...]:
    """Keys of a random nested value."""
    place: tuple[Any, ...] = ()
    while isinstance(value, (dict, list)) and value and (not place or chance.random() < 0.8):
        key = (
            chance.choice(list(value)) if isinstance(value, dict) else chance.randrange(len(value))
        )
        place, value = (*place, key), value[key]
    return place


def _at(value: Any, place: tuple[Any, ...]) -> Any:
    for key in place:
        value = value[key]
    return value


def _new_value(chance: random.Random, before: Any, other: Any) -> Any:
    """A replacement for a value, perhaps from elsewhere in the file."""
    kind = chance.randrange(6)
    if kind == 0:
        return copy.deepcopy(other)
    if kind == 1 and type(before) is int:
        return before + chance.choice((1, -1, 2, 100, 1 << 32))
    return copy.deepcopy(chance.choice(_VALUES))


def _change(chance: random.Random, value: Any) -> None:
    """Change one nested value."""
    place = _place(chance, value)
    if not place:
        return
    holder, key, kind = _at(value, place[:-1]), place[-1], chance.randrange(8)
    before = holder[key]
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, dict):
        holder[chance.choice(("", "a", "../x", "/etc/passwd", "\0", "__metadata__"))] = before
    elif kind == 1:
        holder.extend([before] * chance.choice((1, 10, 1000)))
    else:
        holder[key] = _new_value(chance, before, _at(value, _place(chance, value)))


def hostile_json(chance: random.Random, text: str) -> bytes:
    """JSON with some values replaced, removed or repeated."""
    value = json.loads(text)
    for _ in range(chance.choice((1, 1, 1, 2, 5))):
        _change(chance, value)
    if chance.random() < 0.02:
        value = chance.choice(_VALUES)
    found = json.dumps(value)
    depth = chance.choice((10, 500, 900, 980, 5000, 100_000))
    found = found.replace(f'"{_DEEP}"', "[" * depth + "]" * depth)
    if chance.random() < 0.1:
        number = chance.choice(("0", "1", "2", "4", "8", "64"))
        found = found.replace(f" {number},", f" {chance.choice(_LITERALS)},", 1)
    return found.encode()


def _text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


_SNIPPETS: Sequence[bytes] = (
    b"cposix\nsystem\n" + _text("touch /tmp/x") + b"\x85R",
    b"cbuiltins\neval\n",
    b"ccollections\nOrderedDict\n",
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ctorch\nFloatStorage\n",
    b"r\xff\xff\xff\x7f",
    b"r\xff\xff\xff\x0f",
    b"j\xff\xff\xff\xff",
    b"h\x00",
    b"h\x01",
    b"\x8b\xff\xff\xff\x7f",
    b"\x8a\xff" + b"\x7f" * 255,
    b"\x8d" + struct.pack("<Q", 1 << 60),
    b"\x8e" + struct.pack("<Q", 1 << 40) + b"a",
    b"\x95" + struct.pack("<Q", 1 << 62),
    b"X\xff\xff\xff\xff",
    b"\x85" * 2_000,
    b")" + b"\x85" * 2_000,
    b"]" * 2_000,
    b"(" * 1_000,
    b")\x85" + b"2\x86" * 40,
    b"]" + b"q\x00h\x00a" * 50,
    *(b"}", b"]", b")", b"(", b"N", b"R", b"b", b"s", b"u", b"a", b"e", b"t", b"Q", b"0", b"1"),
    *(b"2", b"\x81", b"\x8f", b"\x90", b"\x93", b"\x94", b"o", b"i0\n1\n", b"P0\n", b"I10\n", b"."),
    b"}" + _text("path") + _text("/etc/passwd") + b"sb",
    b"}" + _text("strides") + b"J\0\0\0\x81\x85sb",
    b"}" + _text("shape") + b"J\xff\xff\xff\x7f\x85sb",
    b"}" + _text("offset") + b"J\0\0\0\x80sb",
)
_NUMBERS = (0, 1, -1, 2, 3, 63, 64, 65, 4096, 1 << 20, (1 << 31) - 1, -(1 << 31))


def hostile_pickle(chance: random.Random, data: bytes) -> bytes:
    """A pickle with opcodes inserted, removed or exchanged, and numbers changed."""
    starts = [place for _, _, place in pickletools.genops(data) if place is not None]
    ops = [data[begin:end] for begin, end in zip(starts, [*starts[1:], len(data)])]
    for _ in range(chance.choice((1, 1, 1, 2, 3, 8))):
        i, kind = chance.randrange(1, len(ops)), chance.randrange(6)
        if kind == 0:
            ops[i] = b""
        elif kind == 1:
            ops.insert(i, chance.choice(ops))
        elif kind == 2:
            ops.insert(i, chance.choice(_SNIPPETS))
        elif kind == 3:
            ops[i] = chance.choice(_SNIPPETS)
        else:
            numbers = [at for at, op in enumerate(ops) if op[:1] == pickle.BININT and len(op) == 5]
            number = chance.choice((*_NUMBERS, None))
            other = struct.pack("<i", number or 0)
            ops[chance.choice(numbers or [i])] = (
                b"\x8a\x09" + b"\0" * 8 + b"\x40" if number is None else pickle.BININT + other
            )
    return b"".join(ops)


def hostile_legacy(chance: random.Random, data: bytes) -> bytes:
    """A file of PyTorch before 1.6 with one of its pickles or a number of values changed."""
    stream = io.BytesIO(data)
    parts = []
    for _ in range(5):
        start = stream.tell()
        for _ in pickletools.genops(stream):
            pass
        parts.append(data[start : stream.tell()])
    storages = bytearray(stream.read())
    if chance.random() < 0.2:
        number = chance.choice((0, 1, 11, 13, 1 << 31, 1 << 62, (1 << 64) - 1))
        storages[:8] = number.to_bytes(8, "little")
    else:
        i = chance.choice((2, 3, 3, 3, 4))
        parts[i] = hostile_pickle(chance, parts[i])
    return b"".join(parts) + bytes(storages)


_NAMES = ("x/data.pkl", "x/data/0", "x/data/1", "y/data.pkl", "/etc/passwd", "../x", "x/byteorder")


def hostile_zip(chance: random.Random, data: bytes) -> bytes:
    """An archive with compressed, repeated or missing members, or wrong sizes."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    for _ in range(chance.choice((0, 0, 1, 1, 2))):
        i = chance.randrange(len(members))
        name, content = members[i]
        members[i] = chance.choice(
            (
                (name, content[: chance.randrange(len(content) + 1)]),
                (chance.choice(_NAMES), content),
                (name, bytes(chance.choice((0, 1, 1 << 20)))),
                (name, chance.choice(members)[1]),
            )
        )
    if chance.random() < 0.2:
        members.append(chance.choice(members))
    if chance.random() < 0.1:
        members += [(f"x/data/{i + 10}", b"") for i in range(200)]
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w") as archive:
        for name, content in members:
            bomb = chance.random() < 0.05
            kind = zipfile.ZIP_DEFLATED if bomb else zipfile.ZIP_STORED
            archive.writestr(zipfile.ZipInfo(name), bytes(1 << 18) if bomb else content, kind)
    return _lying(chance, bytearray(raw.getvalue()))


def _lying(chance: random.Random, data: bytearray) -> bytes:
    """Change numbers in the central directory."""
    if chance.random() < 0.5:
        return bytes(data)
    fields = ((8, 2), (10, 2), (16, 4), (20, 4), (24, 4), (28, 2), (30, 2), (42, 4))
    starts = [found.start() for found in re.finditer(b"PK\1\2", data)]
    for _ in range(chance.choice((1, 1, 2))):
        start = chance.choice(starts)
        offset, size = chance.choice(fields)
        extreme = chance.choice((0, 1, 8, 64, len(data), 0x7FFFFFFF, 0xFFFFFFFF, 0x10000))
        data[start + offset : start + offset + size] = extreme.to_bytes(4, "little")[:size]
    return bytes(data)


_watching = False


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if not _watching or event not in ("open", "os.listdir", "os.scandir"):
        return
    path = arguments[0]
    if not isinstance(path, (str, bytes, os.PathLike)):
        return
    found, here = os.path.realpath(os.fsdecode(path)), os.path.realpath(os.curdir)
    if (
        not found.startswith(here + os.sep)
        and found != here
        and not found.endswith((".py", ".pyc"))
    ):
        raise AssertionError(f"{found} is opened, which is not in {here}")


@contextlib.contextmanager
def only_here() -> Iterator[None]:
    """Context in which opening files outside the current folder is an error."""
    global _watching
    if not hasattr(sys, "_whisper_opt_watched"):
        sys.addaudithook(_watch)
        sys._whisper_opt_watched = True  # type: ignore[attr-defined]
    _watching = True
    try:
        yield
    finally:
        _watching = False
