"""Cold start: time from process start to first text, and memory.

    pip install -e '.[cpu,export]'
    whisper-opt export models/tiny.en engines/tiny.en-int8 --precision int8
    python benchmarks/cold.py engines/tiny.en-int8 engines/base-int8

Every measurement is a new process, timed by its parent: the library, the command, and the imports
of Python, numpy and ONNX Runtime alone. Programs take turns. Compiled Python files are in their own
folder, filled by an untimed first round as in an installation; files are in the system's cache.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from subprocess import DEVNULL, PIPE
from typing import Any

from common import ROOT, Verdict, arguments, finish, load, table

CLIP = "en-jfk"
MODULES = "import whisper_opt"
RUNTIME = "import numpy, onnxruntime"
FIRST = "first text"
IMPORT_BAR, FIRST_BAR = 0.15, 1.0
"""Seconds."""

TIMED = """
import time
begin = time.perf_counter()
{statement}
print(time.perf_counter() - begin, flush=True)
"""
LIBRARY = """
import sys, time
begin = time.perf_counter()
from whisper_opt import Whisper
imported = time.perf_counter()
model = Whisper.load(sys.argv[1], threads=int(sys.argv[2]))
loaded = time.perf_counter()
text = next(iter(model.stream(sys.argv[3]))).text
ended = time.perf_counter()
print(text, flush=True)
import json
from pathlib import Path
status = Path("/proc/self/status")
lines = status.read_text().splitlines() if status.is_file() else []
fields = dict(line.split(":", 1) for line in lines)
kinds = {"peak": "VmHWM", "anonymous": "RssAnon", "files": "RssFile"}
print(json.dumps({
    "seconds": [imported - begin, loaded - imported, ended - loaded],
    "bytes": {k: 1024 * int(fields[v].split()[0]) for k, v in kinds.items() if v in fields},
}))
"""


@dataclasses.dataclass(frozen=True)
class Start:
    """One process: seconds to its first line, that line, and the rest of its output."""

    seconds: float
    line: str
    rest: str


def start(command: list[str], compiled: str) -> Start:
    """Run a program; its first line of output is timed."""
    changed = {"PYTHONPATH": str(ROOT), "PYTHONPYCACHEPREFIX": compiled}
    environment = {**os.environ, **changed}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    begin = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, *command], env=environment, stdout=PIPE, stderr=DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        seconds = time.perf_counter() - begin
        rest = process.stdout.read()
    if process.returncode or not line.strip():
        raise SystemExit(f"exit status {process.returncode}, output {line!r}: {command}")
    return Start(seconds, line, rest)


def programs(engines: list[Path], recording: Path, threads: int) -> dict[str, list[str]]:
    """Arguments of Python by name of the measurement."""
    found = {
        "python": ["-c", "print(1)"],
        MODULES: ["-c", TIMED.format(statement=MODULES)],
        RUNTIME: ["-c", TIMED.format(statement=RUNTIME)],
    }
    for engine in engines:
        values = [str(engine), str(threads), str(recording)]
        found[f"{engine.name}, library"] = ["-c", LIBRARY, *values]
        command = ["-m", "whisper_opt", "transcribe", values[0], values[2], "--threads", values[1]]
        found[f"{engine.name}, command"] = command
    return found


def figures(runs: dict[str, list[Start]]) -> dict[str, Any]:
    """Medians by program, in seconds and bytes."""
    found: dict[str, Any] = {}
    for name, starts in runs.items():
        entry: dict[str, Any] = {"seconds": _median(run.seconds for run in starts)}
        if name in (MODULES, RUNTIME):
            entry["inside"] = _median(float(run.line) for run in starts)
        if name.endswith("library"):
            said = [json.loads(run.rest) for run in starts]
            parts = zip(("imports", "load", FIRST), zip(*(one["seconds"] for one in said)))
            entry["parts"] = {part: _median(values) for part, values in parts}
            entry["bytes"] = {
                kind: round(_median(one["bytes"][kind] for one in said))
                for kind in said[0]["bytes"]
            }
        found[name] = entry
    return found


def _median(values: Any) -> float:
    return round(float(statistics.median(values)), 4)


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("paths", metavar="ENGINE", nargs="+", type=Path)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--pause", type=float, default=0.2, help="seconds before each start")
    args = parser.parse_args()
    (recording,) = (ROOT / "tests/data/speech").rglob(f"{CLIP}.flac")
    if args.quick:
        args.rounds = 1
    load_before = load()
    wanted = programs([path.absolute() for path in args.paths], recording, args.threads)
    runs: dict[str, list[Start]] = {name: [] for name in wanted}
    with tempfile.TemporaryDirectory() as compiled:
        for command in wanted.values():
            start(command, compiled)
        for _ in range(args.rounds):
            for name, command in wanted.items():
                time.sleep(args.pause)
                runs[name].append(start(command, compiled))
    found = figures(runs)
    rows = [
        (
            name,
            f"{1e3 * entry['seconds']:.0f}",
            " + ".join(f"{1e3 * part:.0f}" for part in entry.get("parts", {}).values()),
            *(f"{entry['bytes'][kind] / 1e6:.0f}" for kind in entry.get("bytes", {})),
        )
        for name, entry in found.items()
    ]
    width = max(map(len, rows))
    rows = [(*row, *[""] * (width - len(row))) for row in rows]
    header = ("", "ms", "imports + load + first text", "peak MB", "own MB", "file MB")[:width]
    slowest = max(entry["seconds"] for name, entry in found.items() if args.paths[0].name in name)
    bars = [
        Verdict(
            f"{MODULES} < {IMPORT_BAR} s",
            found[MODULES]["inside"] < IMPORT_BAR,
            f"{found[MODULES]['inside']:.3f}",
        ),
        Verdict(
            f"process to {FIRST}, {args.paths[0].name} < {FIRST_BAR} s",
            slowest < FIRST_BAR,
            f"{slowest:.3f}",
        ),
    ]
    about = {"clip": CLIP, "rounds": args.rounds, "load_before": load_before, "programs": found}
    title = f"Cold start, {args.threads} threads, medians of {args.rounds} processes"
    return finish("cold-cpu", args, about, {title: table(header, rows)}, bars)


if __name__ == "__main__":
    sys.exit(main())
