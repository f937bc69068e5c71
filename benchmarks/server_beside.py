"""Latency of short requests beside a recording of an hour.

    python benchmarks/server_beside.py ENGINE --speech FOLDER --through engine server

The recordings of FOLDER, joined, are the long one. A clip of 3 s is transcribed again and again,
after pauses of random length: first alone, then while the long recording is transcribed, with each
strategy. The times are compared with the median alone; every text must be the same. The limit is 3
times the time alone. Linux only.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import io
import json
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import numpy as np
import soundfile
from common import ROOT, SAMPLE_RATE, command, environment, load, table, write_json
from server_clients import free_port, request_body, running

from whisper_opt import TranscribeOptions, Whisper
from whisper_opt.audio.decode import load_audio
from whisper_opt.cli.bench.report import percentile
from whisper_opt.serving import Engine

LIMIT = 3.0
PATH = "/v1/audio/transcriptions"
OPTIONS: dict[str, Any] = {"language": "en"}


def wav(samples: Any) -> bytes:
    """A file of 16 bits at 16 kHz."""
    file = io.BytesIO()
    soundfile.write(file, samples, SAMPLE_RATE, "PCM_16", format="WAV")
    return file.getvalue()


def long_recording(folder: Path, seconds: float) -> Any:
    """Recordings one after the other, again from the first if need be."""
    parts = [
        load_audio(path) for path in sorted(folder.rglob("*.*")) if path.stat().st_size > 100_000
    ]
    return np.resize(np.concatenate(parts), round(seconds * SAMPLE_RATE))


class ThroughEngine:
    """The engine in this process."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def short(self, file: bytes) -> str:
        """Its text."""
        return self._engine.submit(file, TranscribeOptions(**OPTIONS)).result().text

    @contextlib.contextmanager
    def long(self, file: bytes, strategy: str) -> Iterator[Callable[[], bool]]:
        """The long recording is transcribed meanwhile; yields whether it has ended."""
        options = TranscribeOptions(strategy=strategy, **OPTIONS)
        handle = self._engine.submit(file, options)
        while not handle.done:
            time.sleep(0.01)
        yield lambda: handle.state != "running"
        handle.cancel()


class ThroughServer:
    """A server on loopback."""

    def __init__(self, port: int) -> None:
        self._port = port

    def _request(self, file: bytes, **fields: str) -> tuple[Any, bytes, Any]:
        body, headers = request_body(file, {"model": "whisper-1", **OPTIONS, **fields})
        return http.client.HTTPConnection("127.0.0.1", self._port, timeout=600), body, headers

    def short(self, file: bytes) -> str:
        """Its text."""
        link, body, headers = self._request(file)
        with contextlib.closing(link):
            link.request("POST", PATH, body, headers)
            return str(json.load(link.getresponse())["text"])

    @contextlib.contextmanager
    def long(self, file: bytes, strategy: str) -> Iterator[Callable[[], bool]]:
        """The long recording is transcribed meanwhile; yields whether it has ended."""
        link, body, headers = self._request(file, strategy=strategy, stream="true")
        ended = threading.Event()
        with contextlib.closing(link):
            link.request("POST", PATH, body, headers)
            response = link.getresponse()
            response.readline()  # the first text

            def read() -> None:
                with contextlib.suppress(OSError, ValueError, AttributeError):
                    while response.readline():
                        pass
                ended.set()

            thread = threading.Thread(target=read, daemon=True)
            thread.start()
            yield ended.is_set
            link.sock and link.sock.shutdown(2)
            thread.join()


def times(
    through: Any, clip: bytes, n: int, pause: float, ended: Callable[[], bool]
) -> tuple[list[float], set[str]]:
    """Seconds of each request, and the texts."""
    rng, found, texts = random.Random(0), [], set()
    for _ in range(n):
        time.sleep(rng.uniform(0.0, 2 * pause))
        begin = time.perf_counter()
        texts.add(through.short(clip))
        if ended():
            sys.exit("the long recording has ended; give a longer one")
        found.append(time.perf_counter() - begin)
    return found, texts


def measured(through: Any, clip: bytes, long: bytes, args: argparse.Namespace) -> dict[str, Any]:
    """Times alone and beside, by strategy."""
    for _ in range(5):
        through.short(clip)
    alone, texts = times(through, clip, args.n, args.pause, lambda: False)
    report: dict[str, Any] = {"alone_s": [round(each, 4) for each in alone]}
    median = statistics.median(alone)
    for strategy in args.strategies:
        with through.long(long, strategy) as ended:
            beside, more = times(through, clip, args.n, args.pause, ended)
        texts |= more
        time.sleep(1.0)
        report[strategy] = {
            "beside_s": [round(each, 4) for each in beside],
            "times_alone": {
                "median": round(statistics.median(beside) / median, 2),
                "p95": round(percentile(beside, 95) / median, 2),
                "max": round(max(beside) / median, 2),
            },
        }
        print(strategy, round(median, 4), report[strategy]["times_alone"], flush=True)
    if len(texts) > 1:
        sys.exit(f"the texts differ: {texts}")
    return report


@contextlib.contextmanager
def opened(kind: str, args: argparse.Namespace, folder: Path) -> Iterator[Any]:
    """What requests go through."""
    if kind == "engine":
        with Whisper.load(args.engine, threads=args.threads) as model, Engine(model) as engine:
            yield ThroughEngine(engine)
        return
    port = free_port()
    line = [sys.executable, "-m", "whisper_opt", "serve", args.engine, "--port", str(port)]
    line += ["--threads", str(args.threads)]
    with running(line, port, "/readyz", folder / "log") as server:
        assert isinstance(server, subprocess.Popen)
        yield ThroughServer(port)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("engine", help="engine directory")
    parser.add_argument("--speech", type=Path, required=True, help="folder of recordings")
    parser.add_argument("--clip", type=Path, default=ROOT / "examples" / "jfk.flac")
    parser.add_argument("--clip-seconds", type=float, default=3.0)
    parser.add_argument("--seconds", type=float, default=3600.0, help="of the long recording")
    parser.add_argument("--through", nargs="+", default=["engine", "server"])
    parser.add_argument("--strategies", nargs="+", default=["sequential", "batched"])
    parser.add_argument("-n", type=int, default=60, help="requests of each measurement")
    parser.add_argument("--pause", type=float, default=0.15, help="mean pause between them, s")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "server-beside.json")
    args = parser.parse_args()
    before = load()
    clip = wav(load_audio(args.clip)[: round(args.clip_seconds * SAMPLE_RATE)])
    long = wav(long_recording(args.speech, args.seconds))
    report: dict[str, Any] = {
        "command": command(), "environment": environment(args.threads), "load_before": before
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        for kind in args.through:
            with opened(kind, args, Path(folder)) as through:
                report[kind] = measured(through, clip, long, args)
    write_json(args.out, report)
    figures = {
        (kind, strategy): report[kind][strategy]["times_alone"]
        for kind in args.through
        for strategy in args.strategies
    }
    rows = [[*key, *(str(value) for value in found.values())] for key, found in figures.items()]
    print(table(["through", "strategy", "median", "p95", "max"], rows))
    return 0 if all(found["max"] < LIMIT for found in figures.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
