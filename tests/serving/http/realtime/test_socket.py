"""/v1/realtime over a WebSocket, with fake sessions: keys, limits, the end."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus

from tests.support.fake_live import FakeLive, loud, quiet
from tests.support.http_server import get, send, served, wait_until
from tests.support.sockets import REALTIME, opened
from whisper_opt.core.errors import LiveSessionsFull
from whisper_opt.serving import Engine
from whisper_opt.serving.http.server import Server

DONE = "conversation.item.done"
COMPLETED = "conversation.item.input_audio_transcription.completed"
KEY = {"Authorization": "Bearer secret-1"}


@pytest.fixture(scope="module")
def server(tiny: Path, sessions: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    keys = tmp_path_factory.mktemp("keys") / "keys.txt"
    keys.write_text("secret-1 Ada\nsecret-2 Alan\n")
    options: dict[str, Any] = {
        "live_connections": 3,
        "live_connections_per_key": 2,
        "live_message_bytes": 100_000,
    }
    with served(str(tiny), api_key_file=str(keys), **options) as running:
        yield running


@pytest.fixture(autouse=True)
def all_closed(server: Server) -> Iterator[None]:
    yield
    wait_until(lambda: server.service.gate.n_now == 0, "the connections are closed")


def refusal(server: Server, path: str = REALTIME, **options: Any) -> tuple[int, Any]:
    """Status and error of a connection that is refused."""
    with pytest.raises(InvalidStatus) as caught, opened(server, path, **options):
        pass
    response = caught.value.response
    assert response.body is not None
    return response.status_code, json.loads(response.body)["error"]


def test_a_turn(server: Server) -> None:
    with opened(server, additional_headers=KEY) as socket:
        assert socket.next()["type"] == "session.created"
        socket.say(loud(0.5))
        socket.say(quiet(0.6))
        *_, completed, _ = socket.until(DONE)
        assert completed["transcript"] == "w0.0 w0.1."


@pytest.mark.parametrize(
    "protocols", [["realtime", "openai-insecure-api-key.secret-1"], ["token", "secret-1"]]
)
def test_keys_of_web_pages(server: Server, protocols: list[str]) -> None:
    with opened(server, subprotocols=protocols) as socket:
        assert socket.link.subprotocol == ("realtime" if "realtime" in protocols else None)
        assert socket.next()["type"] == "session.created"


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"additional_headers": {"Authorization": "Bearer secret-3"}},
        {"subprotocols": ["realtime", "openai-insecure-api-key.secret-3"]},
        {"subprotocols": ["realtime", "secret-1"]},
    ],
)
def test_without_a_key_it_is_refused(server: Server, options: dict[str, Any]) -> None:
    status, error = refusal(server, **options)
    assert (status, error["code"]) == (401, "invalid_api_key")


def test_pages_of_other_origins(server: Server) -> None:
    host, port = server.address
    with opened(server, additional_headers=KEY, origin=f"http://{host}:{port}"):
        pass
    status, error = refusal(server, additional_headers=KEY, origin="https://example.com")
    assert (status, error["code"]) == (403, "origin_not_allowed")


@pytest.mark.parametrize(
    ("query", "status", "param"),
    [("?intent=conversation", 400, "intent"), ("?model=none", 404, "model")],
)
def test_what_is_not_served(server: Server, query: str, status: int, param: str) -> None:
    found, error = refusal(server, f"/v1/realtime{query}", additional_headers=KEY)
    assert (found, error["param"]) == (status, param)


def test_limits(server: Server) -> None:
    other = {"Authorization": "Bearer secret-2"}
    with opened(server, additional_headers=KEY), opened(server, additional_headers=KEY):
        status, error = refusal(server, additional_headers=KEY)
        assert (status, error["code"]) == (429, "too_many_sessions")
        with opened(server, additional_headers=other):
            status, error = refusal(server, additional_headers=other)
            assert (status, error["code"]) == (429, "too_many_sessions")


def test_a_model_that_is_busy(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise LiveSessionsFull("there are 8 live sessions")

    monkeypatch.setattr(Engine, "live", full)
    status, error = refusal(server, additional_headers=KEY)
    assert (status, error["code"]) == (429, "too_many_sessions")
    counted = 'whisper_opt_http_refused_total{code="too_many_sessions"}'
    assert counted in get(server, "/metrics").text


def test_a_message_that_is_too_long(server: Server) -> None:
    with opened(server, additional_headers=KEY) as socket:
        socket.say(loud(2.0))
        assert socket.rest()[1] == 1009


def test_a_disconnect_cancels(server: Server, sessions: list[FakeLive]) -> None:
    with opened(server, additional_headers=KEY) as socket:
        socket.until("session.created")
    wait_until(lambda: sessions[-1].cancelled, "the session is cancelled")


def test_a_session_that_breaks(server: Server, sessions: list[FakeLive]) -> None:
    with opened(server, additional_headers=KEY) as socket:
        socket.until("session.created")
        socket.say(loud(0.5))
        socket.until("conversation.item.input_audio_transcription.delta")
        sessions[-1].cancel()
        events, code = socket.rest()
        assert [e["type"] for e in events if e["type"].endswith(("completed", "failed"))] == [
            "conversation.item.input_audio_transcription.failed"
        ]
        assert code == 1011


def test_metrics(server: Server) -> None:
    def live() -> str:
        return get(server, "/metrics").text

    with opened(server, additional_headers=KEY) as socket:
        socket.until("session.created")
        assert 'whisper_opt_live_connections{protocol="realtime"} 1.0' in live()
        socket.say(loud(0.5))
        socket.say(quiet(0.6))
        socket.until(DONE)
    assert 'whisper_opt_live_utterances_total{model="tiny",outcome="completed"}' in live()
    assert "whisper_opt_live_lag_seconds_bucket" in live()
    wait_until(lambda: 'connections{protocol="realtime"} 0.0' in live(), "it is closed")


# client secrets


def made(server: Server, body: Any, path: str = "client_secrets", **headers: str) -> Any:
    return send(server, "POST", f"/v1/realtime/{path}", json.dumps(body), {**KEY, **headers})


def test_a_client_secret(server: Server) -> None:
    session = {"type": "transcription", "audio": {"input": {"transcription": {"language": "de"}}}}
    reply = made(server, {"expires_after": {"seconds": 60}, "session": session})
    assert reply.status == 200
    secret = reply.json["value"]
    for _ in range(2):
        with opened(server, additional_headers={"Authorization": f"Bearer {secret}"}) as socket:
            shown = socket.next()["session"]["audio"]["input"]
            assert shown["transcription"]["language"] == "de"
    other = send(server, "GET", "/v1/models", headers={"authorization": f"Bearer {secret}"})
    assert other.status == 401


def test_client_secrets_are_described(server: Server) -> None:
    paths = get(server, "/openapi.json").json["paths"]
    assert {path for path in paths if "realtime" in path} == {
        "/v1/realtime/client_secrets",
        "/v1/realtime/transcription_sessions",
    }


def test_a_client_secret_of_the_old_dialect(server: Server) -> None:
    reply = made(server, {"input_audio_format": "g711_ulaw"}, "transcription_sessions")
    assert reply.json["input_audio_format"] == "g711_ulaw"
    secret = reply.json["client_secret"]["value"]
    headers = {"Authorization": f"Bearer {secret}", "OpenAI-Beta": "realtime=v1"}
    with opened(server, additional_headers=headers) as socket:
        created = socket.next()
        assert created["type"] == "transcription_session.created"
        assert created["session"]["input_audio_format"] == "g711_ulaw"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"expires_after": {"seconds": 5}}, "expires_after.seconds"),
        ({"session": {"type": "realtime"}}, "session.type"),
        ({"x": 1}, "x"),
        ({"session": {"include": ["x"]}}, "session.include"),
    ],
)
def test_a_client_secret_that_cannot_be(server: Server, body: Any, param: str) -> None:
    reply = made(server, body)
    assert (reply.status, reply.error[3]) == (400, param)


def test_a_client_secret_needs_a_key(server: Server) -> None:
    assert send(server, "POST", "/v1/realtime/client_secrets", "{}").status == 401


# the end


def test_no_more_audio(server: Server) -> None:
    """An event of this server's own: the protocol has none."""
    with opened(server, additional_headers=KEY) as socket:
        socket.until("session.created")
        socket.say(loud(0.5))
        socket.tell("whisper_opt.finish")
        events, code = socket.rest()
    assert [event["transcript"] for event in events if "transcript" in event] == ["w0.0 w0.1."]
    assert code == 1000


