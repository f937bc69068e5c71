"""Check and measure whisper_opt on the NVIDIA GPU of this machine.

    python scripts/gpu_check.py                    # everything, for up to 8 minutes
    python scripts/gpu_check.py                    # again: continues where it stopped
    python scripts/gpu_check.py --device cpu --sizes test

Needs only the dependencies of whisper_opt, onnx and onnxruntime or onnxruntime-gpu: no network, no
weights (they are random with a fixed seed), no installation of whisper_opt. Uses tensorrt,
tensorrt_rtx, CUDA in ONNX Runtime and torch if they are installed, and reports them as missing if
not. Every check runs in its own process, so that a crash or hang affects nothing else. Results are
written to benchmarks/results/gpu-<GPU>.json as they come; engines, plans and the checks' output
stay in the work folder.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from gpu.checks import Check, all_checks, chosen, run_check  # noqa: E402  # the path is set above
from gpu.engines import Setting  # noqa: E402
from gpu.outcome import FAILED, OK, Results  # noqa: E402
from gpu.report import report  # noqa: E402
from gpu.sizes import SIZES  # noqa: E402

from whisper_opt.runtime.gpus import find_gpus  # noqa: E402

PACKAGES = (
    "cuda-bindings",
    "numpy",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "tensorrt",
    "tensorrt-cu12",
    "tensorrt-cu13",
    "tensorrt-rtx",
    "torch",
)
GRACE = 20.0
"""Seconds that a check may exceed its share of time before it is killed."""


def version(distribution: str) -> str:
    """Version of a distribution; empty if it is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


def environment(on_cpu: bool, index: int) -> dict[str, Any]:
    """The machine and the versions of packages."""
    driver = find_gpus()
    gpu = driver.gpus[index] if not on_cpu and index < len(driver.gpus) else None
    versions = {name: version(name) for name in PACKAGES}
    return {
        "device": platform.processor() or platform.machine() if gpu is None else gpu.name,
        "compute_capability": None if gpu is None else list(gpu.sm),
        "memory_bytes": None if gpu is None else gpu.memory,
        "driver_cuda": None if driver.cuda is None else list(driver.cuda),
        "no_gpu": "the CPU was requested" if on_cpu else driver.error,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "packages": {name: found for name, found in versions.items() if found},
    }


def messages(path: Path) -> Iterator[dict[str, Any]]:
    """The output of a child; an incomplete last line is dropped."""
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8").split("\n"):
        with contextlib.suppress(ValueError):
            yield json.loads(line)


def in_child(
    check: Check, parts: Sequence[str], seconds: float, args: argparse.Namespace, results: Results
) -> tuple[str, str]:
    """Run one check in its own process; returns its outcome and error."""
    path = args.work / "messages" / f"{os.getpid()}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    command = [sys.executable, str(Path(__file__).resolve()), *args.given]
    command += ["--child", check.name, "--parts", *parts, "--seconds", str(seconds)]
    command += ["--messages", str(path)]
    outcome, error = FAILED, ""
    log = args.work / "logs" / f"{check.name.replace('/', ' ')}.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    try:
        with log.open("w", encoding="utf-8") as output:
            done = subprocess.run(
                command, timeout=seconds + GRACE, stdout=output, stderr=subprocess.STDOUT
            )
        last = (log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or [""])[-1]
        how = f"signal {-done.returncode}" if done.returncode < 0 else f"status {done.returncode}"
        error = f"the process ended with {how}: {last[:500]}"
    except subprocess.TimeoutExpired:
        error = f"{OUT_OF_TIME} after {seconds:.0f} s"
    for message in messages(path):
        if "part" in message:
            results.part(check.name, message["part"], message["figures"])
        else:
            outcome, error = message["outcome"], message["error"]
    path.unlink(missing_ok=True)
    return outcome, error


OUT_OF_TIME = "stopped, out of time"


def child(args: argparse.Namespace, checks: Sequence[Check]) -> int:
    """Run in the child of :func:`in_child`; always writes an outcome."""
    check = next(check for check in checks if check.name == args.child)

    def tell(**message: Any) -> None:
        with args.messages.open("a", encoding="utf-8") as file:
            file.write(json.dumps(message) + "\n")

    outcome, error = run_check(
        check,
        setting(args),
        args.parts,
        args.seconds,
        lambda part, figures: tell(part=part, figures=figures),
    )
    tell(outcome=outcome, error=error)
    return 0


