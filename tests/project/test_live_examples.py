"""The programs in examples/ run."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
import soundfile
import soxr

from tests.conftest import Engines
from tests.support.ports import free_port

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
PATIENCE = 120.0


@contextlib.contextmanager
def running(*command: object, port: int, **environment: str) -> Iterator[None]:
    """A program that listens on a port."""
    variables = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    with subprocess.Popen([sys.executable, *map(str, command)], cwd=EXAMPLES, env=variables) as it:
        try:
            end = time.monotonic() + PATIENCE
            while True:
                assert it.poll() is None, "it has ended"
                assert time.monotonic() < end, "it does not listen"
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                    break
                time.sleep(0.1)
            yield
        finally:
            it.terminate()
            try:
                it.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                it.kill()
                raise


@contextlib.contextmanager
def connected(port: int, path: str) -> Iterator[Any]:
    from websockets.sync.client import connect

    with connect(f"ws://127.0.0.1:{port}{path}", open_timeout=PATIENCE) as link:
        yield link


def test_websocket_app(engines: Engines) -> None:
    engine, port = engines.engine("tiny.en", precision="int8").path, free_port()
    samples, rate = soundfile.read(EXAMPLES / "jfk.flac", dtype="float32")
    pcm = (soxr.resample(samples.mean(axis=1), rate, 16_000) * 32_000).astype("<i2").tobytes()
    command = ("-m", "uvicorn", "--ws", "websockets-sansio", "--port", port, "websocket_app:app")
    with running(*command, port=port, MODEL=str(engine)), connected(port, "/listen") as link:
        for i in range(0, len(pcm), 32_000):
            link.send(pcm[i : i + 32_000])
        link.send(b"")
        found = [json.loads(message) for message in link]
    assert {event["type"] for event in found} >= {"committed", "utterance"}
    text = "".join(event["text"] for event in found if event["type"] == "utterance")
    assert "fellow americans" in text.lower()
    assert "for your country" in text.lower()


def test_live_subtitles(engines: Engines) -> None:
    """The last words stay; those before them may be gone before a slow machine shows them.

    The program ends although somebody watched to the end.
    """
    engine, port = engines.engine("tiny.en", precision="int8").path, free_port()
    command = ("live_subtitles.py", engine, "jfk.flac", "--port", port)
    with running(*command, port=port):
        with urlopen(f"http://127.0.0.1:{port}/", timeout=PATIENCE) as page:
            assert b"/text" in page.read()
        with connected(port, "/text") as link:
            shown = {"certain": "", "partial": ""}
            while "country" not in shown["certain"].lower():
                shown = json.loads(link.recv(timeout=PATIENCE))
            with contextlib.suppress(TimeoutError):  # all was said
                while True:
                    link.recv(timeout=3.0)
