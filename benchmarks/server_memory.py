"""Memory of the server by the number of requests.

    python benchmarks/server_memory.py ENGINE --requests 10000 --out build/server-memory.json

Clients send the same short recording in a closed loop. The resident memory after the last request
is compared with that after 500: the limit is 5 % more. Linux only.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import time
from pathlib import Path
from typing import Any

from common import ROOT, command, environment, write_json
from server_clients import closed_loop, free_port, request_body, resident, running

FIRST = 500
"""Requests after which memory is compared."""
FACTOR = 1.05
"""Most memory after the last request, in units of that."""
STEPS = (100, 250, FIRST, 1000, 1500)
"""Requests after which memory is measured, besides every 1,000 and the last."""


def _enough(most: int, begun: int, _: float) -> bool:
    return begun >= most


def steps(most: int) -> list[int]:
    """Requests after which memory is measured; the last is ``most``."""
    return sorted({n for n in (*STEPS, *range(1000, most, 1000)) if n < most} | {most})


def measured(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Memory of the server after so many requests."""
    port, rows = free_port(), []
    command = [sys.executable, "-m", "whisper_opt", "serve", args.engine, "--port", str(port)]
    command += ["--threads", str(args.threads)]
    fields = {"model": "whisper-1", **dict(pair.split("=", 1) for pair in args.field)}
    body, headers = request_body(args.clip.read_bytes(), fields)
    log, begin = args.out.with_suffix(".log"), time.monotonic()
    with running(command, port, "/readyz", log) as server:
        done = 0
        for n in steps(args.requests):
            load = closed_loop(
                port,
                "/v1/audio/transcriptions",
                body,
                headers,
                clients=args.clients,
                stop=functools.partial(_enough, n - done),
                pid=server.pid,
            )
            done = n
            row = {"requests": n, **resident(server.pid), "wrong": load.wrong}
            rows.append({**row, "seconds": round(time.monotonic() - begin)})
            print(json.dumps(rows[-1]), flush=True)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("engine", help="engine directory")
    parser.add_argument("--clip", type=Path, default=ROOT / "examples" / "jfk.flac")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--field", action="append", default=[], help="NAME=VALUE of every request")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "server-memory.json")
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    rows = measured(args)
    report = {"command": command(), "environment": environment(args.threads), "measured": rows}
    write_json(args.out, report)
    first = next((row for row in rows if row["requests"] >= FIRST), rows[-1])
    ratio = rows[-1]["resident_mb"] / first["resident_mb"]
    wrong = sum(row["wrong"] for row in rows)
    print(f"{ratio:.3f} times the memory after {first['requests']} requests; {wrong} wrong")
    return 0 if ratio <= FACTOR and not wrong else 1


if __name__ == "__main__":
    sys.exit(main())
