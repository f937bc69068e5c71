"""``whisper-opt serve`` as a process: arguments, keys, SIGTERM."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Union

import pytest

from tests.support.http_server import BOUNDARY, TRANSCRIPTIONS, form, wav
from whisper_opt.cli.main import _parser, main
from whisper_opt.core.options import ServeOptions
from whisper_opt.serving.http.auth import VARIABLE

FIELDS = (("model", "whisper-1"), ("temperature", "[0]"), ("vad", "off"))


@pytest.fixture(scope="module")
def engine(tiny: Path) -> Path:
    return tiny


class Process:
    """A running command; its log lines are read one by one."""

    def __init__(self, *arguments: str, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "whisper_opt", "serve", "--port", "0", *arguments],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )
        self.log: list[dict[str, Any]] = []

    def until(self, event: str) -> dict[str, Any]:
        """Read log lines until one is of this event."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(json.loads(line))
            if self.log[-1]["event"] == event:
                return self.log[-1]
        raise AssertionError(f"the process ended before {event!r}: {self.log}")

    def connected(self) -> http.client.HTTPConnection:
        url = self.until("listening")["url"]
        self.until("ready")
        return http.client.HTTPConnection(url.partition("//")[2], timeout=60)

    def end(self) -> int:
        """Read the rest of the log; the exit status."""
        assert self.process.stderr is not None
        self.log += [json.loads(line) for line in self.process.stderr]
        return self.process.wait(60)


@pytest.fixture
def started() -> Iterator[Any]:
    made: list[Process] = []

    def start(*arguments: str, **environment: str) -> Process:
        made.append(Process(*arguments, **environment))
        return made[-1]

    yield start
    for each in made:
        each.process.kill()
        each.process.wait()
        assert each.process.stderr is not None
        each.process.stderr.close()


def post(
    link: http.client.HTTPConnection,
    body: bytes,
    key: Union[str, None] = None,
    path: str = TRANSCRIPTIONS,
) -> None:
    headers = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}
    if key is not None:
        headers["authorization"] = f"Bearer {key}"
    link.request("POST", path, body, headers)


@pytest.mark.skipif(sys.platform == "win32", reason="not tested: Windows has no SIGTERM")
@pytest.mark.parametrize("n", [1, 12])
def test_all_requests_are_answered_after_sigterm(started: Any, engine: Path, n: int) -> None:
    """More than the batch has rows: some wait, all were accepted before the signal."""
    running = started(str(engine), "--device", "cpu")
    link = running.connected()
    body = form(FIELDS, wav(0.5))
    post(link, body)
    first = link.getresponse()
    assert first.status == 200
    text = json.loads(first.read())["text"]

    head = (
        f"POST {TRANSCRIPTIONS} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
        f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\nExpect: 100-continue\r\n\r\n"
    )
    slow = [socket.create_connection((link.host, link.port), timeout=60) for _ in range(n)]
    for each in slow:
        each.sendall(head.encode())
        assert each.recv(1000).startswith(b"HTTP/1.1 100 ")  # it is accepted
    running.process.send_signal(signal.SIGTERM)
    running.until("draining")
    for each in slow:
        each.sendall(body)
    for each in slow:
        with each, contextlib.closing(http.client.HTTPResponse(each)) as answer:
            answer.begin()
            assert answer.status == 200
            assert json.loads(answer.read())["text"] == text
    link.close()
    assert running.end() == 0
    assert [line["event"] for line in running.log][-1] == "stopped"


@pytest.mark.skipif(sys.platform == "win32", reason="not tested: Windows has no SIGKILL")
def test_jobs_survive_the_death_of_the_process(started: Any, engine: Path, tmp_path: Path) -> None:
    """20 jobs, and the process is killed in the middle: another one completes all."""
    arguments = (str(engine), "--device", "cpu", "--jobs-dir", str(tmp_path / "jobs"))
    dying = started(*arguments)
    link = dying.connected()
    jobs = []
    for _ in range(20):
        post(link, form(FIELDS, wav(35.0)), path="/v1/jobs")
        response = link.getresponse()
        assert response.status == 202
        jobs.append(json.loads(response.read())["id"])
    dying.until("job completed")
    dying.process.kill()
    dying.process.wait(60)
    link.close()

    link = (living := started(*arguments)).connected()
    n_before = len([line for line in dying.log if line["event"] == "job completed"])
    texts = set()
    for job in jobs:
        while True:
            link.request("GET", f"/v1/jobs/{job}")
            status = json.loads(link.getresponse().read())["status"]
            if status == "completed":
                break
            assert status in ("queued", "running")
            living.until("job completed")
        link.request("GET", f"/v1/jobs/{job}/result")
        texts.add(link.getresponse().read())
    link.close()
    assert 1 <= n_before < 20
    assert len(texts) == 1


def test_keys_of_the_environment(started: Any, engine: Path) -> None:
    running = started(str(engine), "--device", "cpu", **{VARIABLE: "a-good-key"})
    link = running.connected()
    for key, status in ((None, 401), ("a-bad-key", 401), ("a-good-key", 200)):
        link.connect()
        post(link, form(FIELDS, wav(0.5)), key)
        response = link.getresponse()
        assert response.status == status
        response.read()
        link.close()
    log = "".join(json.dumps(line) for line in running.log)
    assert "a-good-key" not in log


def test_a_model_that_cannot_be_loaded(started: Any, tmp_path: Path) -> None:
    running = started(str(tmp_path))
    assert running.process.stderr is not None
    *_, last = running.process.stderr
    assert last.startswith("whisper-opt: error: ")
    assert running.process.wait(60) == 1


def test_wrong_options(engine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", str(engine), "--host", "0.0.0.0"]) == 2
    assert "there are no API keys" in capsys.readouterr().err
    assert main(["serve", str(engine), "--api-key-file", "/nonexistent"]) == 2
    assert main(["serve", str(engine), str(engine)]) == 2


def test_a_port_in_use(engine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["serve", str(engine), "--port", str(taken.getsockname()[1])]) == 1
    assert "cannot listen on 127.0.0.1" in capsys.readouterr().err


def test_without_the_extra(
    engine: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    parent: Any = sys.modules["whisper_opt.serving"]
    monkeypatch.setattr(parent, "http", parent.http)  # the import below puts another one here
    for name in [name for name in sys.modules if name.startswith("whisper_opt.serving.http")]:
        monkeypatch.delitem(sys.modules, name)
    assert main(["serve", str(engine)]) == 1
    assert "[server]" in capsys.readouterr().err


def test_every_option_of_the_server_is_an_argument() -> None:
    given = _parser().parse_args(["serve", "x", "--max-batch", "3", "--cors-origins", "*"])
    assert ServeOptions(max_batch=given.max_batch, cors_origins=given.cors_origins).port == 8000
