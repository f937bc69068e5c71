"""Option fields: the kind and range of each value, declared as field metadata, checked here."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, Callable, Union

from whisper_opt.core.errors import OptionError

__all__ = ["KINDS", "check_fields", "items", "option", "same_option"]

KINDS = ("text", "flag", "integer", "number", "integers", "numbers", "transcript", "clips")
"""Kinds of values. The option class itself checks the last four, which hold several."""


def option(
    default: Any,
    kind: str,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    optional: bool = False,
    choices: Sequence[str] | None = None,
    metavar: str | None = None,
) -> Any:
    """Declare an option: a dataclass field whose metadata says how to parse and check its value.

    Args:
        default: value if the option is not given.
        kind: one of ``KINDS``.
        help: one sentence for the command's help and docs/options.md.
        low: smallest number allowed.
        high: largest number allowed.
        optional: None is allowed; it always is if it is the default.
        choices: the only strings allowed.
        metavar: placeholder of the value in the command's help.
    """
    metadata: dict[str, Any] = {"kind": kind, "help": help, "low": low, "high": high}
    metadata["optional"] = optional or default is None
    metadata.update({"choices": choices} if choices else {})
    metadata.update({"metavar": metavar} if metavar else {})
    return dataclasses.field(default=default, metadata=metadata)


def same_option(options: type[Any], name: str) -> Any:
    """Declare a field again in another class of options: default, kind, range and help."""
    field = options.__dataclass_fields__[name]
    return dataclasses.field(default=field.default, metadata=field.metadata)


def check_fields(options: Any) -> None:
    """Check every field of a dataclass of options against its metadata.

    Raises:
        OptionError: a value is of the wrong type or out of range.
    """
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if value is None and field.metadata["optional"]:
            continue
        expected = _CHECKS[field.metadata["kind"]](value, field.metadata)
        if expected:
            raise OptionError(f"{field.name} is {value!r}; expected {expected}")


def _text(value: Any, meta: Any) -> str | None:
    if "choices" in meta:
        known = ", ".join(meta["choices"]) + (", or None" if meta["optional"] else "")
        return None if isinstance(value, str) and value in meta["choices"] else f"one of {known}"
    or_none = " or None" if meta["optional"] else ""
    return None if isinstance(value, str) else f"a string{or_none}"


def _flag(value: Any, meta: Any) -> str | None:
    if isinstance(value, bool):
        return None
    return "True, False or None" if meta["optional"] else "True or False"


def _integer(value: Any, meta: Any) -> str | None:
    low, high = meta["low"], meta["high"]
    is_integer = isinstance(value, int) and not isinstance(value, bool)
    if is_integer and (low is None or value >= low) and (high is None or value <= high):
        return None
    expected = "a positive integer" if low == 1 else f"an integer of {low} or more"
    if high is not None:
        expected = f"an integer from {low} to {high}"
    return expected + (" or None" if meta["optional"] else "")


def _number(value: Any, meta: Any) -> str | None:
    low, high = meta["low"], meta["high"]
    if isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high:
        return None
    return f"a number from {low} to {high}" + (", or None" if meta["optional"] else "")


def _unchecked(value: Any, meta: Any) -> str | None:
    return None


_CHECKS: dict[str, Callable[[Any, Any], Union[str, None]]] = {
    "text": _text,
    "flag": _flag,
    "integer": _integer,
    "number": _number,
    "integers": _unchecked,
    "numbers": _unchecked,
    "transcript": _unchecked,
    "clips": _unchecked,
}


def items(value: Any) -> Union[tuple[Any, ...], None]:
    """The items of an iterable; None for text and for anything else."""
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        return None
    return tuple(value)
