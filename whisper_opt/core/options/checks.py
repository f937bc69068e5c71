"""Checks of transcription options that contradict one another or have no effect together."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

from whisper_opt.core.errors import OptionError
from whisper_opt.core.options.drafts import draft_segments
from whisper_opt.core.options.fields import items
from whisper_opt.core.options.speakers import check_one_text
from whisper_opt.core.options.vad import VadOptions

if TYPE_CHECKING:
    from whisper_opt.core.options.transcribe import TranscribeOptions

__all__ = ["LANGUAGE_OPTIONS", "check_transcription"]

AUTO = "auto"
"""A language name that means "detect it"; the same as leaving the option out."""
LANGUAGE_OPTIONS = (
    "multilingual",
    "language_detection_segments",
    "language_detection_threshold",
)
"""Fields of :class:`TranscribeOptions` that control language detection."""
_SPEECH_BOUNDS = ("vad_speech_pad", "vad_max_speech_duration")
"""VAD options that change where speech begins and ends, not whether there is any."""


def check_transcription(options: TranscribeOptions) -> None:
    """Check options against one another, and turn sequences into tuples.

    Raises:
        OptionError: one is out of range, contradicts another, or has no effect with another.
    """
    _check_search(options)
    _check_choice(options)
    _check_thresholds(options)
    _check_timestamps(options)
    _check_suppress_tokens(options)
    _check_clips(options)
    _check_words(options)
    _check_language(options)
    _check_strategy(options)
    _check_prompts(options)
    _check_drafts(options)
    object.__setattr__(options, "known_speakers", options.speaker_options.known_speakers)
    check_one_text(options.channels, options.transcript_prefix)


def _check_drafts(options: TranscribeOptions) -> None:
    draft_segments(options.draft)
    for name in ("draft", "prompt_lookup_num_tokens"):
        if getattr(options, name) is not None:
            options.check_greedy(name)


def _check_prompts(options: TranscribeOptions) -> None:
    if options.carry_initial_prompt and options.initial_prompt is None:
        raise OptionError("carry_initial_prompt is on without an initial_prompt to carry; give one")
    if options.prefix and options.transcript_prefix:
        raise OptionError(
            "prefix and transcript_prefix are both given, but the first window can continue only"
            " one text; leave one of them out"
        )
    speakers = options.speaker_options
    if options.token_logprobs and speakers.needs_words:
        raise OptionError(
            f"token_logprobs is on, but {speakers.why_words}, which divides segments between words,"
            " and their tokens are then not those that were sampled; leave one of them out"
        )
    if options.token_logprobs and options.transcript_prefix:
        raise OptionError(
            "token_logprobs is on, but the tokens of transcript_prefix are not sampled and have no"
            " log-probability; leave one of them out"
        )


def _default(options: TranscribeOptions, name: str) -> Any:
    return type(options).__dataclass_fields__[name].default


def _check_search(options: TranscribeOptions) -> None:
    given = options.temperature
    temperatures = (given,) if isinstance(given, (int, float)) else items(given)
    if not temperatures or not all(
        isinstance(t, (int, float)) and not isinstance(t, bool) and 0 <= t <= 10
        for t in temperatures
    ):
        raise OptionError(f"temperature is {given!r}; expected numbers from 0 to 10")
    object.__setattr__(options, "temperature", tuple(float(t) for t in temperatures))
    if options.beam_size is not None and 0 not in temperatures:
        raise OptionError(
            "beam_size is given, but no temperature is 0, and beam search is used at temperature 0"
            " only; add 0 to temperature, or leave beam_size out"
        )
    if options.best_of is not None and not any(t > 0 for t in temperatures):
        raise OptionError(
            "best_of is given, but every temperature is 0, where all samples are the same;"
            " give a temperature above 0"
        )
    if options.patience is not None:
        if options.beam_size is None:
            raise OptionError(f"patience is {options.patience!r}; without beam_size, expected None")
        if round(options.beam_size * options.patience) < 1:
            raise OptionError(
                f"patience is {options.patience}; with beam_size {options.beam_size} the search"
                " would end before any hypothesis is complete"
            )


def _check_choice(options: TranscribeOptions) -> None:
    """Options about ranking need several hypotheses, and a seed needs sampling."""
    if options.seed != _default(options, "seed") and not any(t > 0 for t in options.temperatures):
        raise OptionError(
            f"seed is {options.seed}, but every temperature is 0, so nothing is sampled; leave it"
            " out, or give a temperature above 0"
        )
    n_found = (options.beam_size or 1) * (options.patience or 1.0)
    if options.length_penalty is not None and max(round(n_found), options.best_of or 1) == 1:
        raise OptionError(
            f"length_penalty is {options.length_penalty}, but there is only one hypothesis to"
            " choose from; give beam_size, or best_of with a temperature above 0"
        )


def _check_thresholds(options: TranscribeOptions) -> None:
    """Thresholds that make a window retry at the next temperature need several temperatures."""
    if len(options.temperatures) > 1:
        return
    names = ["compression_ratio_threshold"]
    if options.no_speech_threshold is None:  # else it is also about windows without speech
        names.append("logprob_threshold")
    for name in names:
        value = getattr(options, name)
        if value is not None and value != _default(options, name):
            raise OptionError(
                f"{name} is {value}, but there is only one temperature, so no window is"
                " decoded again; give several temperatures, or leave it out"
            )


def _check_timestamps(options: TranscribeOptions) -> None:
    latest = options.max_initial_timestamp
    if latest == 0:
        raise OptionError(
            "max_initial_timestamp is 0; expected more than 0, or None for no limit (openai-whisper"
            " takes 0 as no limit)"
        )
    default = _default(options, "max_initial_timestamp")
    if options.without_timestamps and latest is not None and latest != default:
        raise OptionError(
            f"max_initial_timestamp is {latest}, but without_timestamps is on, so there"
            " are no timestamps; leave one of them out"
        )


def _check_words(options: TranscribeOptions) -> None:
    if options.word_timestamps:
        return
    for name in (
        "prepend_punctuations",
        "append_punctuations",
        "hallucination_silence_threshold",
    ):
        if getattr(options, name) != _default(options, name):
            raise OptionError(f"{name} is given, but it needs word_timestamps; turn them on")


def _check_language(options: TranscribeOptions) -> None:
    if options.language is None or options.language.strip().lower() == AUTO:
        return
    for name in LANGUAGE_OPTIONS:
        if getattr(options, name) != _default(options, name):
            raise OptionError(
                f"{name} is given, but so is language ({options.language!r}), so no language"
                " is detected; leave one of them out"
            )


def _check_strategy(options: TranscribeOptions) -> None:
    options.vad_options  # noqa: B018 - checks their ranges together
    if options.strategy == "batched":
        if options.condition_on_previous_text:
            raise OptionError(
                "condition_on_previous_text is on, but in batched mode the text before a"
                " chunk of speech is not known when the chunk is decoded; leave the option out"
                " (windows then get the previous text of their own chunk), or use the sequential"
                " strategy"
            )
        if options.vad_mode != "cut" and not options.clip_timestamps:
            raise OptionError(
                f"vad is {options.vad!r}, but batched mode needs to know where to cut; expected"
                " 'cut', or clip_timestamps"
            )
    if options.vad_mode == "cut" and options.clip_timestamps:
        raise OptionError(
            "vad is 'cut' and clip_timestamps are given; only one of them can choose what to"
            " transcribe; leave one out"
        )
    _check_vad(options)


def _check_vad(options: TranscribeOptions) -> None:
    mode = options.vad_mode
    for name in (f"vad_{field.name}" for field in dataclasses.fields(VadOptions)):
        if getattr(options, name) == _default(options, name):
            continue
        if mode == "off":
            raise OptionError(f"{name} is given, but vad is 'off'; leave one out")
        if mode == "check" and name in _SPEECH_BOUNDS:
            raise OptionError(
                f"{name} is given, but vad is 'check', which only decides whether there is"
                " speech; leave it out, or use vad='cut'"
            )


def _check_suppress_tokens(options: TranscribeOptions) -> None:
    value = options.suppress_tokens
    tokens = () if value is None else items(value)
    if tokens is None or not all(
        isinstance(token, int) and not isinstance(token, bool) and token >= -1 for token in tokens
    ):
        raise OptionError(
            f"suppress_tokens is {value!r}; expected a sequence of token ids, where -1 stands"
            " for the non-speech symbols"
        )
    object.__setattr__(options, "suppress_tokens", tokens)


def _check_clips(options: TranscribeOptions) -> None:
    value = options.clip_timestamps
    seconds_given = items(value)
    if seconds_given is None or not all(
        isinstance(second, (int, float)) and not isinstance(second, bool)
        for second in seconds_given
    ):
        raise OptionError(
            f"clip_timestamps is {value!r}; expected a sequence of seconds: start, end, ..."
        )
    seconds = tuple(float(second) for second in seconds_given)
    if any(not math.isfinite(second) or second < 0 for second in seconds) or any(
        later <= sooner for sooner, later in zip(seconds[::2], seconds[1::2])
    ):
        raise OptionError(
            f"clip_timestamps is {list(seconds)}; expected non-negative seconds, every end"
            " after its start"
        )
    object.__setattr__(options, "clip_timestamps", seconds)
