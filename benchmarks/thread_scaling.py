"""How calls of an engine speed up with threads: measured on this machine, computed beyond it.

    python benchmarks/thread_scaling.py build/large/small/engine --measure 1 2 --compute 4 8

A process per number of threads, in turns; medians of the rounds. From the times T1 and Tn of one
and of the most threads measured follow the part that does not speed up, s = (n Tn - T1) / (n - 1),
and the rest, p = T1 - s. With m threads a call takes s + p / m, but not less than the bytes that it
reads at the bandwidth of the memory (roofline.py), which is measured here with all threads: a step
reads all weights of the decoder once. Processors with more cores often have more bandwidth than
this one, so that steps may be faster than computed. Needs an otherwise idle machine.
"""

from __future__ import annotations

import contextlib
import statistics
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from common import arguments, finish, load, table
from peers.calls import KINDS
from peers.catalog import BENCHMARKS
from roofline import MEMORY, Memory, Model, _timed

from whisper_opt.cli.bench.machine import busy_cores
from whisper_opt.cli.bench.measure import turns
from whisper_opt.cli.bench.workers import Program, Worker
from whisper_opt.runtime.engine import Engine, read_engine

STEPS = 32


def bandwidth(threads: int) -> float:
    """Bytes per second that the threads read together."""
    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for size in MEMORY:
            memory = Memory(size, threads, pool)
            best = max(best, memory.bytes / min(_timed(memory.read) for _ in range(8)))
    return best


def sizes(engine: Engine) -> dict[str, float]:
    """Bytes that each call must read, with kernels."""
    model = Model(engine, kernels=True)
    return {
        kind: (model.decoder(rows, 1, STEPS) if rows else model.encoder()).bytes
        for kind, rows in KINDS.items()
    }


def measure(engine: Engine, args: Any) -> dict[int, dict[str, float]]:
    """Median seconds of every call, by number of threads."""
    times: dict[int, dict[str, list[float]]] = {}
    with contextlib.ExitStack() as stack:
        workers = []
        for threads in args.measure:
            program = Program(f"{threads} threads", BENCHMARKS, "peers.calls_whisper_opt")
            worker = stack.enter_context(contextlib.closing(Worker(program)))
            fields = {"threads": threads, "n_mels": engine.manifest.dims.n_mels}
            worker.request("load", model=str(engine.path.resolve()), **fields)
            worker.request("transcribe")
            workers.append(worker)
            times[threads] = {kind: [] for kind in KINDS}
        for i in turns(len(workers), args.rounds):
            for kind, rows in KINDS.items():
                busy_cores(args.pause)
                found = workers[i].request("transcribe", rows=rows, n=STEPS)
                times[args.measure[i]][kind].append(found["wall"])
    return {
        threads: {kind: statistics.median(every) for kind, every in found.items()}
        for threads, found in times.items()
    }


def computed(
    measured: Mapping[int, Mapping[str, float]],
    n_bytes: Mapping[str, float],
    rate: float,
    threads: Sequence[int],
) -> dict[int, dict[str, float]]:
    """Seconds of every call with other numbers of threads; see the head of this file."""
    most = max(measured)
    found: dict[int, dict[str, float]] = {m: {} for m in threads}
    for kind, one in measured[1].items():
        serial = max((most * measured[most][kind] - one) / (most - 1), 0.0)
        for m in threads:
            found[m][kind] = max(serial + (one - serial) / m, n_bytes[kind] / rate)
    return found


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("engine", type=Path)
    parser.add_argument("--measure", nargs="+", type=int, default=[1, 2], help="with 1")
    parser.add_argument("--compute", nargs="+", type=int, default=[4, 8])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pause", type=float, default=0.3, help="seconds before each run")
    args = parser.parse_args()
    args.measure = sorted({*args.measure})
    if 1 not in args.measure or len(args.measure) < 2:
        parser.error("--measure needs 1 and at least one more number")
    args.threads = max(args.measure)  # for the report
    args.rounds = 1 if args.quick else args.rounds
    engine = read_engine(args.engine)
    state = {"load_before": load(), "busy_cores_before": busy_cores()}
    rate = bandwidth(args.threads)
    measured = measure(engine, args)
    more = computed(measured, sizes(engine), rate, args.compute)
    rows = [
        (f"{threads}{note}", *(f"{1e3 * found[kind]:.1f}" for kind in KINDS))
        for part, note in ((measured, ""), (more, ", computed"))
        for threads, found in part.items()
    ]
    title = f"{args.engine}, milliseconds; memory {rate / 1e9:.0f} GB/s"
    figures = {
        **state,
        "engine": args.engine.name,
        "bytes_per_second": rate,
        "measured_s": measured,
        "computed_s": more,
    }
    return finish("thread-scaling", args, figures, {title: table(("threads", *KINDS), rows)}, [])


if __name__ == "__main__":
    sys.exit(main())
