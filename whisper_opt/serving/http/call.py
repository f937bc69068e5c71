"""From the fields of a form to what is to be done: model, options, format of the response."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from whisper_opt.core.errors import OptionError
from whisper_opt.core.options import ServeOptions, SubtitleOptions, TranscribeOptions
from whisper_opt.serving.http.errors import ApiError, api_error, invalid
from whisper_opt.serving.http.speakers import known_speakers, put_speakers
from whisper_opt.serving.http.values import (
    flag,
    integer,
    json_object,
    number,
    one,
    texts,
    value_of,
)
from whisper_opt.text.languages import language_code

__all__ = [
    "FORMATS",
    "GRANULARITIES",
    "LIBRARY_FIELDS",
    "LOGPROBS",
    "SERVER_FIELDS",
    "TRANSLATION_FIELDS",
    "Call",
    "read_call",
]

FORMATS = ("json", "text", "srt", "verbose_json", "vtt", "diarized_json")
"""Values of ``response_format``."""
STREAMED = ("json", "text", "verbose_json", "diarized_json")
"""Formats with ``stream``; the last two have an event with each segment."""
LOGPROBS = ("json", "verbose_json")
"""Formats with log-probabilities of tokens."""
GRANULARITIES = ("segment", "word")
SERVER_FIELDS = {
    "batch_size": "this server decodes the windows of all requests together (--max-batch)",
    "max_audio_bytes": "the server limits the size of a file (--max-upload-bytes)",
    "max_duration": "the server limits the duration of a recording (--max-audio-seconds)",
    "known_speakers": "send known_speaker_names and known_speaker_references",
}
"""Options that a request cannot set, and why."""
_RENAMED = {"prompt": "initial_prompt"}
"""Fields of OpenAI's API that stand for one option of the library."""
_STRATEGY = {
    "threshold": ("vad_threshold", 0.5, 1.0),
    "prefix_padding_ms": ("vad_speech_pad", 300, 1000.0),
    "silence_duration_ms": ("vad_min_silence_duration", 200, 1000.0),
}
"""Fields of a ``server_vad``: option, OpenAI's default, and how many make a unit of the option."""

LIBRARY_FIELDS: Mapping[str, Any] = {
    field.name: field
    for options in (TranscribeOptions, SubtitleOptions)
    for field in dataclasses.fields(options)
    if field.name not in SERVER_FIELDS
}
"""Options of the library that a request may set, by name."""
TRANSLATION_FIELDS = ("model", "prompt", "response_format", "temperature")
"""Fields that OpenAI defines for translations, besides ``file``."""
_API_FIELDS = (
    *TRANSLATION_FIELDS,
    *("language", "languages", "keywords", "include", "timestamp_granularities"),
    *("stream", "chunking_strategy", "known_speaker_names", "known_speaker_references"),
)
_ONLY_TRANSCRIPTIONS = frozenset(_API_FIELDS) - {*TRANSLATION_FIELDS, "language"}
_SUBTITLES = {field.name for field in dataclasses.fields(SubtitleOptions)}
_PART = re.compile(r"(\w+)\[(\w+)\]")


@dataclasses.dataclass(frozen=True)
class Call:
    """What a request asks for.

    Attributes:
        model: name of the model.
        options: how to transcribe.
        subtitles: layout of srt and vtt.
        response_format: one of :data:`FORMATS`.
        granularities: what verbose_json lists.
        stream: whether text is sent as it is decoded.
        languages: candidates; the language is detected among them if there are several.
        parameters: the field that gave each option, by name of the option; for error messages.
    """

    model: str
    options: TranscribeOptions
    subtitles: SubtitleOptions
    response_format: str
    granularities: frozenset[str]
    stream: bool
    languages: tuple[str, ...]
    parameters: Mapping[str, str]


class _Fields:
    """Fields of a form by name, without the brackets of arrays; each is taken once."""

    def __init__(self, fields: Iterable[tuple[str, str]], translate: bool) -> None:
        self.values: dict[str, list[str]] = {}
        self.objects: dict[str, dict[str, str]] = {}
        for name, value in fields:
            part = _PART.fullmatch(name)
            if part and part.group(1) == "chunking_strategy":
                self.objects.setdefault(part.group(1), {})[part.group(2)] = value
            else:
                self.values.setdefault(name[:-2] if name.endswith("[]") else name, []).append(value)
        for name in [*self.values, *self.objects]:
            _check_known(name, translate)

    def text(self, name: str) -> str | None:
        """The text of a field; None if it is absent or empty."""
        values = self.values.pop(name, None)
        return (one(name, values) or None) if values else None

    def texts(self, name: str) -> tuple[str, ...]:
        """The items of an array."""
        return texts(name, self.values.pop(name, ()))


