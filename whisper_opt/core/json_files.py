"""JSON files that came with an engine: anyone may have written them, so nothing is taken on trust.

What is wrong with a file is a ``ValueError`` here, whatever it is: text that is not UTF-8, nesting
without end, a key twice, numbers that JSON does not have.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

__all__ = ["parse_json", "plain_name", "read_text", "text", "whole"]

MAX_BYTES = 16 << 20
"""Largest file read; a manifest has a few thousand bytes."""
_MAX_DIGITS = 20
"""Digits of a whole number: 64 bits have no more, and longer ones take very long to read."""
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,199}")


def read_text(path: Path) -> str:
    """The text of a file of JSON.

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
        ValueError: it is not JSON, or uses what readers of JSON disagree about.
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
        raise ValueError(f"the key {twice[:50]!r} stands twice in one object")
    return values


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _integer(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"a whole number of {len(digits)} digits; expected {_MAX_DIGITS} at most")
    return int(digits)


def whole(value: Any, what: str, low: int = 0) -> int:
    """A whole number of 63 bits, ``low`` or more; ``what`` names it in the message."""
    if type(value) is not int or not low <= value < 1 << 63:
        raise ValueError(f"{what} is {_short(value)}; expected a whole number of {low} or more")
    return value


def text(value: Any, what: str) -> str:
    """A string; ``what`` names it in the message."""
    if not isinstance(value, str):
        raise ValueError(f"{what} is {_short(value)}; expected text")
    return value


def plain_name(value: Any, what: str = "a file name") -> str:
    """The name of a file in the same directory: no path, nothing that a system gives a meaning."""
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise ValueError(
            f"{what} is {_short(value)}; expected the name of a file in the engine directory"
        )
    return value


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
