"""Health, metrics, logs, cross-origin requests, and the OpenAPI document."""

from __future__ import annotations

import json
import logging
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.support.gated_model import GatedBackend, gated_model
from tests.support.http_server import (
    TRANSCRIPTIONS,
    TRANSLATIONS,
    get,
    post,
    send,
    served,
    wait_until,
    wav,
)
from tests.support.in_threads import Started
from whisper_opt import EngineError, OptionError, Whisper, WhisperOptError
from whisper_opt.core.options import ServeOptions
from whisper_opt.serving.http.call import LIBRARY_FIELDS
from whisper_opt.serving.http.logs import JsonFormatter
from whisper_opt.serving.http.models import Models
from whisper_opt.serving.http.server import Server
from whisper_opt.serving.names import named_source

CLIP = wav(0.5)
QUICK = (("temperature", "[0]"), ("vad", "off"))


def test_health(server: Server) -> None:
    assert get(server, "/healthz").json == {"status": "ok"}
    assert get(server, "/readyz").json == {"status": "ready"}


def test_not_ready_while_loading() -> None:
    gate = threading.Event()

    def load(_: str) -> Whisper:
        assert gate.wait(60)
        return gated_model(GatedBackend())

    with served("gated", load=load, ready=False) as server:
        assert get(server, "/healthz").status == 200
        assert (get(server, "/readyz").status, get(server, "/readyz").json["status"]) == (
            503,
            "loading",
        )
        reply = post(server, CLIP)
        assert reply.error == (503, "service_unavailable_error", None, None)
        assert reply.headers["retry-after"] == "1"
        gate.set()
        wait_until(lambda: get(server, "/readyz").status == 200, "it becomes ready")


def test_a_model_that_cannot_be_loaded_ends_the_server(tmp_path: Path) -> None:
    server = Server([str(tmp_path)], ServeOptions(port=0))
    with pytest.raises(EngineError):
        server.run()


def test_an_address_in_use(server: Server) -> None:
    with pytest.raises(WhisperOptError, match="cannot listen on"):
        Server(["x"], ServeOptions(port=server.address[1]))


def test_draining(tiny: Path) -> None:
    with served(str(tiny)) as server:
        server.service.draining = True
        assert get(server, "/readyz").json == {"status": "draining"}
        assert post(server, CLIP).error == (503, "service_unavailable_error", None, None)


def test_accepted_requests_are_answered_after_the_stop() -> None:
    backend = GatedBackend()
    with served("gated", load=lambda _: gated_model(backend)) as server:
        first = Started(lambda: post(server, CLIP, *QUICK))
        wait_until(backend.waiting.is_set, "it is decoded")
        second = Started(lambda: post(server, CLIP, *QUICK))
        wait_until(lambda: server.service._admission.n_now == 2, "two are accepted")
        server.stop()
        backend.gate.set()
        assert (first.result().status, second.result().status) == (200, 200)


# models


def test_names_of_models(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    assert named_source(str(tmp_path / "base")) == ("base", str(tmp_path / "base"))
    assert named_source("tiny.en") == ("tiny.en", "tiny.en")
    assert named_source("org/model@rev") == ("org/model@rev", "org/model@rev")
    assert named_source("mine=a/b") == ("mine", "a/b")


def test_two_models_of_one_name() -> None:
    with pytest.raises(OptionError, match="NAME=SOURCE"):
        Models([("a", "x"), ("a", "y")], [], lambda _: None, lambda _: None)  # type: ignore[arg-type,return-value]


def test_several_models(tiny: Path) -> None:
    backend = GatedBackend()
    backend.gate.set()

    def load(source: str) -> Whisper:
        if source == "fake":
            return gated_model(backend)
        return Whisper.load(source, device="cpu", threads=1)

    with served(f"one={tiny}", "fake", load=load, aliases="whisper-1, fake") as server:
        names = [model["id"] for model in get(server, "/v1/models").json["data"]]
        assert names == ["one", "fake", "whisper-1"]
        texts = [
            post(server, CLIP, ("model", name), *QUICK, ("no_speech_threshold", "none")).json[
                "text"
            ]
            for name in names
        ]
        assert texts[0] == texts[2] != texts[1]
        reply = post(server, CLIP, ("model", "tiny"))
        assert reply.error == (404, "invalid_request_error", "model_not_found", "model")


# metrics


def test_metrics(tiny: Path) -> None:
    with served(str(tiny)) as server:
        assert post(server, CLIP, *QUICK).status == 200
        assert post(server, b"nonsense").status == 400
        reply = get(server, "/metrics")
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    path = f'path="{TRANSCRIPTIONS}"'
    for line in (
        f'whisper_opt_http_requests_total{{{path},status="200"}} 1.0',
        f'whisper_opt_http_requests_total{{{path},status="400"}} 1.0',
        'whisper_opt_http_refused_total{code="invalid_audio"} 1.0',
        f"whisper_opt_upload_bytes_total {len(CLIP) + len(b'nonsense'):.1f}",
        'whisper_opt_transcription_seconds_count{model="tiny"} 1.0',
        'whisper_opt_first_segment_seconds_count{model="tiny"} 1.0',
        'whisper_opt_audio_seconds_sum{model="tiny"} 0.5',
        'whisper_opt_engine_queued{model="tiny"} 0.0',
    ):
        assert line in reply.text.splitlines()


# logs


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG)
    return caplog


