"""openai-whisper's flags and conventions on ``whisper-opt transcribe``.

Options have the same names in both programs but for the few flags added here. One of those makes a
call openai-whisper's: its defaults hold where the programs differ, and files are written as it
writes them. Every option of this library may be spelled with underscores, and a flag with a value:
``--word_timestamps True``.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from whisper_opt.cli.options import complain, join_negative
from whisper_opt.core.errors import OptionError
from whisper_opt.core.options import LoadOptions, SubtitleOptions, TranscribeOptions
from whisper_opt.core.options.effective import effective_subtitles, effective_transcription
from whisper_opt.runtime.engine import MANIFEST
from whisper_opt.text.languages import language_code
from whisper_opt.text.writers import SUBTITLE_FORMATS

__all__ = ["add_arguments", "adopt", "normalized"]

_OPTIONS: tuple[type[Any], ...] = (LoadOptions, TranscribeOptions, SubtitleOptions)
_FORMATS = ("txt", "vtt", "srt", "tsv", "json")
_OWN = (
    "model",
    "model_dir",
    "output_format",
    "verbose",
    "fp16",
    "temperature_increment_on_fallback",
)
"""Flags that only openai-whisper has."""
_HIGHEST = 1.0 + 1e-6
"""Temperatures are increased up to this."""


# before parsing


def normalized(arguments: Sequence[str]) -> list[str]:
    """Arguments in the spelling of the parser, with the engine of ``--model`` in its place."""
    given = join_negative(arguments)
    end = given.index("--") if "--" in given else len(given)
    spelled = [*_spelled(given[:end]), *given[end:]]
    if spelled[:1] == ["transcribe"]:
        model = _last_value(spelled[: spelled.index("--") if "--" in spelled else None], "--model")
        spelled[1:1] = [] if model is None else [model]
    return spelled


def _spelled(arguments: Sequence[str]) -> Iterator[str]:
    flags = {
        f"--{field.name.replace('_', '-')}"
        for options in _OPTIONS
        for field in dataclasses.fields(options)
        if field.metadata["kind"] == "flag"
    }
    rest = [_hyphenated(argument) for argument in arguments]
    while rest:
        name, equals, value = rest.pop(0).partition("=")
        if name in flags and not equals and rest and rest[0] in ("True", "False"):
            equals, value = "=", rest.pop(0)
        if name in flags and value in ("True", "False"):
            yield name if value == "True" else f"--no-{name[2:]}"
        elif name == "--device":
            yield from _device(value if equals or not rest else rest.pop(0))
        else:
            yield f"{name}{equals}{value}"


def _hyphenated(argument: str) -> str:
    name, equals, value = argument.partition("=")
    if re.fullmatch(r"--[a-z][a-z0-9_-]*", name):
        return f"{name.replace('_', '-')}{equals}{value}"
    return argument


def _device(value: str) -> Iterator[str]:
    """``--device cuda:1`` in two options."""
    kind, _, index = value.partition(":")
    if kind == "cuda" and index.isdigit():
        yield from ("--device", kind, "--device-index", index)
    else:
        yield from ("--device", value)


def _last_value(arguments: Sequence[str], flag: str) -> str | None:
    found = None
    for argument, after in zip(arguments, [*arguments[1:], ""]):
        name, equals, value = argument.partition("=")
        if name == flag:
            found = value if equals else after
    return found or None


# the parser


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that only openai-whisper has."""
    group = parser.add_argument_group(
        "flags of openai-whisper",
        "one of these makes the call as that program's: beams and samples of 5, no voice activity"
        " detection, files beside --output-dir (default: the current directory), options without"
        " effect are ignored",
    )
    group.add_argument(
        "--model",
        metavar="ENGINE",
        help="the engine; all other arguments without a flag are then recordings",
    )
    group.add_argument("--model-dir", metavar="DIR", help="the same as --cache-dir")
    group.add_argument(
        "--output-format",
        "-f",
        choices=(*_FORMATS, "all"),
        help="format of the files (default: all)",
    )
    group.add_argument("--verbose", type=_flag, help="print the segments (default: True)")
    group.add_argument(
        "--fp16",
        type=_flag,
        help="False: export the model in fp32; True: in the precision of --precision",
    )
    group.add_argument(
        "--temperature-increment-on-fallback",
        type=_increment,
        default=argparse.SUPPRESS,
        metavar="T",
        help="step from a single --temperature to the next, up to 1, or none (default: 0.2)",
    )


def _flag(text: str) -> bool:
    if text not in ("True", "False"):
        raise argparse.ArgumentTypeError(f"{text!r}; expected True or False")
    return text == "True"


def _increment(text: str) -> float | None:
    if text.lower() == "none":
        return None
    number = float(text)
    if not number >= 0.01:
        raise argparse.ArgumentTypeError(f"{text}; expected a number from 0.01, or None")
    return number


_increment.__name__ = "number or None"  # for argparse's error message


# after parsing


def adopt(args: argparse.Namespace) -> None:
    """Complete the arguments by openai-whisper's conventions if one of its own flags is given.

    Raises:
        OptionError: a flag contradicts another.
    """
    if all(getattr(args, name, None) is None for name in _OWN[:-1]) and not hasattr(args, _OWN[-1]):
        return
    _adopt_output(args)
    _adopt_loading(args)
    _adopt_defaults(args)
    _drop_idle(args)


def _adopt_output(args: argparse.Namespace) -> None:
    if args.format is not None and args.output_format is not None:
        raise OptionError("--format and --output-format are both given; leave one of them out")
    if args.format is None:
        named = args.output_format or "all"
        args.format = _FORMATS if named == "all" else (named,)
    args.output_dir = args.output_dir or Path()
    args.verbose = args.verbose is not False


def _adopt_loading(args: argparse.Namespace) -> None:
    if getattr(args, "threads", None) == 0:
        del args.threads
    if args.model_dir is not None:
        if hasattr(args, "cache_dir"):
            raise OptionError("--model-dir and --cache-dir are both given; leave one of them out")
        args.cache_dir = args.model_dir
    if args.fp16 is False and not (Path(args.engine) / MANIFEST).exists():
        args.precision = getattr(args, "precision", "fp32")


def _adopt_defaults(args: argparse.Namespace) -> None:
    given = vars(args)
    temperature = given.get("temperature", (0.0,))
    step = given.get(_OWN[-1], 0.2)
    if step is not None and len(temperature) == 1:
        n = int((_HIGHEST - temperature[0]) / step) + 1
        temperature = tuple(temperature[0] + i * step for i in range(max(n, 1)))
    args.temperature = temperature
    for name in ("beam_size", "best_of"):
        given.setdefault(name, 5)
    if not any(name == "strategy" or name.startswith("vad") for name in given):
        args.vad = "off"
    language = given.get("language")
    if str(args.engine).endswith(".en") and language and language_code(language) != "en":
        complain(f"{args.engine} is English-only, but --language is {language}; English is used")
        args.language = "en"


def _drop_idle(args: argparse.Namespace) -> None:
    """Remove the options that have no effect."""
    given = vars(args)
    has_subtitles = any(form in SUBTITLE_FORMATS for form in args.format)
    for options, effective in (
        (TranscribeOptions, effective_transcription),
        (SubtitleOptions, effective_subtitles if has_subtitles else lambda _: {}),
    ):
        names = [field.name for field in dataclasses.fields(options) if field.name in given]
        kept = effective({name: given.pop(name) for name in names})
        given.update(kept)
