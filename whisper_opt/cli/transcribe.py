"""``whisper-opt transcribe``: arguments, output and progress."""

from __future__ import annotations

import argparse
import collections
import dataclasses
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from whisper_opt.cli import whisper_flags
from whisper_opt.cli.formats import check_subtitles, output_formats
from whisper_opt.cli.options import add_options, complain, expanded, options_from, print_utf8
from whisper_opt.cli.progress import export_bar
from whisper_opt.core.errors import OptionError, WhisperOptError
from whisper_opt.core.options import LoadOptions, SubtitleOptions, TranscribeOptions
from whisper_opt.text.languages import LANGUAGES
from whisper_opt.text.results import Segment, Transcript
from whisper_opt.text.writers import FORMATS, SUBTITLE_FORMATS, format_timestamp, write
from whisper_opt.transcription.model import Whisper

__all__ = ["ENGINE_HELP", "EXAMPLES", "Output", "add_arguments", "add_load_arguments", "load"]


def _wrapped(languages: Any) -> str:
    words = [f"{code} {name}," for code, name in languages.items()]
    lines = [" ".join(words[i : i + 6]) for i in range(0, len(words), 6)]
    return "\n  ".join(["", *lines]).rstrip(",")


EXAMPLES = (
    "examples:\n"
    "  whisper-opt transcribe engines/tiny.en talk.mp3\n"
    "  whisper-opt transcribe engines/base *.wav --format srt,json --output-dir subtitles\n"
    "  whisper-opt transcribe engines/base talk.mp3 --format vtt --word-timestamps"
    " --max-line-width 42\n"
    "  whisper-opt transcribe talk.mp3 --model engines/base --output_format srt\n"
    "  whisper-opt transcribe base call.wav --channels split --format vtt\n"
    "  whisper-opt transcribe base talk.mp3 --diarize --speakers engines/speakers\n"
    "  cat talk.mp3 | whisper-opt transcribe base -\n\n"
    f"languages: {_wrapped(LANGUAGES)}\n\n"
)
"""Text after the arguments in the command's help."""
STDIN = "-"
"""The recording that is read from standard input."""
ENGINE_HELP = (
    "engine directory; or a short name (tiny.en, large-v3, turbo, ...), a hub id or a checkpoint,"
    " which is exported once to the engine cache"
)


# arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command, and the function that runs it."""
    parser.add_argument("engine", metavar="ENGINE", help=ENGINE_HELP)
    parser.add_argument(
        "audio",
        metavar="AUDIO",
        nargs="+",
        help="audio or video files; -: the bytes of one on standard input",
    )
    parser.add_argument(
        "--format",
        type=output_formats,
        metavar="FORMAT,...",
        help=f"{', '.join(FORMATS)} or all, instead of a listing for reading; several formats need"
        " --output-dir",
    )
    parser.add_argument(
        "--output-dir",
        "-o",
        metavar="DIR",
        type=Path,
        help="write DIR/NAME.FORMAT for each recording instead of standard output; default format:"
        " txt",
    )
    add_load_arguments(parser)
    add_options(parser.add_argument_group("transcription options"), TranscribeOptions)
    formats = ", ".join(SUBTITLE_FORMATS)
    group = f"subtitle options ({formats}; with --word-timestamps)"
    add_options(parser.add_argument_group(group), SubtitleOptions)
    whisper_flags.add_arguments(parser)
    parser.set_defaults(run=_transcribe)


