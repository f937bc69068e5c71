"""Streams of events, and clients that disconnect."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.gated_model import GatedBackend, gated_model
from tests.support.http_server import (
    BOUNDARY,
    TRANSCRIPTIONS,
    form,
    get,
    post,
    served,
    wait_until,
    wav,
)
from tests.support.in_threads import Started
from whisper_opt.serving.http.events import Mailbox
from whisper_opt.serving.http.server import Server

CLIP = wav(65.0)
QUICK = (("temperature", "[0]"), ("vad", "off"), ("no_speech_threshold", "none"))
STREAM = (*QUICK, ("stream", "true"))


@pytest.fixture
def backend() -> Iterator[GatedBackend]:
    made = GatedBackend()
    yield made
    made.gate.set()


@pytest.fixture
def gated(backend: GatedBackend) -> Iterator[Server]:
    """A server whose model waits at a gate."""
    with served("gated", load=lambda _: gated_model(backend)) as server:
        try:
            yield server
        finally:
            backend.gate.set()


def test_joined_deltas_are_the_text(server: Server) -> None:
    plain = post(server, CLIP, *QUICK).json
    *deltas, done = post(server, CLIP, *STREAM).events
    assert len(deltas) > 1
    assert {event["type"] for event in deltas} == {"transcript.text.delta"}
    assert done == {"type": "transcript.text.done", **plain}
    assert "".join(event["delta"] for event in deltas) == plain["text"]


def test_a_recording_without_text(server: Server) -> None:
    silence = wav(1.0, loudness=0.0)
    (done,) = post(server, silence, ("stream", "true"), ("vad", "cut")).events
    assert done["text"] == ""


def test_no_proxy_keeps_the_stream(server: Server) -> None:
    headers = post(server, wav(0.2), *STREAM).headers
    assert headers["cache-control"] == "no-cache"
    assert headers["x-request-id"].startswith("req_")
    assert "content-length" not in headers


def test_comments_keep_a_waiting_stream_alive(
    gated: Server, backend: GatedBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("whisper_opt.serving.http.events.HEARTBEAT", 0.02)
    with connected(gated, STREAM) as link:
        found = b""
        while found.count(b": ping\n\n") < 2:
            found += link.recv(1000)
        backend.gate.set()
        while b"transcript.text.done" not in found:
            found += link.recv(1000)
    assert b"200 OK" in found


def test_an_error_before_the_first_event_is_a_response(
    gated: Server, backend: GatedBackend
) -> None:
    backend.fail_at = 0
    backend.gate.set()
    reply = post(gated, CLIP, *STREAM)
    assert reply.error == (500, "server_error", None, None)
    assert "secret" not in reply.text


def test_an_error_after_the_first_event_is_an_event(gated: Server, backend: GatedBackend) -> None:
    backend.fail_at = backend.held_from = 2
    with connected(gated, STREAM) as link:
        found = b""
        while b"transcript.text.delta" not in found:
            found += link.recv(1000)
        backend.gate.set()
        while b"server_error" not in found:
            found += link.recv(1000)
    assert b"200 OK" in found
    last = found.partition(b"data: ")[2].split(b"data: ")[-1]
    assert set(json.loads(last.split(b"\n\n")[0])) == {"error"}


def test_an_error_without_a_stream(gated: Server, backend: GatedBackend) -> None:
    backend.fail_at = 0
    backend.gate.set()
    reply = post(gated, CLIP, *QUICK)
    assert reply.error == (500, "server_error", None, None)
    assert "secret" not in reply.text


# clients that disconnect


@contextlib.contextmanager
def connected(server: Server, fields: tuple[tuple[str, str], ...]) -> Iterator[socket.socket]:
    """A connection on which a whole request was sent."""
    body = form([("model", "whisper-1"), *fields], CLIP)
    head = (
        f"POST {TRANSCRIPTIONS} HTTP/1.1\r\nHost: x\r\n"
        f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection(server.address, timeout=60) as link:
        link.sendall(head.encode() + body)
        yield link


@pytest.mark.parametrize("fields", [QUICK, STREAM], ids=["whole", "stream"])
def test_a_disconnect_cancels_what_is_decoded(
    gated: Server, backend: GatedBackend, fields: tuple[tuple[str, str], ...]
) -> None:
    with connected(gated, fields):
        wait_until(backend.waiting.is_set, "the first window is encoded")
    metrics = gated.service.metrics
    wait_until(lambda: metrics.disconnected._value.get() == 1, "the server notices")
    assert gated.service._admission.n_now == 0
    backend.gate.set()
    assert post(gated, wav(0.5), *QUICK).status == 200
    assert backend.n_encoded == 2  # the first window, and that of the other request
    counted = get(gated, "/metrics").text.splitlines()
    (cancelled,) = (line for line in counted if line.startswith("whisper_opt_engine_cancelled_to"))
    (rows,) = (line for line in counted if line.startswith("whisper_opt_engine_rows{"))
    assert (cancelled.split()[-1], rows.split()[-1]) == ("1.0", "0.0")


def test_a_disconnect_cancels_what_waits(backend: GatedBackend) -> None:
    options: dict[str, Any] = {"max_batch": 1, "max_queued": 5}
    with served("gated", load=lambda _: gated_model(backend), **options) as server:
        first = Started(lambda: post(server, wav(0.5), *QUICK))
        wait_until(backend.waiting.is_set, "the first request is decoded")
        with connected(server, QUICK):
            wait_until(lambda: server.service._admission.n_now == 2, "the second waits")
        wait_until(lambda: server.service._admission.n_now == 1, "the server notices")
        backend.gate.set()
        assert first.result().status == 200
        assert post(server, wav(0.5), *QUICK).status == 200
        assert backend.n_encoded == 2


def test_a_disconnect_in_mid_stream(gated: Server, backend: GatedBackend) -> None:
    metrics = gated.service.metrics
    backend.gate.set()
    with connected(gated, STREAM) as link:
        found = b""
        while b"delta" not in found:
            found += link.recv(1000)
            backend.gate.clear()
    wait_until(lambda: metrics.in_progress._value.get() == 0, "the request ends")
    backend.gate.set()
    assert post(gated, wav(0.5), *QUICK).status == 200


def test_a_closed_loop_is_no_error() -> None:
    async def made() -> Mailbox:
        return Mailbox()

    asyncio.run(made()).end()
