"""Word error rates and sizes of an engine in every CPU precision, and of faster-whisper.

    pip install -e '.[cpu,export,bench]' faster-whisper
    python scripts/get_model.py tiny.en base
    python benchmarks/quality_precisions.py

Missing engines are exported: ``engines/base`` (fp32), ``engines/base-int8`` and so on. Greedy
search with timestamps, otherwise default options (fallback to higher temperatures); the language is
given. Whisper's own normalizers, errors summed over all clips that count.

Texts are stored in build/benchmarks, so that a stopped run can continue. Texts of this library are
discarded when its sources or the engine change.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from common import ROOT, Clip, Pieces, Verdict, arguments, clip_pcm, digest, finish, table
from quality import chosen_clips
from systems import SOURCES, FasterWhisper, Ours, Settings, System

from whisper_opt.cli.bench.scoring import BY_CHARACTER, Score, score, whole
from whisper_opt.export.checkpoints import load_checkpoint
from whisper_opt.runtime.engine import read_engine

PRECISIONS = ("fp32", "fp16-storage", "int8", "int4")
WORSE = {"fp16-storage": 0.2, "int8": 0.2, "int8-avx2": 0.2, "int4": 1.0}
"""Maximum additional errors of a precision relative to fp32, per hundred English words and per
hundred characters of other languages."""
ENGLISH, OTHERS = "English, WER", "other languages, CER"
BYTES = 1.15
"""Maximum bytes per parameter of an int8 engine on disk."""

Texts = Mapping[str, Mapping[str, str]]
"""Transcripts by system and clip."""


class Engine(Ours):
    """This library with an engine of one precision."""

    def __init__(self, args: argparse.Namespace, model: str, precision: str) -> None:
        suffix = "" if precision == "fp32" else f"-{precision}"
        super().__init__(
            args.engines / f"{model}{suffix}", args.models_dir / model, args.threads, precision
        )
        self.name = precision

    @functools.cached_property
    def version(self) -> str:
        """Digest of the sources that transcribe and of the engine's manifest."""
        package = ROOT / "whisper_opt"
        makers = [package / part for part in ("bench", "checkpoints", "export")]
        sources = [
            path
            for path in package.rglob("*")
            if path.suffix in SOURCES
            and not path.name.startswith("cli")
            and not any(m in path.parents for m in makers)
        ]
        return f"{digest(sources)}-{digest([self.engine / 'manifest.json'])}"


def systems(args: argparse.Namespace, model: str) -> list[System]:
    """The systems by name in tables."""
    checkpoint = args.models_dir / model
    peers: list[System] = [
        FasterWhisper(checkpoint, kind, args.threads) for kind in ("float32", "int8")
    ]
    ours: list[System] = [Engine(args, model, name) for name in args.precisions]
    return ours + ([] if args.no_peers else peers)


def transcripts(found: Sequence[System], chosen: Sequence[Clip], pieces: Pieces, model: str) -> Any:
    """Texts of each system in turn, with one model in memory at a time."""
    texts: dict[str, dict[str, str]] = {}
    for system in found:
        row = texts[system.name] = {}
        for clip in chosen:
            language = None if model.endswith(".en") else clip.language
            settings = Settings(beam_size=1, timestamps=True, language=language)

            def make(
                clip: Clip = clip, system: System = system, settings: Settings = settings
            ) -> str:
                return system.transcribe(clip_pcm(clip.id), settings)

            row[clip.id] = str(
                pieces.get((model, clip.id, "greedy", system.name, system.version), make)
            )
        vars(system).pop("_model", None)  # loaded on first use
    return texts


def _scores(texts: Mapping[str, str], group: str, chosen: Iterable[Clip]) -> Score:
    """Errors in the clips of a group of :func:`_by_group`."""
    language = BY_CHARACTER[0] if group == OTHERS else None
    return whole(score(c.text, texts[c.id], language or c.language or "en") for c in chosen)


def _by_group(chosen: Sequence[Clip]) -> dict[str, list[Clip]]:
    """Clips in English, in other languages with spaces, in those without, and in all others."""
    groups: dict[str, list[Clip]] = {ENGLISH: [], "others, WER": [], "ja and zh, CER": []}
    for clip in chosen:
        other = "ja and zh, CER" if clip.language in BY_CHARACTER else "others, WER"
        groups[ENGLISH if clip.language == "en" else other].append(clip)
    groups[OTHERS] = [clip for clip in chosen if clip.language != "en"]
    return {name: clips for name, clips in groups.items() if clips}


