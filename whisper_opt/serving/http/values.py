"""Values of form fields: text to the kinds of values that options have."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Callable, TypeVar

from whisper_opt.serving.http.errors import invalid
from whisper_opt.text.transcript_files import read_transcript

__all__ = ["flag", "integer", "number", "numbers", "one", "texts", "value_of"]

_Number = TypeVar("_Number", int, float)

_NONE = ("none", "null")


def one(name: str, values: Sequence[str]) -> str:
    """The value of a field that is given once.

    Raises:
        ApiError: it is given several times.
    """
    if len(values) > 1:
        raise invalid(name, f"is given {len(values)} times", "it once")
    return values[0]


def flag(name: str, text: str) -> bool:
    """``true`` or ``false``."""
    values = {"true": True, "false": False}
    if text.lower() not in values:
        raise invalid(name, f"is {text!r}", "true or false")
    return values[text.lower()]


def integer(name: str, text: str) -> int:
    """A whole number."""
    return _converted(name, text, int, "an integer")


def number(name: str, text: str) -> float:
    """A number."""
    return _converted(name, text, float, "a number")


def _converted(name: str, text: str, kind: Callable[[str], _Number], expected: str) -> _Number:
    try:
        return kind(text)
    except ValueError:
        raise invalid(name, f"is {text!r}", expected) from None


def texts(name: str, values: Sequence[str]) -> tuple[str, ...]:
    """An array of strings: repeated parts, or one part with a JSON array."""
    if len(values) == 1 and values[0].lstrip().startswith("["):
        found = _json(name, values[0])
        if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
            raise invalid(name, f"is {values[0]!r}", "an array of strings")
        return tuple(found)
    return tuple(values)


def numbers(name: str, values: Sequence[str], kind: type[Any]) -> tuple[Any, ...]:
    """An array of numbers: repeated parts, one part ``0,0.2``, or one with a JSON array."""
    parts = [part for value in values for part in value.strip().strip("[]").split(",")]
    read = integer if kind is int else number
    return tuple(read(name, part) for part in parts if part.strip())


def _json(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise invalid(name, f"is {text!r}", "JSON") from None


def value_of(name: str, values: Sequence[str], kind: str, optional: bool) -> Any:
    """The value of an option of a kind (see ``core.options.KINDS``).

    Raises:
        ApiError: the text is no value of that kind.
    """
    if kind in ("integers", "numbers"):
        return numbers(name, values, int if kind == "integers" else float)
    text = one(name, values)
    if kind == "text":
        return text
    if kind == "transcript":
        return read_transcript(text)
    if optional and text.lower() in _NONE:
        return None
    read: Callable[[str, str], Any] = {"flag": flag, "integer": integer, "number": number}[kind]
    return read(name, text)


def json_object(name: str, text: str) -> dict[str, str]:
    """A JSON object of plain values, each as text."""
    found = _json(name, text)
    if not isinstance(found, dict) or any(isinstance(v, (dict, list)) for v in found.values()):
        raise invalid(name, f"is {text!r}", "an object of plain values")
    return {key: _plain(value) for key, value in found.items() if value is not None}


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
