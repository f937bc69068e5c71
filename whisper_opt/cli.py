"""The ``whisper-opt`` command: export, transcribe, inspect, doctor."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Callable

from tqdm import tqdm

from whisper_opt.doctor import doctor
from whisper_opt.engine import Engine, read_engine
from whisper_opt.errors import OptionError, WhisperOptError
from whisper_opt.languages import LANGUAGES
from whisper_opt.model import Stream, Whisper
from whisper_opt.options import TranscribeOptions
from whisper_opt.results import Segment, Transcript
from whisper_opt.version import __version__
from whisper_opt.writers import FORMATS, format_timestamp, write

__all__ = ["main"]

_EPILOG = """\
exit status: 0 done; 1 failed (the reason is on standard error); 2 wrong usage or option
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status (0 done, 1 failed, 2 wrong usage)."""
    args = _parser().parse_args(argv)
    try:
        status: int = args.run(args)
        return status
    except OptionError as error:
        return _fail(error, 2)
    except WhisperOptError as error:
        return _fail(error, 1)
    except KeyboardInterrupt:
        return _fail("interrupted; nothing half-written was left", 1)
    except BrokenPipeError:  # the reader of our output went away: not our failure
        sys.stderr.close()
        return 1


def _fail(message: object, status: int) -> int:
    print(f"whisper-opt: error: {message}", file=sys.stderr)
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
    _add_transcribe(commands)
    _add_inspect(commands)
    command = _command(commands, "doctor", "check this installation and say what is missing", "")
    command.set_defaults(run=lambda args: doctor(sys.stdout))
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
        help="Hugging Face directory or hub id, OpenAI .pt file, or CTranslate2 directory",
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
        "--precision", default="fp32", choices=("fp32",), help="arithmetic (default: fp32)"
    )
    parser.add_argument(
        "--tokenizer",
        metavar="PATH",
        help="tokenizer.json, a directory holding one, or a .tiktoken file, for sources without",
    )
    parser.add_argument("--revision", metavar="REV", help="branch, tag or commit of a hub id")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing engine")
    parser.set_defaults(run=_export)


def _export(args: argparse.Namespace) -> int:
    from whisper_opt.export import export  # the export half and its packages load only here

    begin = time.perf_counter()
    with tqdm(unit="B", unit_scale=True, disable=None, leave=False) as bar:

        def on_progress(stage: str, done: float, total: float) -> None:
            bar.set_description(stage, refresh=False)
            bar.total, bar.n = total, done
            bar.refresh()

        engine = export(
            args.source,
            args.target,
            precision=args.precision,
            dialect=args.dialect,
            tokenizer=args.tokenizer,
            revision=args.revision,
            overwrite=args.overwrite,
            on_progress=on_progress,
        )
    parity = engine.manifest.parity
    size = sum(entry.size for entry in engine.manifest.files.values())
    print(
        f"{args.target}: {engine.manifest.precision} {engine.manifest.dialect} engine,"
        f" {size / 1e6:.0f} MB, in {time.perf_counter() - begin:.1f} s; verified: scores within"
        f" {parity['logits_error']:.2g} of the reference (they reach {parity['logits_scale']:.3g})"
    )
    return 0


# transcribe


def _add_transcribe(commands: Any) -> None:
    parser = _command(
        commands,
        "transcribe",
        "transcribe recordings with an engine",
        "examples:\n"
        "  whisper-opt transcribe engines/tiny.en talk.mp3\n"
        "  whisper-opt transcribe engines/base *.wav --format srt --output-dir subtitles\n\n"
        f"languages: {_wrapped(LANGUAGES)}\n\n",
    )
    parser.add_argument("engine", metavar="ENGINE", type=Path, help="engine directory")
    parser.add_argument("audio", metavar="AUDIO", nargs="+", help="recordings, in any format")
    parser.add_argument(
        "--format",
        choices=tuple(FORMATS),
        help="write this format instead of the readable listing",
    )
    parser.add_argument(
        "--output-dir",
        metavar="DIR",
        type=Path,
        help="write DIR/NAME.FORMAT for each recording instead of standard output"
        " (format: txt unless --format says otherwise)",
    )
    parser.add_argument(
        "--threads", metavar="N", type=int, help="CPU threads (default: one a physical core)"
    )
    _add_options(parser.add_argument_group("transcription options"))
    parser.set_defaults(run=_transcribe)


def _wrapped(languages: Any) -> str:
    words = [f"{code} {name}," for code, name in languages.items()]
    lines = [" ".join(words[i : i + 6]) for i in range(0, len(words), 6)]
    return "\n  ".join(["", *lines]).rstrip(",")


def _add_options(group: Any) -> None:
    """One argument an option, made from the fields of TranscribeOptions."""
    for field in dataclasses.fields(TranscribeOptions):
        meta = field.metadata
        flag = "--" + field.name.replace("_", "-")
        if meta["kind"] == "flag":
            text = f"{meta['help']} (default: {'yes' if field.default else 'no'})"
            group.add_argument(
                flag, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text
            )
            continue
        group.add_argument(
            flag,
            type=_READERS[meta["kind"]],
            choices=meta.get("choices"),
            metavar=meta.get("metavar") or (None if "choices" in meta else "TEXT"),
            default=argparse.SUPPRESS,
            help=meta["help"] + _default_text(field.default),
        )


def _default_text(default: Any) -> str:
    if default is None or default == ():
        return ""
    if isinstance(default, tuple):
        return f" (default: {','.join(map(str, default))})"
    off = "; none turns it off" if isinstance(default, float) else ""
    return f" (default: {default}{off})"


def _optional(read: Callable[[str], Any]) -> Callable[[str], Any]:
    def value(text: str) -> Any:
        return None if text.lower() == "none" else read(text)

    value.__name__ = f"{read.__name__} or none"  # argparse names it in its message
    return value


def _sequence(read: Callable[[str], Any]) -> Callable[[str], Any]:
    def value(text: str) -> Any:
        return tuple(read(part) for part in text.split(",") if part.strip())

    value.__name__ = f"{read.__name__},{read.__name__},..."
    return value


_READERS: dict[str, Callable[[str], Any]] = {
    "text": str,
    "integer": _optional(int),
    "number": _optional(float),
    "integers": _sequence(int),
    "numbers": _sequence(float),
}


def _transcribe(args: argparse.Namespace) -> int:
    given = vars(args)
    names = [field.name for field in dataclasses.fields(TranscribeOptions)]
    options = TranscribeOptions(**{name: given[name] for name in names if name in given})
    targets = _targets(args)
    failed = 0
    with Whisper.load(args.engine, threads=args.threads) as model:
        for source, target in zip(args.audio, targets):
            failed += not _transcribed(model, source, target, args.format, options)
    if failed and len(targets) > 1:
        _fail(f"{failed} of {len(targets)} recordings failed", 1)
    return 1 if failed else 0


def _transcribed(
    model: Whisper, source: str, target: Path | None, form: str | None, options: TranscribeOptions
) -> bool:
    """Transcribe one of several recordings: one that cannot be read must not stop the others."""
    try:
        _transcribe_one(model, source, target, form, options)
    except OptionError:
        raise
    except WhisperOptError as error:
        _fail(error if source in str(error) else f"{source}: {error}", 1)
        return False
    return True


def _targets(args: argparse.Namespace) -> list[Path | None]:
    if args.output_dir is None:
        return [None] * len(args.audio)
    ending = args.format or "txt"
    targets = [args.output_dir / f"{Path(source).stem}.{ending}" for source in args.audio]
    for i, target in enumerate(targets):
        if target in targets[:i]:
            other = args.audio[targets.index(target)]
            raise OptionError(
                f"{other} and {args.audio[i]} would both be written to {target};"
                " transcribe them into different directories"
            )
    try:
        args.output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WhisperOptError(f"cannot create {args.output_dir}: {error.strerror}") from error
    return list(targets)


def _transcribe_one(
    model: Whisper, source: str, target: Path | None, form: str | None, options: TranscribeOptions
) -> None:
    begin = time.perf_counter()
    with tqdm(
        unit="s",
        desc=Path(source).name,
        disable=None,
        leave=False,
        bar_format="{desc}: {percentage:3.0f}% {bar} {n:.0f}/{total:.0f} s of audio",
    ) as bar:

        def on_progress(done: float, total: float) -> None:
            bar.total, bar.n = total, done
            bar.refresh()

        stream = model.stream(source, options=options, on_progress=on_progress)
        segments = tuple(_listed(stream, bar, show=target is None and form is None))
    elapsed = time.perf_counter() - begin
    transcript = Transcript(
        segments=segments,
        language=stream.language,
        language_probability=stream.language_probability,
        duration=stream.duration,
        text="".join(segment.text for segment in segments),
    )
    if target is not None:
        write(transcript, target, form or "txt")
    elif form is not None:
        sys.stdout.write(FORMATS[form](transcript))
    print(_summary(source, target, stream, elapsed), file=sys.stderr)


def _listed(stream: Stream, bar: Any, *, show: bool) -> Iterator[Segment]:
    for segment in stream:
        if show and segment.text:
            times = (format_timestamp(second) for second in (segment.start, segment.end))
            bar.clear()
            print(f"[{' --> '.join(times)}] {segment.text}", flush=True)
        yield segment


def _summary(source: str, target: Path | None, stream: Stream, elapsed: float) -> str:
    where = "" if target is None else f" -> {target}"
    probability = stream.language_probability
    sure = "" if probability is None else f" ({probability:.0%})"
    return (
        f"{source}{where}: {stream.duration:.1f} s of audio in {elapsed:.2f} s, real-time factor"
        f" {elapsed / stream.duration:.3f}, language {stream.language}{sure}"
    )


# inspect


def _add_inspect(commands: Any) -> None:
    parser = _command(commands, "inspect", "check every hash of an engine and describe it", "")
    parser.add_argument("engine", metavar="ENGINE", type=Path, help="engine directory")
    parser.add_argument("--json", action="store_true", help="print the manifest itself")
    parser.set_defaults(run=_inspect)


def _inspect(args: argparse.Namespace) -> int:
    engine = read_engine(args.engine, verify=True)
    if args.json:
        sys.stdout.write(engine.manifest.to_json())
    else:
        print("\n".join(_description(engine)))
    return 0


def _description(engine: Engine) -> Iterator[str]:
    manifest = engine.manifest
    dims, parity, source = manifest.dims, manifest.parity, manifest.source
    heads = manifest.alignment_heads
    yield f"engine       {engine.path} (format {manifest.format_version})"
    yield f"model        {json.dumps(dims.to_dict())}"
    yield f"languages    {'multilingual' if dims.is_multilingual else 'English only'}"
    yield f"arithmetic   {manifest.precision}, {manifest.dialect} dialect"
    yield f"word times   {'alignment heads unknown' if heads is None else f'{len(heads)} heads'}"
    yield f"source       {source.get('name')} ({source.get('format')}, {source.get('dtype')})"
    for name, digest in source.get("sha256", {}).items():
        yield f"             {name} sha256 {digest}"
    yield "made with    " + ", ".join(f"{name} {v}" for name, v in manifest.tools.items())
    yield f"parity       input: {parity.get('input')}; reference: {parity.get('reference')}"
    for what, label in (("cross", "cross-attention k/v"), ("logits", "scores")):
        yield (
            f"             {label}: largest error {parity.get(f'{what}_error', 0):.3g}"
            f" of values up to {parity.get(f'{what}_scale', 0):.3g}"
        )
    other = parity.get("openai_whisper")
    yield f"             openai-whisper: {'not compared' if other is None else f'{other:.3g}'}"
    for name, entry in manifest.files.items():
        yield f"file         {name:15} {entry.size:>13,} bytes  sha256 {entry.sha256[:16]}...  ok"