def rates_table(texts: Texts, chosen: Sequence[Clip], sizes: Mapping[str, int]) -> str:
    groups = _by_group(chosen)
    first = next(iter(texts))
    lines = []
    for name, row in texts.items():
        cells = []
        for group, clips in groups.items():
            found = _scores(row, group, clips)
            cells += [f"{found.rate:.2f}", f"{found.errors} of {found.words}"]
        same = sum(row[c.id] == texts[first][c.id] for c in chosen)
        size = f"{sizes[name] / 1e6:.1f}" if name in sizes else ""
        lines.append((name, size, *cells, f"{same} of {len(chosen)}"))
    headers = [part for group in groups for part in (group, "errors")]
    return table(("", "MB", *headers, f"text as {first}"), lines)


def differences_table(texts: Texts, chosen: Sequence[Clip]) -> str:
    """Clips on which the numbers of errors differ."""
    lines = []
    for clip in chosen:
        errors = [score(clip.text, row[clip.id], clip.language or "en").errors for row in
                  texts.values()]  # fmt: skip
        if len(set(errors)) > 1:
            lines.append((clip.id, *errors))
    return table(("clip, errors", *texts), lines)


def verdicts(
    model: str, texts: Texts, chosen: Sequence[Clip], sizes: Mapping[str, int], parameters: int
) -> list[Verdict]:
    found = []
    groups = _by_group(chosen)
    for group in [name for name in groups if name in (ENGLISH, OTHERS)]:
        rates = {name: _scores(row, group, groups[group]).rate for name, row in texts.items()}
        for name, worse in WORSE.items():
            if name in rates and "fp32" in rates:
                found.append(
                    Verdict(
                        f"{model} {name}: at most {worse} worse than fp32",
                        rates[name] <= rates["fp32"] + worse,
                        f"{group}: {rates[name]:.2f} and {rates['fp32']:.2f}",
                    )
                )
    if "int8" in sizes:
        share = sizes["int8"] / parameters
        figures = f"{sizes['int8']:,} bytes, {share:.3f} per parameter"
        bar = f"{model} int8: at most {BYTES} bytes per parameter on disk"
        found.append(Verdict(bar, share <= BYTES, figures))
    return found


def run(args: argparse.Namespace, model: str, pieces: Pieces) -> tuple[dict[str, Any], Any, Any]:
    """Figures, tables and verdicts of one model."""
    chosen = chosen_clips(args, model)
    found = systems(args, model)
    sizes = {
        system.name: sum(e.size for e in read_engine(system.engine).manifest.files.values())
        for system in found
        if isinstance(system, Engine)
    }
    tensors = load_checkpoint(args.models_dir / model).tensors
    parameters = sum(math.prod(tensor.shape) for tensor in tensors.values())
    texts = transcripts(found, chosen, pieces, model)
    groups = _by_group(chosen)
    counts = ", ".join(f"{len(clips)} clips {name.split(',')[0]}" for name, clips in groups.items())
    tables = {
        f"{model}: {counts}": rates_table(texts, chosen, sizes),
        f"{model}: where they differ": differences_table(texts, chosen),
    }
    figures = {
        "parameters": parameters,
        "bytes": sizes,
        "rates": {
            name: {
                group: {**dataclasses.asdict(s), "rate": s.rate}
                for group, s in ((g, _scores(row, g, clips)) for g, clips in groups.items())
            }
            for name, row in texts.items()
        },
        "errors": {
            name: {c.id: score(c.text, row[c.id], c.language or "en").errors for c in chosen}
            for name, row in texts.items()
        },
        "texts": {
            c.id: {"reference": c.text, **{name: row[c.id] for name, row in texts.items()}}
            for c in chosen
        },
    }
    return figures, tables, verdicts(model, texts, chosen, sizes, parameters)


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--english-only", action="store_true", help="no other languages")
    parser.add_argument(
        "--precisions", nargs="+", default=list(PRECISIONS), choices=("fp32", *WORSE)
    )
    parser.add_argument("--no-peers", action="store_true", help="without faster-whisper")
    args = parser.parse_args()
    pieces = Pieces(args.pieces / "quality-precisions.jsonl", args.force)
    figures: dict[str, Any] = {}
    tables: dict[str, str] = {}
    found: list[Verdict] = []
    for model in args.models:
        figures[model], more, judged = run(args, model, pieces)
        tables.update(more)
        found += judged
    return finish("precision-cpu", args, {"models": figures}, tables, found)


if __name__ == "__main__":
    sys.exit(main())
