"""Time beam search, word timestamps and batched long recordings.

    pip install -e '.[cpu,export]' openai-whisper faster-whisper jiwer whisper-normalizer
    python scripts/get_model.py tiny.en base
    python benchmarks/search.py                  # or: --parts beam

* beam: 11 s of speech, beam 5, against openai-whisper and faster-whisper in fp32.
* words: this library with word timestamps against itself without, 12 read clips, greedy.
* longform: the longest recording in batches of 8 against faster-whisper's BatchedInferencePipeline:
  each with its own voice activity detection; without timestamps, which is its default; and both
  with the same spans of speech. Greedy and beam 5, with word error rates.

Temperature 0, language given, equal thread counts, from samples to text. The systems take turns
(see `measure` in benchmarks/common.py). Results are stored in build/benchmarks, so that a stopped
run can continue.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import sys
from typing import Any, Callable

from common import (
    SAMPLE_RATE,
    Clip,
    Pieces,
    Run,
    Timed,
    Verdict,
    arguments,
    clip_pcm,
    clips,
    finish,
    load,
    measure,
    table,
    total,
)
from systems import FasterWhisper, OpenaiWhisper, Ours, Settings, System

from whisper_opt.cli.bench.scoring import score
from whisper_opt.core.arrays import F32

PLAIN = Settings(language="en", fallback=False, timestamps=True)
WINDOW = 30.0
QUICK_LONG = 60.0
OPENAI_FACTOR, WORDS_FACTOR = 2.0, 1.25

Times = dict[str, dict[str, Timed]]
Part = Callable[["Model"], "tuple[dict[str, Any], str, list[Verdict]]"]


class Model:
    """The systems with one model, and their timing."""

    def __init__(self, name: str, args: argparse.Namespace, pieces: Pieces) -> None:
        checkpoint = args.models_dir / name
        self.name = name
        self.ours = Ours(args.engines / name, checkpoint, args.threads)
        self.openai = OpenaiWhisper(name, checkpoint, args.threads)
        self.faster = FasterWhisper(checkpoint, "float32", args.threads)
        self.args = args
        self.loads: dict[str, list[float]] = {}
        """Load of the machine before each comparison."""
        self._pieces = pieces

    def times(
        self,
        label: str,
        asked: dict[str, tuple[System, Settings]],
        sounds: dict[str, F32],
        rounds: int,
        warm_up: Callable[[], object] | None = None,
    ) -> Times:
        """Times of systems by name in the table, from disk if they were measured before."""
        args = self.args
        rounds = 1 if args.quick else rounds
        versions = sorted({system.version for system, _ in asked.values()})
        setup = f"{len(sounds)} clips, {rounds} rounds, {args.threads} threads"
        runs: dict[str, Run] = {
            name: functools.partial(system.transcribe, settings=settings)
            for name, (system, settings) in asked.items()
        }

        def make() -> dict[str, Any]:
            before = load()
            return {
                "load_before": before,
                "times": measure(runs, sounds, rounds, args.pause, warm_up),
            }

        made = self._pieces.get((self.name, label, setup, *versions), make)
        self.loads[label] = made["load_before"]
        times: Times = made["times"]
        return times


# ---------------------------------------------------------------- beam search


def beam(model: Model) -> tuple[dict[str, Any], str, list[Verdict]]:
    """Beam 5 on one clip."""
    settings = dataclasses.replace(PLAIN, beam_size=5)
    plain, default = f"{Ours.name}", f"{Ours.name}, vad=check"
    times = model.times(
        "beam 5",
        {
            plain: (model.ours, dataclasses.replace(settings, vad=False)),
            default: (model.ours, settings),
            model.openai.name: (model.openai, settings),
            model.faster.name: (model.faster, settings),
        },
        {"en-jfk": clip_pcm("en-jfk")},
        model.args.rounds,
    )
    spent = {name: total(timed) for name, timed in times.items()}
    rows = [
        (
            name,
            f"{spent[name]:.3f}",
            f"{min(timed['en-jfk']['seconds']):.3f}",
            f"{spent[name] / spent[plain]:.2f}",
            timed["en-jfk"]["text"],
        )
        for name, timed in times.items()
    ]
    against_openai = spent[model.openai.name] / spent[default]
    against_faster = spent[model.faster.name] / spent[default]
    bars = [
        Verdict(
            f"{model.name} beam 5: at least {OPENAI_FACTOR:g} times as fast as openai-whisper",
            against_openai >= OPENAI_FACTOR,
            f"{against_openai:.2f} times, with default options",
        ),
        Verdict(
            f"{model.name} beam 5: not slower than {model.faster.name}",
            against_faster >= 1,
            f"{against_faster:.2f} times as fast, with default options",
        ),
    ]
    header = ("11 s of speech", "median s", "best s", "times as slow", "text")
    return {"times": times}, table(header, rows), bars


# ---------------------------------------------------------------- word timestamps


def words(model: Model) -> tuple[dict[str, Any], str, list[Verdict]]:
    """With and without word timestamps."""
    chosen = [clip for clip in clips() if clip.language == "en" and clip.kind == "read"]
    times = model.times(
        "words",
        {
            "without": (model.ours, dataclasses.replace(PLAIN, beam_size=1)),
            "with": (model.ours, dataclasses.replace(PLAIN, beam_size=1, words=True)),
        },
        {clip.id: clip_pcm(clip.id) for clip in chosen[: 2 if model.args.quick else None]},
        model.args.rounds,
    )
    spent = {name: total(timed) for name, timed in times.items()}
    ratio = spent["with"] / spent["without"]
    bar = Verdict(
        f"{model.name} word timestamps: at most {WORDS_FACTOR} of the time without",
        ratio <= WORDS_FACTOR,
        f"{ratio:.3f}",
    )
    header = (f"{len(times['with'])} read clips, greedy", "s", "times as slow")
    rows = [
        (f"{name} word times", f"{s:.3f}", f"{s / spent['without']:.3f}")
        for name, s in spent.items()
    ]
    return {"times": times}, table(header, rows), [bar]


# ---------------------------------------------------------------- long recordings


def _recording(quick: bool) -> tuple[Clip, F32, str, tuple[tuple[float, float], ...]]:
    """The longest recording: clip, samples, transcript, spans of at most 30 s of speech."""
    clip = max(clips(), key=lambda clip: clip.duration_s)
    pcm, text, utterances = clip_pcm(clip.id), clip.text, clip.entry["segments"]
    if quick:
        utterances = [entry for entry in utterances if entry["end"] <= QUICK_LONG]
        pcm = pcm[: round(utterances[-1]["end"] * SAMPLE_RATE)]
        text = " ".join(entry["text"] for entry in utterances)
    spans: list[tuple[float, float]] = []
    for entry in utterances:
        if spans and entry["end"] - spans[-1][0] <= WINDOW:
            spans[-1] = spans[-1][0], entry["end"]
        else:
            spans.append((entry["start"], entry["end"]))
    return clip, pcm, text, tuple(spans)


def _long_times(model: Model, label: str, settings: Settings, clip: Clip, pcm: F32) -> Times:
    asked: dict[str, tuple[System, Settings]] = {
        system.name: (system, settings) for system in (model.ours, model.faster)
    }

    def warm_up() -> None:
        short = dataclasses.replace(settings, clips=settings.clips and ((0.0, 10.0),))
        for system, _ in asked.values():
            system.transcribe(clip_pcm("en-jfk"), short)

    return model.times(f"longform {label}", asked, {clip.id: pcm}, model.args.long_rounds, warm_up)


def longform(model: Model) -> tuple[dict[str, Any], str, list[Verdict]]:
    """Batches of windows of one long recording."""
    clip, pcm, text, spans = _recording(model.args.quick)
    cuts = {
        "own VAD": dataclasses.replace(PLAIN, batched=True, vad=True),
        "own VAD, no timestamps": dataclasses.replace(
            PLAIN, batched=True, vad=True, timestamps=False
        ),
        "same spans": dataclasses.replace(PLAIN, batched=True, vad=False, clips=spans),
    }
    every: dict[str, Times] = {}
    rows, bars = [], []
    for cut, beam_size in itertools.product(cuts, (1, 5)):
        label = f"{cut}, {'greedy' if beam_size == 1 else 'beam 5'}"
        settings = dataclasses.replace(cuts[cut], beam_size=beam_size)
        times = every[label] = _long_times(model, label, settings, clip, pcm)
        ours, faster = (total(times[name]) for name in (model.ours.name, model.faster.name))
        factor = f"{faster / ours:.2f}"
        rates = [f"{score(text, t[clip.id]['text'], 'en').rate:.2f}" for t in times.values()]
        spread = max(
            max(t[clip.id]["seconds"]) / min(t[clip.id]["seconds"]) for t in times.values()
        )
        rows.append((label, f"{ours:.2f}", f"{faster:.2f}", factor, *rates, f"{spread:.2f}"))
        bars.append(
            Verdict(
                f"{model.name} batched, {label}: faster than BatchedInferencePipeline",
                ours < faster,
                f"{factor} times as fast, WER {rates[0]} and {rates[1]}",
            )
        )
    header = (
        f"{len(pcm) / SAMPLE_RATE:.0f} s, batch 8",
        f"{model.ours.name} s",
        f"{model.faster.name} s",
        "times as fast",
        "WER",
        "its WER",
        "slowest/fastest round",
    )
    return {"recording": clip.id, "clips": spans, "times": every}, table(header, rows), bars


PARTS: dict[str, Part] = {"beam": beam, "words": words, "longform": longform}


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--long-rounds", type=int, default=3, help="rounds of the long recording")
    parser.add_argument("--pause", type=float, default=0.3, help="seconds before each run")
    args = parser.parse_args()
    pieces = Pieces(args.pieces / "search.jsonl", args.force)
    status = 0
    for part in args.parts:
        figures: dict[str, Any] = {"pause": args.pause, "models": {}}
        tables, bars = {}, []
        for name in args.models:
            model = Model(name, args, pieces)
            found, text, verdicts = PARTS[part](model)
            figures["models"][name] = {**found, "load_before": model.loads}
            tables[f"{part}, {name}"] = text
            bars += verdicts
        status |= finish(f"search-{part}", args, figures, tables, bars)
    return status


if __name__ == "__main__":
    sys.exit(main())