def _check_known(name: str, translate: bool) -> None:
    if name in SERVER_FIELDS:
        reason = f"{name} cannot be set by a request: {SERVER_FIELDS[name]}"
        raise ApiError(400, reason, param=name, code="unsupported_parameter")
    if translate and name in _ONLY_TRANSCRIPTIONS:
        raise ApiError(
            400,
            f"{name} is not a field of translations; leave it out",
            param=name,
            code="unsupported_parameter",
        )
    if name not in _API_FIELDS and name not in LIBRARY_FIELDS:
        raise ApiError(
            400,
            f"unknown field {name[:100]!r}; GET /openapi.json lists the fields",
            param=name[:100],
            code="unknown_parameter",
        )


def read_call(fields: Iterable[tuple[str, str]], limits: ServeOptions, *, translate: bool) -> Call:
    """What a form asks for.

    Args:
        fields: (name, value) of every field but the file.
        limits: options of the server.
        translate: whether the request was sent to the translations endpoint.

    Raises:
        ApiError: a field is missing, unknown, out of range or contradicts another.
    """
    form = _Fields(fields, translate)
    model = form.text("model")
    if model is None:
        raise ApiError(
            400,
            "you must provide a model; GET /v1/models lists their names",
            param="model",
            code="missing_required_parameter",
        )
    response_format = _format(form, translate)
    stream = flag("stream", form.text("stream") or "false")
    granularities = _granularities(form, response_format)
    include = _included(form)
    _refuse_unsupported(form, response_format, stream)
    languages = _languages(form)
    known = known_speakers(
        form.texts("known_speaker_names"), form.texts("known_speaker_references")
    )
    values, parameters = _options(form)
    put_speakers(known, response_format, values, parameters)
    _put_logprobs(include, values, parameters, response_format)
    if translate:
        _set_task(values)
    if len(languages) == 1:
        _put(values, parameters, "languages", "language", languages[0])
    if "word" in granularities:
        values.setdefault("word_timestamps", True)
        parameters.setdefault("word_timestamps", "timestamp_granularities")
    elif values.get("word_timestamps") and response_format == "verbose_json":
        granularities = frozenset({*granularities, "word"})
    values["max_duration"] = limits.max_audio_seconds
    parameters["max_duration"] = "file"
    subtitles = {name: values.pop(name) for name in _SUBTITLES & {*values}}
    try:
        options = TranscribeOptions(**values)
        layout = SubtitleOptions(**subtitles)
        if options.language is not None and options.language.lower() != "auto":
            language_code(options.language)
    except OptionError as error:
        raise api_error(error, parameters) from None
    _check_hypotheses(options, limits.max_hypotheses)
    _check_layout(layout, subtitles, options, response_format)
    return Call(
        model,
        options,
        layout,
        response_format,
        granularities,
        stream,
        languages if len(languages) > 1 else (),
        parameters,
    )


def _format(form: _Fields, translate: bool) -> str:
    name = form.text("response_format") or "json"
    expected = FORMATS[:-1] if translate else FORMATS
    if name not in expected:
        raise invalid("response_format", f"is {name!r}", f"one of {', '.join(expected)}")
    return name


def _granularities(form: _Fields, response_format: str) -> frozenset[str]:
    names = form.texts("timestamp_granularities")
    for name in names:
        if name not in GRANULARITIES:
            raise invalid("timestamp_granularities", f"holds {name!r}", "segment or word")
    if names and response_format != "verbose_json":
        raise invalid(
            "response_format",
            f"is {response_format!r}, which has no timestamp_granularities",
            "verbose_json",
        )
    return frozenset(names or ("segment",))


def _included(form: _Fields) -> tuple[str, ...]:
    names = form.texts("include")
    for name in names:
        if name != "logprobs":
            raise invalid("include", f"holds {name!r}", "logprobs")
    return names


def _put_logprobs(
    include: Sequence[str], values: dict[str, Any], parameters: dict[str, str], form: str
) -> None:
    """``include[]=logprobs`` is the option ``token_logprobs``; both need a format of JSON."""
    if include and not values.get("token_logprobs"):
        if "token_logprobs" in values:
            raise invalid("include", "holds logprobs, and token_logprobs is false", "one of them")
        values["token_logprobs"], parameters["token_logprobs"] = True, "include"
    if values.get("token_logprobs") and form not in LOGPROBS:
        raise invalid(
            parameters["token_logprobs"],
            f"asks for log-probabilities with response_format {form!r}, which has none",
            " or ".join(LOGPROBS),
        )