def setting(args: argparse.Namespace) -> Setting:
    on_cpu = args.device == "cpu"
    return Setting(args.work, args.device_index, on_cpu, args.models, args.threads)


def run_all(args: argparse.Namespace, checks: Sequence[Check], results: Results) -> bool:
    """Run the remaining checks until the time is up; returns whether all were started."""
    end = time.monotonic() + 60 * args.minutes
    for check in checks:
        parts = results.missing(check.name, check.parts)
        if not parts:
            continue
        left = end - time.monotonic()
        if left < 2:
            return False
        begin = time.monotonic()
        print(f"{check.name} ...", end=" ", flush=True)
        if args.in_process:
            outcome, error = run_check(
                check,
                setting(args),
                parts,
                left,
                lambda part, figures, name=check.name: results.part(name, part, figures),  # type: ignore[misc]
            )
        else:
            outcome, error = in_child(check, parts, left, args, results)
        seconds = time.monotonic() - begin
        done = results.parts(check.name)
        late = [part for part in check.parts if part not in done] if outcome == OK else []
        timely = not error.startswith(OUT_OF_TIME)
        results.end(check.name, outcome, error, seconds, late, counts=timely)
        print(f"{outcome} ({seconds:.1f} s) {error}", flush=True)
    return True


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        epilog="exit status: 0, whatever the results; 3 if time ran out before all checks started",
    )
    sizes = [size for size in SIZES if size != "test"]
    parser.add_argument("--minutes", type=float, default=8.0, help="begin nothing after (8)")
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=sizes)
    parser.add_argument("--device", choices=("auto", "cpu"), default="auto")
    parser.add_argument("--device-index", type=int, default=0, help="which GPU (0)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: one per physical core)")
    parser.add_argument("--only", nargs="+", default=[], metavar="PATTERN", help="e.g. latency/*")
    parser.add_argument("--redo", nargs="+", default=[], metavar="PATTERN", help="forget these")
    parser.add_argument("--list", action="store_true", help="list the checks and run none")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "gpu_check")
    parser.add_argument("--models", type=Path, default=ROOT / "models", help="real checkpoints")
    parser.add_argument("--out", type=Path, help="JSON (benchmarks/results/gpu-<GPU>.json)")
    parser.add_argument("--in-process", action="store_true", help="run the checks in this process")
    for name, kind in (("--child", str), ("--seconds", float), ("--messages", Path)):
        parser.add_argument(name, type=kind, help=argparse.SUPPRESS)
    parser.add_argument("--parts", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    args.given = ["--device", args.device, "--device-index", str(args.device_index)]
    args.given += [] if args.threads is None else ["--threads", str(args.threads)]
    args.given += ["--work", str(args.work), "--models", str(args.models), "--sizes", *args.sizes]
    return args


def main(argv: Sequence[str] | None = None) -> int:
    args = arguments(argv)
    found = environment(args.device == "cpu", args.device_index)
    if args.child is None and found["compute_capability"] is None and args.device != "cpu":
        print(f"no GPU: {found['no_gpu']}; running what the CPU can run")
        args.device = "cpu"
        args.given[1] = "cpu"
    checks = all_checks(args.sizes, on_cpu=args.device == "cpu")
    if args.child is not None:
        return child(args, checks)
    wanted = chosen(checks, args.only)
    if args.list:
        print("\n".join(check.name for check in wanted))
        return 0
    name = re.sub(r"[^a-z0-9]+", "-", found["device"].lower()).strip("-")
    path = args.out or ROOT / "benchmarks" / "results" / f"gpu-{name}.json"
    results = Results(path, found)
    if args.redo:
        results.forget([check.name for check in chosen(checks, args.redo)])
    complete = run_all(args, wanted, results)
    results.save()
    print("\n" + report(results.content, SIZES))
    print(f"\nfigures: {path}")
    if not complete:
        print("time is up: run the same command again to continue")
    return 0 if complete else 3


if __name__ == "__main__":
    sys.exit(main())
