"""``whisper-opt bench``: how fast engines are, where the time goes, and what has become slower."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Callable

from whisper_opt.cli.bench.settings import Settings
from whisper_opt.cli.options import add_options
from whisper_opt.core.options import ENCODER_PRECISIONS, LoadOptions, TranscribeOptions

__all__ = ["EXAMPLES", "SLOWER", "add_bench_arguments"]

SLOWER = 3
"""Exit status when something became slower than allowed."""

EXAMPLES = f"""\
examples:
  whisper-opt bench engines/base talk.wav --json base.json
  whisper-opt bench engines/* --manifest speech/manifest.jsonl --only language=en --threads 1 2
  whisper-opt bench engines/base talk.wav --seconds 5 30 120 --batch-size 1 4 8 --plots plots
  whisper-opt bench --grid grid.toml --json new.json
  whisper-opt bench --compare old.json new.json --fail-if-slower 10%
  whisper-opt bench engines/base talk.wav --compare old.json --fail-if-slower 10%
  whisper-opt bench --read base.json --plots plots

exit status {SLOWER}: something became slower than --fail-if-slower allows
"""
"""What follows the arguments in the command's help."""


def add_bench_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command, and what runs it."""
    parser.add_argument(
        "paths",
        metavar="PATH",
        type=Path,
        nargs="*",
        help="engine directories, and recordings to transcribe with them",
    )
    sound = parser.add_argument_group("what is transcribed")
    sound.add_argument(
        "--manifest",
        metavar="FILE",
        type=Path,
        help="recordings and what is said in them: a JSON object a line with path (relative to the"
        " file), text and language; errors are counted",
    )
    sound.add_argument(
        "--only",
        metavar="FIELD=VALUE",
        action="append",
        help="recordings of the manifest with that value only; repeat for more fields",
    )
    grid = parser.add_argument_group("every combination of these is measured")
    grid.add_argument(
        "--encoder-precision",
        nargs="+",
        action="extend",
        choices=ENCODER_PRECISIONS,
        help="what the CPU computes the encoder in (default: engine)",
    )
    _add_list(grid, "--threads", int, "N", "CPU threads (default: the library's choice)")
    _add_list(grid, "--beam-size", int, "N", "hypotheses of beam search; 1: greedy (default: 1)")
    _add_list(
        grid,
        "--batch-size",
        int,
        "N",
        "windows at once (default: 1, one recording after the other); above 1 recordings run side"
        " by side, and are repeated until there are enough",
    )
    _add_list(
        grid,
        "--seconds",
        float,
        "S",
        "lengths of sound, to which all recordings are joined and repeated or cut (default: the"
        " recordings as they are)",
    )
    grid.add_argument(
        "--grid",
        metavar="FILE",
        type=Path,
        help="TOML file with engines, audio, manifest, only, encoder_precision, threads, beam_size,"
        " batch_size, seconds, and tables load and options; what is given here goes before what it"
        " says",
    )
    _add_how(parser.add_argument_group("how it is measured"))
    _add_results(parser.add_argument_group("results"))
    add_options(
        parser.add_argument_group("device options"), LoadOptions, ("threads", "encoder_precision")
    )
    add_options(
        parser.add_argument_group("transcription options"),
        TranscribeOptions,
        ("beam_size", "batch_size"),
    )
    parser.set_defaults(run=_bench)


def _add_list(group: Any, flag: str, read: Callable[[str], Any], metavar: str, text: str) -> None:
    group.add_argument(flag, metavar=metavar, type=read, nargs="+", action="extend", help=text)


def _add_how(group: Any) -> None:
    group.add_argument(
        "--rounds", type=int, default=Settings.rounds, metavar="N", help="runs of each (default: 5)"
    )
    group.add_argument(
        "--warm-up",
        type=int,
        default=Settings.warm_up,
        metavar="N",
        help="runs before that without a clock (default: 1)",
    )
    group.add_argument(
        "--pause",
        type=float,
        default=Settings.pause,
        metavar="S",
        help="seconds before each run (default: 0.3)",
    )
    group.add_argument(
        "--arrays",
        action="store_true",
        help="read recordings before the clock runs: from samples to segments",
    )


def _add_results(group: Any) -> None:
    group.add_argument(
        "--json",
        metavar="FILE",
        type=Path,
        help="write the figures there, anew after every run: what is interrupted keeps them",
    )
    group.add_argument(
        "--read", metavar="FILE", type=Path, help="take the figures of an earlier run instead"
    )
    group.add_argument(
        "--compare",
        metavar="FILE",
        type=Path,
        nargs="+",
        help="OLD.json NEW.json: nothing is measured; OLD.json alone: with what is measured now",
    )
    group.add_argument(
        "--fail-if-slower",
        metavar="PERCENT",
        help=f"with --compare: exit status {SLOWER} if any configuration's time grew by more",
    )
    group.add_argument(
        "--plots",
        metavar="DIR",
        type=Path,
        help="draw latency against length, and throughput against batch, as PNG and SVG",
    )


def _bench(args: argparse.Namespace) -> int:
    from whisper_opt.cli.measure import bench  # what measures loads only here

    return bench(args, SLOWER)
