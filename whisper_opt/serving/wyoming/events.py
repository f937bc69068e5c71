"""Events of the Wyoming protocol on a connection.

An event is a line of JSON, then ``data_length`` bytes of JSON and ``payload_length`` bytes of
audio, as https://github.com/OHF-Voice/wyoming describes it.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
from typing import Any, Union

__all__ = ["Event", "WyomingError", "read_event", "write_event"]

_MAX_DATA = 1 << 20
_MAX_PAYLOAD = 4 << 20
"""Bytes of one event; clients send audio in pieces of some kilobytes."""
_VERSION = "1.10.2"
"""Version of the protocol."""


class WyomingError(Exception):
    """An event that cannot be read or done; its text is sent to the client."""

    def __init__(self, text: str, code: str = "invalid-event") -> None:
        super().__init__(text)
        self.text = text
        self.code = code


@dataclasses.dataclass(frozen=True)
class Event:
    """An event.

    Attributes:
        type: what happened.
        data: its details.
        payload: audio.
    """

    type: str
    data: dict[str, Any] = dataclasses.field(default_factory=dict)
    payload: bytes = b""


async def read_event(reader: asyncio.StreamReader, timeout: float) -> Union[Event, None]:
    """The next event; None at the end of the connection, or if none comes for ``timeout`` seconds.

    Raises:
        WyomingError: what comes is no event.
    """
    try:
        return await asyncio.wait_for(_event(reader), timeout)
    except (asyncio.TimeoutError, asyncio.IncompleteReadError, ConnectionError):
        return None
    except ValueError:  # no JSON, no UTF-8, or a line that is too long
        raise WyomingError("expected a line of JSON with the type of an event") from None


async def _event(reader: asyncio.StreamReader) -> Union[Event, None]:
    line = await reader.readline()
    if not line:
        return None
    head = json.loads(line)
    if not isinstance(head, dict) or not isinstance(head.get("type"), str):
        raise ValueError
    data = _object(head.get("data"))
    n_data, n_payload = _length(head, "data_length", _MAX_DATA), 0
    n_payload = _length(head, "payload_length", _MAX_PAYLOAD)
    if n_data:
        data.update(_object(json.loads(await reader.readexactly(n_data))))
    payload = await reader.readexactly(n_payload) if n_payload else b""
    return Event(head["type"], data, payload)


def _object(value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ValueError
    return dict(value)


def _length(head: dict[str, Any], name: str, most: int) -> int:
    value = head.get(name) or 0
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
        raise WyomingError(f"{name} is out of range; expected 0 to {most}")
    return value


async def write_event(writer: asyncio.StreamWriter, event: Event) -> None:
    """Send an event.

    Raises:
        ConnectionError: the client is gone.
    """
    data = json.dumps(event.data, ensure_ascii=False).encode() if event.data else b""
    head = {"type": event.type, "version": _VERSION, **({"data_length": len(data)} if data else {})}
    writer.write(json.dumps(head).encode() + b"\n" + data)
    await writer.drain()
