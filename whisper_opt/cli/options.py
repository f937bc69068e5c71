"""Arguments of commands, made from dataclasses of options; how commands print and complain."""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
from collections.abc import Sequence
from typing import Any, Callable, TypeVar, cast

__all__ = [
    "add_options",
    "complain",
    "join_negative",
    "never_fail_to_print",
    "options_from",
    "print_utf8",
]

_Options = TypeVar("_Options")


_NEGATIVE = re.compile(r"-(\d|\.\d|inf)", re.IGNORECASE)


def join_negative(arguments: Sequence[str]) -> list[str]:
    """``--option -1,220`` as ``--option=-1,220``: argparse would take the value for an option."""
    joined: list[str] = []
    for i, argument in enumerate(arguments):
        if argument == "--":
            return [*joined, *arguments[i:]]
        before = joined[-1] if joined else ""
        if _NEGATIVE.match(argument) and before.startswith("--") and "=" not in before:
            joined[-1] = f"{before}={argument}"
        else:
            joined.append(argument)
    return joined


def never_fail_to_print() -> None:
    """Let characters that the console or pipe cannot show be printed as escapes."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)  # a stream put in its place may not
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def print_utf8(text: str) -> None:
    """Print what is a file by rights: as UTF-8, whatever the console or pipe is set to."""
    sys.stdout.flush()
    binary = getattr(sys.stdout, "buffer", None)
    if binary is None:
        sys.stdout.write(text)
        return
    binary.write(text.encode("utf-8", "backslashreplace"))
    binary.flush()


def complain(message: object) -> None:
    """Say on standard error what went wrong."""
    print(f"whisper-opt: error: {message}", file=sys.stderr)


def add_options(group: Any, options: type[Any], leave_out: Sequence[str] = ()) -> None:
    """One argument an option, made from the fields of a dataclass of options."""
    for field in dataclasses.fields(options):
        if field.name in leave_out:
            continue
        meta = field.metadata
        flag = "--" + field.name.replace("_", "-")
        if meta["kind"] == "flag":
            text = meta["help"] + _default_text(field.default, False)
            group.add_argument(
                flag, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text
            )
            continue
        group.add_argument(
            flag,
            type=_READERS[meta["kind"]],
            choices=meta.get("choices"),
            metavar=meta.get("metavar") or (None if "choices" in meta else "TEXT"),
            default=argparse.SUPPRESS,
            help=meta["help"] + _default_text(field.default, meta["optional"]),
        )


def _default_text(default: Any, optional: bool) -> str:
    if default is None or default == ():
        return ""
    if isinstance(default, bool):
        return f" (default: {'yes' if default else 'no'})"
    if isinstance(default, tuple):
        return f" (default: {','.join(map(str, default))})"
    return f" (default: {default}{'; none turns it off' if optional else ''})"


def _optional(read: Callable[[str], Any]) -> Callable[[str], Any]:
    def value(text: str) -> Any:
        return None if text.lower() == "none" else read(text)

    value.__name__ = f"{read.__name__} or none"  # argparse names it in its message
    return value


def _sequence(read: Callable[[str], Any]) -> Callable[[str], Any]:
    def value(text: str) -> Any:
        return tuple(read(part) for part in text.split(",") if part.strip())

    value.__name__ = f"{read.__name__},{read.__name__},..."
    return value


_READERS: dict[str, Callable[[str], Any]] = {
    "text": str,
    "integer": _optional(int),
    "number": _optional(float),
    "integers": _sequence(int),
    "numbers": _sequence(float),
}


def options_from(args: argparse.Namespace, options: type[_Options]) -> _Options:
    """The options that were given as arguments."""
    values = vars(args)
    names = [field.name for field in dataclasses.fields(cast(Any, options))]
    return options(**{name: values[name] for name in names if name in values})
