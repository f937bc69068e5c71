"""faster-whisper's arguments as options of this library; what cannot be honoured is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import whisper_opt
from whisper_opt.compat.faster_whisper.feature_extractor import check_chunk_length
from whisper_opt.compat.faster_whisper.utils import source_options
from whisper_opt.compat.faster_whisper.vad import VadOptions, library_options
from whisper_opt.compat.prompts import text_of_prompt

__all__ = [
    "batched_options",
    "clip_seconds",
    "load_options",
    "parts_of_clips",
    "sequential_options",
    "vad_of",
]

Arguments = Mapping[str, Any]
"""Arguments of ``transcribe`` by name."""

_SAME = (
    *("task", "best_of", "repetition_penalty", "no_repeat_ngram_size", "suppress_blank"),
    *("without_timestamps", "word_timestamps", "prepend_punctuations", "append_punctuations"),
    "hotwords",
)
"""Options with the same name and meaning, in both strategies."""
_SEQUENTIAL = (
    *("temperature", "compression_ratio_threshold", "no_speech_threshold"),
    *("condition_on_previous_text", "hallucination_silence_threshold"),
)
"""Further ones, which faster-whisper ignores in batched mode."""
_PRECISIONS = {
    "default": None,
    "auto": None,
    **dict.fromkeys(("int8", "int8_float32", "int8_float16", "int8_bfloat16"), "int8"),
    "float16": "fp16",
    "float32": "fp32",
}
"""Precision of the engine per compute type; None: the fastest of the device."""
_RESET = 0.5
"""Temperature above which later windows are not prompted with the text."""
_FIRST = 0.001
"""Seconds: a latest start that only the first timestamp, 0.00, is not beyond."""
_CHUNK = 30.0
_BATCHED_SILENCE_MS = 160
"""``min_silence_duration_ms`` of the batched pipeline."""


# loading


def load_options(
    device: str,
    device_index: int | list[int],
    compute_type: str,
    cpu_threads: int,
    download_root: str | None,
    local_files_only: bool,
    files: Any,
    revision: str | None,
    use_auth_token: str | bool | None,
    model_kwargs: Mapping[str, Any],
) -> dict[str, Any]:
    """Fields of :class:`whisper_opt.LoadOptions` that the arguments of ``WhisperModel`` mean.

    Raises:
        OptionError: an argument is not supported.
    """
    if files is not None:
        raise whisper_opt.OptionError(
            "files is given, but models are read from disk; write the files to a directory, and"
            " give its path as model_size_or_path"
        )
    options = {
        "device": device,
        **source_options(download_root, local_files_only, revision, use_auth_token),
    }
    index = _single_index(device_index)
    if index:
        options["device_index"] = index
    precision = _precision(compute_type)
    if precision is not None:
        options["precision"] = precision
    if cpu_threads:
        options["threads"] = cpu_threads
    known = [field.name for field in dataclasses.fields(whisper_opt.LoadOptions)]
    for name in model_kwargs:
        if name not in known:
            raise whisper_opt.OptionError(
                f"{name} is given, but it is an argument of CTranslate2, which does not run here;"
                f" leave it out, or use a load option of this library: {', '.join(known)}"
            )
    return {**options, **model_kwargs}


def _single_index(device_index: int | list[int]) -> int:
    if isinstance(device_index, int):
        return device_index
    if len(device_index) != 1:
        raise whisper_opt.OptionError(
            f"device_index is {device_index}, but a model runs on one GPU; load one model per GPU"
        )
    return device_index[0]


def _precision(compute_type: str) -> str | None:
    if compute_type not in _PRECISIONS:
        raise whisper_opt.OptionError(
            f"compute_type is {compute_type!r}, a precision in which no engine is exported;"
            f" expected one of {', '.join(_PRECISIONS)}"
        )
    return _PRECISIONS[compute_type]


# transcription


def sequential_options(
    given: Arguments, model: whisper_opt.Whisper, language: str, vad: VadOptions | None
) -> whisper_opt.TranscribeOptions:
    """The options of ``WhisperModel.transcribe``.

    Args:
        given: its arguments.
        model: the model.
        language: code of the language, given or detected.
        vad: how to detect speech; None: not at all.

    Raises:
        OptionError: an argument is not supported.
    """
    reset = given["prompt_reset_on_temperature"]
    if reset != _RESET and given["condition_on_previous_text"]:
        raise whisper_opt.OptionError(
            f"prompt_reset_on_temperature is {reset}; expected {_RESET}, which is fixed; leave it"
            " out, or turn condition_on_previous_text off"
        )
    clips = clip_seconds(given["clip_timestamps"])
    values = {
        **_common(given, model, language),
        **{name: given[name] for name in _SEQUENTIAL},
        # only windows that begin with the recording have a prefix
        "transcript_prefix": None if clips and clips[0] else given["prefix"],
        "logprob_threshold": given["log_prob_threshold"],
        "max_initial_timestamp": _latest_start(given["max_initial_timestamp"]),
        "clip_timestamps": clips,
        **_vad(vad),
    }
    return whisper_opt.TranscribeOptions.tolerant(**values)


def batched_options(
    given: Arguments,
    model: whisper_opt.Whisper,
    language: str,
    vad: VadOptions | None,
    clips: Sequence[float],
) -> whisper_opt.TranscribeOptions:
    """The options of ``BatchedInferencePipeline.transcribe``; arguments as above.

    Chunks are decoded once, at the first temperature, without the text before them: faster-whisper
    ignores the arguments that say otherwise.

    Args:
        given: its arguments.
        model: the model.
        language: code of the language, given or detected.
        vad: how to detect speech; None: ``clips`` are transcribed.
        clips: start, end, start, ... in seconds.

    Raises:
        OptionError: an argument is not supported.
    """
    common = _common(given, model, language)
    values = {
        **common,
        "strategy": "batched",
        "batch_size": given["batch_size"],
        "temperature": temperatures(given["temperature"])[:1],
        "condition_on_previous_text": False,
        "carry_initial_prompt": common["initial_prompt"] is not None,
        "compression_ratio_threshold": None,
        "logprob_threshold": None,
        "no_speech_threshold": None,
        "clip_timestamps": tuple(clips),
        **_vad(vad),
    }
    return whisper_opt.TranscribeOptions.tolerant(**values)


def _common(given: Arguments, model: whisper_opt.Whisper, language: str) -> dict[str, Any]:
    check_chunk_length(given["chunk_length"])
    suppressed = given["suppress_tokens"]
    values = {
        **{name: given[name] for name in _SAME},
        "length_penalty": _length_penalty(given["length_penalty"]),
        "suppress_tokens": () if suppressed is None else tuple(suppressed),
        "initial_prompt": text_of_prompt("initial_prompt", given["initial_prompt"], model),
        "max_new_tokens": given["max_new_tokens"] or None,
        "language": language,
    }
    if given["beam_size"] != 1:
        values.update(beam_size=given["beam_size"], patience=given["patience"])
    if not model.is_multilingual:
        values.update(language=None, task="transcribe")
    elif given["multilingual"]:
        values.update(language=None, multilingual=True)
    return values


def temperatures(given: float | Iterable[float]) -> list[float]:
    """``temperature`` as a list."""
    return [given] if isinstance(given, (int, float)) else list(given)


def _length_penalty(given: float) -> float | None:
    """1: divide by the length; 0: do not. Between them the formulas of both libraries differ."""
    if given not in (0, 1):
        raise whisper_opt.OptionError(
            f"length_penalty is {given}; expected 1 or 0: CTranslate2 divides by a power of the"
            " length, this library by Google NMT's penalty; whisper_opt.Whisper.transcribe"
            " accepts its exponent"
        )
    return None if given else 0.0


def _latest_start(given: float | None) -> float | None:
    return _FIRST if given == 0 else given


# parts of a recording


def vad_of(given: Arguments, *, batched: bool) -> VadOptions | None:
    """The options of voice activity detection; None without ``vad_filter`` or with clips.

    Raises:
        OptionError: ``vad_parameters`` is of another type.
    """
    parameters = given["vad_parameters"]
    if not given["vad_filter"] or (batched and given["clip_timestamps"]):
        return None
    if not batched and clip_seconds(given["clip_timestamps"]):
        return None
    if isinstance(parameters, VadOptions):
        return parameters
    if parameters is not None and not isinstance(parameters, dict):
        raise whisper_opt.OptionError(
            f"vad_parameters is a {type(parameters).__name__}; expected VadOptions or a dict"
        )
    values = dict(parameters or {})
    known = [field.name for field in dataclasses.fields(VadOptions)]
    for name in values:
        if name not in known:
            raise whisper_opt.OptionError(
                f"vad_parameters has {name!r}; expected {', '.join(known)}"
            )
    if batched:
        if parameters is None:
            values["min_silence_duration_ms"] = _BATCHED_SILENCE_MS
        values["max_speech_duration_s"] = _CHUNK
    return VadOptions(**values)


def _vad(options: VadOptions | None) -> dict[str, Any]:
    if options is None:
        return {"vad": "off"}
    found = dataclasses.asdict(library_options(options))
    return {"vad": "cut", **{f"vad_{name}": value for name, value in found.items()}}


def clip_seconds(given: str | Iterable[float]) -> tuple[float, ...]:
    """``clip_timestamps`` of ``WhisperModel.transcribe``; empty for the whole recording.

    Raises:
        OptionError: it is not a list of seconds.
    """
    try:
        parts = given.split(",") if isinstance(given, str) and given else given
        seconds = tuple(float(part) for part in parts or ())
    except (TypeError, ValueError):
        raise whisper_opt.OptionError(
            f"clip_timestamps is {given!r}; expected start,end,start,... in seconds, as text or a"
            " list"
        ) from None
    return () if seconds == (0.0,) else seconds


def parts_of_clips(given: Sequence[Mapping[str, float]]) -> tuple[float, ...]:
    """``clip_timestamps`` of the batched pipeline as start, end, start, ... in seconds.

    Raises:
        OptionError: it is not a list of dictionaries with ``start`` and ``end``.
    """
    try:
        return tuple(float(clip[name]) for clip in given for name in ("start", "end"))
    except (KeyError, TypeError, ValueError):
        raise whisper_opt.OptionError(
            f"clip_timestamps is {given!r}; expected a list of dictionaries with start and end in"
            " seconds"
        ) from None
