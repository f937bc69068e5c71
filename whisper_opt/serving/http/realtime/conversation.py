"""The realtime transcription protocol on one connection: client events in, server events out.

It knows no socket: see :class:`whisper_opt.serving.http.live.connection.Dialect`.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Collection, Mapping
from typing import Any, Callable, Union

from whisper_opt.core.errors import WhisperOptError
from whisper_opt.serving.http.errors import ApiError, api_error, invalid, shutting_down
from whisper_opt.serving.http.live.audio import SampleReader
from whisper_opt.serving.http.live.hub import LiveSession
from whisper_opt.serving.http.realtime.settings import LOGPROBS, PARTIALS, WORDS, Settings
from whisper_opt.serving.http.realtime.turns import Items, Turns
from whisper_opt.serving.http.realtime.values import Values
from whisper_opt.text.live_events import LiveEvent
from whisper_opt.text.vocabulary import Vocab

__all__ = ["Conversation"]

_LEAST_SECONDS = 0.1
"""Audio of the shortest turn that can be committed, as in OpenAI's API."""
_LONGEST_ID = 512

Open = Callable[[Settings], tuple[int, LiveSession]]


class _Heard:
    """A session of the engine, and the audio it was given."""

    def __init__(self, number: int, session: LiveSession, settings: Settings, turns: Turns) -> None:
        self.number = number
        self.session = session
        self.settings = settings
        self.turns = turns
        self.reader = SampleReader(settings.encoding)
        self.n_samples = 0
        self.n_uncommitted = 0

    @property
    def seconds(self) -> float:
        return self.n_samples / self.settings.rate

    @property
    def uncommitted(self) -> float:
        return self.n_uncommitted / self.settings.rate