def add_load_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of loading an engine."""
    add_options(parser.add_argument_group("device options"), LoadOptions)


def load(args: argparse.Namespace) -> Whisper:
    """Load the engine on the device that the arguments name; it is exported if need be."""
    with export_bar() as on_progress:
        return Whisper.load(
            args.engine, options=options_from(args, LoadOptions), on_progress=on_progress
        )


# outputs


@dataclasses.dataclass(frozen=True)
class Output:
    """Output of one recording: files, one format on standard output, or a listing.

    Attributes:
        formats: output formats; empty for a listing.
        targets: one file per format; empty for standard output.
        subtitles: layout of words in subtitle formats.
        listing: whether segments are listed as they are decoded.
    """

    formats: tuple[str, ...]
    targets: tuple[Path, ...]
    subtitles: SubtitleOptions
    listing: bool = False

    def save(self, transcript: Transcript) -> None:
        """Write the files, or print on standard output."""
        for form, target in zip(self.formats, self.targets):
            write(transcript, target, form, self._layout(form))
        if not self.targets:
            for form in self.formats:
                print_utf8(FORMATS[form](transcript, self._layout(form)))

    def _layout(self, form: str) -> SubtitleOptions:
        return self.subtitles if form in SUBTITLE_FORMATS else SubtitleOptions()


def _outputs(args: argparse.Namespace, options: TranscribeOptions) -> list[Output]:
    """The output of each recording; contradictory arguments are refused here, before any work."""
    formats = args.format or (() if args.output_dir is None else ("txt",))
    subtitles = options_from(args, SubtitleOptions)
    check_subtitles(formats, subtitles, options)
    if args.output_dir is None:
        if len(formats) > 1:
            raise OptionError(
                f"--format names {len(formats)} formats, but standard output takes only one;"
                " add --output-dir"
            )
        return [Output(formats, (), subtitles, not formats)] * len(args.audio)
    targets = _targets(args.audio, args.output_dir, formats)
    return [Output(formats, files, subtitles, bool(args.verbose)) for files in targets]


def _targets(sources: list[str], folder: Path, formats: tuple[str, ...]) -> list[tuple[Path, ...]]:
    """The files of each recording, in a directory that is created."""
    targets = [
        tuple(folder / f"{Path(_name(source)).stem}.{form}" for form in formats)
        for source in sources
    ]
    written = [_on_disk(files) for files in targets]
    for i, files in enumerate(targets):
        if written[i] in written[:i]:
            other = sources[written.index(written[i])]
            raise OptionError(
                f"{other} and {sources[i]} would both be written to {files[0]};"
                " transcribe them into different directories"
            )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WhisperOptError(f"cannot create {folder}: {error.strerror}") from error
    return targets


def _on_disk(files: Sequence[Path]) -> list[str]:
    """What names the files on disk: most disks of Windows and macOS ignore the case of letters."""
    names = [str(path) for path in files]
    return [name.lower() for name in names] if sys.platform in ("win32", "darwin") else names


# standard input


def _name(source: str) -> str:
    """Name of a recording in messages and files."""
    return "stdin" if source == STDIN else source


def _check_stdin(sources: list[str]) -> None:
    """Refuse what cannot be read from standard input, before any work."""
    n = sources.count(STDIN)
    if n > 1:
        raise OptionError(f"- is given {n} times, but standard input can be read only once")
    if n and (sys.stdin is None or sys.stdin.closed):
        raise OptionError("- is given, but there is no standard input; name a file instead")
    if n and sys.stdin.isatty():
        raise OptionError(
            "- reads a recording from standard input, which is a terminal; pipe one into it (cat"
            " talk.mp3 | whisper-opt transcribe ENGINE -), or name a file (./- for one of this"
            " name)"
        )


def _audio(source: str) -> str | BinaryIO:
    return sys.stdin.buffer if source == STDIN else source


def _check_draft(options: TranscribeOptions, sources: Sequence[str]) -> None:
    if options.draft is not None and len(sources) > 1:
        raise OptionError(
            f"draft is given, but there are {len(sources)} recordings, and a draft belongs to one;"
            " transcribe them one by one, or use the corpus command, whose manifest can have a"
            " draft for each"
        )


# running


def _transcribe(args: argparse.Namespace) -> int:
    whisper_flags.adopt(args)
    args.audio = expanded(args.audio)
    _check_stdin(args.audio)
    options = options_from(args, TranscribeOptions)
    _check_draft(options, args.audio)
    outputs = _outputs(args, options)
    run = _one if len(outputs) == 1 else _several
    with load(args) as model:
        failed = run(model, args.audio, outputs, options)
    if failed and len(outputs) > 1:
        complain(f"{failed} of {len(outputs)} recordings failed")
    return 1 if failed else 0


class _Bar:
    """A progress bar in seconds of audio; shows nothing if standard error is no terminal."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._tqdm: Any = None  # created on first use

    def show(self, done: float, total: float) -> None:
        if not sys.stderr.isatty():
            return
        if self._tqdm is None:
            from tqdm import tqdm  # slow to import

            self._tqdm = tqdm(
                unit="s",
                desc=self._name,
                total=total,
                leave=False,
                bar_format="{desc}: {percentage:3.0f}% {bar} {n:.0f}/{total:.0f} s of audio",
            )
        self._tqdm.total, self._tqdm.n = total, done
        self._tqdm.refresh()

    def print(self, text: str) -> None:
        if self._tqdm is not None:
            self._tqdm.clear()
        print(text, flush=True)

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._tqdm is not None:
            self._tqdm.close()


