"""``whisper-opt bench``: measure the speed of engines, their stages, and regressions."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Callable

from whisper_opt.cli.bench.settings import Settings
from whisper_opt.cli.options import add_options
from whisper_opt.core.options import ENCODER_PRECISIONS, LoadOptions, TranscribeOptions

__all__ = ["EXAMPLES", "SLOWER", "add_bench_arguments"]

SLOWER = 3
"""Exit status if a configuration became slower than --fail-if-slower allows."""

EXAMPLES = f"""\
examples:
  whisper-opt bench engines/base talk.wav --json base.json
  whisper-opt bench engines/* --manifest speech/manifest.jsonl --only language=en --threads 1 2
  whisper-opt bench engines/base talk.wav --seconds 5 30 120 --batch-size 1 4 8 --plots plots
  whisper-opt bench --grid grid.toml --json new.json
  whisper-opt bench --compare old.json new.json --fail-if-slower 10%
  whisper-opt bench engines/base talk.wav --compare old.json --fail-if-slower 10%
  whisper-opt bench --read base.json --plots plots

exit status {SLOWER}: a configuration became slower than --fail-if-slower allows
"""
"""Text after the arguments in the command's help."""


def add_bench_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command, and the function that runs it."""
    parser.add_argument(
        "paths",
        metavar="PATH",
        nargs="*",
        help="engines, and recordings to transcribe with them; an engine is a directory, or a short"
        " name, a hub id or a checkpoint, which is exported once to the engine cache",
    )
    audio = parser.add_argument_group("recordings")
    audio.add_argument(
        "--manifest",
        metavar="FILE",
        type=Path,
        help="recordings with transcripts: one JSON object per line with path (relative to the"
        " file), text and language; word errors are counted",
    )
    audio.add_argument(
        "--only",
        metavar="FIELD=VALUE",
        action="append",
        help="only recordings of the manifest with this value; may be repeated",
    )
    grid = parser.add_argument_group("configurations (every combination is measured)")
    grid.add_argument(
        "--encoder-precision",
        nargs="+",
        action="extend",
        choices=ENCODER_PRECISIONS,
        help="precision of the encoder on the CPU (default: engine)",
    )
    _add_list(grid, "--threads", int, "N", "CPU threads (default: chosen by the library)")
    _add_list(grid, "--beam-size", int, "N", "hypotheses of beam search; 1: greedy (default: 1)")
    _add_list(
        grid,
        "--batch-size",
        int,
        "N",
        "windows decoded together (default: 1, one recording after another); above 1 recordings are"
        " transcribed together, and repeated until there are enough",
    )
    _add_list(
        grid,
        "--seconds",
        float,
        "S",
        "durations in seconds, to which the joined recordings are cut or repeated (default: the"
        " recordings as they are)",
    )
    grid.add_argument(
        "--grid",
        metavar="FILE",
        type=Path,
        help="TOML file with engines, audio, manifest, only, encoder_precision, threads, beam_size,"
        " batch_size, seconds, and tables load and options; arguments take precedence",
    )
    _add_how(parser.add_argument_group("measurement"))
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
        "--rounds",
        type=int,
        default=Settings.rounds,
        metavar="N",
        help="runs of each configuration (default: 5)",
    )
    group.add_argument(
        "--warm-up",
        type=int,
        default=Settings.warm_up,
        metavar="N",
        help="untimed runs before them (default: 1)",
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
        help="decode audio files before timing starts",
    )


def _add_results(group: Any) -> None:
    group.add_argument(
        "--json",
        metavar="FILE",
        type=Path,
        help="write the results to FILE after every run, so that an interruption loses nothing",
    )
    group.add_argument(
        "--read", metavar="FILE", type=Path, help="use the results of an earlier run instead"
    )
    group.add_argument(
        "--compare",
        metavar="FILE",
        type=Path,
        nargs="+",
        help="OLD.json NEW.json: compare two files; OLD.json: compare with the results of this run",
    )
    group.add_argument(
        "--fail-if-slower",
        metavar="PERCENT",
        help=f"with --compare: exit status {SLOWER} if the time of any configuration grew by more",
    )
    group.add_argument(
        "--plots",
        metavar="DIR",
        type=Path,
        help="plot latency by duration, and throughput by batch size, as PNG and SVG",
    )


def _bench(args: argparse.Namespace) -> int:
    from whisper_opt.cli.measure import bench  # imported only when measuring

    return bench(args, SLOWER)
