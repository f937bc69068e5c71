"""docs/errors.md is up to date and complete."""

from __future__ import annotations

import ast
import re

from make_errors_doc import TARGET, calls, found, message, page, quoted

from whisper_opt.core import errors

MADE_ELSEWHERE = {
    ("audio/arrays.py", "AudioError"),
    ("audio/decode.py", "AudioError"),
    ("audio/live_input.py", "AudioError"),
    ("export/checkpoints/torch_pickle.py", "CheckpointError"),
    ("runtime/engine.py", "EngineError"),
    ("runtime/engine_cache.py", "EngineError"),
    ("runtime/native/__init__.py", "BackendUnavailable"),
    ("runtime/native/__init__.py", "OptionError"),
    ("runtime/optimum/backend.py", "EngineError"),
    ("runtime/tensorrt/backend.py", "BackendUnavailable"),
    ("runtime/tensorrt/library.py", "BackendUnavailable"),
    ("serving/loop.py", "EngineError"),
    ("transcription/language.py", "OptionError"),
    ("transcription/scheduler.py", "EngineError"),
}
"""Errors whose message another function makes: the page does not have it."""


def test_the_page_is_current() -> None:
    stale = "run: python scripts/make_errors_doc.py"
    assert TARGET.read_text(encoding="utf-8") == page(), stale


def test_messages_that_are_made_elsewhere_are_known() -> None:
    assert found()[1] == MADE_ELSEWHERE


def test_the_tree_has_every_error_below_its_base() -> None:
    parents: list[str] = []
    drawn = {}
    for indent, name in re.findall(r"^    (.*?)(\w+Error|\w+)(?:  .*)?$", tree(), re.M):
        depth = len(indent) // 4
        parents[depth:] = [name]
        drawn[name] = parents[depth - 1] if depth else "Exception"
    defined = {name: getattr(errors, name).__bases__[0].__name__ for name in errors.__all__}
    assert drawn == defined


def tree() -> str:
    return (errors.__doc__ or "").split("\n\n")[1]


def test_every_error_that_is_raised_has_a_section() -> None:
    text = page()
    for name, parts in found()[0].items():
        assert (f"\n## {name}\n" in text) == bool(parts)


def test_messages_are_read_from_the_source() -> None:
    source = "raise AudioError(f'{name} has {n + 1} tracks;' ' expected one' + hint())"
    ((name, argument),) = calls(ast.parse(source))
    assert (name, message(argument)) == ("AudioError", "… has … tracks; expected one…")
    ((_, argument),) = calls(ast.parse("errors.OptionError(text)"))
    assert message(argument) == ""


def test_code_in_a_table() -> None:
    assert quoted("a | b\n c") == "`a \\| b c`"
    assert quoted("run `x`") == "`` run `x` ``"
