"""Time whole transcriptions against faster-whisper, on the same weights and the same samples.

    pip install -e '.[cpu,export]' faster-whisper
    python scripts/get_model.py tiny.en base
    python benchmarks/latency.py --json benchmarks/results/latency-cpu.json

Every system gets each clip as a 16 kHz array and returns its segments. Systems take turns clip by
clip, in an order that rotates, after one warm-up pass each; a clip's time is the median of its
runs and a system's time is the sum over the clips, so that a disturbance hits all of them alike.
Before each run there is a pause: worker threads may spin for up to 0.2 s after their last work, and
would take a core from whoever comes next.

Greedy, temperature 0, language given, equal thread counts. Without faster-whisper only this
library is timed.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Callable

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.golden import Clip, clip_pcm, clips  # noqa: E402  # the path is set above
from whisper_opt import Whisper  # noqa: E402
from whisper_opt.arrays import F32  # noqa: E402
from whisper_opt.export import export  # noqa: E402

Transcribe = Callable[[F32], str]


def ours(checkpoint: Path, work: Path, threads: int) -> Transcribe:
    engine = export(checkpoint, work / checkpoint.name)
    model = Whisper.load(engine.path, threads=threads)
    return lambda pcm: model.transcribe(pcm, language="en", temperature=0.0).text


def faster_whisper(checkpoint: Path, compute_type: str, threads: int) -> Transcribe:
    from faster_whisper import WhisperModel

    model = WhisperModel(
        str(checkpoint), device="cpu", compute_type=compute_type, cpu_threads=threads
    )

    def transcribe(pcm: F32) -> str:
        segments, _ = model.transcribe(pcm, language="en", beam_size=1, temperature=0.0)
        return "".join(segment.text for segment in segments)

    return transcribe


def measure(
    systems: dict[str, Transcribe], chosen: list[Clip], rounds: int, pause: float
) -> dict[str, dict[str, list[float]]]:
    times: dict[str, dict[str, list[float]]] = {name: {} for name in systems}
    names = list(systems)
    for turn in range(rounds + 1):  # the first round warms up
        for i, clip in enumerate(chosen):
            pcm = clip_pcm(clip.id)
            first = (turn + i) % len(names)
            for name in names[first:] + names[:first]:
                time.sleep(pause)
                begin = time.perf_counter()
                systems[name](pcm)
                elapsed = time.perf_counter() - begin
                if turn:
                    times[name].setdefault(clip.id, []).append(elapsed)
    return times


def summary(times: dict[str, dict[str, list[float]]], seconds: float) -> dict[str, Any]:
    totals = {
        name: sum(statistics.median(runs) for runs in by_clip.values())
        for name, by_clip in times.items()
    }
    base = totals["whisper_opt fp32"]
    return {
        name: {
            "seconds": round(total, 4),
            "real_time_factor": round(total / seconds, 5),
            "times_as_slow": round(total / base, 3),
        }
        for name, total in totals.items()
    }


def environment(threads: int) -> dict[str, Any]:
    def version(name: str) -> str | None:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return None

    cpu = ""
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        cpu = next((line.split(": ", 1)[1] for line in lines if line.startswith("model name")), "")
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    packages = ("onnxruntime", "numpy", "faster-whisper", "ctranslate2")
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": threads,
        "load_before": [round(value, 2) for value in os.getloadavg()],
        "python": platform.python_version(),
        "commit": commit,
        **{name: version(name) for name in packages},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["tiny.en", "base"])
    parser.add_argument("--models-dir", type=Path, default=ROOT / "models")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pause", type=float, default=0.3, help="seconds before each run")
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args()
    chosen = [clip for clip in clips() if clip.language == "en" and clip.kind == "read"]
    seconds = sum(clip.duration_s for clip in chosen)
    result: dict[str, Any] = {
        "command": " ".join(["python", "benchmarks/latency.py", *sys.argv[1:]]),
        "environment": environment(args.threads),
        "clips": [clip.id for clip in chosen],
        "audio_seconds": round(seconds, 2),
        "rounds": args.rounds,
        "pause": args.pause,
        "models": {},
    }
    print(f"{len(chosen)} clips, {seconds:.0f} s of audio, {args.threads} threads")
    with tempfile.TemporaryDirectory() as work:
        for name in args.models:
            checkpoint = args.models_dir / name
            systems = {"whisper_opt fp32": ours(checkpoint, Path(work), args.threads)}
            if importlib.util.find_spec("faster_whisper"):
                for kind in ("float32", "int8"):
                    systems[f"faster-whisper {kind}"] = faster_whisper(
                        checkpoint, kind, args.threads
                    )
            found = summary(measure(systems, chosen, args.rounds, args.pause), seconds)
            result["models"][name] = found
            for system, row in found.items():
                print(
                    f"{name:8} {system:24} {row['seconds']:8.2f} s"
                    f"  real-time factor {row['real_time_factor']:.4f}"
                    f"  x{row['times_as_slow']:.2f}"
                )
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
