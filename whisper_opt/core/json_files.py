"""Parsing and checking of the JSON files of an engine, which may come from an untrusted source.

Every fault is a ``ValueError``: text that is not UTF-8, excessive nesting, duplicate keys, numbers
that are not JSON.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

__all__ = ["parse_json", "plain_name", "read_text", "text", "whole"]

MAX_BYTES = 16 << 20
"""Largest file that is read; a manifest has a few thousand bytes."""
_MAX_DIGITS = 20
"""Maximum digits of an integer: 64 bits need no more, and parsing time grows with their square."""
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,199}")


def read_text(path: Path) -> str:
    """The text of a JSON file.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is too large, or not UTF-8.
    """
    with path.open("rb") as stream:
        data = stream.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ValueError(f"more than {MAX_BYTES >> 20} MiB; expected a few thousand bytes")
    return data.decode("utf-8")


def parse_json(content: str) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it is not JSON, or JSON that parsers interpret differently.
    """
    try:
        return json.loads(
            content, object_pairs_hook=_unique, parse_constant=_constant, parse_int=_integer
        )
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"duplicate key {twice[:50]!r} in one object")
    return values


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _integer(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"an integer of {len(digits)} digits; expected at most {_MAX_DIGITS}")
    return int(digits)


def whole(value: Any, what: str, low: int = 0) -> int:
    """Check an integer: of 63 bits, at least ``low``; ``what`` names it in the message."""
    if type(value) is not int or not low <= value < 1 << 63:
        raise ValueError(f"{what} is {_short(value)}; expected a whole number of {low} or more")
    return value


def text(value: Any, what: str) -> str:
    """Check a string; ``what`` names it in the message."""
    if not isinstance(value, str):
        raise ValueError(f"{what} is {_short(value)}; expected text")
    return value


def plain_name(value: Any, what: str = "a file name") -> str:
    """Check the name of a file in the engine directory: no path, no special characters."""
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise ValueError(
            f"{what} is {_short(value)}; expected the name of a file in the engine directory"
        )
    return value


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
