"""``whisper-opt transcribe``: its arguments, made from the options; what it prints and writes."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable, TypeVar

from tqdm import tqdm

from whisper_opt.errors import OptionError, WhisperOptError
from whisper_opt.languages import LANGUAGES
from whisper_opt.model import Stream, Whisper
from whisper_opt.options import SubtitleOptions, TranscribeOptions
from whisper_opt.results import Segment, Transcript
from whisper_opt.subtitles import given
from whisper_opt.writers import FORMATS, SUBTITLE_FORMATS, format_timestamp, write

__all__ = ["EXAMPLES", "Output", "add_arguments", "complain"]

_Options = TypeVar("_Options", TranscribeOptions, SubtitleOptions)


def complain(message: object) -> None:
    """Say on standard error what went wrong."""
    print(f"whisper-opt: error: {message}", file=sys.stderr)


def _wrapped(languages: Any) -> str:
    words = [f"{code} {name}," for code, name in languages.items()]
    lines = [" ".join(words[i : i + 6]) for i in range(0, len(words), 6)]
    return "\n  ".join(["", *lines]).rstrip(",")


EXAMPLES = (
    "examples:\n"
    "  whisper-opt transcribe engines/tiny.en talk.mp3\n"
    "  whisper-opt transcribe engines/base *.wav --format srt,json --output-dir subtitles\n"
    "  whisper-opt transcribe engines/base talk.mp3 --format vtt --word-timestamps"
    " --max-line-width 42\n\n"
    f"languages: {_wrapped(LANGUAGES)}\n\n"
)
"""What follows the arguments in the command's help."""


# arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command, and what runs it."""
    parser.add_argument("engine", metavar="ENGINE", type=Path, help="engine directory")
    parser.add_argument("audio", metavar="AUDIO", nargs="+", help="recordings, in any format")
    parser.add_argument(
        "--format",
        type=_formats,
        metavar="FORMAT,...",
        help=f"write {', '.join(FORMATS)} or all of them (several: with --output-dir) instead of"
        " the readable listing",
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
    _add_options(parser.add_argument_group("transcription options"), TranscribeOptions)
    formats = ", ".join(SUBTITLE_FORMATS)
    group = f"subtitle options ({formats}; with --word-timestamps)"
    _add_options(parser.add_argument_group(group), SubtitleOptions)
    parser.set_defaults(run=_transcribe)


def _formats(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    for name in names:
        if name not in (*FORMATS, "all"):
            raise argparse.ArgumentTypeError(
                f"unknown format {name!r}; expected all, or one or more of {','.join(FORMATS)}"
            )
    return tuple(FORMATS) if "all" in names else names


def _add_options(group: Any, options: type[_Options]) -> None:
    """One argument an option, made from the fields of a dataclass of options."""
    for field in dataclasses.fields(options):
        meta = field.metadata
        flag = "--" + field.name.replace("_", "-")
        if meta["kind"] == "flag":
            text = meta["help"] + _default_text(field.default, False)
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
            help=meta["help"] + _default_text(field.default, meta["optional"]),
        )


def _default_text(default: Any, optional: bool) -> str:
    if default is None or default == ():
        return ""
    if isinstance(default, bool):
        return f" (default: {'yes' if default else 'no'})"
    if isinstance(default, tuple):
        return f" (default: {','.join(map(str, default))})"
    return f" (default: {default}{'; none turns it off' if optional else ''})"


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


def _from(args: argparse.Namespace, options: type[_Options]) -> _Options:
    """The options that were given as arguments."""
    values = vars(args)
    names = [field.name for field in dataclasses.fields(options)]
    return options(**{name: values[name] for name in names if name in values})


# outputs


@dataclasses.dataclass(frozen=True)
class Output:
    """What is made of one recording: files, or one format on standard output, or a listing.

    Attributes:
        formats: none for a listing.
        targets: a file for each format, or none for standard output.
        subtitles: how words are laid out in the formats that have subtitles.
    """

    formats: tuple[str, ...]
    targets: tuple[Path, ...]
    subtitles: SubtitleOptions

    def save(self, transcript: Transcript) -> None:
        """Write the files, or print."""
        for form, target in zip(self.formats, self.targets):
            write(transcript, target, form, self._layout(form))
        if not self.targets:
            for form in self.formats:
                sys.stdout.write(FORMATS[form](transcript, self._layout(form)))

    def _layout(self, form: str) -> SubtitleOptions:
        return self.subtitles if form in SUBTITLE_FORMATS else SubtitleOptions()


def _outputs(args: argparse.Namespace, options: TranscribeOptions) -> list[Output]:
    """The output of each recording; contradictions are found here, before any work."""
    formats = args.format or (() if args.output_dir is None else ("txt",))
    subtitles = _from(args, SubtitleOptions)
    if subtitles.needs_words:
        if not any(form in SUBTITLE_FORMATS for form in formats):
            raise OptionError(
                f"{given(subtitles)}: set, but no subtitles are written; add one of"
                f" {', '.join(SUBTITLE_FORMATS)} to --format"
            )
        if not options.word_timestamps:
            raise OptionError(
                f"{given(subtitles)}: set, but without word times; add --word-timestamps"
            )
    if args.output_dir is None:
        if len(formats) > 1:
            raise OptionError(
                f"--format names {len(formats)} formats, and only one can go to standard output;"
                " add --output-dir"
            )
        return [Output(formats, (), subtitles)] * len(args.audio)
    targets = _targets(args.audio, args.output_dir, formats)
    return [Output(formats, files, subtitles) for files in targets]


def _targets(sources: list[str], folder: Path, formats: tuple[str, ...]) -> list[tuple[Path, ...]]:
    """The files of each recording, in a folder that is made."""
    targets = [
        tuple(folder / f"{Path(source).stem}.{form}" for form in formats) for source in sources
    ]
    for i, files in enumerate(targets):
        if files in targets[:i]:
            other = sources[targets.index(files)]
            raise OptionError(
                f"{other} and {sources[i]} would both be written to {files[0]};"
                " transcribe them into different directories"
            )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WhisperOptError(f"cannot create {folder}: {error.strerror}") from error
    return targets


# running


def _transcribe(args: argparse.Namespace) -> int:
    options = _from(args, TranscribeOptions)
    outputs = _outputs(args, options)
    failed = 0
    with Whisper.load(args.engine, threads=args.threads) as model:
        for source, output in zip(args.audio, outputs):
            failed += not _transcribed(model, source, output, options)
    if failed and len(outputs) > 1:
        complain(f"{failed} of {len(outputs)} recordings failed")
    return 1 if failed else 0


def _transcribed(model: Whisper, source: str, output: Output, options: TranscribeOptions) -> bool:
    """Transcribe one of several recordings: one that cannot be read must not stop the others."""
    try:
        _transcribe_one(model, source, output, options)
    except OptionError:
        raise
    except WhisperOptError as error:
        complain(error if source in str(error) else f"{source}: {error}")
        return False
    return True


def _transcribe_one(
    model: Whisper, source: str, output: Output, options: TranscribeOptions
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
        segments = tuple(_listed(stream, bar, show=not output.formats))
    elapsed = time.perf_counter() - begin
    transcript = Transcript(
        segments=segments,
        language=stream.language,
        language_probability=stream.language_probability,
        duration=stream.duration,
        text="".join(segment.text for segment in segments),
    )
    output.save(transcript)
    print(_summary(source, output, stream, elapsed), file=sys.stderr)


def _listed(stream: Stream, bar: Any, *, show: bool) -> Iterator[Segment]:
    for segment in stream:
        if show and segment.text:
            times = (format_timestamp(second) for second in (segment.start, segment.end))
            bar.clear()
            print(f"[{' --> '.join(times)}] {segment.text}", flush=True)
        yield segment


def _summary(source: str, output: Output, stream: Stream, elapsed: float) -> str:
    where = f" -> {', '.join(map(str, output.targets))}" if output.targets else ""
    probability = stream.language_probability
    sure = "" if probability is None else f" ({probability:.0%})"
    return (
        f"{source}{where}: {stream.duration:.1f} s of audio in {elapsed:.2f} s, real-time factor"
        f" {elapsed / stream.duration:.3f}, language {stream.language}{sure}"
    )