class Conversation:
    """One connection.

    Attributes:
        settings: the session as clients see it.
        idle: seconds without a message after which the connection is closed.
        closing: code and reason of the close, once an error has ended the conversation.
    """

    def __init__(
        self,
        settings: Settings,
        models: Collection[str],
        open: Open,
        send: Callable[[dict[str, Any]], None],
        new_id: Callable[[str], str],
        *,
        vocab: Callable[[str], Vocab],
        flat: bool = False,
        idle: float = 600.0,
    ) -> None:
        """Begin with ``session.created``.

        Args:
            settings: the session at first.
            models: names of models.
            open: opens a session of the engine, and gives its number.
            send: takes every event of the server.
            new_id: makes an id with a prefix.
            vocab: the vocabulary of a model.
            flat: whether the old dialect is spoken.
            idle: seconds without a message after which the connection is closed.

        Raises:
            WhisperOptError: the engine accepts no session with these settings.
        """
        self.settings = settings
        self.idle = idle
        self.closing: Union[tuple[int, str], None] = None
        self._models = models
        self._vocab = vocab
        self._open = open
        self._send = send
        self._new_id = new_id
        self._handlers: Mapping[str, Callable[[Mapping[str, Any]], None]] = {
            "session.update": self._update,
            "transcription_session.update": self._update_flat,
            "input_audio_buffer.append": self._append,
            "input_audio_buffer.commit": self._commit,
            "input_audio_buffer.clear": self._clear,
            "whisper_opt.finish": self._end,
        }
        self._id = new_id("sess")
        self._items = Items(self._event, new_id)
        self._items.flat = flat
        self._include()
        self._turns: dict[int, Turns] = {}
        self._now = self._opened(0.0)
        self._show_session(flat, "created")

    # events of the server

    def _event(self, type_: str, **fields: Any) -> None:
        self._send({"type": type_, "event_id": self._new_id("event"), **fields})

    def _show_session(self, flat: bool, what: str) -> None:
        name, shown = "session", self.settings.shown
        if flat:
            name, shown = "transcription_session", self.settings.shown_flat
        self._event(f"{name}.{what}", session=shown(self._id))

    def _error(self, error: ApiError, event_id: Union[str, None] = None) -> None:
        self._event("error", error={**error.body["error"], "event_id": event_id})

    # sessions of the engine

    def _opened(self, offset: float) -> _Heard:
        number, session = self._open(self.settings)
        turns = Turns(self._items, manual=self.settings.turns is None, offset=offset)
        self._turns[number] = turns
        return _Heard(number, session, self.settings, turns)

    def _settle(self) -> None:
        """Go on with a session of the present settings, if there is no turn that it would cut."""
        now = self._now
        if self.closing is not None or now.settings.same_sound(self.settings):
            return
        if now.turns.speaking:
            return
        if now.settings.turns is None and now.n_uncommitted:
            return
        if now.n_samples:
            now.session.finish()
        else:
            now.session.cancel()  # at first: the engine may have room for one only
        try:
            self._now = self._opened(now.turns.offset + now.seconds)
        except WhisperOptError as error:
            self._error(api_error(error, {}))
            self.closing = 1013, "no session with the new settings"

    def heard(self, number: int, event: LiveEvent) -> None:
        """Handle an event of a session of the engine."""
        turns = self._turns.get(number)
        if turns is not None:
            turns.heard(event)
        if number == self._now.number:
            self._settle()

    def ended(self, number: int) -> None:
        """A session of the engine has ended."""
        turns = self._turns.pop(number, None)
        if turns is not None:
            turns.over()
        if number == self._now.number and self.closing is None:
            self.closing = 1011, "the session failed"

    # events of the client

    def receive(self, message: Union[str, bytes]) -> None:
        """Handle a message: an event of the client as JSON."""
        event_id: Union[str, None] = None
        try:
            event = _parsed(message)
            event_id = _id_of(event)
            self._handle(event)
        except ApiError as error:
            self._error(error, event_id)
        except WhisperOptError as error:
            self._error(api_error(error, {}), event_id)

    def _handle(self, event: Mapping[str, Any]) -> None:
        kind = event.get("type")
        handler = self._handlers.get(kind) if isinstance(kind, str) else None
        if handler is None:
            raise ApiError(
                400,
                f"the event type {str(kind)[:80]!r} is not one of a transcription session; expected"
                f" {', '.join(self._handlers)}",
                param="type",
                code="invalid_event",
            )
        handler(event)

    def _update(self, event: Mapping[str, Any]) -> None:
        self._adopt(self.settings.changed(event.get("session"), self._models))
        self._show_session(False, "updated")

    def _update_flat(self, event: Mapping[str, Any]) -> None:
        self._adopt(self.settings.changed_flat(event.get("session"), self._models))
        self._show_session(True, "updated")

    def _adopt(self, settings: Settings) -> None:
        """Change the settings; the engine hears with them from the next turn on."""
        settings.check()
        self.settings = settings
        self._include()
        self._settle()

    def _include(self) -> None:
        """Send what the client asked for."""
        included = self.settings.include
        self._items.partials = PARTIALS in included
        self._items.words = WORDS in included
        self._items.vocab = self._vocab(self.settings.model) if LOGPROBS in included else None

    def _append(self, event: Mapping[str, Any]) -> None:
        audio = event.get("audio")
        if not isinstance(audio, str):
            raise invalid("audio", "is no string", "base64")
        try:
            data = base64.b64decode(audio, validate=True)
        except (binascii.Error, ValueError):
            raise invalid("audio", "cannot be decoded", "base64") from None
        samples = self._now.reader.read(data)
        if len(samples):
            self._now.session.push(samples)
            self._now.n_samples += len(samples)
            self._now.n_uncommitted += len(samples)

    def _commit(self, event: Mapping[str, Any]) -> None:
        now = self._now
        if now.uncommitted < _LEAST_SECONDS:
            raise ApiError(
                400,
                f"the buffer has {now.uncommitted * 1000:.0f} ms of audio; expected at least"
                f" {_LEAST_SECONDS * 1000:.0f} ms: append more before the commit",
                code="input_audio_buffer_commit_empty",
            )
        now.n_uncommitted = 0
        now.turns.committed_by_client(now.seconds)
        now.session.commit()
        self._settle()

    def _clear(self, event: Mapping[str, Any]) -> None:
        now = self._now
        now.n_uncommitted = 0
        now.reader.clear()
        now.turns.cleared(now.seconds)
        now.session.clear()
        self._event("input_audio_buffer.cleared")
        self._settle()

    # the end

    def _end(self, event: Mapping[str, Any]) -> None:
        """There is no more audio: the last texts are sent, and the connection is closed."""
        self.closing = 1000, ""

    def finish(self) -> None:
        """There is no more audio."""
        if self.closing is None:
            self.closing = 1000, ""
        if self._now.number in self._turns:
            self._now.session.finish()

    def silent(self) -> tuple[int, str]:
        """The client has sent nothing for too long."""
        error = ApiError(
            408,
            f"nothing was received for {self.idle:g} s; connect again",
            code="session_expired",
        )
        self._error(error)
        return 1001, "idle"

    def farewell(self, *, restarts: bool) -> None:
        """Say that the server is being restarted, if it is."""
        if restarts:
            self._error(shutting_down("draining"))


def _parsed(message: Union[str, bytes]) -> Mapping[str, Any]:
    if isinstance(message, bytes):
        raise ApiError(400, "the message is binary; expected JSON", code="invalid_event")
    try:
        found = json.loads(message)
    except (ValueError, RecursionError):
        raise ApiError(400, "the message is no JSON", code="invalid_event") from None
    if not isinstance(found, dict):
        raise ApiError(400, "the message is no object", code="invalid_event")
    return found


def _id_of(event: Mapping[str, Any]) -> Union[str, None]:
    found = Values(event, "").text("event_id")
    if found is not None and len(found) > _LONGEST_ID:
        raise invalid("event_id", f"has {len(found)} characters", f"at most {_LONGEST_ID}")
    return found
