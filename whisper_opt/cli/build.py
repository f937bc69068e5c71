"""``whisper-opt build``: build the TensorRT plans of an engine."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

from whisper_opt.cli.options import add_options, options_from
from whisper_opt.cli.progress import export_bar
from whisper_opt.core.options import LoadOptions
from whisper_opt.runtime.tensorrt.plan_spec import PlanSpec
from whisper_opt.transcription.model_source import engine_directory

__all__ = ["EXAMPLES", "add_build_arguments"]

EXAMPLES = (
    "examples:\n"
    "  whisper-opt build engines/base-fp16\n"
    "  whisper-opt build engines/base-fp16 --max-batch 16 --profile prefill.n_new=1:4:64\n"
    "  whisper-opt build engines/base-fp16 --library tensorrt-rtx --gpu sm_86 sm_89\n\n"
)
"""Text after the arguments in the command's help."""


def add_build_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command, and the function that runs it."""
    parser.add_argument(
        "engine",
        metavar="ENGINE",
        help="engine directory (fp16, standard dialect); or a short name, a hub id or a checkpoint,"
        " of which such an engine is exported once to the engine cache",
    )
    parser.add_argument(
        "--library",
        choices=("tensorrt", "tensorrt-rtx"),
        help="library that builds (default: the first that is installed)",
    )
    parser.add_argument(
        "--gpu",
        metavar="SM",
        nargs="+",
        help="compute capabilities to build for, such as sm_86 (default: that of the local GPU;"
        " without a GPU, all that TensorRT for RTX supports)",
    )
    parser.add_argument(
        "--device-index",
        metavar="N",
        type=int,
        default=0,
        help="index of the GPU that builds (default: 0)",
    )
    parser.add_argument(
        "--timing-cache",
        metavar="FILE",
        type=Path,
        help="timing cache to read and extend (TensorRT only)",
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="rebuild plans that are up to date, and replace plans of other programs",
    )
    group = parser.add_argument_group("shapes and flags")
    add_options(group, PlanSpec, leave_out=("capacity",))  # fixed by the model
    names = ("cache_dir", "revision", "local_files_only")
    others = [name for name in LoadOptions.__dataclass_fields__ if name not in names]
    add_options(parser.add_argument_group("engine cache"), LoadOptions, others)
    parser.set_defaults(run=_build)


def _build(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from whisper_opt.export.tensorrt.build import build_plans  # needs the packages of extra export
    from whisper_opt.export.tensorrt.token_check import token_check

    spec = options_from(args, PlanSpec)
    load = dataclasses.replace(options_from(args, LoadOptions), device="tensorrt")
    with export_bar() as on_export:
        engine = engine_directory(args.engine, load, on_export)
    started = False
    with tqdm(total=1, bar_format="{desc} {percentage:3.0f}%|{bar}|", disable=None) as bar:

        def on_progress(graph: str, done: float) -> None:
            nonlocal started
            started = True
            bar.set_description(graph, refresh=False)
            bar.n = done
            bar.refresh()

        def on_wait() -> None:
            tqdm.write("waiting: another process is building plans of this engine", sys.stderr)

        plans = build_plans(
            engine,
            spec,
            library=args.library,
            gpus=args.gpu,
            device_index=args.device_index,
            timing_cache=args.timing_cache,
            force=args.force,
            check_tokens=token_check(args.device_index),
            on_progress=on_progress,
            on_wait=on_wait,
        )
        bar.leave = False
    record = plans.record
    megabytes = sum(entry.size for entry in record.files.values()) / 1e6
    built = f"{len(record.files)} plans for {', '.join(record.target.gpus)}, {megabytes:.0f} MB"
    how = (
        f"built in {sum(record.seconds.values()):.1f} s"
        if started
        else "up to date, nothing to build"
    )
    tokens, detail = record.tokens["status"], record.tokens.get("detail")
    print(f"{plans.path}: {built}, {how}; tokens: {tokens}{f' ({detail})' if detail else ''}")
    return 0
