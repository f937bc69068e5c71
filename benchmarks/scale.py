"""How many machines: a sizing table, and waiting times by simulation, from `whisper-opt bench`.

    whisper-opt bench engines/base recordings/* --threads 1 --batch-size 1 2 4 8 16 --json base.json
    python benchmarks/scale.py size base.json --hours 10000
    python benchmarks/scale.py queue base.json

`size` prints for every batch size what a process transcribes, the memory per row, and how many
processes transcribe so many hours of audio per day.

`queue` simulates processes that share one queue (the least busy one takes the next request).
Requests arrive at random (Poisson) and are the recordings of the measurement, drawn with
replacement. Each process works as the engine does: in every turn it starts at most two windows,
and decodes one token in each row. What that takes comes from the measurement: reading and the
spectrogram per second of audio, the encoder and the prompt per window, and for a decode step a line
through the steps of all batch sizes. "One at a time" is the same with one row: an M/G/k queue.
The load is a share of what full batches would transcribe.
"""

from __future__ import annotations

import argparse
import dataclasses
import heapq
import json
import math
import sys
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

WINDOW_S = 30.0
ADMITTED = 2
"""Windows that are started in a turn: the default of the engine."""


@dataclasses.dataclass(frozen=True)
class Service:
    """What a process takes for its work, in seconds.

    Attributes:
        read: per second of audio.
        window: per window: encoder and prompt.
        step: per decode step.
        row: per decode step and row.
        tokens: tokens per second of audio.
        lengths: of recordings, in seconds.
    """

    read: float
    window: float
    step: float
    row: float
    tokens: float
    lengths: tuple[float, ...]

    @classmethod
    def of(cls, bench: dict[str, Any]) -> Service:
        """Read the JSON of `whisper-opt bench` for one engine and several batch sizes."""
        runs = sorted(bench["configurations"], key=lambda run: run["batch_size"])
        if len({(run["engine"], run["threads"], run["beam_size"]) for run in runs}) != 1:
            sys.exit("the file has several engines, threads or beams; expected batch sizes only")
        stages = [run["stages_s"] for run in runs]
        steps = [run["step_ms"]["n"] / len(run["rounds_s"]) for run in runs]
        if len(steps) < 2:
            sys.exit("the file has one batch size; give bench --batch-size 1 2 4 8")
        rows = [run["tokens"] / n for run, n in zip(runs, steps)]
        seconds = [stage["step"] / n for stage, n in zip(stages, steps)]
        slope, base = np.polyfit(rows, seconds, 1)
        full = runs[-1]
        reading = sum(stages[-1][name] for name in ("audio", "mel", "vad", "other"))
        return cls(
            read=reading / full["audio_s"],
            window=(stages[-1]["encode"] + stages[-1]["prefill"]) / full["windows"],
            step=max(float(base), 0.0),
            row=float(slope),
            tokens=full["tokens"] / full["audio_s"],
            lengths=tuple(each["seconds"] for each in bench["recordings"]),
        )

    def windows(self, length: float) -> list[int]:
        """Tokens of the windows of a recording."""
        n = max(1, math.ceil(length / WINDOW_S))
        return [max(1, round(self.tokens * length / n))] * n

    def capacity(self, rows: int) -> float:
        """Seconds of audio per second of a process whose rows are all in use."""
        mean = sum(self.lengths) / len(self.lengths)
        parts = [self.windows(length) for length in self.lengths]
        windows = sum(map(len, parts)) / len(parts)
        tokens = sum(map(sum, parts)) / len(parts)
        step = (self.step + self.row * rows) / rows
        return mean / (self.read * mean + self.window * windows + step * tokens)


# --- sizing ---------------------------------------------------------------------------------------


def sizing(bench: dict[str, Any], hours: float, utilization: float) -> list[list[str]]:
    """Rows of the table."""
    runs = bench["configurations"]
    first = min(runs, key=lambda run: run["batch_size"])
    found = []
    for run in runs:
        speed = run["audio_s"] / run["median_s"]
        more = run["memory"]["peak_bytes"] - first["memory"]["peak_bytes"]
        rows = run["batch_size"] - first["batch_size"]
        processes = math.ceil(hours * 3600 / 86400 / (speed * utilization))
        found.append(
            [
                run["name"],
                f"{speed:.0f}",
                f"{speed / run['threads']:.0f}" if run["device"] == "cpu" else "-",
                f"{run['memory']['peak_bytes'] / 2**20:.0f}",
                f"{more / rows / 2**20:.0f}" if rows else "-",
                str(processes),
            ]
        )
    return found


# --- queueing -------------------------------------------------------------------------------------