def test_an_idle_connection_is_closed(tiny: Path, sessions: Any) -> None:
    with served(str(tiny), live_idle_timeout=0.1) as server, opened(server) as socket:
        events, code = socket.rest()
        assert events[-1]["error"]["code"] == "session_expired"
        assert code == 1001


def test_a_shutdown_waits_for_the_last_utterance(tiny: Path, sessions: Any) -> None:
    with served(str(tiny)) as server, opened(server) as socket:
        socket.until("session.created")
        socket.say(loud(0.5))
        socket.until("conversation.item.input_audio_transcription.delta")
        server.stop()
        events, code = socket.rest()
        (text,) = [event["transcript"] for event in events if event["type"] == COMPLETED]
        assert text == "w0.0 w0.1."
        assert events[-1]["error"]["code"] == "draining"
        assert code == 1012


def test_a_second_signal_ends_at_once(tiny: Path, sessions: list[FakeLive]) -> None:
    """Even if a session does not finish."""
    with served(str(tiny), drain_timeout=1000.0) as server, opened(server) as socket:
        socket.until("session.created")
        setattr(sessions[-1], "finish", lambda: None)  # noqa: B010
        server._server.handle_exit(15, None)
        wait_until(lambda: server.service.gate._draining, "it drains")
        server._server.handle_exit(15, None)
        assert socket.rest()[1] in (1006, 1012)
