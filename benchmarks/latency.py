"""Time whole transcriptions against faster-whisper, on the same weights and the same samples.

    pip install -e '.[cpu,export]' faster-whisper
    python scripts/get_model.py tiny.en base
    python benchmarks/latency.py

Every system gets each clip as a 16 kHz array and returns its segments; systems take turns (see
`measure` in benchmarks/common.py). The time of a clip is the median of its runs, that of a system
the sum over the clips.

Greedy, temperature 0, language given, equal thread counts, no voice activity detection; this
library with its default, which uses it, is a separate row. Without faster-whisper only this library
is timed.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import sys
from typing import Any

from common import Run, arguments, clip_pcm, clips, finish, load, measure, table, total
from systems import FasterWhisper, Ours, Settings, System

SETTINGS = Settings(beam_size=1, language="en", fallback=False, vad=False)
CHECKED = dataclasses.replace(SETTINGS, vad=None)


def summary(totals: dict[str, float], seconds: float) -> dict[str, Any]:
    return {
        name: {
            "seconds": round(value, 4),
            "real_time_factor": round(value / seconds, 5),
            "times_as_slow": round(value / totals[Ours.name], 3),
        }
        for name, value in totals.items()
    }


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pause", type=float, default=0.3, help="seconds before each run")
    args = parser.parse_args()
    chosen = [clip for clip in clips() if clip.language == "en" and clip.kind == "read"]
    if args.quick:
        chosen, args.rounds = chosen[:2], 1
    load_before = load()
    sounds = {clip.id: clip_pcm(clip.id) for clip in chosen}
    seconds = sum(clip.duration_s for clip in chosen)
    found: dict[str, Any] = {}
    for name in args.models:
        checkpoint = args.models_dir / name
        systems: list[System] = [Ours(args.engines / name, checkpoint, args.threads)]
        if importlib.util.find_spec("faster_whisper"):
            systems += [
                FasterWhisper(checkpoint, kind, args.threads) for kind in ("float32", "int8")
            ]
        runs: dict[str, Run] = {
            system.name: functools.partial(system.transcribe, settings=SETTINGS)
            for system in systems
        }
        runs[f"{Ours.name} vad=check"] = functools.partial(systems[0].transcribe, settings=CHECKED)
        times = measure(runs, sounds, args.rounds, args.pause)
        found[name] = summary({key: total(timed) for key, timed in times.items()}, seconds)
    rows = [
        (f"{name} {system}", *row.values()) for name in found for system, row in found[name].items()
    ]
    figures = {
        "clips": list(sounds),
        "audio_seconds": round(seconds, 2),
        "rounds": args.rounds,
        "pause": args.pause,
        "load_before": load_before,
        "models": found,
    }
    title = f"{len(chosen)} clips, {seconds:.0f} s of audio, {args.threads} threads"
    header = ("", "seconds", "real-time factor", "times as slow")
    return finish("latency-cpu", args, figures, {title: table(header, rows)}, [])


if __name__ == "__main__":
    sys.exit(main())
