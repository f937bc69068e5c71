"""What a client of ``/v1/listen`` asks for: the query of the request.

What this server cannot do is refused, and not ignored.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Union

from whisper_opt.core.errors import OptionError
from whisper_opt.core.options import LiveOptions, ServeOptions, TranscribeOptions
from whisper_opt.serving.http.errors import ApiError, model_not_found
from whisper_opt.serving.http.live.audio import ENCODINGS
from whisper_opt.text.languages import language_code

__all__ = ["Asked", "read_query"]

_REFUSED: Mapping[str, str] = {
    **dict.fromkeys(("callback", "callback_method"), "text is sent to this connection only"),
    **dict.fromkeys(("diarize", "diarize_model"), "speakers are not distinguished by this server"),
    **dict.fromkeys(
        ("detect_entities", "redact", "replace", "search", "profanity_filter", "dictation"),
        "the text is what the model writes",
    ),
    "numerals": "numbers are written as the model writes them",
    "filler_words": "the model decides whether it writes filler words",
    "keywords": "words have no weights here; use keyterm",
    "language_hint": "give one language, or language=multi: it is detected",
    **dict.fromkeys(("tag", "extra"), "requests are not labelled"),
}
"""Parameters that are not supported, and why; ``false`` is accepted."""
_NO_MATTER = ("punctuate", "smart_format", "mip_opt_out")
"""Whisper writes punctuation by itself, and nothing is kept for any purpose."""
_CONTAINERS = ("flac", "amr-nb", "amr-wb", "opus", "ogg-opus", "speex", "g729")
_OTHER_NAMES = ("nova", "enhanced")
"""Beginnings of Deepgram's names of models; all stand for the first model of the server."""
_TELEPHONE = 8000
_DIGITS = 9
"""Most digits of an integer; all ranges are shorter."""
_SILENCE_MS = 500
"""Silence that ends an utterance if the client does not say."""


@dataclasses.dataclass(frozen=True)
class Asked:
    """A request.

    Attributes:
        model: name of a model of the server.
        options: how to transcribe.
        live: how to listen.
        encoding: of the samples.
        rate: samples per second of each channel.
        n_channels: channels of the samples.
        apart: whether each channel has a transcript of its own.
        interim: whether text that may change is sent.
        endpoints: whether ``speech_final`` marks the ends of utterances.
        utterance_end: seconds without words after which ``UtteranceEnd`` is sent, or None.
        vad_events: whether ``SpeechStarted`` is sent.
    """

    model: str
    options: TranscribeOptions
    live: LiveOptions
    encoding: str
    rate: int
    n_channels: int
    apart: bool
    interim: bool
    endpoints: bool
    utterance_end: Union[float, None]
    vad_events: bool


def read_query(
    query: Iterable[tuple[str, str]], models: Collection[str], limits: ServeOptions
) -> Asked:
    """The request of a query.

    Args:
        query: names and values.
        models: names of the models of the server.
        limits: of the server.

    Raises:
        ApiError: a parameter is unknown, not supported or has no valid value.
        OptionError: an option is not possible.
    """
    values = _Query(query)
    for name, reason in _REFUSED.items():
        if any(value.lower() != "false" for value in values.all(name)):
            raise _refused(name, f"is not supported: {reason}")
    for name in _NO_MATTER:
        values.flag(name)
    if (version := values.one("version")) not in (None, "latest"):
        raise _refused("version", f"is {version!r}; expected latest")
    encoding, rate = _format(values)
    live, endpoints = _live(values)
    interim = values.flag("interim_results")
    utterance_end = values.integer("utterance_end_ms", 1000, 5000)
    if utterance_end is not None and not interim:
        raise _refused("utterance_end_ms", "is given without interim_results=true")
    asked = Asked(
        model=_model(values.one("model"), tuple(models)),
        options=TranscribeOptions(
            language=_language(values.one("language")),
            hotwords=", ".join(values.all("keyterm")) or None,
            word_timestamps=True,
        ),
        live=live,
        encoding=encoding,
        rate=rate,
        n_channels=values.integer("channels", 1, limits.max_channels) or 1,
        apart=values.flag("multichannel"),
        interim=interim,
        endpoints=endpoints,
        utterance_end=None if utterance_end is None else utterance_end / 1000,
        vad_events=values.flag("vad_events"),
    )
    values.end()
    return asked


class _Query:
    """Parameters, each taken once."""

    def __init__(self, query: Iterable[tuple[str, str]]) -> None:
        self._values: dict[str, list[str]] = {}
        for name, value in query:
            self._values.setdefault(name, []).append(value)

    def all(self, name: str) -> list[str]:
        return self._values.pop(name, [])

    def one(self, name: str) -> Union[str, None]:
        found = self.all(name)
        if len(found) > 1:
            raise _refused(name, f"is given {len(found)} times; expected once")
        return found[0] if found else None

    def flag(self, name: str) -> bool:
        value = (self.one(name) or "false").lower()
        if value not in ("true", "false"):
            raise _refused(name, f"is {value[:80]!r}; expected true or false")
        return value == "true"

    def integer(self, name: str, low: int, high: int) -> Union[int, None]:
        value = self.one(name)
        if value is None:
            return None
        digits = value.isascii() and value.isdigit() and len(value) <= _DIGITS
        if not digits or not low <= int(value) <= high:
            raise _refused(name, f"is {value[:80]!r}; expected an integer from {low} to {high}")
        return int(value)

    def end(self) -> None:
        for name in self._values:
            raise _refused(name[:80], "is not known to this server; leave it out")


def _refused(name: str, reason: str) -> ApiError:
    return ApiError(400, f"{name} {reason}", param=name, code="invalid_parameter")


def _format(values: _Query) -> tuple[str, int]:
    encoding = values.one("encoding")
    rate = values.integer("sample_rate", 1000, 768_000)
    expected = f"expected {', '.join(ENCODINGS)} and sample_rate"
    if encoding is None:
        raise _refused("encoding", f"is missing: audio in containers is not read; {expected}")
    if encoding in _CONTAINERS:
        raise _refused("encoding", f"is {encoding}, which is not read; {expected}")
    if encoding not in ENCODINGS:
        raise _refused("encoding", f"is {encoding[:80]!r}; {expected}")
    if rate is None and encoding not in ("mulaw", "alaw"):
        raise _refused("sample_rate", f"is missing, and {encoding} needs it")
    return encoding, rate or _TELEPHONE


def _live(values: _Query) -> tuple[LiveOptions, bool]:
    given = values.one("endpointing")
    if given is None or given.lower() == "true":
        return LiveOptions(silence_ms=_SILENCE_MS), True
    if given.lower() == "false":
        return LiveOptions(silence_ms=_SILENCE_MS), False
    meta: Any = LiveOptions.__dataclass_fields__["silence_ms"].metadata
    silence = _Query([("endpointing", given)]).integer("endpointing", 0, meta["high"]) or 0
    silence = max(silence, meta["low"])
    return LiveOptions(silence_ms=silence, tail_ms=min(LiveOptions().tail_ms, silence)), True


def _model(name: Union[str, None], models: tuple[str, ...]) -> str:
    if name in models:
        return str(name)
    if name is None or name.split("-")[0] in _OTHER_NAMES:
        return models[0]
    raise model_not_found(name, models)


def _language(tag: Union[str, None]) -> Union[str, None]:
    if tag is None or tag == "multi":
        return None
    try:
        return language_code(tag)
    except OptionError:
        return language_code(tag.split("-")[0])