def _refuse_unsupported(form: _Fields, response_format: str, stream: bool) -> None:
    if stream and response_format not in STREAMED:
        expected = ", ".join(STREAMED)
        raise invalid("stream", f"is true with response_format {response_format!r}", expected)


def _languages(form: _Fields) -> tuple[str, ...]:
    names = form.texts("languages")
    if names and form.values.get("language", [""]) != [""]:
        raise invalid("languages", "is given, and so is language", "one of them")
    try:
        return tuple(dict.fromkeys(language_code(name) for name in names))
    except OptionError as error:
        raise ApiError(400, str(error), param="languages", code="invalid_value") from None


def _options(form: _Fields) -> tuple[dict[str, Any], dict[str, str]]:
    """Values of options, and the field that gave each."""
    values: dict[str, Any] = {}
    parameters = {name: name for name in (*LIBRARY_FIELDS, *SERVER_FIELDS)}
    _put_temperature(form, values)
    for name, option in _RENAMED.items():
        text = form.text(name)
        if text is not None:
            _put(values, parameters, name, option, text)
    keywords = form.texts("keywords")
    if keywords:
        _put(values, parameters, "keywords", "hotwords", ", ".join(keywords))
    for option, value in _chunking(form).items():
        _put(values, parameters, "chunking_strategy", option, value)
    for name, given in form.values.items():
        if given == [""]:  # empty fields of web forms
            continue
        meta = LIBRARY_FIELDS[name].metadata
        _put(values, parameters, name, name, value_of(name, given, meta["kind"], meta["optional"]))
    return values, parameters


def _put(
    values: dict[str, Any], parameters: dict[str, str], field: str, option: str, value: Any
) -> None:
    if option in values:
        raise invalid(field, f"is given, and so is {parameters[option]}", "one of them")
    values[option], parameters[option] = value, field


def _put_temperature(form: _Fields, values: dict[str, Any]) -> None:
    """One number is that of OpenAI's API, where 0 is raised if need be; an array is the option."""
    given = form.values.get("temperature", [])
    if len(given) != 1 or not given[0] or re.search(r"[\[,]", given[0]):
        return
    temperature = number("temperature", given[0])
    if not 0 <= temperature <= 1:
        raise invalid("temperature", f"is {given[0]}", "a number from 0 to 1")
    del form.values["temperature"]
    if temperature > 0:
        values["temperature"] = (temperature,)


def _chunking(form: _Fields) -> dict[str, Any]:
    """The options that a ``chunking_strategy`` stands for."""
    name = "chunking_strategy"
    strategy = form.objects.pop(name, None)
    text = form.text(name)
    if text and strategy:
        raise invalid(name, "is given as text and as an object", "one of them")
    if text == "auto":
        return {"strategy": "batched"}
    if text:
        if not text.lstrip().startswith("{"):
            raise invalid(name, f"is {text!r}", "auto, or an object of type server_vad")
        strategy = json_object(name, text)
    return _server_vad(strategy) if strategy is not None else {}


def _server_vad(strategy: dict[str, str]) -> dict[str, Any]:
    name = "chunking_strategy"
    if strategy.pop("type", None) != "server_vad":
        raise invalid(name, "has another type", "type server_vad")
    options: dict[str, Any] = {"strategy": "batched"}
    for key, (option, default, units) in _STRATEGY.items():
        read = integer if key.endswith("_ms") else number
        text = strategy.pop(key, None)
        value = default if text is None else read(f"{name}[{key}]", text)
        options[option] = value / units
    if strategy:
        raise invalid(name, f"has an unknown key {min(strategy)!r}", ", ".join(_STRATEGY))
    return options


def _set_task(values: dict[str, Any]) -> None:
    if values.get("task", "translate") != "translate":
        raise invalid("task", f"is {values['task']!r} on the translations endpoint", "translate")
    values["task"] = "translate"


def _check_hypotheses(options: TranscribeOptions, limit: int) -> None:
    for name in ("beam_size", "best_of"):
        value = getattr(options, name)
        if value is not None and value > limit:
            raise invalid(name, f"is {value}", f"at most {limit} on this server")


def _check_layout(
    layout: SubtitleOptions, given: Sequence[str] | Mapping[str, Any], options: Any, form: str
) -> None:
    """Subtitle options need a format with cues, and times of words."""
    if not layout.needs_words:
        return
    name = min(given)
    if form not in ("srt", "vtt"):
        raise invalid(name, f"is given with response_format {form!r}", "srt or vtt")
    if not options.word_timestamps:
        raise invalid(name, "is given without word times", "word_timestamps=true too")
