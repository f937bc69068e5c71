"""Time and memory of models in the shapes of small, turbo and large-v3, beside other systems.

    pip install -e '.[cpu,export]'
    python scripts/get_model.py base                     # its vocabulary
    python benchmarks/peers/install.py faster-whisper
    python benchmarks/large_models.py small --whisper-cpp whisper.cpp/build
    python benchmarks/large_models.py large-v3-turbo large-v3 --isa avx2

Weights are random in the true shapes (random_checkpoint.py) and the same for every system, in 8
bits: an engine (``--precision``: int8, int8-avx2), CTranslate2's int8 (which faster-whisper runs),
and whisper.cpp's q8_0. Per model and instruction set, the systems are loaded one after the other
and take turns. Rows are

* a window: log-mel of 30 s to the scores after a prompt of four tokens;
* a step of one row, and of five rows (beams of one window), after that prompt.

Both are given as wall time and as CPU time of the process, which other work on the machine inflates
less; medians of the rounds. CPU time includes threads that wait for others by spinning. Memory is
that of a fresh process after loading, and its peak at the end. ``--isa avx2`` holds this library
(WHISPER_OPT_KERNELS) and CTranslate2 (CT2_FORCE_CPU_ISA, ONEDNN_MAX_CPU_ISA) to AVX2; for
whisper.cpp it takes a build of its own (``--whisper-cpp-avx2``). What was written to ``--work`` is
used again: 6 GB for large-v3-turbo, 11 GB for large-v3.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common import RESULTS, ROOT, log
from peers.calls import KINDS
from peers.catalog import BENCHMARKS, python_of
from random_checkpoint import SHAPES

from whisper_opt.cli.bench.machine import busy_cores
from whisper_opt.cli.bench.measure import turns
from whisper_opt.cli.bench.report import environment, table, write_json
from whisper_opt.cli.bench.workers import Program, Worker, WorkerError
from whisper_opt.runtime.engine import PACKED

AVX2 = {
    "WHISPER_OPT_KERNELS": "avx2",
    "CT2_FORCE_CPU_ISA": "AVX2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
}
OURS = "whisper_opt"
THEIRS = ("faster-whisper int8", "whisper.cpp q8_0")


def prepared(model: str, work: Path, precision: str, forms: Sequence[str]) -> Path:
    """The folder of a model's weights in all forms; those that are missing are written.

    They are written by processes of their own, so that this one stays small.
    """
    folder = work / model
    script = str(BENCHMARKS / "random_checkpoint.py")
    if not (folder / "checkpoint" / "model.safetensors").exists():
        run(script, model, str(folder / "checkpoint"), "--vocabulary", str(ROOT / "models/base"))
    engine = folder / f"engine-{precision}"
    if not engine.exists():
        run("-m", "whisper_opt", "export", str(folder / "checkpoint"), str(engine),
            "--precision", precision)  # fmt: skip
    missing = [form for form in forms if not (folder / form).exists()]
    for form in missing:  # one at a time: a converter holds all weights
        script = str(BENCHMARKS / "peers" / "convert.py")
        run(script, str(folder / "checkpoint"), str(folder), "--forms", form)
    return folder


def run(*arguments: str) -> None:
    """Run Python with these arguments."""
    log.info("%s", " ".join(arguments))
    subprocess.run([sys.executable, *arguments], check=True, cwd=ROOT)


def programs(
    folder: Path, n_mels: int, args: argparse.Namespace
) -> dict[str, tuple[Program, dict[str, Any], int]]:
    """Per system its program, the fields of its ``load`` job, and bytes of its files."""
    variables = AVX2 if args.isa == "avx2" else {}
    same = {"threads": args.threads, "n_mels": n_mels}
    build = args.whisper_cpp_avx2 if args.isa == "avx2" else args.whisper_cpp
    engine = folder / f"engine-{args.precision}"
    ct2, ggml = folder / "ctranslate2", folder / "ggml-q8_0.bin"
    names = [*PACKED, *(f"{name.partition('.')[0]}.data" for name in PACKED)]
    found = {
        OURS: (
            Program(OURS, BENCHMARKS, "peers.calls_whisper_opt", environment=variables),
            {"model": str(engine), **same},
            sum((engine / name).stat().st_size for name in names),
        )
    }
    python = Path(python_of("faster-whisper"))
    if python.exists():
        variables = {**variables, "OMP_NUM_THREADS": str(args.threads)}
        program = Program(THEIRS[0], BENCHMARKS, "peers.calls_ctranslate2", python, variables)
        size = (ct2 / "model.bin").stat().st_size
        found[THEIRS[0]] = program, {"model": str(ct2), **same}, size
    if build is not None:
        program = Program(THEIRS[1], BENCHMARKS, "peers.calls_whisper_cpp")
        fields = {"model": str(ggml), "build": str(build.resolve()), **same}
        found[THEIRS[1]] = program, fields, ggml.stat().st_size
    return found


def measure(folder: Path, n_mels: int, args: argparse.Namespace) -> dict[str, Any]:
    """Figures of every system, by name."""
    found: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        workers: dict[str, Worker] = {}
        for name, (program, fields, size) in programs(folder, n_mels, args).items():
            log.info("loading %s", name)
            worker = stack.enter_context(contextlib.closing(Worker(program)))
            response = loaded(worker, fields)
            found[name] = {"file_bytes": size, **response, "times": {kind: [] for kind in KINDS}}
            for rows in (0, 1):  # warm
                worker.request("transcribe", rows=rows, n=4)
            workers[name] = worker
        names, kinds = list(workers), list(KINDS)
        end = time.monotonic() + args.minutes * 60
        for n, i in enumerate(turns(len(names), args.rounds * len(kinds))):
            if n and n % (len(names) * len(kinds)) == 0 and time.monotonic() > end:
                break
            kind = kinds[n // len(names) % len(kinds)]
            log.info("%s: %s", names[i], kind)
            busy = busy_cores(args.pause)
            response = workers[names[i]].request("transcribe", rows=KINDS[kind], n=args.steps)
            found[names[i]]["times"][kind].append([response["wall"], response["cpu"], busy])
            found[names[i]]["peak_bytes"] = response["memory"]["peak_bytes"]
    return found


def loaded(worker: Worker, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Load a model: seconds, and memory before anything was computed."""
    response = worker.request("load", **fields)
    response["load_s"] = round(response.pop("seconds"), 3)
    response["loaded_bytes"] = response.pop("memory")["resident_bytes"]
    return response


