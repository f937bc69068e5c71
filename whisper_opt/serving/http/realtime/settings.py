"""The session object of the realtime API, in both dialects, and what it means for the engine."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any, Union

from whisper_opt.core.errors import OptionError
from whisper_opt.core.options import LiveOptions, TranscribeOptions
from whisper_opt.serving.http.errors import ApiError, invalid, model_not_found
from whisper_opt.serving.http.realtime.values import Values, unsupported
from whisper_opt.text.languages import language_code

__all__ = ["PARTIALS", "WORDS", "Settings", "TurnDetection"]

PARTIALS = "whisper_opt.partials"
WORDS = "whisper_opt.words"
LOGPROBS = "item.input_audio_transcription.logprobs"
_INCLUDED = (LOGPROBS, PARTIALS, WORDS)
"""Values of ``include``."""
_DELAYS: Mapping[str, float] = {
    "minimal": 0.3, "low": 0.5, "medium": 1.0, "high": 2.0, "xhigh": 3.0,
}  # fmt: skip
"""Seconds of new audio for each update, by ``transcription.delay``."""
_PAUSES = {"low": 2000, "medium": 1000, "auto": 1000, "high": 500}
"""Milliseconds of silence that end a turn, by ``eagerness`` of semantic_vad."""
_FORMATS = {
    "audio/pcm": ("pcm16", "linear16", 24_000),
    "audio/pcmu": ("g711_ulaw", "mulaw", 8000),
    "audio/pcma": ("g711_alaw", "alaw", 8000),
}
"""Formats of audio: name in the old dialect, encoding, rate in Hz."""
_TAIL_MS = LiveOptions().tail_ms
_LONGEST_S = 600.0
"""Seconds of the longest turn that a client may end; a longer one is divided."""
_OF_REPLIES = ("create_response", "interrupt_response")
"""Fields of turn_detection that are about spoken replies, of which there are none here."""


@dataclasses.dataclass(frozen=True)
class TurnDetection:
    """What ends a turn.

    Attributes:
        kind: ``server_vad`` or ``semantic_vad``.
        threshold: probability from which a frame counts as speech.
        prefix_ms: audio before the speech.
        silence_ms: silence that ends the turn.
        eagerness: of ``semantic_vad``.
    """

    kind: str = "server_vad"
    threshold: float = 0.5
    prefix_ms: int = 300
    silence_ms: int = 500
    eagerness: str = "auto"

    @property
    def shown(self) -> dict[str, Any]:
        """The object of the API."""
        if self.kind == "semantic_vad":
            return {"type": self.kind, "eagerness": self.eagerness}
        return {
            "type": self.kind,
            "threshold": self.threshold,
            "prefix_padding_ms": self.prefix_ms,
            "silence_duration_ms": self.silence_ms,
        }


@dataclasses.dataclass(frozen=True)
class Settings:
    """A session.

    Attributes:
        model: name of the model.
        language: code, or None: detected.
        prompt: text before the speech, or None.
        keywords: words to expect.
        delay: name of how long to wait for more audio, or None.
        format: type of the audio, one of ``audio/pcm``, ``audio/pcmu``, ``audio/pcma``.
        turns: what ends a turn; None: only the client.
        include: further fields that are sent.
    """

    model: str
    language: Union[str, None] = None
    prompt: Union[str, None] = None
    keywords: tuple[str, ...] = ()
    delay: Union[str, None] = None
    format: str = "audio/pcm"
    turns: Union[TurnDetection, None] = TurnDetection()
    include: tuple[str, ...] = ()

    # for the engine

    @property
    def encoding(self) -> str:
        """Encoding of the audio."""
        return _FORMATS[self.format][1]

    @property
    def rate(self) -> int:
        """Samples per second of the audio."""
        return _FORMATS[self.format][2]

    @property
    def options(self) -> TranscribeOptions:
        """How to transcribe."""
        return TranscribeOptions(
            language=self.language,
            initial_prompt=self.prompt,
            hotwords=", ".join(self.keywords) or None,
            word_timestamps=True,
            token_logprobs=LOGPROBS in self.include,
        )

    @property
    def live(self) -> LiveOptions:
        """How to listen."""
        pace: dict[str, Any] = {} if self.delay is None else {"update_s": _DELAYS[self.delay]}
        if self.turns is None:
            return LiveOptions(vad=False, max_utterance_s=_LONGEST_S, **pace)
        return LiveOptions(
            threshold=self.turns.threshold,
            pre_roll_ms=self.turns.prefix_ms,
            silence_ms=self.turns.silence_ms,
            tail_ms=min(_TAIL_MS, self.turns.silence_ms),
            **pace,
        )

    def check(self) -> None:
        """Check what the fields mean for the engine together.

        Raises:
            OptionError: an option is not possible.
        """
        self.options, self.live  # noqa: B018 # they check themselves

    def same_sound(self, other: Settings) -> bool:
        """Whether an engine's session of the one serves the other."""
        one, another = (
            dataclasses.replace(each, include=(LOGPROBS,) if LOGPROBS in each.include else ())
            for each in (self, other)
        )
        return one == another

    # for clients

    def shown(self, session_id: str) -> dict[str, Any]:
        """The session in the present dialect."""
        return {
            "type": "transcription",
            "id": session_id,
            "object": "realtime.transcription_session",
            "expires_at": None,
            "include": list(self.include) or None,
            "audio": {
                "input": {
                    "format": {
                        "type": self.format,
                        **({"rate": self.rate} if self.format == "audio/pcm" else {}),
                    },
                    "noise_reduction": None,
                    "transcription": self._transcription,
                    "turn_detection": self.turns and self.turns.shown,
                }
            },
        }

    def shown_flat(self, session_id: str) -> dict[str, Any]:
        """The session in the old dialect."""
        return {
            "id": session_id,
            "object": "realtime.transcription_session",
            "expires_at": None,
            "include": list(self.include) or None,
            "input_audio_format": _FORMATS[self.format][0],
            "input_audio_noise_reduction": None,
            "input_audio_transcription": self._transcription,
            "turn_detection": self.turns and self.turns.shown,
        }

    @property
    def _transcription(self) -> dict[str, Any]:
        found = {
            "model": self.model,
            "language": self.language,
            "prompt": self.prompt,
            "keywords": list(self.keywords) or None,
            "delay": self.delay,
        }
        return {key: value for key, value in found.items() if value is not None}

    # changes

    def changed(self, session: Any, models: Collection[str]) -> Settings:
        """The session after ``session.update``; what is absent stays as it is.

        Raises:
            ApiError: a value is not possible; ``param`` is its path.
        """
        values = Values(session, "session")
        if values.text("type") not in (None, "transcription"):
            raise unsupported("session.type", "this server transcribes and says nothing")
        for key in ("id", "object", "expires_at", "client_secret"):  # as the server sent them
            values.take(key)
        new = self._with_include(values)
        if values.has("audio"):
            audio = Values(values.take("audio"), "session.audio")
            given = audio.take("input")
            audio.end()
            part = Values({} if given is None else given, "session.audio.input")
            new = new._with_input(part, models, prefix="")
            part.end()
        values.end()
        return new

    def changed_flat(self, session: Any, models: Collection[str]) -> Settings:
        """The session after ``transcription_session.update``, the same in the old dialect."""
        values = Values(session, "session")
        for key in ("id", "object", "expires_at", "client_secret"):
            values.take(key)
        modalities = values.take("modalities")
        if modalities not in (None, ["text"], ["text", "audio"], ["audio", "text"]):
            raise invalid("session.modalities", "is not known", '["text"]')
        new = self._with_include(values)._with_input(values, models, prefix="input_audio_")
        values.end()
        return new

    def _with_include(self, values: Values) -> Settings:
        if not values.has("include"):
            return self
        names = values.texts("include")
        for name in names:
            if name not in _INCLUDED:
                raise invalid("session.include", f"has {name[:80]!r}", " or ".join(_INCLUDED))
        return dataclasses.replace(self, include=tuple(dict.fromkeys(names)))

    def _with_input(self, values: Values, models: Collection[str], prefix: str) -> Settings:
        new = self
        key = f"{prefix}format"
        if values.has(key):
            new = dataclasses.replace(new, format=_format(values, key))
        key = f"{prefix}noise_reduction"
        if values.has(key) and values.take(key) is not None:
            raise unsupported(values.path(key), "audio is heard as it is; leave it out, or null")
        key = f"{prefix}transcription"
        if values.has(key):
            given = values.take(key)
            if given is None:
                raise unsupported(values.path(key), "a session without transcription does nothing")
            new = new._with_transcription(Values(given, values.path(key)), models)
        if values.has("turn_detection"):
            path = values.path("turn_detection")
            given = values.take("turn_detection")
            turns = None if given is None else _turns(Values(given, path), new.turns)
            new = dataclasses.replace(new, turns=turns)
        return new

    def _with_transcription(self, values: Values, models: Collection[str]) -> Settings:
        new: dict[str, Any] = {}
        if values.has("model"):
            new["model"] = _model(values, models)
        if values.has("language"):
            new["language"] = _language(values.path("language"), values.text("language"))
        languages = values.texts("languages")
        if len(languages) > 1:
            raise unsupported(
                values.path("languages"), "give one as language, or none: it is detected"
            )
        if languages:
            new["language"] = _language(values.path("languages"), languages[0])
        if values.has("prompt"):
            new["prompt"] = values.text("prompt") or None
        if values.has("keywords"):
            new["keywords"] = values.texts("keywords")
        if values.has("delay"):
            new["delay"] = values.choice("delay", tuple(_DELAYS))
        values.end()
        return dataclasses.replace(self, **new)


