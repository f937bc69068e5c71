"""/v1/listen over a WebSocket, with fake sessions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus

from tests.support.fake_live import FakeLive, loud
from tests.support.http_server import served, wait_until
from tests.support.sockets import opened
from whisper_opt.serving.http.deepgram import listening
from whisper_opt.serving.http.server import Server

LISTEN = "/v1/listen?model=nova-3&encoding=linear16&sample_rate=24000"
KEY = {"Authorization": "Token secret-1"}


@pytest.fixture(scope="module")
def server(tiny: Path, sessions: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    keys = tmp_path_factory.mktemp("keys") / "keys.txt"
    keys.write_text("secret-1 Ada\n")
    with served(str(tiny), api_key_file=str(keys)) as running:
        yield running


def test_until_close_stream(server: Server) -> None:
    with opened(server, LISTEN, additional_headers=KEY) as socket:
        socket.link.send(loud(0.5).tobytes())
        socket.tell("CloseStream")
        events, code = socket.rest()
    assert code == 1000
    assert events[-1]["type"] == "Metadata"
    texts = [e["channel"]["alternatives"][0]["transcript"] for e in events[:-1]]
    assert texts == ["w0.0", "w0.1"]


def test_the_key_as_subprotocol(server: Server) -> None:
    with opened(server, LISTEN, subprotocols=["token", "secret-1"]) as socket:
        assert socket.link.subprotocol == "token"


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [(LISTEN, {}, 401), ("/v1/listen", KEY, 400), (f"{LISTEN}&model=x", KEY, 400)],
)
def test_refusals(server: Server, path: str, headers: dict[str, str], status: int) -> None:
    refused = opened(server, path, additional_headers=headers)
    with pytest.raises(InvalidStatus) as caught, refused:
        pass
    response = caught.value.response
    assert response.status_code == status
    if status == 400:
        assert response.body is not None
        assert json.loads(response.body)["err_msg"] == response.headers["dg-error"]


def test_a_disconnect_cancels(server: Server, sessions: list[FakeLive]) -> None:
    with opened(server, LISTEN, additional_headers=KEY) as socket:
        socket.link.send(loud(0.5).tobytes())
    wait_until(lambda: sessions[-1].cancelled, "the session is cancelled")


def test_silence_of_the_client(tiny: Path, sessions: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening.Listening.__init__, "__defaults__", (0.1,))
    with served(str(tiny)) as server, opened(server, LISTEN) as socket:
        events, code = socket.rest()
    assert [event["type"] for event in events] == ["Metadata"]
    assert code == 1011