def figures(found: Mapping[str, Any]) -> dict[str, Any]:
    """Medians in milliseconds beside what was measured."""
    result = {}
    for name, entry in found.items():
        medians = {}
        for kind, times in entry["times"].items():
            for i, clock in enumerate(("wall", "cpu")):
                value = statistics.median(each[i] for each in times)
                medians[f"{kind}, {clock} ms"] = round(1e3 * value, 3)
        result[name] = {**entry, **medians}
    return result


def report(title: str, entries: Mapping[str, Any]) -> str:
    """The table of one model; factors are relative to this library."""
    ours, lines = entries[OURS], []
    for name, entry in entries.items():
        cells = [
            f"{entry[key]:.1f} ({entry[key] / ours[key]:.2f}x)"
            for kind in KINDS
            for key in (f"{kind}, wall ms", f"{kind}, cpu ms")
        ]
        size = [f"{entry[key] / 1e6:.0f}" for key in ("file_bytes", "loaded_bytes", "peak_bytes")]
        lines.append((name, *cells, f"{entry['load_s']:.2f}", f"{entry['load_cpu_s']:.2f}", *size))
    kinds = [f"{kind}, {clock} ms" for kind in KINDS for clock in ("wall", "CPU")]
    header = ("", *kinds, "load s", "load CPU s", "file MB", "loaded MB", "peak MB")
    return f"## {title}\n\n{table(header, lines)}"


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="+", choices=list(SHAPES), metavar="MODEL")
    parser.add_argument("--isa", choices=("best", "avx2"), default="best")
    parser.add_argument("--precision", choices=("int8", "int8-avx2"), default="int8")
    parser.add_argument("--whisper-cpp", type=Path, metavar="BUILD")
    parser.add_argument("--whisper-cpp-avx2", type=Path, metavar="BUILD")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "large", help="weights")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--minutes", type=float, default=6.0, help="no further round after these")
    parser.add_argument("--pause", type=float, default=0.3, help="seconds before each run")
    parser.add_argument("--prepare", action="store_true", help="write the weights only")
    parser.add_argument("--out", type=Path, default=RESULTS / "large-models.json")
    return parser.parse_args()


def main() -> int:
    """Measure all models; results of other models and instruction sets stay in the file."""
    args = arguments()
    command = ["python", f"benchmarks/{Path(__file__).name}", *sys.argv[1:]]
    file: dict[str, Any] = {"models": {}}
    if args.out.exists():
        file = json.loads(args.out.read_text(encoding="utf-8"))
    for model in args.models:
        forms = ["ctranslate2"] if Path(python_of("faster-whisper")).exists() else []
        forms += ["ggml-q8_0.bin"] if args.whisper_cpp or args.whisper_cpp_avx2 else []
        folder = prepared(model, args.work, args.precision, forms)
        if args.prepare:
            continue
        try:
            entries = figures(measure(folder, SHAPES[model].n_mels, args))
        except WorkerError as error:
            log.error("%s: %s", model, error)
            return 1
        conditions = {"threads": args.threads, "steps": args.steps}
        result = {**environment(command), **conditions, "systems": entries}
        name = args.isa if args.precision == "int8" else f"{args.isa}, {args.precision}"
        print(report(f"{model}, {name}", entries), flush=True)
        file["models"].setdefault(model, {})[name] = result
        write_json(args.out, file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