def _format(values: Values, key: str) -> str:
    """Type of the audio: an object in the present dialect, a name in the old one."""
    path, given = values.path(key), values.take(key)
    if isinstance(given, str):
        for name, (old, _, _) in _FORMATS.items():
            if given in (old, name):
                return name
        old_names = ", ".join(old for old, _, _ in _FORMATS.values())
        raise invalid(path, f"is {given[:80]!r}", f"one of {old_names}")
    parts = Values(given, path)
    name = parts.choice("type", tuple(_FORMATS)) or "audio/pcm"
    rate = parts.take("rate")
    parts.end()
    expected = _FORMATS[name][2]
    if rate not in (None, expected):
        raise invalid(f"{path}.rate", f"is {rate!r}"[:80], f"{expected} for {name}")
    return name


def _model(values: Values, models: Collection[str]) -> str:
    path, name = values.path("model"), values.text("model")
    if name is None or name not in models:
        raise model_not_found(name or "", models, path)
    return name


def _language(path: str, name: Union[str, None]) -> Union[str, None]:
    if not name:
        return None
    try:
        return language_code(name)
    except OptionError as error:
        raise ApiError(400, str(error), param=path, code="invalid_value") from None


def _range(option: str) -> tuple[Any, Any]:
    """Lowest and highest value of an option of live sessions."""
    meta = LiveOptions.__dataclass_fields__[option].metadata
    return meta["low"], meta["high"]


def _turns(values: Values, before: Union[TurnDetection, None]) -> TurnDetection:
    kind = values.choice("type", ("server_vad", "semantic_vad")) or "server_vad"
    for key in _OF_REPLIES:
        if not isinstance(values.take(key), (bool, type(None))):
            raise invalid(values.path(key), "is no flag", "true or false")
    if values.take("idle_timeout_ms") is not None:
        raise unsupported(
            values.path("idle_timeout_ms"), "it is for replies to silence; there are no replies"
        )
    if kind == "semantic_vad":
        eagerness = values.choice("eagerness", tuple(_PAUSES)) or "auto"
        values.end()
        return TurnDetection(kind, silence_ms=_PAUSES[eagerness], eagerness=eagerness)
    same = before if before is not None and before.kind == kind else TurnDetection()
    threshold = values.number("threshold", *_range("threshold"))
    prefix = values.integer("prefix_padding_ms", *_range("pre_roll_ms"))
    silence = values.integer("silence_duration_ms", *_range("silence_ms"))
    values.end()
    return TurnDetection(
        kind,
        same.threshold if threshold is None else threshold,
        same.prefix_ms if prefix is None else prefix,
        same.silence_ms if silence is None else silence,
    )
