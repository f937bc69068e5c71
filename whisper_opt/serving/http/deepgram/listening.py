"""The protocol of ``/v1/listen`` on one connection; it knows no socket.

See :class:`whisper_opt.serving.http.live.connection.Dialect`.
"""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from typing import Any, Callable, Union

from whisper_opt.core.errors import WhisperOptError
from whisper_opt.serving.http.deepgram.messages import Channel
from whisper_opt.serving.http.deepgram.query import Asked
from whisper_opt.serving.http.live.audio import SampleReader
from whisper_opt.serving.http.live.hub import LiveSession
from whisper_opt.text.live_events import LiveEvent

__all__ = ["Listening"]

_IDLE = 10.0
"""Seconds with neither audio nor KeepAlive, as Deepgram waits."""


class Listening:
    """One connection; attributes as :class:`Dialect` has them."""

    def __init__(
        self,
        asked: Asked,
        open: Callable[[int], tuple[int, LiveSession]],
        send: Callable[[dict[str, Any]], None],
        request_id: str,
        idle: float = _IDLE,
    ) -> None:
        """Open a session for each transcript.

        Args:
            asked: the request.
            open: opens a session of so many channels, and gives its number.
            send: takes every message of the server.
            request_id: name of the request.
            idle: seconds without a message after which the connection is closed.

        Raises:
            WhisperOptError: the engine accepts no session.
        """
        self.idle = idle
        self.closing: Union[tuple[int, str], None] = None
        self._asked = asked
        self._send = send
        self._request_id = request_id
        self._reader = SampleReader(asked.encoding, asked.n_channels)
        self._digest = hashlib.sha256()
        self._n_samples = 0
        self._created = time.gmtime()
        n = asked.n_channels if asked.apart else 1
        self._sessions: list[LiveSession] = []
        self._channels: dict[int, Channel] = {}
        for i in range(n):
            number, session = open(1 if asked.apart else asked.n_channels)
            self._sessions.append(session)
            self._channels[number] = Channel(i, n, asked, self._metadata, send)

    @property
    def _metadata(self) -> dict[str, Any]:
        info = {"name": self._asked.model, "version": "whisper-opt", "arch": "whisper"}
        return {
            "request_id": self._request_id,
            "model_info": info,
            "model_uuid": str(uuid.uuid5(uuid.NAMESPACE_OID, self._asked.model)),
        }

    def heard(self, number: int, event: LiveEvent) -> None:
        """Handle an event of a session."""
        channel = self._channels.get(number)
        if channel is not None:
            channel.heard(event)

    def ended(self, number: int) -> None:
        """A session has ended."""
        if self.closing is None:
            self.closing = 1011, "a session failed"

    def receive(self, message: Union[str, bytes]) -> None:
        """Handle a message: audio, or a command as JSON."""
        if isinstance(message, bytes):
            self._hear(message)
            return
        try:
            command = json.loads(message)
            kind = command["type"]
        except (ValueError, RecursionError, KeyError, TypeError):
            self._refuse("the message is no JSON object with a type")
            return
        if kind == "CloseStream":
            self.closing = 1000, ""
        elif kind == "Finalize":
            for session, channel in zip(self._sessions, self._channels.values()):
                session.commit()
                channel.finalize()
        elif kind == "Configure":
            self._send(
                {
                    "type": "ConfigureFailure",
                    "request_id": self._request_id,
                    "code": "CONFIGURE_KEYTERMS_NOT_SUPPORTED",
                    "description": "a running connection is not changed; open another one",
                }
            )
        elif kind != "KeepAlive":
            self._refuse(f"the type {str(kind)[:80]!r} is unknown")

    def _refuse(self, reason: str) -> None:
        self._send(
            {
                "type": "Error",
                "variant": "SchemaError",
                "description": f"{reason}; expected KeepAlive, Finalize or CloseStream, or audio as"
                " a binary message",
            }
        )

    def _hear(self, data: bytes) -> None:
        if not data:  # an old way to say CloseStream
            self.closing = 1000, ""
            return
        self._digest.update(data)
        samples = self._reader.read(data)
        if not len(samples):
            return
        self._n_samples += len(samples)
        try:
            for i, session in enumerate(self._sessions):
                session.push(samples[:, i : i + 1] if self._asked.apart else samples)
        except WhisperOptError:  # the session has ended meanwhile
            self.closing = self.closing or (1011, "a session failed")
        for channel in self._channels.values():
            channel.received(self._seconds)

    @property
    def _seconds(self) -> float:
        return self._n_samples / self._asked.rate

    def finish(self) -> None:
        """There is no more audio."""
        for session in self._sessions:
            session.finish()

    def silent(self) -> tuple[int, str]:
        """The client has sent nothing for too long."""
        return 1011, "NET-0001: neither audio nor KeepAlive was received in time"

    def farewell(self, *, restarts: bool) -> None:
        """Send what describes the whole connection."""
        self._send(
            {
                "type": "Metadata",
                "transaction_key": "deprecated",
                "request_id": self._request_id,
                "sha256": self._digest.hexdigest(),
                "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", self._created),
                "duration": round(self._seconds, 3),
                "channels": self._asked.n_channels,
            }
        )
