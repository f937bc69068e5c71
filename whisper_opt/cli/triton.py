"""``whisper-opt triton-repository``: a model repository for NVIDIA Triton."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from whisper_opt.cli.options import options_from
from whisper_opt.cli.progress import export_bar
from whisper_opt.cli.transcribe import add_load_arguments
from whisper_opt.core.errors import OptionError
from whisper_opt.core.options import LoadOptions

__all__ = ["EXAMPLES", "add_triton_arguments"]

EXAMPLES = """\
examples:
  whisper-opt triton-repository engines/base models --threads 8
  whisper-opt triton-repository large=engines/large-v3 models --device cuda --gpus 0,1
  tritonserver --model-repository=models

"""


def add_triton_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command, and the function that runs it."""
    parser.add_argument(
        "models",
        metavar="MODEL",
        nargs="+",
        help="engine directory, short name, hub id or checkpoint, as for transcribe; NAME=MODEL:"
        " under a name of its own",
    )
    parser.add_argument(
        "folder", metavar="DIR", type=Path, help="the model repository; engines are copied into it"
    )
    parser.add_argument(
        "--max-batch",
        metavar="N",
        type=int,
        default=8,
        help="maximum number of windows that an instance decodes at once (default: 8)",
    )
    parser.add_argument(
        "--instances",
        metavar="N",
        type=int,
        default=1,
        help="instances on the CPU, or on each GPU; each has a copy of the model (default: 1)",
    )
    parser.add_argument(
        "--gpus",
        metavar="N,...",
        type=_indices,
        default=(),
        help="with --device cuda or tensorrt: indices of the GPUs (default: all)",
    )
    parser.add_argument(
        "--python-path",
        metavar="DIR",
        action="append",
        default=[],
        help="a directory with whisper_opt or its dependencies, such as the site-packages of an"
        " environment of the same Python version as Triton's, which ignores PYTHONPATH; may be"
        " given several times",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace models of these names that are there"
    )
    add_load_arguments(parser)
    parser.set_defaults(run=_write)


def _indices(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(",")))


_indices.__name__ = "list of GPU indices"  # for argparse's error message


def _write(args: argparse.Namespace) -> int:
    from whisper_opt.serving.names import named_source
    from whisper_opt.serving.triton.repository import check_name, model_name, write_model
    from whisper_opt.serving.triton.settings import Settings
    from whisper_opt.transcription.model_source import opened

    load = options_from(args, LoadOptions)
    if load.device == "auto":  # of this machine, which need not be the one that serves
        load = dataclasses.replace(load, device="cpu")
    settings = Settings(load, args.max_batch, args.instances, args.gpus)
    sources = [named_source(each) for each in args.models]
    names = [model_name(name) for name, _ in sources]
    for name in names:
        check_name(name)
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise OptionError(f"two models have the name {twice!r}; give one of them as NAME=MODEL")
    for name, (_, source) in zip(names, sources):

        def write(engine: Path, name: str = name) -> Path:
            return write_model(
                engine,
                args.folder,
                name,
                settings,
                python_path=[str(Path(each).resolve()) for each in args.python_path],
                overwrite=args.overwrite,
            )

        with export_bar() as on_progress:
            print(opened(source, load, on_progress, write))
    return 0