class _Process:
    """One process; its clock is that of the end of its last turn."""

    def __init__(self, service: Service, rows: int) -> None:
        self._service = service
        self._rows = rows
        self.clock = 0.0
        self.waiting: deque[tuple[float, float, list[int]]] = deque()
        self._running: list[list[Any]] = []
        self._ending: list[float] = []

    @property
    def load(self) -> int:
        """Requests that it has."""
        return len(self.waiting) + len(self._running) + len(self._ending)

    def turn(self) -> list[tuple[float, float]]:
        """End the last turn, begin another; returns (arrival, end) of what the last one ended."""
        ended = [(arrival, self.clock) for arrival in self._ending]
        self._ending = []
        if self.load:
            self._begin()
        return ended

    def _begin(self) -> None:
        taken = 0.0
        for _ in range(min(ADMITTED, self._rows - len(self._running), len(self.waiting))):
            arrival, length, windows = self.waiting.popleft()
            taken += self._service.read * length / len(windows) + self._service.window
            self._running.append([windows[0], windows[1:], arrival, length / len(windows)])
        taken += self._service.step + self._service.row * len(self._running)
        self.clock += taken
        left = []
        for row in self._running:
            row[0] -= 1
            if row[0]:
                left.append(row)
            elif row[1]:  # its next window begins at once
                self.waiting.appendleft((row[2], row[3] * len(row[1]), row[1]))
            else:
                self._ending.append(row[2])
        self._running = left


def simulate(
    service: Service, *, processes: int, rows: int, per_second: float, n: int, seed: int
) -> list[float]:
    """Seconds from arrival to answer of ``n`` requests; the first tenth is left out.

    Args:
        service: what a process takes.
        processes: how many share the queue.
        rows: maximum number of windows that each decodes at once.
        per_second: requests that arrive.
        n: requests.
        seed: of their times and lengths.
    """
    rng = np.random.default_rng(seed)
    arrivals = np.cumsum(rng.exponential(1 / per_second, n)).tolist()
    lengths = rng.choice(service.lengths, n).tolist()
    pool = [_Process(service, rows) for _ in range(processes)]
    busy: list[tuple[float, int]] = []
    ended: list[tuple[float, float]] = []

    def work(until: float) -> None:
        while busy and busy[0][0] <= until:
            _, i = heapq.heappop(busy)
            ended.extend(pool[i].turn())
            if pool[i].load:
                heapq.heappush(busy, (pool[i].clock, i))

    for arrival, length in zip(arrivals, lengths):
        work(arrival)
        i = min(range(processes), key=lambda i: (pool[i].load, i))
        if not pool[i].load:
            pool[i].clock = max(pool[i].clock, arrival)
            heapq.heappush(busy, (pool[i].clock, i))
        pool[i].waiting.append((arrival, length, service.windows(length)))
    work(math.inf)
    return [end - arrival for arrival, end in sorted(ended)[n // 10 :]]


def queueing(
    service: Service, *, rows: int, loads: Sequence[float], pools: Sequence[int], n: int, seed: int
) -> list[list[str]]:
    """Rows of the table: for every number of processes and load, p50 and p95 in seconds."""
    mean = sum(service.lengths) / len(service.lengths)
    found = []
    for processes in pools:
        for load in loads:
            per_second = load * processes * service.capacity(rows) / mean
            cells = []
            for each in (1, rows):
                if load * service.capacity(rows) >= service.capacity(each):
                    cells += ["grows", "grows"]
                    continue
                waits = simulate(
                    service, processes=processes, rows=each, per_second=per_second, n=n, seed=seed
                )
                cells += [f"{np.percentile(waits, q):.2f}" for q in (50, 95)]
            found.append([str(processes), f"{load:.0%}", f"{per_second:.1f}", *cells])
    return found


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    lines = [head, ["---:"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> int:
    """Run the program."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("size", "queue"))
    parser.add_argument("bench", type=Path, help="JSON of whisper-opt bench")
    parser.add_argument("--hours", type=float, default=10_000, help="hours of audio per day")
    parser.add_argument("--utilization", type=float, default=0.7, help="share of the time at work")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    bench = json.loads(args.bench.read_text("utf-8"))
    if args.what == "size":
        head = ["configuration", "audio s per s", "per core", "peak MiB", "MiB per row"]
        head += [f"processes for {args.hours:g} h per day at {args.utilization:.0%}"]
        print(markdown(head, sizing(bench, args.hours, args.utilization)))
        return 0
    service = Service.of(bench)
    print(
        f"per second of audio: {1e3 * service.read:.1f} ms to read, {service.tokens:.1f} tokens;"
        f" per window: {1e3 * service.window:.0f} ms; decode step: {1e3 * service.step:.2f} ms"
        f" + {1e3 * service.row:.2f} ms per row; audio s per s: {service.capacity(1):.1f} one at a"
        f" time, {service.capacity(args.rows):.1f} with {args.rows} rows\n"
    )
    head = ["processes", "load", "requests per s", "p50, one at a time", "p95"]
    head += [f"p50, {args.rows} rows", "p95"]
    rows = queueing(
        service, rows=args.rows, loads=(0.5, 0.7, 0.9, 0.95), pools=(1, 4, 16, 64),
        n=args.requests, seed=args.seed,
    )  # fmt: skip
    print(markdown(head, rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
