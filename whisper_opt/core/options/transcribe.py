"""Options of transcription."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Union

from whisper_opt.core.errors import OptionError
from whisper_opt.core.options.checks import LANGUAGE_OPTIONS, check_transcription
from whisper_opt.core.options.effective import effective_transcription
from whisper_opt.core.options.fields import check_fields, option, same_option
from whisper_opt.core.options.speakers import DIARIZE_OPTIONS, SpeakerOptions
from whisper_opt.core.options.vad import VadOptions

__all__ = ["STRATEGIES", "TASKS", "VAD_MODES", "TranscribeOptions"]

TASKS = ("transcribe", "translate")
STRATEGIES = ("sequential", "batched")
VAD_MODES = ("off", "check", "cut")


_MAX_HYPOTHESES = 100
"""Largest beam_size and best_of: each hypothesis takes as much memory as a window of a batch."""


@dataclasses.dataclass(frozen=True)
class TranscribeOptions:
    """Options of transcription. Names and defaults are those of openai-whisper if it has them.

    Raises:
        OptionError: a value is of the wrong type or out of range.
    """

    language: Union[str, None] = option(
        None,
        "text",
        "spoken language: a code (pt, pt-BR, por) or an English name; default, or auto: detect it"
        " from the first windows of 30 s with speech",
    )
    task: str = option("transcribe", "text", "transcribe, or translate to English", choices=TASKS)
    without_timestamps: bool = option(False, "flag", "decode text only, without timestamps")
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
        "prompt each window with the text of the windows before it; default: yes, in batched mode"
        " within the same chunk of speech only",
    )
    initial_prompt: Union[str, None] = option(
        None,
        "text",
        "prompt of the first window: names, spelling, style",
    )
    carry_initial_prompt: bool = option(
        False, "flag", "prompt every window with the initial prompt, not only the first"
    )
    prefix: Union[str, None] = option(
        None,
        "text",
        "text before the result of every window, which continues it; with max_new_tokens, only as"
        " many of its last tokens as half the text context of the model then has room for",
    )
    transcript_prefix: Union[str, None] = option(
        None,
        "text",
        "text that the transcript begins with: the result of the first window continues it, and"
        " its first segment begins with it",
    )
    hotwords: Union[str, None] = option(
        None,
        "text",
        "words to expect; they come before the previous text in the prompt of every window",
    )
    draft: Union[str, Sequence[Any], None] = option(
        None,
        "transcript",
        "text that the recording probably has: a script, or an edited or earlier transcript, as"
        " text or as segments with times; greedy decoding verifies it, which is faster than"
        " decoding step by step and gives the same result up to rounding",
        optional=True,
    )
    prompt_lookup_num_tokens: Union[int, None] = option(
        None,
        "integer",
        "when the last tokens have occurred before, in the prompt or the result, verify up to N"
        " tokens that followed them then; for greedy decoding; default: off",
        metavar="N",
        low=1,
    )
    suppress_tokens: Union[Sequence[int], None] = option(
        (-1,),
        "integers",
        "token ids that are never sampled; -1 means the non-speech symbols of the tokenizer",
        metavar="ID",
    )
    suppress_blank: bool = option(
        True, "flag", "suppress a blank or the end of text as the first token of a window"
    )
    max_new_tokens: Union[int, None] = option(
        None,
        "integer",
        "maximum tokens sampled per window; default: half the text context of the model",
        metavar="N",
        low=1,
    )
    repetition_penalty: float = option(
        1.0,
        "number",
        "divide the score of tokens that are already in the result; above 1 discourages repetition",
        low=0.01,
        high=100,
        metavar="FACTOR",
    )
    no_repeat_ngram_size: int = option(
        0,
        "integer",
        "never repeat N consecutive text tokens in the result of a window; 0: no limit",
        low=0,
        metavar="N",
    )
    temperature: Union[float, Sequence[float]] = option(
        (0.0, 0.2, 0.4, 0.6, 0.8, 1.0),
        "numbers",
        "sampling temperatures, tried in turn until a result passes the thresholds; at 0 the most"
        " likely token is taken",
        metavar="T",
    )
    beam_size: Union[int, None] = option(
        None,
        "integer",
        "number of hypotheses of beam search at temperature 0; default: greedy decoding",
        metavar="N",
        low=1,
        high=_MAX_HYPOTHESES,
    )
    patience: Union[float, None] = option(
        None,
        "number",
        "beam search ends when beam_size * patience hypotheses are complete; default: 1",
        metavar="FACTOR",
        low=0,
        high=1000,
    )
    length_penalty: Union[float, None] = option(
        None,
        "number",
        "exponent of Google NMT's length penalty; default: divide by the length",
        metavar="ALPHA",
        low=0,
        high=1,
    )
    best_of: Union[int, None] = option(
        None,
        "integer",
        "number of samples at temperatures above 0, of which the best is kept",
        metavar="N",
        low=1,
        high=_MAX_HYPOTHESES,
    )
    seed: int = option(
        0, "integer", "random seed of sampling at temperatures above 0", low=0, metavar="N"
    )
    compression_ratio_threshold: Union[float, None] = option(
        2.4,
        "number",
        "try the next temperature if the text has a higher compression ratio: it repeats itself",
        metavar="RATIO",
        low=0,
        high=math.inf,
        optional=True,
    )
    no_speech_threshold: Union[float, None] = option(
        0.6,
        "number",
        "skip a window if its no-speech probability is higher (unless its mean log-probability is"
        " above logprob_threshold)",
        metavar="P",
        low=0,
        high=1,
        optional=True,
    )
    logprob_threshold: Union[float, None] = option(
        -1.0,
        "number",
        "try the next temperature if the mean log-probability of the tokens is lower",
        metavar="LOGPROB",
        low=-math.inf,
        high=0,
        optional=True,
    )
    clip_timestamps: Sequence[float] = option(
        (),
        "numbers",
        "start,end,start,end,... in seconds: transcribe only these parts; default: all",
        metavar="SECONDS",
    )

    word_timestamps: bool = option(False, "flag", "find the start and end of each word")
    prepend_punctuations: str = option(
        "\"'“¿([{-", "text", "with word_timestamps: punctuation to merge with the next word"
    )
    append_punctuations: str = option(
        "\"'.。,，!！?？:：”)]}、",  # noqa: RUF001 - full-width marks are meant
        "text",
        "with word_timestamps: punctuation to merge with the previous word",
    )
    hallucination_silence_threshold: Union[float, None] = option(
        None,
        "number",
        "with word_timestamps: skip silences longer than this, in seconds, around probable"
        " hallucinations",
        low=0,
        high=math.inf,
        metavar="SECONDS",
    )
    token_logprobs: bool = option(
        False,
        "flag",
        "keep the log-probability of every token: of the log-softmax over the tokens that were"
        " allowed, at temperature 1, as in openai-whisper",
    )
    multilingual: bool = option(
        False, "flag", "detect the language of every window, for recordings in several languages"
    )
    language_detection_segments: Union[int, None] = option(
        None,
        "integer",
        "maximum windows of 30 s with speech for language detection; default: 4, or 1 as in"
        " openai-whisper if vad is off",
        low=1,
        metavar="N",
    )
    language_detection_threshold: float = option(
        0.5,
        "number",
        "stop detection when a language is at least this probable (mean of the windows so far)",
        low=0,
        high=1,
        metavar="P",
    )
    strategy: str = option(
        "sequential",
        "text",
        "sequential: each window begins where the one before ended, as openai-whisper does;"
        " batched: chunks of speech are decoded together",
        choices=STRATEGIES,
    )
    batch_size: int = option(
        8,
        "integer",
        "maximum windows decoded together, in batched mode or from several recordings",
        low=1,
        metavar="N",
    )
    vad: Union[str, None] = option(
        None,
        "text",
        "voice activity detection; off: none, as openai-whisper; check: drop text if there is no"
        " speech; cut: transcribe only the speech; default: cut in batched mode without"
        " clip_timestamps, else check. Unless it is off, the language is detected from windows"
        " with speech, and repetitive text is kept only if there is speech for it",
        choices=VAD_MODES,
    )
    vad_threshold: float = same_option(VadOptions, "threshold")
    vad_min_speech_duration: float = same_option(VadOptions, "min_speech_duration")
    vad_min_silence_duration: float = same_option(VadOptions, "min_silence_duration")
    vad_speech_pad: float = same_option(VadOptions, "speech_pad")
    vad_max_speech_duration: float = same_option(VadOptions, "max_speech_duration")

    channels: str = same_option(SpeakerOptions, "channels")
    diarize: bool = same_option(SpeakerOptions, "diarize")
    num_speakers: Union[int, None] = same_option(SpeakerOptions, "num_speakers")
    min_speakers: Union[int, None] = same_option(SpeakerOptions, "min_speakers")
    max_speakers: Union[int, None] = same_option(SpeakerOptions, "max_speakers")
    known_speakers: Union[Mapping[str, Any], Sequence[tuple[str, Any]], None] = same_option(
        SpeakerOptions, "known_speakers"
    )

    max_duration: float = option(
        86_400.0,
        "number",
        "refuse longer recordings, in seconds",
        low=0,
        high=math.inf,
        metavar="SECONDS",
    )
    max_audio_bytes: int = option(
        2 << 30,
        "integer",
        "refuse a recording that needs more memory, in bytes: samples of the sequential strategy"
        " (64,000 bytes per second), or the contents of a pipe or file object",
        low=1,
        metavar="N",
    )
    strict_audio: bool = option(
        False,
        "flag",
        "refuse a recording that is damaged or cut off; default: replace what cannot be decoded by"
        " silence, and log a warning",
    )

    def __post_init__(self) -> None:
        check_fields(self)
        check_transcription(self)

    @classmethod
    def tolerant(cls, **values: Any) -> TranscribeOptions:
        """Like the constructor, but options without effect are left out, not refused.

        For programs that pass every option of openai-whisper or faster-whisper, which ignore, for
        example, ``patience`` without ``beam_size``.

        Raises:
            OptionError: a value is of the wrong type or out of range, or two options contradict.
        """
        return cls(**effective_transcription(values))

    @property
    def conditions(self) -> bool:
        """Whether windows are prompted with the previous text."""
        return self.condition_on_previous_text is not False

    @property
    def vad_mode(self) -> str:
        """``vad`` with its default resolved."""
        if self.vad is None:
            cut = self.strategy == "batched" and not self.clip_timestamps
            return "cut" if cut else "check"
        return self.vad

    @property
    def detection_windows(self) -> int:
        """``language_detection_segments`` with its default resolved."""
        given = self.language_detection_segments
        return given or (1 if self.vad_mode == "off" else 4)

    @property
    def vad_options(self) -> VadOptions:
        """The options of voice activity detection."""
        names = [field.name for field in dataclasses.fields(VadOptions)]
        return VadOptions(**{name: getattr(self, f"vad_{name}") for name in names})

    @property
    def speaker_options(self) -> SpeakerOptions:
        """The options about who speaks."""
        names = [field.name for field in dataclasses.fields(SpeakerOptions)]
        return SpeakerOptions(**{name: getattr(self, name) for name in names})

    @property
    def temperatures(self) -> tuple[float, ...]:
        """``temperature`` as a tuple of at least one."""
        given = self.temperature
        return (given,) if isinstance(given, float) else tuple(given)

    def check_model(self, *, is_multilingual: bool, n_audio_ctx: int) -> None:
        """Refuse options that a model cannot honour.

        Args:
            is_multilingual: whether the model supports languages other than English.
            n_audio_ctx: positions of its encoder; it has one timestamp more.

        Raises:
            OptionError: an option needs another model.
        """
        for name in () if is_multilingual else LANGUAGE_OPTIONS:
            if getattr(self, name) != _default(name):
                raise OptionError(
                    f"{name} is given, but this model is English-only and detects no language;"
                    " leave it out, or use a multilingual model (whose name does not end in .en)"
                )
        if self.beam_size is not None and self.beam_size > n_audio_ctx:
            raise OptionError(
                f"beam_size is {self.beam_size}; expected at most {n_audio_ctx}, because a window"
                f" begins with one of the {n_audio_ctx + 1} timestamps of this model"
            )

    def check_greedy(self, name: str) -> None:
        """Refuse an option about proposed tokens if there is no greedy decoding to verify them.

        Raises:
            OptionError: there are beams, or no temperature is 0.
        """
        if self.beam_size is not None:
            raise OptionError(
                f"{name} is given, but so is beam_size ({self.beam_size}), and only greedy decoding"
                " can verify proposed tokens; leave one of them out"
            )
        if 0 not in self.temperatures:
            raise OptionError(
                f"{name} is given, but no temperature is 0, and proposed tokens can be verified at"
                f" temperature 0 only; add 0 to temperature, or leave {name} out"
            )

    def check_alone(self) -> None:
        """Refuse options that need several recordings, or several chunks of one.

        Raises:
            OptionError: ``batch_size`` is given for one recording with the sequential strategy.
        """
        honoured = (1, _default("batch_size"))  # 1 is what the sequential strategy does
        one = self.strategy == "sequential" and self.channels == "mix"
        if one and self.batch_size not in honoured:
            raise OptionError(
                f"batch_size is {self.batch_size}, but the sequential strategy decodes the windows"
                " of one recording one after another; leave it out, or use strategy='batched'"
            )

    @property
    def reading(self) -> dict[str, Any]:
        """The options that are arguments of ``load_audio`` and ``open_audio``."""
        names = ("max_duration", "max_audio_bytes", "strict_audio")
        return {name: getattr(self, name) for name in names}

    def without_speakers(self) -> TranscribeOptions:
        """The same options without ``diarize`` and those that need it."""
        plain = {name: _default(name) for name in ("diarize", *DIARIZE_OPTIONS)}
        return dataclasses.replace(self, **plain)

    def for_speech(self, clip_timestamps: Sequence[float] = ()) -> TranscribeOptions:
        """The same options for audio that is known to be speech: sequential, without VAD."""
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