def lines(log: pytest.LogCaptureFixture) -> list[str]:
    return [JsonFormatter().format(record) for record in log.records]


def test_a_request_s_log_line(server: Server, log: pytest.LogCaptureFixture) -> None:
    reply = post(server, CLIP, *QUICK, ("prompt", "a secret"), filename="secret.wav")
    request_id = reply.headers["x-request-id"]
    wait_until(lambda: request_id in "".join(lines(log)), "the request is logged")
    found = lines(log)
    (line,) = (json.loads(line) for line in found if request_id in line)
    assert line["event"] == "request"
    assert (line["method"], line["path"], line["status"]) == ("POST", TRANSCRIPTIONS, 200)
    assert (line["bytes"], line["audio_s"], line["model"]) == (len(CLIP), 0.5, "tiny")
    assert (line["client"], line["format"]) == ("anonymous", "json")
    assert line["ms"] > 0
    text = reply.json["text"]
    assert len(text) > 5
    assert not [one for one in found if "secret" in one or text in one]


def test_no_log_quotes_a_bad_request(server: Server, log: pytest.LogCaptureFixture) -> None:
    for fields in ((("prompt", "<|en|> secret"),), (("secret", "1"),), (("model", "secret"),)):
        assert post(server, CLIP, *QUICK, *fields).status in (400, 404)
    send(server, "POST", "/secret", b"secret", {"authorization": "Bearer secret"})
    post(server, b"secret" * 1000)
    get(server, "/healthz")
    wait_until(lambda: len(lines(log)) >= 5, "the requests are logged")
    assert "secret" not in "".join(lines(log))


def test_a_fault_is_logged_without_its_message(log: pytest.LogCaptureFixture) -> None:
    backend = GatedBackend()
    backend.fail_at = 0
    backend.gate.set()
    with served("gated", load=lambda _: gated_model(backend)) as server:
        reply = post(server, CLIP, *QUICK)
        assert reply.status == 500
    assert "a secret of the recording" not in "".join(lines(log))
    request_id = reply.headers["x-request-id"]
    line, _ = (json.loads(one) for one in lines(log) if request_id in one)
    assert line["event"] == "transcription failed"
    assert line["level"] == "error"
    assert line["exception"] == ["EngineError", "RuntimeError"]
    assert any("gated_model.py" in place for place in line["trace"])


# cross-origin requests

PREFLIGHT = {
    "origin": "https://a.example",
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization",
}


def test_other_origins_are_off_by_default(server: Server) -> None:
    headers = get(server, "/v1/models", origin="https://a.example").headers
    assert not [name for name in headers if name.startswith("access-control")]
    assert send(server, "OPTIONS", TRANSCRIPTIONS, headers=PREFLIGHT).status == 405


def test_an_origin_that_is_allowed(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("right-key\n")
    options: dict[str, Any] = {"cors_origins": "https://a.example, https://b.example"}
    with served(str(tiny), api_key_file=str(tmp_path / "keys"), **options) as server:
        asked = send(server, "OPTIONS", TRANSCRIPTIONS, headers=PREFLIGHT)
        assert asked.status == 200
        assert asked.headers["access-control-allow-origin"] == "https://a.example"
        refused = send(
            server, "OPTIONS", TRANSCRIPTIONS, headers={**PREFLIGHT, "origin": "https://c.example"}
        )
        assert refused.status == 400
        reply = post(server, CLIP, headers={"origin": "https://b.example"})
        assert reply.status == 401
        assert reply.headers["access-control-allow-origin"] == "https://b.example"


# the rest


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/page", 404),
        ("GET", "/v1/nope", 404),
        ("GET", TRANSCRIPTIONS, 405),
        ("DELETE", "/v1/models", 405),
    ],
)
def test_unknown_paths_and_methods(server: Server, method: str, path: str, status: int) -> None:
    assert send(server, method, path).error == (status, "invalid_request_error", None, None)


def test_every_response_has_a_request_id(server: Server) -> None:
    ids = {get(server, path).headers["x-request-id"] for path in ("/healthz", "/x", "/v1/models")}
    assert len(ids) == 3


def test_the_openapi_document(server: Server) -> None:
    found = get(server, "/openapi.json").json
    assert found["openapi"] == "3.1.0"
    for path in (TRANSCRIPTIONS, TRANSLATIONS):
        body = found["paths"][path]["post"]["requestBody"]["content"]["multipart/form-data"]
        fields = body["schema"]["properties"]
        assert {"file", "model", *LIBRARY_FIELDS} <= fields.keys()
        assert ("stream" in fields) == (path == TRANSCRIPTIONS)
    references = {
        reference
        for reference in json.dumps(found).split('"')
        if reference.startswith("#/components/schemas/")
    }
    names = {reference.rpartition("/")[2] for reference in references}
    assert names <= found["components"]["schemas"].keys()
