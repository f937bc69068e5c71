"""Walks the arguments of wrapped interfaces: each is mapped, without effect, or refused by name.

tests/data/signatures has the arguments of the originals (``tools/goldens/make_signatures.py``). A
test declares :class:`Argument` for each of them and gives :func:`check_argument` a function that
calls the drop-in and returns what the public API received, as a recording fake saw it.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Callable

import pytest

from whisper_opt import OptionError

__all__ = ["Argument", "arguments_of", "check_argument", "originals"]

_DATA = Path(__file__).parents[1] / "data" / "signatures"
_STARS: dict[Any, str] = {
    inspect.Parameter.VAR_POSITIONAL: "*",
    inspect.Parameter.VAR_KEYWORD: "**",
}
_MISSING = object()

Call = Callable[..., Mapping[str, Any]]
"""Calls the drop-in with arguments; returns what the public API received, by name."""


def originals(package: str) -> dict[str, dict[str, str | None]]:
    """Arguments of the original's functions: the default as ``repr``, None without one."""
    functions: dict[str, dict[str, str | None]] = json.loads(
        (_DATA / f"{package}.json").read_text("utf-8")
    )["functions"]
    return functions


def arguments_of(function: Callable[..., Any]) -> dict[str, str | None]:
    """Arguments of a drop-in's function in the same form; a tuple is written as a list."""
    return {
        _STARS.get(parameter.kind, "") + name: None
        if parameter.default is parameter.empty
        else repr(list(parameter.default) if _is_tuple(parameter.default) else parameter.default)
        for name, parameter in inspect.signature(function).parameters.items()
        if name != "self"
    }


def _is_tuple(value: Any) -> bool:
    return type(value) is tuple


@dataclasses.dataclass(frozen=True)
class Argument:
    """What a value of an argument does.

    Attributes:
        name: the argument.
        value: a value other than its default.
        effect: what the public API receives because of it, by name: mapped; empty: no effect.
        refused: pattern of the reason in the ``OptionError``, which also names the argument.
        given: other arguments of the call, without which the value would have no effect.
    """

    name: str
    value: Any
    effect: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    refused: str | None = None
    given: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        return self.name


def check_argument(argument: Argument, call: Call) -> None:
    """Call with and without the argument, and compare what the public API received."""
    given = dict(argument.given)
    if argument.refused is not None:
        call(**given)  # not refused without it
        with pytest.raises(OptionError, match=argument.refused) as caught:
            call(**given, **{argument.name: argument.value})
        assert argument.name in str(caught.value)
        return
    before, after = call(**given), call(**given, **{argument.name: argument.value})
    changed = _changes(before, after)
    assert changed == dict(argument.effect)


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    names: Iterable[str] = {*before, *after}
    return {
        name: after.get(name)
        for name in names
        if before.get(name, _MISSING) != after.get(name, _MISSING)
    }
