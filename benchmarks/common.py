"""Common parts of the benchmarks: clips, stored results, timing, tables, verdicts, machine."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import json
import logging
import platform
import statistics
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Callable, TypedDict

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from tests.support.golden import Clip, clip, clip_pcm, clips  # noqa: E402  # the path is set above
from whisper_opt.cli.bench.machine import (  # noqa: E402
    BUSY,
    command_line,
    commit,
    load,
)
from whisper_opt.cli.bench.report import table, write_json  # noqa: E402
from whisper_opt.core.arrays import F32  # noqa: E402
from whisper_opt.core.cpu import cpu_info  # noqa: E402
from whisper_opt.core.dims import SAMPLE_RATE  # noqa: E402
from whisper_opt.core.version import installed_version  # noqa: E402

__all__ = [
    "ROOT",
    "SAMPLE_RATE",
    "Clip",
    "Pieces",
    "Run",
    "Timed",
    "Verdict",
    "arguments",
    "clip",
    "clip_pcm",
    "clips",
    "command",
    "digest",
    "environment",
    "finish",
    "installed_version",
    "joined",
    "load",
    "log",
    "measure",
    "table",
    "total",
    "write_json",
]

log = logging.getLogger("benchmarks")

BUILD = ROOT / "build" / "benchmarks"
RESULTS = ROOT / "benchmarks" / "results"
PACKAGES = (
    "onnxruntime",
    "numpy",
    "openai-whisper",
    "torch",
    "faster-whisper",
    "ctranslate2",
    "jiwer",
    "whisper-normalizer",
)

Run = Callable[[F32], str]
"""Transcribes 16 kHz mono samples [n]."""


# ---------------------------------------------------------------- command line


def arguments(doc: str | None, models: Sequence[str] = ("tiny.en", "base")) -> Any:
    """A parser with the common arguments; the first line of ``doc`` is its description."""
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(models))
    parser.add_argument("--models-dir", type=Path, default=ROOT / "models", help="checkpoints")
    parser.add_argument(
        "--engines", type=Path, default=ROOT / "engines", help="exported there if missing"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--quick", action="store_true", help="dry run with little audio and one round"
    )
    parser.add_argument("--force", action="store_true", help="discard stored results")
    parser.add_argument("--pieces", type=Path, default=BUILD, help="folder of stored results")
    parser.add_argument(
        "--out",
        type=Path,
        help="folder of the report; default: benchmarks/results, but not with --quick",
    )
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    for name in ("faster_whisper", "httpx"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return parser


def joined(parts: Sequence[Clip], seed: int = 0, pause: float = 0.5) -> tuple[F32, str]:
    """Clips one after the other in a random order: float32 samples [n] at 16 kHz, and their text.

    ``pause``: seconds of silence after each.
    """
    order = np.random.default_rng(seed).permutation(len(parts))
    silence = np.zeros(round(pause * SAMPLE_RATE), np.float32)
    samples = [part for i in order for part in (clip_pcm(parts[i].id), silence)]
    return np.concatenate(samples), " ".join(parts[i].text for i in order)


# ---------------------------------------------------------------- runs kept on disk


class Pieces:
    """Results of single runs by name, stored on disk immediately.

    A name contains everything that the result depends on, including versions, so that no stale
    result is used.
    """

    def __init__(self, path: Path, force: bool = False) -> None:
        self._path = path
        self._known: dict[str, Any] = {}
        if force:
            path.unlink(missing_ok=True)
        if path.exists():
            for line in path.read_text(encoding="utf-8").split("\n"):
                with contextlib.suppress(json.JSONDecodeError):  # empty, or truncated by a kill
                    self._known.update(json.loads(line))

    def get(self, name: Sequence[str], make: Callable[[], Any]) -> Any:
        """The JSON value that ``make`` returns for ``name``, now or in an earlier run."""
        key = " | ".join(name)
        if key not in self._known:
            log.info("%s", key)
            value = make()
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(f"\n{json.dumps({key: value}, ensure_ascii=False)}\n")
            self._known[key] = value
        return self._known[key]


def digest(paths: Iterable[Path]) -> str:
    """Short SHA-256 of the contents of files."""
    whole = hashlib.sha256()
    for path in sorted(paths):
        whole.update(path.read_bytes())
    return whole.hexdigest()[:12]


# ---------------------------------------------------------------- timing


class Timed(TypedDict):
    """Wall times of one system on one clip, in seconds, and its text in the last round."""

    seconds: list[float]
    text: str


def measure(
    runs: Mapping[str, Run],
    sounds: Mapping[str, F32],
    rounds: int,
    pause: float,
    warm_up: Callable[[], object] | None = None,
) -> dict[str, dict[str, Timed]]:
    """Time every run on every clip: by name of the run, then by name of the clip.

    The runs take turns clip by clip, in rotating order, so that disturbances affect all of them
    alike. Before each run there is a pause: worker threads may spin for up to 0.2 s after their
    last work, and would take a core from the next process. Before that everything runs once
    untimed, or ``warm_up`` runs instead.
    """
    names = list(runs)
    before = (load() or [0.0])[0]
    if before > BUSY:
        log.warning("the load is %.1f before timing: times will be unreliable", before)
    if warm_up is None:
        for pcm in sounds.values():
            for run in runs.values():
                run(pcm)
    else:
        warm_up()
    times: dict[str, dict[str, Timed]] = {
        name: {key: {"seconds": [], "text": ""} for key in sounds} for name in names
    }
    for turn in range(rounds):
        for i, (key, pcm) in enumerate(sounds.items()):
            first = (turn + i) % len(names)
            for name in names[first:] + names[:first]:
                time.sleep(pause)
                begin = time.perf_counter()
                text = runs[name](pcm)
                elapsed = time.perf_counter() - begin
                times[name][key]["seconds"].append(round(elapsed, 5))
                times[name][key]["text"] = text
    return times


def total(timed: Mapping[str, Timed]) -> float:
    """Seconds for all clips, each the median of its rounds."""
    return sum(statistics.median(entry["seconds"]) for entry in timed.values())


# ---------------------------------------------------------------- report


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Whether a requirement is met, with the figures."""

    bar: str
    passed: bool
    figures: str

    def __str__(self) -> str:
        return f"{'PASS' if self.passed else 'FAIL'}  {self.bar}: {self.figures}"


