"""Reading JSON files of an engine, which may come from an untrusted source.

Every fault of a file is a ``ValueError``: text that is not UTF-8, deep nesting, duplicate keys,
numbers that JSON does not have.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

__all__ = ["integer", "parse_json", "plain_name", "read_text", "string"]

MAX_BYTES = 16 << 20
"""Largest file that is read; a manifest has a few thousand bytes."""
_MAX_DIGITS = 20
"""Digits of an integer of 64 bits; much longer ones take very long to parse."""
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
        ValueError: it is not JSON, or uses features on which JSON parsers differ.
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
        raise ValueError(f"the key {twice[:50]!r} occurs twice in one object")
    return values


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _integer(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"an integer of {len(digits)} digits; expected at most {_MAX_DIGITS}")
    return int(digits)


def integer(value: Any, name: str, low: int = 0) -> int:
    """Check for an integer from ``low`` to 2**63 - 1; ``name`` is used in the message."""
    if type(value) is not int or not low <= value < 1 << 63:
        raise ValueError(f"{name} is {_short(value)}; expected an integer of at least {low}")
    return value


def string(value: Any, name: str) -> str:
    """Check for a string; ``name`` is used in the message."""
    if not isinstance(value, str):
        raise ValueError(f"{name} is {_short(value)}; expected a string")
    return value


def plain_name(value: Any, name: str = "a file name") -> str:
    """Check for the name of a file in the same directory: no path, no special characters."""
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise ValueError(
            f"{name} is {_short(value)}; expected the name of a file in the engine directory"
        )
    return value


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
