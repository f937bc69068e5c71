"""A running ``whisper-opt serve`` on loopback, and a client of the standard library."""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import io
import json
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Union

import numpy as np
import soundfile

from whisper_opt import Whisper
from whisper_opt.core.options import ServeOptions
from whisper_opt.serving.http.server import Server

__all__ = [
    "BOUNDARY",
    "TRANSCRIPTIONS",
    "TRANSLATIONS",
    "Reply",
    "form",
    "get",
    "post",
    "send",
    "served",
    "wait_until",
    "wav",
]

TRANSCRIPTIONS = "/v1/audio/transcriptions"
TRANSLATIONS = "/v1/audio/translations"
BOUNDARY = "0123456789abcdef"
_PATIENCE = 120.0
"""Seconds after which a test fails instead of waiting on."""


def wait_until(condition: Any, what: str) -> None:
    """Wait for a condition that another thread brings about."""
    end = time.monotonic() + _PATIENCE
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"timed out: {what}")
        time.sleep(0.005)


@contextlib.contextmanager
def served(*sources: str, load: Any = None, ready: bool = True, **options: Any) -> Iterator[Server]:
    """A server in a thread, on a free port; it is stopped at the end."""
    given = {"port": 0, "drain_timeout": 30.0, **options}
    server = Server(sources, ServeOptions(**given), load=load or _load)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        if ready:
            wait_until(lambda: server.models.ready or not thread.is_alive(), "loading")
        yield server
    finally:
        server.stop()
        thread.join(_PATIENCE)
        assert not thread.is_alive()


def _load(source: str) -> Whisper:
    return Whisper.load(source, device="cpu", threads=1)


@dataclasses.dataclass(frozen=True)
class Reply:
    """A response.

    Attributes:
        status: its status.
        headers: its headers, in lower case.
        body: its body.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    @property
    def text(self) -> str:
        """The body as text."""
        return self.body.decode("utf-8")

    @property
    def error(self) -> tuple[Any, ...]:
        """Status, type, code and param of an error in the schema of the API."""
        (error,) = self.json.values()
        assert set(error) == {"message", "type", "param", "code"}
        assert error["message"]
        return self.status, error["type"], error["code"], error["param"]

    @property
    def events(self) -> list[Any]:
        """The data of server-sent events; comments are left out."""
        assert self.headers["content-type"].startswith("text/event-stream")
        lines = self.text.split("\n\n")
        assert lines.pop() == ""
        found = [line for line in lines if not line.startswith(":")]
        assert all(line.startswith("data: ") for line in found)
        return [json.loads(line[len("data: ") :]) for line in found]


def form(
    fields: Sequence[tuple[str, str]] = (),
    file: Union[bytes, None] = None,
    *,
    filename: Union[str, None] = "talk.wav",
    first: bool = False,
) -> bytes:
    """The body of a multipart form, with the file last unless ``first``."""
    parts = [f'name="{name}"\r\n\r\n{value}'.encode() for name, value in fields]
    if file is not None:
        named = f'; filename="{filename}"' if filename is not None else ""
        parts.insert(0 if first else len(parts), f'name="file"{named}\r\n\r\n'.encode() + file)
    head = f"--{BOUNDARY}\r\nContent-Disposition: form-data; ".encode()
    return b"".join(head + part + b"\r\n" for part in parts) + f"--{BOUNDARY}--\r\n".encode()


def send(
    server: Server,
    method: str,
    path: str,
    body: Any = None,
    headers: Union[Mapping[str, str], None] = None,
    chunked: bool = False,
) -> Reply:
    """Send a request and read the response."""
    with contextlib.closing(http.client.HTTPConnection(*server.address, timeout=120)) as link:
        link.request(method, path, body, dict(headers or {}), encode_chunked=chunked)
        response = link.getresponse()
        found = {name.lower(): value for name, value in response.getheaders()}
        return Reply(response.status, found, response.read())


def get(server: Server, path: str, **headers: str) -> Reply:
    """GET a path."""
    return send(server, "GET", path, headers=headers)


def post(
    server: Server,
    file: Union[bytes, None] = None,
    *fields: tuple[str, str],
    path: str = TRANSCRIPTIONS,
    headers: Union[Mapping[str, str], None] = None,
    **options: Any,
) -> Reply:
    """Send a recording; ``model`` is whisper-1 unless it is among the fields."""
    given = (
        fields if any(name == "model" for name, _ in fields) else (("model", "whisper-1"), *fields)
    )
    kind = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}
    body = form(given, file, **options)
    return send(server, "POST", path, body, {**kind, **(headers or {})})


def wav(seconds: float, *, n_channels: int = 1, rate: int = 16_000, loudness: float = 1.0) -> bytes:
    """A wav file: the speech of the example, from its beginning, repeated if need be."""
    speech, _ = soundfile.read(Path(__file__).parents[2] / "examples" / "jfk.flac")
    samples = np.resize(speech * loudness, (round(seconds * rate), 1))
    file = io.BytesIO()
    soundfile.write(file, np.repeat(samples, n_channels, axis=1), rate, format="WAV")
    return file.getvalue()
