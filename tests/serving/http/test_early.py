"""Recordings that are transcribed while they arrive."""

from __future__ import annotations

import contextlib
import io
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from tests.support.http_server import BOUNDARY, TRANSCRIPTIONS, form, post, served, wait_until
from whisper_opt.audio.decode import load_audio
from whisper_opt.serving.http.server import Server

SPEECH = load_audio(Path(__file__).parents[3] / "examples" / "jfk.flac")
FIELDS = (
    ("model", "whisper-1"),
    ("temperature", "[0]"),
    ("no_speech_threshold", "none"),
    ("language", "en"),
    ("chunking_strategy", "auto"),
)
STREAM = (*FIELDS, ("stream", "true"))


def encoded(form: str) -> bytes:
    """A recording of 66 s."""
    file = io.BytesIO()
    soundfile.write(file, np.tile(SPEECH, 6), 16_000, format=form)
    return file.getvalue()


CLOSING = f"--{BOUNDARY}--\r\n".encode()
CLIPS = {name: encoded(name) for name in ("WAV", "FLAC", "MP3")}


@pytest.fixture(scope="module")
def server(tiny: Path) -> Iterator[Server]:
    with served(str(tiny), upload_timeout=20.0, max_batch=4, spool_bytes=1 << 19) as running:
        yield running


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every upload is slow enough."""
    monkeypatch.setattr("whisper_opt.serving.http.early.AFTER", 0.0)


class Upload:
    """A request that is sent in parts."""

    def __init__(self, server: Server, body: bytes) -> None:
        self.link = socket.create_connection(server.address, timeout=120)
        kind = f"multipart/form-data; boundary={BOUNDARY}"
        head = (
            f"POST {TRANSCRIPTIONS} HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\n"
            f"Connection: close\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        self.link.sendall(head.encode())
        self._body = body
        self.received = b""

    def send(self, share: float) -> None:
        """Send this share of the body."""
        n = round(len(self._body) * share)
        self.link.sendall(self._body[:n])
        self._body = self._body[n:]

    def receive_until(self, text: bytes) -> None:
        while text not in self.received:
            data = self.link.recv(1 << 16)
            assert data, self.received
            self.received += data

    def finish(self) -> bytes:
        """Send the rest; the response."""
        self.link.sendall(self._body)
        while data := self.link.recv(1 << 16):
            self.received += data
        return self.received

    @property
    def events(self) -> list[Any]:
        lines = self.received.decode("utf-8", "replace").replace("\r\n", "\n").split("\n")
        return [json.loads(line[len("data: ") :]) for line in lines if line.startswith("data: ")]


@contextlib.contextmanager
def upload(server: Server, body: bytes) -> Iterator[Upload]:
    made = Upload(server, body)
    with made.link:
        yield made


def running(server: Server) -> int:
    (model,) = server.models
    return model.engine.stats().running


def idle(server: Server) -> bool:
    free = server.service._slots.free == 2
    return free and running(server) == 0 and server.service._admission.n_now == 0


@pytest.mark.parametrize("form_of_file", CLIPS)
def test_text_comes_before_the_end_of_the_upload(server: Server, form_of_file: str) -> None:
    clip = CLIPS[form_of_file]
    whole = post(server, clip, *FIELDS[1:])
    with upload(server, form(STREAM, clip)) as one:
        one.send(0.7)
        one.receive_until(b"transcript.text.delta")  # the rest was not sent
        one.finish()
        *deltas, done = one.events
    assert done == {"type": "transcript.text.done", **whole.json}
    assert "".join(event["delta"] for event in deltas) == whole.json["text"]
    wait_until(lambda: idle(server), "everything is released")


def test_without_a_stream_the_response_is_that_of_the_whole_file(server: Server) -> None:
    clip = CLIPS["WAV"]
    whole = post(server, clip, *FIELDS[1:], ("response_format", "verbose_json"))
    body = form((*FIELDS, ("response_format", "verbose_json")), clip)
    with upload(server, body) as one:
        one.send(0.5)
        wait_until(lambda: running(server) == 1, "it begins")
        assert one.finish().partition(b"\r\n\r\n")[2] == whole.body
    wait_until(lambda: idle(server), "everything is released")


def test_a_client_that_disconnects_in_the_middle(server: Server) -> None:
    for fields in (FIELDS, STREAM):
        with upload(server, form(fields, CLIPS["WAV"])) as one:
            one.send(0.6)
            wait_until(lambda: running(server) == 1, "it begins")
            if fields is STREAM:
                one.receive_until(b"transcript.text.delta")
        wait_until(lambda: idle(server), "everything is released")


def test_a_field_after_the_file_counts(server: Server) -> None:
    """The transcription that was begun is dropped if nothing of it was sent."""
    clip = CLIPS["WAV"]
    whole = post(server, clip, *FIELDS[1:], ("max_new_tokens", "2"))
    body = form((*FIELDS[1:], ("max_new_tokens", "2")), clip, first=True)
    with upload(server, form(FIELDS[:1])[: -len(CLOSING)] + body) as one:
        one.send(0.5)
        wait_until(lambda: running(server) == 1, "it begins")
        assert one.finish().partition(b"\r\n\r\n")[2] == whole.body
    wait_until(lambda: idle(server), "everything is released")


def test_a_field_after_the_file_comes_too_late_for_a_stream(server: Server) -> None:
    body = form(STREAM, CLIPS["FLAC"])
    late = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="prompt"\r\n\r\nx\r\n'.encode()
    with upload(server, body[: -len(CLOSING)] + late + CLOSING) as one:
        one.send(0.7)
        one.receive_until(b"transcript.text.delta")
        one.finish()
        last = one.events[-1]
    assert last["error"]["code"] == "file_not_last"
    wait_until(lambda: idle(server), "everything is released")


def test_a_form_that_ends_early_ends_its_stream(server: Server) -> None:
    body = form(STREAM, CLIPS["WAV"])
    with upload(server, body[:-20] + b"x" * 20) as one:
        one.send(0.7)
        one.receive_until(b"transcript.text.delta")
        one.finish()
        last = one.events[-1]
    assert last["error"]["type"] == "invalid_request_error"
    wait_until(lambda: idle(server), "everything is released")


def test_few_uploads_are_decoded_as_they_arrive(server: Server) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            one = stack.enter_context(upload(server, form(FIELDS, CLIPS["WAV"])))
            one.send(0.5)
        wait_until(lambda: server.service._slots.free == 0, "two are decoded")
        assert running(server) <= 2
        assert post(server, CLIPS["WAV"], *FIELDS[1:]).status == 200
    wait_until(lambda: idle(server), "everything is released")
