"""Uploads: malformed, too large, unusable; where the file is kept, and that it is deleted."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Union

import numpy as np
import pytest

from tests.support.http_server import (
    BOUNDARY,
    TRANSCRIPTIONS,
    form,
    post,
    send,
    served,
    wait_until,
    wav,
)
from whisper_opt import Whisper
from whisper_opt.core.options import ServeOptions
from whisper_opt.serving import Engine
from whisper_opt.serving.http.errors import ApiError
from whisper_opt.serving.http.server import Server
from whisper_opt.serving.http.upload import Form

CLIP = wav(0.5)
LIMIT = len(CLIP)
KIND = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}
MODEL = ("model", "whisper-1")
QUICK = (("temperature", "[0]"), ("vad", "off"))


@pytest.fixture(scope="module")
def temporary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("uploads")


@pytest.fixture(scope="module")
def small(tiny: Path, temporary: Path) -> Iterator[Server]:
    """A server that accepts files of LIMIT bytes, and writes every file to disk."""
    options: dict[str, Any] = {
        "max_upload_bytes": LIMIT,
        "spool_bytes": 0,
        "temp_dir": str(temporary),
    }
    with served(
        str(tiny), **options, max_channels=2, max_audio_seconds=2.0, upload_timeout=1.0
    ) as server:
        yield server


@pytest.fixture(autouse=True)
def nothing_is_left(temporary: Path) -> Iterator[None]:
    yield
    assert list(temporary.iterdir()) == []


def raw(server: Server, body: bytes, **headers: str) -> tuple[object, ...]:
    """The error of a request with this body."""
    return send(server, "POST", TRANSCRIPTIONS, body, {**KIND, **headers}).error


INVALID = "invalid_request_error"


# where options and file are


@pytest.mark.parametrize("first", [False, True])
def test_the_file_may_come_first_or_last(small: Server, first: bool) -> None:
    assert post(small, CLIP, *QUICK, first=first).status == 200


@pytest.mark.parametrize("filename", ["upload", None, "", "naïve.mp3", "a/b.wav"])
def test_the_format_is_found_from_the_contents(small: Server, filename: str) -> None:
    assert post(small, CLIP, *QUICK, filename=filename).status == 200


def test_a_chunked_upload(small: Server) -> None:
    body = form([MODEL, *QUICK], CLIP)
    chunks = [body[i : i + 1000] for i in range(0, len(body), 1000)]
    headers = {**KIND, "transfer-encoding": "chunked"}
    assert send(small, "POST", TRANSCRIPTIONS, iter(chunks), headers, chunked=True).status == 200


# size


@pytest.mark.parametrize("length", ["length", "chunked"])
def test_one_byte_over_the_limit(small: Server, length: str) -> None:
    body = form([MODEL], CLIP + b"\0")
    headers, chunked = dict(KIND), length == "chunked"
    if chunked:
        headers["transfer-encoding"] = "chunked"
    reply = send(
        small, "POST", TRANSCRIPTIONS, iter([body]) if chunked else body, headers, chunked=chunked
    )
    assert reply.error == (413, INVALID, "file_too_large", "file")


def test_a_length_over_the_limit_is_refused_before_the_body_arrives(small: Server) -> None:
    with socket.create_connection(small.address, timeout=60) as link:
        head = (
            f"POST {TRANSCRIPTIONS} HTTP/1.1\r\nHost: x\r\nContent-Type: {KIND['content-type']}\r\n"
            f"Content-Length: {LIMIT + (14 << 20)}\r\nExpect: 100-continue\r\n\r\n"
        )
        link.sendall(head.encode())
        assert link.recv(100).startswith(b"HTTP/1.1 413 ")


# unusable recordings


@pytest.mark.parametrize(
    ("file", "code"),
    [
        (b"", "invalid_audio"),
        (b"\0" * 500, "invalid_audio"),
        (b"RIFF" + CLIP[4:40], "invalid_audio"),
        (b"#!/bin/sh\n", "invalid_audio"),
        (wav(0.05), "audio_too_short"),
        (wav(0.2, n_channels=2)[:LIMIT], None),
        (wav(0.1, n_channels=3), "too_many_channels"),
        (wav(2.1, rate=3000), "audio_too_long"),
    ],
    ids=["empty", "zeros", "cut", "text", "short", "stereo", "channels", "long"],
)
def test_recordings(small: Server, file: bytes, code: Union[str, None]) -> None:
    reply = post(small, file, *QUICK)
    if code is None:
        assert reply.status == 200
    else:
        assert reply.error == (400, INVALID, code, "file")
        assert "/proc/" not in reply.text


def test_no_file(small: Server) -> None:
    expected = (400, INVALID, "missing_required_parameter", "file")
    assert raw(small, form([MODEL])) == expected


@pytest.mark.parametrize(
    ("seconds", "fields", "is_decoded"),
    [(1.0, (), True), (13.0, (), False), (1.0, (("chunking_strategy", "auto"),), False)],
)
def test_a_short_recording_is_decoded_once(
    server: Server,
    whisper: Whisper,
    monkeypatch: pytest.MonkeyPatch,
    seconds: float,
    fields: tuple[tuple[str, str], ...],
    is_decoded: bool,
) -> None:
    """The samples of its check are transcribed; the batched strategy reads a stream."""
    submit, sources = Engine.submit, []

    def watched(self: Engine, audio: Any, *arguments: Any, **given: Any) -> Any:
        sources.append(audio)
        return submit(self, audio, *arguments, **given)

    monkeypatch.setattr(Engine, "submit", watched)
    clip = wav(seconds, rate=22_050, n_channels=2)
    found = post(server, clip, ("temperature", "[0]"), *fields)
    assert [isinstance(source, np.ndarray) for source in sources] == [is_decoded]
    if not fields:
        assert found.json["text"] == whisper.transcribe(clip, temperature=0.0).text.strip()


# malformed forms

BEGIN = f"--{BOUNDARY}\r\n".encode()
END = f"--{BOUNDARY}--\r\n".encode()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"nonsense",
        BEGIN,
        form([MODEL], CLIP)[: -len(END)],
        form([MODEL], CLIP)[:-200],
        BEGIN + b"Content-Disposition: form-data\r\n\r\nx\r\n" + END,
        BEGIN + b"\r\nx\r\n" + END,
        BEGIN + b"no colon\r\n\r\nx\r\n" + END,
        BEGIN + b'Content-Disposition: form-data; name="model"\r\n\r\n\xff\r\n' + END,
        BEGIN + b'Content-Disposition: form-data; name="\xff"\r\n\r\nx\r\n' + END,
        BEGIN + b"X: " + b"y" * 9000 + b"\r\n\r\nx\r\n" + END,
        form([("model", "m")] * 2001),
        form([("prompt", "x" * (1 << 20)), MODEL]),
        form([("known_speaker_references[]", "x" * (13 << 20)), MODEL]),
        form([MODEL], CLIP).replace(BOUNDARY.encode(), b"another"),
    ],
)
def test_malformed_forms(small: Server, body: bytes) -> None:
    assert raw(small, body)[:2] == (400, INVALID)


def test_two_files(small: Server) -> None:
    part = form([], CLIP)[: -len(END)]
    assert raw(small, part + form([MODEL], CLIP)) == (400, INVALID, None, "file")


def test_a_file_of_another_name(small: Server) -> None:
    body = form([MODEL], CLIP).replace(b'name="file"', b'name="audio"')
    assert raw(small, body) == (400, INVALID, None, "audio")


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("application/json", 415),
        ("", 415),
        ("multipart/mixed; boundary=x", 415),
        ("multipart/form-data", 400),
        (f"multipart/form-data; boundary={'x' * 71}", 400),
    ],
)
def test_other_content_types(small: Server, kind: str, status: int) -> None:
    assert raw(small, form([MODEL], CLIP), **{"content-type": kind})[0] == status


# pauses and disconnects


def begun(server: Server) -> socket.socket:
    """A connection on which half of a request was sent."""
    link = socket.create_connection(server.address, timeout=60)
    body = form([MODEL, *QUICK], CLIP)
    head = (
        f"POST {TRANSCRIPTIONS} HTTP/1.1\r\nHost: x\r\nContent-Type: {KIND['content-type']}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    link.sendall(head.encode() + body[: len(body) // 2])
    return link


def test_an_upload_that_pauses(small: Server) -> None:
    with begun(small) as link:
        assert link.recv(100).startswith(b"HTTP/1.1 408 ")


def test_a_client_that_disconnects_during_the_upload(small: Server) -> None:
    in_progress = small.service.metrics.in_progress._value
    with begun(small):
        wait_until(lambda: in_progress.get() == 1, "the upload begins")
    wait_until(lambda: in_progress.get() == 0, "the upload ends")


# the temporary file


@pytest.fixture
def options(temporary: Path) -> ServeOptions:
    return ServeOptions(spool_bytes=10, temp_dir=str(temporary))


def test_a_small_file_stays_in_memory(options: ServeOptions) -> None:
    small = Form(options)
    small.add(b"0123456789")
    assert not small.must_flush
    assert small.source == b"0123456789"


def test_a_large_file_is_written(options: ServeOptions) -> None:
    large = Form(options)
    large.add(b"0123456789")
    large.add(b"a")
    assert large.must_flush
    large.flush()
    large.add(b"b")
    path = large.source
    assert isinstance(path, str)
    assert Path(path).read_bytes() == b"0123456789ab"
    large.close()
    assert not os.path.exists(path)


def test_without_unnamed_files_a_named_one_is_deleted(
    options: ServeOptions, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("whisper_opt.serving.http.upload._descriptor", lambda file: "/nonexistent")
    large = Form(options)
    large.add(b"0123456789a")
    large.flush()
    path = large.source
    assert isinstance(path, str)
    assert Path(path).parent == temporary
    assert Path(path).read_bytes() == b"0123456789a"
    large.close()


def test_a_file_over_the_limit_is_refused() -> None:
    with pytest.raises(ApiError, match="larger than the 3 bytes"):
        Form(ServeOptions(max_upload_bytes=3)).add(b"1234")
