"""Word error rates of this library, openai-whisper and faster-whisper on the speech clips.

    pip install -e '.[cpu,export]' openai-whisper faster-whisper jiwer whisper-normalizer
    python scripts/get_model.py tiny.en base
    python benchmarks/quality.py

Default options except the search, which is greedy or beam 5, and timestamps, which are always on;
the language is detected. Whisper's own normalizers, errors summed over all clips. Texts of
openai-whisper are from the goldens of the tests if these hold for default options.

Texts are stored in build/benchmarks, so that a stopped run can continue. Texts of this library are
discarded when its sources change.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from typing import Any

from common import Clip, Pieces, Verdict, arguments, clip_pcm, clips, finish, table
from stored import openai_text, stored_text
from systems import FasterWhisper, OpenaiWhisper, Ours, Settings, System

from whisper_opt.cli.bench.scoring import Score, score, whole

SEARCHES = {"greedy": 1, "beam 5": 5}
TOLERANCE = 0.3
"""Maximum difference of batched and sequential, in errors per hundred words."""


@dataclasses.dataclass
class Texts:
    """Texts of one model for every clip."""

    model: str
    pieces: Pieces
    ours: Ours
    openai: OpenaiWhisper
    faster: FasterWhisper

    @property
    def modes(self) -> dict[tuple[str, str], tuple[System, bool]]:
        """System and whether it is batched, by name and strategy."""
        return {
            (system.name, "batched" if batched else "sequential"): (system, batched)
            for system, batched in (
                (self.ours, False),
                (self.ours, True),
                (self.openai, False),
                (self.faster, False),
                (self.faster, True),
            )
        }

    def text(self, clip_id: str, mode: tuple[str, str], search: str) -> str:
        """One transcript, stored or computed."""
        system, batched = self.modes[mode]
        beam_size = SEARCHES[search]

        def make() -> str:
            if system is self.openai:
                return openai_text(system, self.model, clip_id, beam_size)
            settings = Settings(batched=batched, beam_size=beam_size, timestamps=True)
            return system.transcribe(clip_pcm(clip_id), settings)

        if system is self.openai:
            known = stored_text(self.model, clip_id, beam_size)
            if known is not None:
                return known
        name = (self.model, clip_id, search, *mode, system.version)
        return str(self.pieces.get(name, make))


Row = dict[str, Score]
"""Scores by clip."""
Rows = dict[tuple[tuple[str, str], str], Row]
"""Scores of every mode and search."""


def scores(texts: Texts, chosen: list[Clip]) -> tuple[Rows, dict[str, dict[str, str]]]:
    """Scores of every clip in every mode, and the texts by clip."""
    rows: Rows = {}
    said: dict[str, dict[str, str]] = {clip.id: {"reference": clip.text} for clip in chosen}
    for search in SEARCHES:
        for mode in texts.modes:
            row = rows[mode, search] = {}
            for clip in chosen:
                text = texts.text(clip.id, mode, search)
                said[clip.id][f"{' '.join(mode)} {search}"] = text
                row[clip.id] = score(clip.text, text, clip.language or "en")
    return rows, said


def _english(rows: Rows, chosen: list[Clip]) -> dict[tuple[tuple[str, str], str], Score]:
    ids = [clip.id for clip in chosen if clip.language == "en"]
    return {key: whole(row[i] for i in ids) for key, row in rows.items()}


def english_table(rows: Rows, chosen: list[Clip]) -> str:
    header = ("", "search", "WER", "errors", "substituted", "deleted", "inserted", "words")
    return table(
        header,
        [
            (
                " ".join(mode),
                search,
                f"{s.rate:.2f}",
                s.errors,
                s.substitutions,
                s.deletions,
                s.insertions,
                s.words,
            )
            for (mode, search), s in _english(rows, chosen).items()
        ],
    )


def languages_table(rows: Rows, chosen: list[Clip]) -> str:
    languages = sorted({str(clip.language) for clip in chosen} - {"en"})
    return table(
        ("", "search", *languages),
        [
            (
                " ".join(mode),
                search,
                *(
                    f"{whole(row[clip.id] for clip in chosen if clip.language == name).rate:.1f}"
                    for name in languages
                ),
            )
            for (mode, search), row in rows.items()
        ],
    )


def differences_table(rows: Rows, said: dict[str, dict[str, str]], chosen: list[Clip]) -> str:
    """English clips on which the modes and openai-whisper have different numbers of errors."""
    sequential, batched = (Ours.name, "sequential"), (Ours.name, "batched")
    openai = (OpenaiWhisper.name, "sequential")
    lines = [
        (
            clip.id,
            search,
            *(rows[mode, search][clip.id].errors for mode in (openai, sequential, batched)),
        )
        for clip in chosen
        if clip.language == "en"
        for search in SEARCHES
        if said[clip.id][f"{' '.join(sequential)} {search}"]
        != said[clip.id][f"{' '.join(openai)} {search}"]
        or rows[sequential, search][clip.id].errors != rows[batched, search][clip.id].errors
    ]
    return table(("clip", "search", "openai-whisper", "sequential", "batched"), lines)


def verdicts(model: str, rows: Rows, chosen: list[Clip]) -> list[Verdict]:
    english = _english(rows, chosen)
    found = []
    for search in SEARCHES:
        sequential, batched, openai = (
            english[mode, search]
            for mode in (
                (Ours.name, "sequential"),
                (Ours.name, "batched"),
                (OpenaiWhisper.name, "sequential"),
            )
        )
        found += [
            Verdict(
                f"{model} {search}: sequential equals openai-whisper (or is better)",
                sequential.errors <= openai.errors,
                f"WER {sequential.rate:.2f} and {openai.rate:.2f}",
            ),
            Verdict(
                f"{model} {search}: batched at most {TOLERANCE} worse than sequential",
                batched.rate <= sequential.rate + TOLERANCE,
                f"WER {batched.rate:.2f} and {sequential.rate:.2f}",
            ),
        ]
    return found


def chosen_clips(args: argparse.Namespace, model: str) -> list[Clip]:
    """Clips that count towards error rates; English alone for an English model."""
    found = [clip for clip in clips() if clip.wer]
    if args.quick:
        found.sort(key=lambda clip: clip.duration_s)
    english = [clip for clip in found if clip.language == "en"]
    others = [clip for clip in found if clip.language != "en"]
    if args.quick:
        english, others = english[:3], others[:2]
    return english + ([] if model.endswith(".en") or args.english_only else others)


def run(args: argparse.Namespace, model: str, pieces: Pieces) -> int:
    checkpoint = args.models_dir / model
    texts = Texts(
        model,
        pieces,
        Ours(args.engines / model, checkpoint, args.threads),
        OpenaiWhisper(model, checkpoint, args.threads),
        FasterWhisper(checkpoint, "float32", args.threads),
    )
    chosen = chosen_clips(args, model)
    rows, said = scores(texts, chosen)
    n_english = sum(clip.language == "en" for clip in chosen)
    tables = {
        f"{model}: {n_english} English clips": english_table(rows, chosen),
        f"{model}: English clips with differences, errors": differences_table(rows, said, chosen),
    }
    if n_english < len(chosen):
        title = f"{model}: other languages, WER (ja and zh: by character)"
        tables[title] = languages_table(rows, chosen)
    figures: dict[str, Any] = {
        "model": model,
        "english": [
            {"mode": " ".join(mode), "search": search, **dataclasses.asdict(s), "wer": s.rate}
            for (mode, search), s in _english(rows, chosen).items()
        ],
        "errors": {
            f"{' '.join(mode)} {search}": {i: s.errors for i, s in row.items()}
            for (mode, search), row in rows.items()
        },
        "texts": said,
    }
    return finish(f"quality-{model}", args, figures, tables, verdicts(model, rows, chosen))


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--english-only", action="store_true", help="no other languages")
    args = parser.parse_args()
    pieces = Pieces(args.pieces / "quality.jsonl", args.force)
    return max([run(args, model, pieces) for model in args.models])


if __name__ == "__main__":
    sys.exit(main())
