"""The single list of options: the API, the command line and the docs are made from it.

Every option is validated here, once, and honoured everywhere or refused with a reason.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any, Union

from whisper_opt.errors import OptionError

__all__ = ["KINDS", "TASKS", "TranscribeOptions", "option_help"]

TASKS = ("transcribe", "translate")
KINDS = ("text", "flag", "integer", "number", "integers", "numbers")
"""What an option holds; the last two are sequences."""


def _option(default: Any, kind: str, help: str, **more: Any) -> Any:
    """A field; ``kind`` (see ``KINDS``) tells front ends how to read it from text."""
    return dataclasses.field(default=default, metadata={"kind": kind, "help": help, **more})


@dataclasses.dataclass(frozen=True)
class TranscribeOptions:
    """How to transcribe one recording. Names and defaults are openai-whisper's where it has them.

    Raises:
        OptionError: a value is of the wrong type or out of range.
    """

    language: Union[str, None] = _option(
        None,
        "text",
        "spoken language, by code or English name; default: detected in the first 30 s",
    )
    task: str = _option(
        "transcribe", "text", "write what is said, or translate it to English", choices=TASKS
    )
    without_timestamps: bool = _option(False, "flag", "sample text only, no segment times")
    max_initial_timestamp: Union[float, None] = _option(
        1.0,
        "number",
        "latest start of the first segment of a window, in seconds",
        metavar="SECONDS",
    )
    condition_on_previous_text: bool = _option(
        True, "flag", "give each window the text before it as a prompt"
    )
    initial_prompt: Union[str, None] = _option(
        None,
        "text",
        "text the model takes as said before the first window: names, spelling, style",
    )
    carry_initial_prompt: bool = _option(
        False, "flag", "put the initial prompt before every window, not the first only"
    )
    prefix: Union[str, None] = _option(
        None, "text", "text that every window's answer must begin with"
    )
    suppress_tokens: Union[Sequence[int], None] = _option(
        (-1,),
        "integers",
        "token ids never to sample; -1 stands for the model's list of non-speech symbols",
        metavar="ID",
    )
    suppress_blank: bool = _option(
        True, "flag", "do not let a window begin with a blank or end at once"
    )
    max_new_tokens: Union[int, None] = _option(
        None,
        "integer",
        "tokens sampled per window at most; default: half the model's context",
        metavar="N",
    )
    no_speech_threshold: Union[float, None] = _option(
        0.6,
        "number",
        "skip a window whose no-speech probability exceeds this (unless its text is likely)",
        metavar="P",
    )
    logprob_threshold: Union[float, None] = _option(
        -1.0,
        "number",
        "mean log-probability above which a window's text counts as likely",
        metavar="LOGPROB",
    )
    clip_timestamps: Sequence[float] = _option(
        (),
        "numbers",
        "start,end,start,end,... in seconds: transcribe these parts only; default: all",
        metavar="SECONDS",
    )

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise OptionError(f"task is {self.task!r}; expected one of {', '.join(TASKS)}")
        for name in ("language", "initial_prompt", "prefix"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                raise OptionError(f"{name} is {value!r}; expected a string or None")
        for field in dataclasses.fields(self):
            if isinstance(field.default, bool) and not isinstance(getattr(self, field.name), bool):
                raise OptionError(
                    f"{field.name} is {getattr(self, field.name)!r}; expected True or False"
                )
        _number("max_initial_timestamp", self.max_initial_timestamp, 0, 30)
        _number("no_speech_threshold", self.no_speech_threshold, 0, 1)
        _number("logprob_threshold", self.logprob_threshold, -math.inf, 0)
        tokens = self.max_new_tokens
        if tokens is not None and (
            isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 1
        ):
            raise OptionError(f"max_new_tokens is {tokens!r}; expected a positive integer or None")
        self._check_suppress_tokens()
        self._check_clips()
        if self.carry_initial_prompt and self.initial_prompt is None:
            raise OptionError(
                "carry_initial_prompt is on without an initial_prompt to carry; give one"
            )

    def _check_suppress_tokens(self) -> None:
        value = self.suppress_tokens
        tokens = () if value is None else _items(value)
        if tokens is None or not all(
            isinstance(token, int) and not isinstance(token, bool) and token >= -1
            for token in tokens
        ):
            raise OptionError(
                f"suppress_tokens is {value!r}; expected a sequence of token ids, where -1 stands"
                " for the non-speech symbols"
            )
        object.__setattr__(self, "suppress_tokens", tokens)

    def _check_clips(self) -> None:
        value = self.clip_timestamps
        items = _items(value)
        if items is None or not all(
            isinstance(second, (int, float)) and not isinstance(second, bool) for second in items
        ):
            raise OptionError(
                f"clip_timestamps is {value!r}; expected a sequence of seconds: start, end, ..."
            )
        seconds = tuple(float(second) for second in items)
        if any(not math.isfinite(second) or second < 0 for second in seconds) or any(
            later <= sooner for sooner, later in zip(seconds[::2], seconds[1::2])
        ):
            raise OptionError(
                f"clip_timestamps is {list(seconds)}; expected non-negative seconds, every end"
                " after its start"
            )
        object.__setattr__(self, "clip_timestamps", seconds)


def _items(value: Any) -> Union[tuple[Any, ...], None]:
    """The items of an iterable; None for text and for anything else."""
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        return None
    return tuple(value)


def _number(name: str, value: Any, low: float, high: float) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise OptionError(f"{name} is {value!r}; expected a number from {low} to {high}, or None")


def option_help() -> dict[str, str]:
    """Every option's explanation by name."""
    return {field.name: field.metadata["help"] for field in dataclasses.fields(TranscribeOptions)}
