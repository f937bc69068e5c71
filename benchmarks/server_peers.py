"""Requests per second of this server and of others, with 16 clients and with one.

    python benchmarks/server_peers.py --engine ENGINE \
        --faster-whisper PYTHON --model CTRANSLATE2_MODEL \
        --whisper-cpp WHISPER_SERVER --ggml GGML_MODEL \
        --speaches CLONE --speaches-python PYTHON --speaches-model ID \
        --out benchmarks/results/server-peers.json

All servers run at once and have two threads; they are loaded in turns, so that other work on the
machine slows all of them alike. Each turn measures a server with 16 clients, then with one, in a
closed loop. With the defaults a run takes four minutes. Servers whose arguments are left out are
left out. PYTHON is that of an environment with faster-whisper, fastapi, uvicorn and
python-multipart. ID names the weights in the Hugging Face cache, where speaches looks for models
(``HF_HUB_CACHE``; it needs a README.md that says ``library_name: ctranslate2`` and
``pipeline_tag: automatic-speech-recognition``). Linux only.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import ROOT, command, environment, load, table, write_json
from server_clients import Load, closed_loop, free_port, request_body, running

OPENAI = "/v1/audio/transcriptions"


@dataclasses.dataclass(frozen=True)
class Server:
    """A server to be measured.

    Attributes:
        name: in the table.
        command: starts it; ``{port}`` stands for its port.
        health: path that answers with 200 when it is ready.
        path: of the endpoint.
        fields: of a request, besides the file.
        environment: variables of its process.
    """

    name: str
    command: list[str]
    health: str
    path: str
    fields: dict[str, str]
    environment: dict[str, str] = dataclasses.field(default_factory=dict)


def servers(args: argparse.Namespace) -> list[Server]:
    """Those whose files were given."""
    threads = str(args.threads)
    ours = [sys.executable, "-m", "whisper_opt", "serve", args.engine, "--port", "{port}"]
    greedy = {"model": "whisper-1", "temperature": "[0]", "language": "en", "vad": "off"}
    found = [Server("whisper-opt", [*ours, "--threads", threads], "/readyz", OPENAI, greedy)]
    if args.faster_whisper:
        script = str(ROOT / "benchmarks" / "peers" / "serve_faster_whisper.py")
        command = [args.faster_whisper, script, args.model, "{port}", threads, "int8"]
        fields = {"language": "en"}
        found.append(Server("faster-whisper, FastAPI", command, "/health", OPENAI, fields))
    if args.whisper_cpp:
        command = [args.whisper_cpp, "-m", args.ggml, "--port", "{port}", "-t", threads]
        command += ["-bs", "1", "-bo", "1", "-l", "en"]
        fields = {"response_format": "json", "temperature": "0.0", "temperature_inc": "0.0"}
        found.append(Server("whisper.cpp server", command, "/health", "/inference", fields))
    if args.speaches:
        found.append(speaches(args))
    return found


def speaches(args: argparse.Namespace) -> Server:
    """speaches, which finds some of its files in the folder where it starts."""
    start = f"{args.speaches_python} -m uvicorn --factory speaches.main:create_app"
    command = f"cd {args.speaches} && exec {start} --port {{port}} --log-level warning"
    environment = {
        "WHISPER__INFERENCE_DEVICE": "cpu",
        "WHISPER__COMPUTE_TYPE": "int8",
        "WHISPER__CPU_THREADS": str(args.threads),
        "STT_MODEL_TTL": "-1",
        "ENABLE_UI": "false",
        "LOG_LEVEL": "error",
        "HF_HUB_OFFLINE": "1",
    }
    fields = {"model": args.speaches_model, "language": "en"}
    return Server("speaches", ["sh", "-c", command], "/health", OPENAI, fields, environment)


def _ended(most: float, _: int, seconds: float) -> bool:
    return seconds >= most


@dataclasses.dataclass
class Started:
    """A server that runs."""

    server: Server
    process: subprocess.Popen[bytes]
    port: int
    body: bytes
    headers: dict[str, str]
    text: str | None = None

    def loaded(self, clients: int, seconds: float) -> Load:
        """Load it; the texts of all loads must be equal."""
        load = closed_loop(
            self.port,
            self.server.path,
            self.body,
            self.headers,
            clients=clients,
            stop=functools.partial(_ended, seconds),
            pid=self.process.pid,
            text=self.text,
        )
        self.text = load.text
        return load


def measured(args: argparse.Namespace, folder: Path) -> dict[str, dict[str, list[Any]]]:
    """Summaries of every turn, by server and number of clients."""
    file = args.clip.read_bytes()
    with contextlib.ExitStack() as stack:
        started = []
        for server in servers(args):
            port = free_port()
            command = [part.replace("{port}", str(port)) for part in server.command]
            log = folder / f"{server.name.split()[0]}.log"
            process = stack.enter_context(
                running(command, port, server.health, log, server.environment)
            )
            started.append(Started(server, process, port, *request_body(file, server.fields)))
        results: dict[str, dict[str, list[Any]]] = {
            each.server.name: {str(n): [] for n in args.clients} for each in started
        }
        for each in started:  # warm, not counted
            each.loaded(max(args.clients), args.seconds / 4)
        for _ in range(args.turns):
            for each in started:
                for n in args.clients:
                    found = each.loaded(n, args.seconds).summary()
                    results[each.server.name][str(n)].append(found)
                    print(each.server.name, n, json.dumps(found), flush=True)
    return results


def medians(turns: list[Any]) -> dict[str, float]:
    """The median of each figure over the turns."""
    names = ("requests_per_s", "cpu_s_per_request", "p50_s", "p95_s")
    return {name: round(statistics.median(turn[name] for turn in turns), 4) for name in names}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--engine", required=True, help="engine directory")
    parser.add_argument("--faster-whisper", help="Python with faster-whisper and FastAPI")
    parser.add_argument("--model", help="the same weights for CTranslate2")
    parser.add_argument("--whisper-cpp", help="whisper-server of whisper.cpp")
    parser.add_argument("--ggml", help="the same weights for whisper.cpp")
    parser.add_argument("--speaches", help="clone of speaches")
    parser.add_argument("--speaches-python", help="Python in which it is installed")
    parser.add_argument("--speaches-model", help="id of the same weights in the cache")
    parser.add_argument("--clip", type=Path, default=ROOT / "examples" / "jfk.flac")
    parser.add_argument("--clients", type=int, nargs="+", default=[16, 1])
    parser.add_argument("--seconds", type=float, default=12.0, help="of each measurement")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "server-peers.json")
    args = parser.parse_args()
    before = load()
    with tempfile.TemporaryDirectory() as folder:
        results = measured(args, Path(folder))
    found = {
        name: {n: medians(turns) for n, turns in by_clients.items()}
        for name, by_clients in results.items()
    }
    report = {
        "command": command(),
        "environment": environment(args.threads),
        "load_before": before,
        "clip": args.clip.name,
        "medians": found,
        "turns": results,
    }
    write_json(args.out, report)
    rows = [
        [name, n, *map(str, figures.values())]
        for name, by_clients in found.items()
        for n, figures in by_clients.items()
    ]
    print(table(["server", "clients", "requests/s", "CPU s/request", "p50 s", "p95 s"], rows))
    wrong = sum(t["wrong"] for by in results.values() for turns in by.values() for t in turns)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