def _one(
    model: Whisper, sources: list[str], outputs: list[Output], options: TranscribeOptions
) -> int:
    """Transcribe one recording; its segments are listed as they are decoded."""
    (source,), (output,) = sources, outputs
    begin = time.perf_counter()
    try:
        with _Bar(Path(_name(source)).name) as bar:
            stream = model.stream(_audio(source), options=options, on_progress=bar.show)
            for segment in stream:
                if output.listing and segment.text:
                    bar.print(_line(segment))
            transcript = stream.transcript()
        output.save(transcript)
    except OptionError:
        raise
    except WhisperOptError as error:
        _complain_of(source, error)
        return 1
    _report(_summary(source, output, transcript, time.perf_counter() - begin), transcript)
    return 0


def _several(
    model: Whisper, sources: list[str], outputs: list[Output], options: TranscribeOptions
) -> int:
    """Transcribe several recordings together; one that cannot be read does not stop the others."""
    begin = time.perf_counter()
    done: dict[int, float] = {}
    totals: dict[int, float] = {}
    found: dict[int, Transcript | WhisperOptError] = {}
    failed, shown, seconds_of_audio = 0, 0, 0.0
    with _Bar(f"{len(sources)} recordings") as bar:

        def on_progress(i: int, seconds: float, total: float) -> None:
            done[i], totals[i] = seconds, total
            bar.show(sum(done.values()), sum(totals.values()))

        results = model.transcribe_many(
            list(map(_audio, sources)),
            options=options,
            return_exceptions=True,
            on_progress=on_progress,
        )
        for i, result in results:
            found[i] = result
            while shown in found:  # in the order they were given
                source, output, ready = sources[shown], outputs[shown], found.pop(shown)
                if not _saved(source, output, ready, bar):
                    failed += 1
                elif isinstance(ready, Transcript):
                    seconds_of_audio += ready.duration
                shown += 1
    elapsed = time.perf_counter() - begin
    print(
        f"{_count(len(sources) - failed, 'recording')}, {seconds_of_audio:.1f} s of audio in"
        f" {elapsed:.2f} s, real-time factor {elapsed / max(seconds_of_audio, 1e-9):.3f}",
        file=sys.stderr,
    )
    return failed


def _saved(source: str, output: Output, result: Transcript | WhisperOptError, bar: _Bar) -> bool:
    try:
        if isinstance(result, WhisperOptError):
            raise result
        if output.listing:
            bar.print("\n".join(_line(segment) for segment in result if segment.text))
        output.save(result)
    except OptionError:
        raise
    except WhisperOptError as error:
        _complain_of(source, error)
        return False
    _report(_summary(source, output, result, None), result)
    return True


def _complain_of(source: str, error: WhisperOptError) -> None:
    name = _name(source)
    complain(error if name in str(error) else f"{name}: {error}")


def _line(segment: Segment) -> str:
    times = (format_timestamp(second) for second in (segment.start, segment.end))
    speaker = "" if segment.speaker is None else f" {segment.speaker}:"
    return f"[{' --> '.join(times)}]{speaker} {segment.text}"


def _report(summary: str, found: Transcript) -> None:
    """Print the summary of a recording, and a line for each kind of missing text."""
    print("\n".join([summary, *_missing_text(found)]), file=sys.stderr)


def _missing_text(found: Transcript) -> Iterator[str]:
    if found.dropped:
        seconds = sum(part.end - part.start for part in found.dropped)
        counts = collections.Counter(part.reason for part in found.dropped)
        reasons = ", ".join(f"{reason} ({n})" for reason, n in counts.items())
        yield (
            f"  no text for {_count(len(found.dropped), 'part')} of the recording, {seconds:.1f} s:"
            f" {reasons}; format json lists them as 'dropped'"
        )
    cut = [segment for segment in found if segment.truncated]
    if cut:
        yield (
            f"  text may be missing after {_count(len(cut), 'segment')} that reached the token"
            f" limit, the first at {cut[0].start:.1f} s; see --max-new-tokens"
        )


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def _summary(source: str, output: Output, found: Transcript, elapsed: float | None) -> str:
    where = f" -> {', '.join(map(str, output.targets))}" if output.targets else ""
    probability = found.language_probability
    percent = "" if probability is None else f" ({probability:.0%})"
    speed = (
        ""
        if elapsed is None
        else f" in {elapsed:.2f} s, real-time factor {elapsed / found.duration:.3f}"
    )
    language = f"language {found.language}{percent}"
    return f"{_name(source)}{where}: {found.duration:.1f} s of audio{speed}, {language}"
