"""Command-line arguments generated from dataclasses of options; output and error messages."""

from __future__ import annotations

import argparse
import dataclasses
import glob
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Callable, TypeVar, cast

from whisper_opt.text.transcript_files import read_transcript

__all__ = [
    "add_options",
    "complain",
    "expanded",
    "join_negative",
    "never_fail_to_print",
    "options_from",
    "print_utf8",
]

_Options = TypeVar("_Options")


_NEGATIVE = re.compile(r"-(\d|\.\d|inf)", re.IGNORECASE)


def join_negative(arguments: Sequence[str]) -> list[str]:
    """``--option -1,220`` as ``--option=-1,220``: argparse would parse the value as an option."""
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


def expanded(paths: Sequence[str]) -> list[str]:
    """Paths, on Windows with patterns (``*``, ``?``) replaced by the files that match them.

    Other systems' shells have done that. A pattern without a match stays.
    """
    if sys.platform == "win32":
        return [name for path in paths for name in _matching(path)]
    return list(paths)


def _matching(path: str) -> list[str]:
    if not {"*", "?"} & set(path):
        return [path]
    return sorted(glob.glob(path.replace("[", "[[]"))) or [path]


def never_fail_to_print() -> None:
    """Print characters that the console or pipe cannot encode as escapes."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)  # a replaced stream may lack it
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def print_utf8(text: str) -> None:
    """Print the contents of a file as UTF-8, whatever the encoding of the console or pipe."""
    sys.stdout.flush()
    binary = getattr(sys.stdout, "buffer", None)
    if binary is None:
        sys.stdout.write(text)
        return
    binary.write(text.encode("utf-8", "backslashreplace"))
    binary.flush()


def complain(message: object) -> None:
    """Print an error message on standard error."""
    print(f"whisper-opt: error: {message}", file=sys.stderr)


def add_options(group: Any, options: type[Any], leave_out: Sequence[str] = ()) -> None:
    """Add one argument per field of a dataclass of options."""
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
            metavar=meta.get("metavar") or (None if "choices" in meta else _METAVARS[meta["kind"]]),
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

    value.__name__ = f"{read.__name__} or none"  # for argparse's error message
    return value


def _sequence(read: Callable[[str], Any]) -> Callable[[str], Any]:
    def value(text: str) -> Any:
        return tuple(read(part) for part in text.split(",") if part.strip())

    value.__name__ = f"{read.__name__},{read.__name__},..."
    return value


def _transcript(path: str) -> Any:
    try:
        return read_transcript(Path(path).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"cannot read {path}: {error}") from None


def _clips(text: str) -> Any:
    """``NAME=FILE,...``; raises ArgumentTypeError."""
    pairs = [part.partition("=") for part in text.split(",") if part.strip()]
    for name, sign, path in pairs:
        if not (name.strip() and sign and path.strip()):
            raise argparse.ArgumentTypeError(f"{text!r} has no NAME=FILE in {name!r}")
    return tuple((name.strip(), path.strip()) for name, _, path in pairs)


_READERS: dict[str, Callable[[str], Any]] = {
    "text": str,
    "integer": _optional(int),
    "number": _optional(float),
    "integers": _sequence(int),
    "numbers": _sequence(float),
    "transcript": _transcript,
    "clips": _clips,
}


_METAVARS = {
    "text": "TEXT",
    "integer": "N",
    "number": "X",
    "integers": "N,...",
    "numbers": "X,...",
    "transcript": "FILE",
    "clips": "NAME=FILE,...",
}
"""Placeholders of values in the help, by kind of option."""


def options_from(args: argparse.Namespace, options: type[_Options]) -> _Options:
    """The options that were given as arguments."""
    values = vars(args)
    names = [field.name for field in dataclasses.fields(cast(Any, options))]
    return options(**{name: values[name] for name in names if name in values})
