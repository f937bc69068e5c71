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
    temperature: Union[float, Sequence[float]] = _option(
        (0.0, 0.2, 0.4, 0.6, 0.8, 1.0),
        "numbers",
        "sampling temperatures, tried in turn until an answer passes the thresholds; 0 always takes"
        " the likeliest",
        metavar="T",
    )
    beam_size: Union[int, None] = _option(
        None,
        "integer",
        "hypotheses of beam search at temperature 0; default: greedy",
        metavar="N",
    )
    patience: Union[float, None] = _option(
        None,
        "number",
        "beam search ends when beam_size * patience answers are complete; default: 1",
        metavar="FACTOR",
    )
    length_penalty: Union[float, None] = _option(
        None,
        "number",
        "exponent of Google NMT's length penalty, 0 to 1; default: the plain length",
        metavar="ALPHA",
    )
    best_of: Union[int, None] = _option(
        None, "integer", "answers drawn above temperature 0, the best of which is kept", metavar="N"
    )
    seed: int = _option(0, "integer", "seed of the draws above temperature 0", metavar="N")
    compression_ratio_threshold: Union[float, None] = _option(
        2.4,
        "number",
        "text that compresses better than this repeats itself: try the next temperature",
        metavar="RATIO",
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
        "mean log-probability below which a window's text is unlikely: try the next temperature",
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
        _number("compression_ratio_threshold", self.compression_ratio_threshold, 0, math.inf)
        _number("length_penalty", self.length_penalty, 0, 1)
        for name in ("max_new_tokens", "beam_size", "best_of"):
            count = getattr(self, name)
            if count is not None and (not _is_int(count) or count < 1):
                raise OptionError(f"{name} is {count!r}; expected a positive integer or None")
        if not _is_int(self.seed) or self.seed < 0:
            raise OptionError(f"seed is {self.seed!r}; expected an integer of 0 or more")
        self._check_search()
        self._check_suppress_tokens()
        self._check_clips()
        if self.carry_initial_prompt and self.initial_prompt is None:
            raise OptionError(
                "carry_initial_prompt is on without an initial_prompt to carry; give one"
            )

    @property
    def temperatures(self) -> tuple[float, ...]:
        """``temperature`` as a ladder of at least one."""
        given = self.temperature
        return (given,) if isinstance(given, float) else tuple(given)

    def _check_search(self) -> None:
        given = self.temperature
        ladder = (given,) if isinstance(given, (int, float)) else _items(given)
        if not ladder or not all(
            isinstance(t, (int, float)) and not isinstance(t, bool) and 0 <= t <= 10 for t in ladder
        ):
            raise OptionError(f"temperature is {given!r}; expected numbers from 0 to 10")
        object.__setattr__(self, "temperature", tuple(float(t) for t in ladder))
        if self.beam_size is not None and 0 not in ladder:
            raise OptionError(
                "beam_size is given, but no temperature is 0, and beam search works at 0 only"
            )
        if self.best_of is not None and not any(t > 0 for t in ladder):
            raise OptionError(
                "best_of is given, but every temperature is 0, where all answers are the same;"
                " give a temperature above 0"
            )
        if self.patience is not None:
            if self.beam_size is None:
                raise OptionError(
                    f"patience is {self.patience!r}; without beam_size, expected None"
                )
            _number("patience", self.patience, 0, math.inf)
            if round(self.beam_size * self.patience) < 1:
                raise OptionError(
                    f"patience is {self.patience}; with beam_size {self.beam_size} the search would"
                    " end before any answer"
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


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(name: str, value: Any, low: float, high: float) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise OptionError(f"{name} is {value!r}; expected a number from {low} to {high}, or None")


def option_help() -> dict[str, str]:
    """Every option's explanation by name."""
    return {field.name: field.metadata["help"] for field in dataclasses.fields(TranscribeOptions)}
