"""``whisper-opt build``: TensorRT plans of an engine, beside it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from whisper_opt.cli.options import add_options, options_from
from whisper_opt.runtime.tensorrt.plan_spec import PlanSpec

__all__ = ["EXAMPLES", "add_build_arguments"]

EXAMPLES = (
    "examples:\n"
    "  whisper-opt build engines/base-fp16\n"
    "  whisper-opt build engines/base-fp16 --max-batch 16 --profile prefill.n_new=1:4:64\n"
    "  whisper-opt build engines/base-fp16 --library tensorrt-rtx --gpu sm_86 sm_89\n\n"
)
"""What follows the arguments in the command's help."""


def add_build_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command, and what runs it."""
    parser.add_argument("engine", metavar="ENGINE", type=Path, help="fp16 engine, standard dialect")
    parser.add_argument(
        "--library",
        choices=("tensorrt", "tensorrt-rtx"),
        help="what builds (default: the first that is installed)",
    )
    parser.add_argument(
        "--gpu",
        metavar="SM",
        nargs="+",
        help="compute capabilities to build for, such as sm_86 (default: that of the GPU here;"
        " without one, all that TensorRT for RTX knows)",
    )
    parser.add_argument(
        "--device-index",
        metavar="N",
        type=int,
        default=0,
        help="which GPU builds, where there are several (0)",
    )
    parser.add_argument(
        "--timing-cache",
        metavar="FILE",
        type=Path,
        help="measurements to start from and to add to (TensorRT only)",
    )
    parser.add_argument(
        "--force", action="store_true", help="build fresh plans again, and replace foreign ones"
    )
    group = parser.add_argument_group("shapes and flags")
    add_options(group, PlanSpec, leave_out=("capacity",))  # a model has one capacity
    parser.set_defaults(run=_build)


def _build(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from whisper_opt.export.tensorrt.build import build_plans  # needs packages of the export half
    from whisper_opt.export.tensorrt.token_check import token_check

    spec = options_from(args, PlanSpec)
    started = False
    with tqdm(total=1, bar_format="{desc} {percentage:3.0f}%|{bar}|", disable=None) as bar:

        def on_progress(graph: str, done: float) -> None:
            nonlocal started
            started = True
            bar.set_description(graph, refresh=False)
            bar.n = done
            bar.refresh()

        def on_wait() -> None:
            tqdm.write("another process is building plans of this engine: waiting", sys.stderr)

        plans = build_plans(
            args.engine,
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
    what = f"{len(record.files)} plans for {', '.join(record.target.gpus)}, {megabytes:.0f} MB"
    how = f"built in {sum(record.seconds.values()):.1f} s" if started else "fresh, nothing to build"
    tokens, detail = record.tokens["status"], record.tokens.get("detail")
    print(f"{plans.path}: {what}, {how}; tokens: {tokens}{f' ({detail})' if detail else ''}")
    return 0
