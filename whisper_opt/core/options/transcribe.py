"""Options of a transcription, the largest part of the list."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Union

from whisper_opt.core.errors import OptionError
from whisper_opt.core.options.checks import LANGUAGE_OPTIONS, check_transcription
from whisper_opt.core.options.fields import check_fields, option
from whisper_opt.core.options.vad import VadOptions

__all__ = ["STRATEGIES", "TASKS", "VAD_MODES", "TranscribeOptions"]

TASKS = ("transcribe", "translate")
STRATEGIES = ("sequential", "batched")
VAD_MODES = ("off", "check", "cut")


def _vad(name: str) -> Any:
    """The field of :class:`TranscribeOptions` that stands for one of :class:`VadOptions`."""
    meta = VadOptions.__dataclass_fields__[name]
    return dataclasses.field(default=meta.default, metadata=meta.metadata)


_MOST_ANSWERS = 100
"""Decoded side by side for one window; each takes as much memory as a window of a batch."""


@dataclasses.dataclass(frozen=True)
class TranscribeOptions:
    """How to transcribe one recording. Names and defaults are openai-whisper's where it has them.

    Raises:
        OptionError: a value is of the wrong type or out of range.
    """

    language: Union[str, None] = option(
        None,
        "text",
        "spoken language, by code (pt, pt-BR, por) or English name; default, or auto: detected in the"
        " first 30 s that hold speech",
    )
    task: str = option(
        "transcribe", "text", "write what is said, or translate it to English", choices=TASKS
    )
    without_timestamps: bool = option(False, "flag", "sample text only, no segment times")
    max_initial_timestamp: Union[float, None] = option(
        1.0,
        "number",
        "latest start of the first segment of a window, in seconds, more than 0",
        metavar="SECONDS",
        low=0,
        high=30,
        optional=True,
    )
    condition_on_previous_text: Union[bool, None] = option(
        None,
        "flag",
        "give each window the text before it as a prompt; default: yes, in batched mode that of the"
        " same stretch of speech",
    )
    initial_prompt: Union[str, None] = option(
        None,
        "text",
        "text the model takes as said before the first window: names, spelling, style",
    )
    carry_initial_prompt: bool = option(
        False, "flag", "put the initial prompt before every window, not the first only"
    )
    prefix: Union[str, None] = option(
        None, "text", "text that every window's answer must begin with"
    )
    hotwords: Union[str, None] = option(
        None, "text", "words to expect: put before the previous text in every window's prompt"
    )
    suppress_tokens: Union[Sequence[int], None] = option(
        (-1,),
        "integers",
        "token ids never to sample; -1 stands for the model's list of non-speech symbols",
        metavar="ID",
    )
    suppress_blank: bool = option(
        True, "flag", "do not let a window begin with a blank or end at once"
    )
    max_new_tokens: Union[int, None] = option(
        None,
        "integer",
        "tokens sampled per window at most; default: half the model's context",
        metavar="N",
        low=1,
    )
    repetition_penalty: float = option(
        1.0,
        "number",
        "divides the score of tokens already in the answer; above 1 discourages repetition",
        low=0.01,
        high=100,
        metavar="FACTOR",
    )
    no_repeat_ngram_size: int = option(
        0,
        "integer",
        "never repeat a run of N text tokens in an answer; 0: no limit",
        low=0,
        metavar="N",
    )
    temperature: Union[float, Sequence[float]] = option(
        (0.0, 0.2, 0.4, 0.6, 0.8, 1.0),
        "numbers",
        "sampling temperatures, tried in turn until an answer passes the thresholds; 0 always takes"
        " the likeliest",
        metavar="T",
    )
    beam_size: Union[int, None] = option(
        None,
        "integer",
        "hypotheses of beam search at temperature 0; default: greedy",
        metavar="N",
        low=1,
        high=_MOST_ANSWERS,
    )
    patience: Union[float, None] = option(
        None,
        "number",
        "beam search ends when beam_size * patience answers are complete; default: 1",
        metavar="FACTOR",
        low=0,
        high=1000,
    )
    length_penalty: Union[float, None] = option(
        None,
        "number",
        "exponent of Google NMT's length penalty, 0 to 1; default: the plain length",
        metavar="ALPHA",
        low=0,
        high=1,
    )
    best_of: Union[int, None] = option(
        None,
        "integer",
        "answers drawn above temperature 0, the best of which is kept",
        metavar="N",
        low=1,
        high=_MOST_ANSWERS,
    )
    seed: int = option(0, "integer", "seed of the draws above temperature 0", low=0, metavar="N")
    compression_ratio_threshold: Union[float, None] = option(
        2.4,
        "number",
        "text that compresses better than this repeats itself: try the next temperature",
        metavar="RATIO",
        low=0,
        high=math.inf,
        optional=True,
    )
    no_speech_threshold: Union[float, None] = option(
        0.6,
        "number",
        "skip a window whose no-speech probability exceeds this (unless its text is likely)",
        metavar="P",
        low=0,
        high=1,
        optional=True,
    )
    logprob_threshold: Union[float, None] = option(
        -1.0,
        "number",
        "mean log-probability below which a window's text is unlikely: try the next temperature",
        metavar="LOGPROB",
        low=-math.inf,
        high=0,
        optional=True,
    )
    clip_timestamps: Sequence[float] = option(
        (),
        "numbers",
        "start,end,start,end,... in seconds: transcribe these parts only; default: all",
        metavar="SECONDS",
    )

    word_timestamps: bool = option(False, "flag", "find when each word is spoken")
    prepend_punctuations: str = option(
        "\"'“¿([{-", "text", "punctuation that belongs to the word after it"
    )
    append_punctuations: str = option(
        "\"'.。,，!！?？:：”)]}、",  # noqa: RUF001 - full-width marks are meant
        "text",
        "punctuation that belongs to the word before it",
    )
    hallucination_silence_threshold: Union[float, None] = option(
        None,
        "number",
        "with word times: skip silences longer than this, in seconds, around text that was"
        " probably made up",
        low=0,
        high=math.inf,
        metavar="SECONDS",
    )
    multilingual: bool = option(
        False, "flag", "detect the language of every window: for recordings in several languages"
    )
    language_detection_segments: Union[int, None] = option(
        None,
        "integer",
        "windows of 30 s with speech to look at until the language is sure; default: 4, or 1 as in"
        " openai-whisper if vad is off",
        low=1,
        metavar="N",
    )
    language_detection_threshold: float = option(
        0.5, "number", "probability from which a language is sure", low=0, high=1, metavar="P"
    )
    strategy: str = option(
        "sequential",
        "text",
        "sequential: each window begins where the one before ended, as openai-whisper does;"
        " batched: stretches of speech are decoded side by side",
        choices=STRATEGIES,
    )
    batch_size: int = option(
        8,
        "integer",
        "windows decoded at once: batched mode, or several recordings",
        low=1,
        metavar="N",
    )
    vad: Union[str, None] = option(
        None,
        "text",
        "voice activity detection; off: as openai-whisper; check: drop text if nobody speaks;"
        " cut: transcribe only the speech; default: cut in batched mode without clip_timestamps,"
        " else check. Unless it is off, speech also decides which windows tell the language, and"
        " whether text that repeats itself was said",
        choices=VAD_MODES,
    )
    vad_threshold: float = _vad("threshold")
    vad_min_speech_duration: float = _vad("min_speech_duration")
    vad_min_silence_duration: float = _vad("min_silence_duration")
    vad_speech_pad: float = _vad("speech_pad")
    vad_max_speech_duration: float = _vad("max_speech_duration")

    max_duration: float = option(
        86_400.0,
        "number",
        "refuse a recording that lasts longer, in seconds",
        low=0,
        high=math.inf,
        metavar="SECONDS",
    )
    max_audio_bytes: int = option(
        2 << 30,
        "integer",
        "refuse a recording of which more has to be held in memory, in bytes: samples of the"
        " sequential strategy (64,000 bytes per second), or what a pipe or file object gives",
        low=1,
        metavar="N",
    )
    strict_audio: bool = option(
        False,
        "flag",
        "refuse a recording that is damaged or cut off; default: put silence in place of what"
        " cannot be decoded, and log a warning",
    )

    def __post_init__(self) -> None:
        check_fields(self)
        check_transcription(self)

    @property
    def conditions(self) -> bool:
        """Whether a window is told the text that is known to come before it."""
        return self.condition_on_previous_text is not False

    @property
    def vad_mode(self) -> str:
        """``vad``, decided."""
        if self.vad is None:
            cut = self.strategy == "batched" and not self.clip_timestamps
            return "cut" if cut else "check"
        return self.vad

    @property
    def detection_windows(self) -> int:
        """``language_detection_segments``, decided."""
        given = self.language_detection_segments
        return given or (1 if self.vad_mode == "off" else 4)

    @property
    def vad_options(self) -> VadOptions:
        """The options of voice activity detection."""
        names = [field.name for field in dataclasses.fields(VadOptions)]
        return VadOptions(**{name: getattr(self, f"vad_{name}") for name in names})

    @property
    def temperatures(self) -> tuple[float, ...]:
        """``temperature`` as a ladder of at least one."""
        given = self.temperature
        return (given,) if isinstance(given, float) else tuple(given)

    def check_model(self, *, is_multilingual: bool, n_audio_ctx: int) -> None:
        """Refuse what a model cannot honour.

        Args:
            is_multilingual: whether the model knows other languages than English.
            n_audio_ctx: positions of its encoder, one less than it has timestamps.

        Raises:
            OptionError: an option needs another model.
        """
        for name in () if is_multilingual else LANGUAGE_OPTIONS:
            if getattr(self, name) != _default(name):
                raise OptionError(
                    f"{name} is given, but this model knows English only and detects no language;"
                    " leave it out, or use a multilingual model (whose name does not end in .en)"
                )
        if self.beam_size is not None and self.beam_size > n_audio_ctx:
            raise OptionError(
                f"beam_size is {self.beam_size}; expected {n_audio_ctx} at most, because this model"
                f" has {n_audio_ctx + 1} timestamps to choose from"
            )

    def check_alone(self) -> None:
        """Refuse what only several recordings, or several parts of one, can honour.

        Raises:
            OptionError: ``batch_size`` is given for one recording that is decoded window by window.
        """
        honoured = (1, _default("batch_size"))  # one window at a time is what is done
        if self.strategy == "sequential" and self.batch_size not in honoured:
            raise OptionError(
                f"batch_size is {self.batch_size}, but the sequential strategy decodes the windows"
                " of one recording one after another; leave it out, or use strategy='batched'"
            )

    @property
    def reading(self) -> dict[str, Any]:
        """The arguments of ``load_audio`` and ``open_audio`` that are options."""
        names = ("max_duration", "max_audio_bytes", "strict_audio")
        return {name: getattr(self, name) for name in names}

    def for_speech(self, clip_timestamps: Sequence[float] = ()) -> TranscribeOptions:
        """The same options for sound already known to be speech: sequential, without VAD."""
        plain: dict[str, Any] = {
            f"vad_{field.name}": field.default for field in dataclasses.fields(VadOptions)
        }
        return dataclasses.replace(
            self,
            strategy="sequential",
            condition_on_previous_text=self.conditions,
            clip_timestamps=clip_timestamps,
            vad="off",
            **plain,
        )


def _default(name: str) -> Any:
    return TranscribeOptions.__dataclass_fields__[name].default
