"""Peak memory of long recordings: compares an hour with ten minutes.

    pip install -e '.[cpu,export]'
    python scripts/get_model.py tiny.en
    python benchmarks/memory.py                  # or: --minutes 2 4

The longest speech clip is repeated into a FLAC file, which a fresh process transcribes in batches
of 8 (``strategy="batched"``). Results are the peak resident memory of that process, weights
included. They are stored in build/benchmarks immediately.
"""

from __future__ import annotations

import argparse
import functools
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import soundfile
from common import SAMPLE_RATE, Pieces, Verdict, arguments, clip_pcm, clips, finish, log, table
from systems import Ours

from whisper_opt import Whisper
from whisper_opt.cli.bench.serve import memory

FACTOR = 1.2
"""Maximum ratio of memory of the longest and the shortest recording."""


def write_recording(path: Path, seconds: float) -> None:
    """Write a FLAC file of the longest clip, repeated."""
    pcm = clip_pcm(max(clips(), key=lambda clip: clip.duration_s).id)
    left = round(seconds * SAMPLE_RATE)
    with soundfile.SoundFile(path, "w", SAMPLE_RATE, 1, "PCM_16", format="FLAC") as file:
        while left:
            file.write(pcm[:left])
            left -= min(left, len(pcm))


def transcribe(engine: Path, recording: Path, threads: int, batch_size: int) -> dict[str, Any]:
    """The work of the new process."""
    model = Whisper.load(engine, threads=threads)
    loaded = memory()["peak_bytes"]
    begin = time.perf_counter()
    found = model.transcribe(recording, language="en", strategy="batched", batch_size=batch_size)
    return {
        "loaded_bytes": loaded,
        "peak_bytes": memory()["peak_bytes"],
        "seconds": round(time.perf_counter() - begin, 2),
        "duration": round(found.duration, 2),
        "end": round(found.segments[-1].end, 2) if found.segments else 0.0,
        "words": len(found.text.split()),
    }


def fresh(engine: Path, minutes: float, args: argparse.Namespace) -> dict[str, Any]:
    """Write a recording and transcribe it in a new process."""
    with tempfile.TemporaryDirectory() as folder:
        recording = Path(folder) / "recording.flac"
        write_recording(recording, 60 * minutes)
        log.info("%g minutes: %.1f MB of FLAC", minutes, recording.stat().st_size / 1e6)
        command = [sys.executable, __file__, "--child", str(engine), str(recording)]
        command += ["--threads", str(args.threads), "--batch-size", str(args.batch_size)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def report(args: argparse.Namespace) -> int:
    pieces = Pieces(args.pieces / "memory.jsonl", args.force)
    figures: dict[str, Any] = {"batch_size": args.batch_size, "models": {}}
    rows, bars = [], []
    for model in args.models:
        ours = Ours(args.engines / model, args.models_dir / model, args.threads)
        setup = f"batch {args.batch_size}, {args.threads} threads"
        found = figures["models"][model] = {
            f"{minutes:g}": pieces.get(
                (model, f"{minutes:g} minutes", setup, ours.version),
                functools.partial(fresh, ours.engine, minutes, args),
            )
            for minutes in args.minutes
        }
        for minutes, entry in found.items():
            rows.append(
                (
                    f"{model}, {minutes} min",
                    f"{entry['peak_bytes'] / 2**20:.0f}",
                    f"{entry['loaded_bytes'] / 2**20:.0f}",
                    f"{entry['seconds']:.0f}",
                    entry["words"],
                    f"{entry['end']:.0f} of {entry['duration']:.0f}",
                )
            )
        entries = list(found.values())
        first, last = entries[0], entries[-1]
        ratio = last["peak_bytes"] / first["peak_bytes"]
        whole = all(
            abs(entry["duration"] - 60 * minutes) < 1 and entry["end"] > entry["duration"] - 30
            for minutes, entry in zip(args.minutes, entries)
        )
        bars.append(
            Verdict(
                f"{model}: peak of {args.minutes[-1]:g} minutes at most {FACTOR} of that of"
                f" {args.minutes[0]:g}, all of it transcribed",
                ratio <= FACTOR and whole,
                f"{ratio:.3f}",
            )
        )
    header = ("recording", "peak MiB", "loaded MiB", "s", "words", "last segment ends")
    title = f"Peak memory, batches of {args.batch_size}"
    return finish("memory", args, figures, {title: table(header, rows)}, bars)


def main() -> int:
    parser = arguments(__doc__, models=["tiny.en"])
    parser.add_argument("--minutes", nargs="+", type=float, default=[10.0, 60.0])
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--child", nargs=2, type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        engine, recording = args.child
        print(json.dumps(transcribe(engine, recording, args.threads, args.batch_size)))
        return 0
    if args.quick:
        args.minutes = [1.0, 2.0]
    return report(args)


if __name__ == "__main__":
    sys.exit(main())
