"""Jobs over HTTP."""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.gated_model import GatedBackend, gated_model
from tests.support.http_server import Reply, get, post, send, served, wait_until, wav
from whisper_opt import SubtitleOptions, Whisper, render
from whisper_opt.serving.http.errors import ApiError
from whisper_opt.serving.http.jobs.webhooks import check_webhook, delivered
from whisper_opt.serving.http.server import Server

CLIP = wav(35.0)
QUICK = (("temperature", "[0]"), ("vad", "off"), ("no_speech_threshold", "none"))
JOBS = "/v1/jobs"
INVALID = "invalid_request_error"


@pytest.fixture(scope="module")
def server(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of jobs."""
    with served(str(tiny), jobs_dir=str(tmp_path_factory.mktemp("jobs"))) as running:
        yield running


@pytest.fixture
def backend() -> Iterator[GatedBackend]:
    made = GatedBackend()
    yield made
    made.gate.set()


def submit(server: Server, file: bytes = CLIP, *fields: tuple[str, str], **options: Any) -> Reply:
    return post(server, file, *QUICK, *fields, path=JOBS, **options)


def accepted(server: Server, *fields: tuple[str, str], **options: Any) -> str:
    reply = submit(server, CLIP, *fields, **options)
    assert reply.status == 202, reply.text
    return str(reply.json["id"])


def ended(server: Server, job: str, **headers: str) -> Any:
    def status() -> Any:
        return get(server, f"{JOBS}/{job}", **headers).json["status"]

    wait_until(lambda: status() not in ("queued", "running"), "the job ends")
    return get(server, f"{JOBS}/{job}", **headers).json


def test_a_job(server: Server, whisper: Whisper) -> None:
    reply = submit(server)
    assert reply.status == 202
    assert reply.json["object"] == "transcription.job"
    assert (reply.json["model"], reply.json["bytes"]) == ("whisper-1", len(CLIP))
    job = reply.json["id"]
    done = ended(server, job)
    assert done["status"] == "completed"
    assert done["progress"] == {"seconds_done": 35.0, "seconds": 35.0}
    assert done["created_at"] <= done["started_at"] <= done["finished_at"]
    alone = whisper.transcribe(CLIP, temperature=0.0, vad="off", no_speech_threshold=None)
    found = get(server, f"{JOBS}/{job}/result")
    assert found.json["text"] == alone.text.strip()
    assert server.jobs is not None
    assert not server.jobs.store.recording(job).exists()


def test_a_result_in_any_format(server: Server, whisper: Whisper) -> None:
    job = accepted(server, ("word_timestamps", "true"), ("response_format", "srt"))
    ended(server, job)
    alone = whisper.transcribe(
        CLIP, temperature=0.0, vad="off", no_speech_threshold=None, word_timestamps=True
    )
    result = f"{JOBS}/{job}/result"
    assert get(server, result).text == render(alone, "srt")
    assert get(server, f"{result}?response_format=text").text == alone.text.strip() + "\n"
    narrow = get(server, f"{result}?response_format=srt&max_words_per_line=2").text
    assert narrow == render(alone, "srt", SubtitleOptions(max_words_per_line=2))
    verbose = f"{result}?response_format=verbose_json&timestamp_granularities[]=word"
    assert len(get(server, verbose).json["words"]) == sum(len(s.words or ()) for s in alone)


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("beam_size=2", "beam_size"),
        ("response_format=xml", "response_format"),
        (
            "response_format=verbose_json&timestamp_granularities[]=word",
            "timestamp_granularities",
        ),
        ("nope=1", "nope"),
    ],
)
def test_a_result_that_the_job_does_not_have(server: Server, query: str, param: str) -> None:
    job = accepted(server)
    ended(server, job)
    reply = get(server, f"{JOBS}/{job}/result?{query}")
    assert reply.status == 400
    assert reply.error[3] == param


@pytest.mark.parametrize(
    ("file", "fields", "error"),
    [
        (b"text", (), (400, INVALID, "invalid_audio", "file")),
        (CLIP, (("stream", "true"),), (400, INVALID, "invalid_value", "stream")),
        (CLIP, (("nope", "1"),), (400, INVALID, "unknown_parameter", "nope")),
        (CLIP, (("webhook", "http://a.example"),), (400, INVALID, "invalid_value", "webhook")),
        (CLIP, (("model", "nope"),), (404, INVALID, "model_not_found", "model")),
    ],
)
def test_refusals(server: Server, file: bytes, fields: Any, error: Any) -> None:
    assert submit(server, file, *fields).error == error


def test_log_probabilities(server: Server) -> None:
    """They are kept with the result, and left out in formats without them."""
    job = accepted(server, ("include[]", "logprobs"))
    ended(server, job)
    found = get(server, f"{JOBS}/{job}/result").json
    assert found["logprobs"]
    verbose = get(server, f"{JOBS}/{job}/result?response_format=verbose_json").json
    assert verbose["logprobs"] == found["logprobs"]
    assert get(server, f"{JOBS}/{job}/result?response_format=text").text.strip() == found["text"]
    plain = accepted(server)
    ended(server, plain)
    asked = get(server, f"{JOBS}/{plain}/result?include=logprobs")
    assert asked.error == (400, INVALID, "invalid_value", "include")


def test_a_translation(server: Server) -> None:
    job = accepted(server, ("task", "translate"), ("response_format", "verbose_json"))
    assert ended(server, job)["task"] == "translate"
    assert get(server, f"{JOBS}/{job}/result").json["language"] == "english"


def test_candidate_languages(server: Server) -> None:
    job = accepted(server, ("languages[]", "de"), ("languages[]", "fr"))
    ended(server, job)
    assert get(server, f"{JOBS}/{job}/result").json["languages"][0]["code"] in ("de", "fr")


def test_jobs_are_listed(server: Server) -> None:
    made = [accepted(server) for _ in range(3)]
    first = get(server, f"{JOBS}?limit=2").json
    assert [job["id"] for job in first["data"]] == [made[2], made[1]]
    assert first["has_more"] is True
    second = get(server, f"{JOBS}?limit=1&after={made[1]}").json
    assert [job["id"] for job in second["data"]] == [made[0]]
    for bad in ("limit=0", "limit=101", "limit=x", "limit=99999999999"):
        assert get(server, f"{JOBS}?{bad}").status == 400
    for job in made:
        ended(server, job)


def test_unknown_jobs(server: Server) -> None:
    for method, path in (
        *(("GET", f"{JOBS}/job_0"), ("DELETE", f"{JOBS}/job_0"), ("GET", f"{JOBS}/x/result")),
        *(("POST", f"{JOBS}/job_0/cancel"), ("GET", f"{JOBS}?after=job_0")),
    ):
        assert send(server, method, path).error == (404, INVALID, "job_not_found", "job")


def test_a_job_is_deleted(server: Server) -> None:
    job = accepted(server)
    assert send(server, "DELETE", f"{JOBS}/{job}").json["deleted"] is True
    assert get(server, f"{JOBS}/{job}").status == 404
    assert server.jobs is not None
    assert not server.jobs.store.recording(job).exists()


def test_without_a_directory_there_are_no_jobs(tiny: Path) -> None:
    with served(str(tiny)) as plain:
        assert submit(plain).status == 404


# with a model that waits


@contextlib.contextmanager
def gated(backend: GatedBackend, folder: Path, **options: Any) -> Iterator[Server]:
    with served(
        "gated", load=lambda _: gated_model(backend), jobs_dir=str(folder), **options
    ) as server:
        try:
            yield server
        finally:
            backend.gate.set()


def test_progress_and_cancelling(backend: GatedBackend, tmp_path: Path) -> None:
    with gated(backend, tmp_path, max_batch=1) as server:
        first, second = accepted(server), accepted(server)
        wait_until(backend.waiting.is_set, "the first job is decoded")
        wait_until(lambda: get(server, f"{JOBS}/{first}").json["status"] == "running", "running")
        reply = get(server, f"{JOBS}/{first}/result")
        assert reply.error == (409, INVALID, "job_running", None)
        assert reply.headers["x-should-retry"] == "false"
        for job in (second, first):
            assert send(server, "POST", f"{JOBS}/{job}/cancel").json["status"] == "cancelled"
        backend.gate.set()
        third = accepted(server)
        assert ended(server, third)["status"] == "completed"
        states = [get(server, f"{JOBS}/{job}").json["status"] for job in (first, second)]
        assert states == ["cancelled", "cancelled"]


def test_requests_come_before_jobs(backend: GatedBackend, tmp_path: Path) -> None:
    with gated(backend, tmp_path, max_batch=1) as server:
        jobs = [accepted(server) for _ in range(3)]
        backend.gate.set()
        assert post(server, wav(0.5), *QUICK).status == 200
        assert [ended(server, job)["status"] for job in jobs] == ["completed"] * 3


def test_a_failed_job(backend: GatedBackend, tmp_path: Path) -> None:
    backend.fail_at = 0
    backend.gate.set()
    with gated(backend, tmp_path) as server:
        found = ended(server, accepted(server))
    assert found["status"] == "failed"
    assert found["error"]["type"] == "server_error"
    assert "secret" not in found["error"]["message"]


def test_too_many_jobs(backend: GatedBackend, tmp_path: Path) -> None:
    with gated(backend, tmp_path, max_jobs=1) as server:
        accepted(server)
        assert submit(server).error == (429, "rate_limit_error", "queue_full", None)


def test_jobs_survive_the_end_of_the_server(backend: GatedBackend, tmp_path: Path) -> None:
    with gated(backend, tmp_path, max_batch=2) as server:
        jobs = [accepted(server) for _ in range(4)]
        wait_until(backend.waiting.is_set, "a job is decoded")
    other = GatedBackend()
    other.gate.set()
    with gated(other, tmp_path) as server:
        assert [ended(server, job)["status"] for job in jobs] == ["completed"] * 4


def test_each_client_sees_its_own(backend: GatedBackend, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("key-of-ada ada\nkey-of-bob bob\n")
    backend.gate.set()
    with gated(backend, tmp_path / "jobs", api_key_file=str(tmp_path / "keys")) as server:
        ada, bob = ({"authorization": f"Bearer key-of-{name}"} for name in ("ada", "bob"))
        job = accepted(server, headers=ada)
        assert ended(server, job, **ada)["status"] == "completed"
        assert get(server, f"{JOBS}/{job}", **bob).status == 404
        assert get(server, f"{JOBS}/{job}/result", **bob).status == 404
        assert get(server, JOBS, **bob).json["data"] == []
        assert len(get(server, JOBS, **ada).json["data"]) == 1


# webhooks


@pytest.fixture
def listener() -> Iterator[Any]:
    """A server that answers 500 at first, and 200 from then on."""
    received: list[Any] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            received.append((self.path, json.loads(body)))
            self.send_response(200 if len(received) > 1 else 500)
            self.end_headers()

        def do_GET(self) -> None:
            raise AssertionError("a redirect was followed")

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as made:
        thread = threading.Thread(target=made.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{made.server_address[1]}", received
        made.shutdown()
        thread.join()


def test_a_webhook_is_called_until_it_answers(
    backend: GatedBackend, tmp_path: Path, listener: Any
) -> None:
    origin, received = listener
    backend.gate.set()
    with gated(backend, tmp_path, webhook_origins=f"https://a.example, {origin}") as server:
        job = accepted(server, ("webhook", f"{origin}/done?x=1"))
        wait_until(lambda: len(received) == 2, "it is called again")
        assert server.jobs is not None
        store = server.jobs.store
        wait_until(lambda: store.unannounced() == [], "it is not called any more")
    for path, content in received:
        assert path == "/done?x=1"
        assert (content["id"], content["status"]) == (job, "completed")


@pytest.mark.parametrize(
    "url",
    [
        "http://a.example",
        "https://a.example:444/",
        "https://b.example/",
        "https://a.example@b.example/",
        "https://user@a.example/",
        "https://a.example.b.example/",
        "https://a.example:x/",
        "file:///etc/passwd",
        "//a.example",
        "",
    ],
)
def test_urls_of_other_origins(url: str) -> None:
    with pytest.raises(ApiError):
        check_webhook(url, "https://a.example")
    with pytest.raises(ApiError):
        check_webhook(url, None)


@pytest.mark.parametrize("url", ["https://a.example/x", "https://A.example:443"])
def test_urls_of_the_origin(url: str) -> None:
    check_webhook(url, "http://b.example:80, https://a.example/")


def test_a_redirect_is_not_followed() -> None:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(302)
            self.send_header("location", "/elsewhere")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as made:
        thread = threading.Thread(target=made.handle_request)
        thread.start()
        assert not delivered(f"http://127.0.0.1:{made.server_address[1]}/", {})
        thread.join()


def test_nobody_listens() -> None:
    assert not delivered("http://127.0.0.1:1/", {})