def finish(
    name: str,
    args: argparse.Namespace,
    figures: Mapping[str, Any],
    tables: Mapping[str, str],
    verdicts: Sequence[Verdict],
) -> int:
    """Print tables (by title) and verdicts, write the figures; returns 1 if a requirement is not
    met.

    With ``--quick`` the figures go to the build folder.
    """
    for title, text in tables.items():
        print(f"\n## {title}\n\n{text}")
    print()
    for verdict in verdicts:
        print(verdict, "(--quick: proves nothing)" if args.quick else "")
    result = {
        "command": command(),
        "environment": environment(args.threads),
        **figures,
        "verdicts": [dataclasses.asdict(verdict) for verdict in verdicts],
    }
    folder = args.out or (BUILD / "quick" if args.quick else RESULTS)
    write_json(folder / f"{name}.json", result)
    print(f"\nfigures: {folder / name}.json")
    return 0 if all(verdict.passed for verdict in verdicts) else 1


# ---------------------------------------------------------------- the machine


def command() -> str:
    """The command line of this benchmark, with the last parts of paths only."""
    return command_line(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])


def environment(threads: int) -> dict[str, Any]:
    """CPU, versions and commit of the measurement."""
    found = cpu_info()
    return {
        "cpu": found.name,
        "cores": found.cores,
        "threads": threads,
        "python": platform.python_version(),
        "commit": commit(ROOT / "whisper_opt"),
        **{name: installed_version(name) for name in PACKAGES},
    }
