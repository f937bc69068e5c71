"""A model repository in the real tritonserver: texts, clients at once, cancellation, errors.

WHISPER_OPT_TRITON names a Python that has nvidia-pytriton, tritonclient[grpc], what whisper_opt
needs at run time, and numpy 1, for which that server was built; scripts/test.sh makes it.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from tests.conftest import ROOT, Engines
from tests.support import triton_client
from tests.support.http_server import wait_until
from tests.support.triton_server import TritonServer, Wheel, running
from whisper_opt.cli.main import main

pytestmark = pytest.mark.slow

CANCELLED = "a client cancelled its request after"
SPEECH = ROOT / "examples" / "jfk.flac"
REQUESTS: tuple[tuple[float, dict[str, Any]], ...] = (
    (1.0, {}),
    (0.4, {"word_timestamps": True}),
    (1.0, {"without_timestamps": True}),
    (0.7, {"initial_prompt": "A speech in Washington."}),
    (1.0, {"temperature": 0.0, "beam_size": 2}),
    (0.5, {"max_new_tokens": 8}),
    (2.9, {}),
    (3.5, {"strategy": "batched"}),
)
"""Lengths, in times of the example, and options."""


def recording(length: float) -> bytes:
    """The example at 16 kHz with one channel, repeated, as a wav file."""
    samples, rate = soundfile.read(SPEECH, dtype="float32")
    mono = samples.mean(axis=1) if samples.ndim > 1 else samples
    mono = np.interp(np.arange(0, len(mono), rate / 16000), np.arange(len(mono)), mono)
    file = io.BytesIO()
    soundfile.write(file, np.resize(mono, round(length * len(mono))), 16000, format="WAV")
    return file.getvalue()


@pytest.fixture(scope="module")
def wheel() -> Wheel:
    python = os.environ.get("WHISPER_OPT_TRITON")
    if not python:
        pytest.skip("not tested: WHISPER_OPT_TRITON names no Python (scripts/test.sh sets it)")
    return Wheel.of(python)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("triton")


@pytest.fixture(scope="module")
def engine(engines: Engines) -> Path:
    return engines.engine("tiny.en", precision="int8").path


@pytest.fixture(scope="module")
def server(wheel: Wheel, engine: Path, folder: Path) -> Iterator[TritonServer]:
    paths = (f"--python-path={ROOT}", f"--python-path={wheel.site}")
    repository = str(folder / "models")
    assert main(["triton-repository", f"tiny={engine}", repository, "--threads", "2", *paths]) == 0
    with running(wheel, folder / "models", folder) as server:
        yield server


ALONE = """
import json, sys
from whisper_opt import Whisper
model = Whisper.load(sys.argv[1], device="cpu", threads=2)
found = (model.transcribe(path, **options) for path, options in json.load(sys.stdin))
print(json.dumps([each.to_dict() for each in found]))
"""


@pytest.fixture(scope="module")
def alone(wheel: Wheel, engine: Path, folder: Path) -> list[dict[str, Any]]:
    """The transcripts of REQUESTS, made with the numpy of the server: its features are its own."""
    cases = []
    for i, (length, options) in enumerate(REQUESTS):
        path = folder / f"{i}.wav"
        path.write_bytes(recording(length))
        cases.append((str(path), options))
    done = subprocess.run(
        [wheel.python, "-c", ALONE, str(engine)],
        input=json.dumps(cases),
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def test_clients_at_once_get_the_transcripts_of_each_alone(
    server: TritonServer, alone: list[dict[str, Any]]
) -> None:
    recordings = [recording(length) for length, _ in REQUESTS]
    with ThreadPoolExecutor(len(REQUESTS)) as clients:
        calls = [
            clients.submit(server.events, "tiny", audio, options=json.dumps(options))
            for audio, (_, options) in zip(recordings, REQUESTS)
        ]
        answers = [call.result() for call in calls]
    for expected, answer in zip(alone, answers):
        assert expected["text"]
        assert [json.loads(each["segment"]) for each in answer[:-1]] == expected["segments"]
        assert [each["text"] for each in answer[:-1]] == [
            each["text"] for each in expected["segments"]
        ]
        assert json.loads(answer[-1]["transcript"]) == expected


def test_one_response_and_the_messages_of_errors(
    server: TritonServer, alone: list[dict[str, Any]]
) -> None:
    with server.asking("tiny", recording(REQUESTS[1][0]), stream=False, **REQUESTS[1][1]) as answer:
        found = json.load(answer)
    assert (found["text"], json.loads(found["transcript"])) == (alone[1]["text"], alone[1])
    with server.asking("tiny", recording(1.0), stream=False, language="xx") as answer:
        assert answer.status == 400
        assert "unknown language 'xx'" in json.load(answer)["error"]
    (event,) = server.events("tiny", None)
    assert "the request has no recording" in event["error"]


def test_a_client_that_goes_away_ends_its_transcription(server: TritonServer) -> None:
    with server.asking("tiny", recording(30.0)) as answer:
        assert b"segment" in answer.readline()
    wait_until(lambda: log(server).count(CANCELLED) == 1, "cancelled")


def test_grpc_streams_and_cancels(
    server: TritonServer, wheel: Wheel, alone: list[dict[str, Any]], folder: Path
) -> None:
    found = over_grpc(wheel, server, folder / "1.wav", REQUESTS[1][1])
    assert [json.loads(each["segment"]) for each in found[:-1]] == alone[1]["segments"]
    assert [*found[-1]] == ["transcript"]
    assert json.loads(found[-1]["transcript"]) == alone[1]
    (refused,) = over_grpc(wheel, server, folder / "1.wav", {"beam_size": 0})
    assert "beam_size" in refused["error"]
    before = log(server).count(CANCELLED)
    (folder / "long.wav").write_bytes(recording(30.0))
    (first,) = over_grpc(wheel, server, folder / "long.wav", {}, cancel_after=1)
    assert first["text"]
    wait_until(lambda: log(server).count(CANCELLED) == before + 1, "cancelled")


def over_grpc(
    wheel: Wheel,
    server: TritonServer,
    audio: Path,
    options: dict[str, Any],
    *,
    cancel_after: int = 0,
) -> list[dict[str, str]]:
    command = [
        wheel.python, str(Path(triton_client.__file__)), str(server.grpc_port), "tiny", str(audio),
        json.dumps(options), str(cancel_after),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    found: list[dict[str, str]] = json.loads(done.stdout)
    return found


def log(server: TritonServer) -> str:
    return server.log.read_text("utf-8", "replace")
