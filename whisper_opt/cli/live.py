"""``whisper-opt live``: text of a microphone, a file or a pipe as it is spoken."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Union

from whisper_opt.cli.formats import check_subtitles, output_formats
from whisper_opt.cli.live_audio import FileSource, Microphone, PcmSource, Source
from whisper_opt.cli.live_view import View, view_for
from whisper_opt.cli.options import add_options, complain, options_from
from whisper_opt.cli.transcribe import ENGINE_HELP, load
from whisper_opt.core.errors import OptionError, StreamError, WhisperOptError
from whisper_opt.core.options import LiveOptions, LoadOptions, SubtitleOptions, TranscribeOptions
from whisper_opt.text.live_events import Failed, LiveEvent, Speakers, Utterance
from whisper_opt.text.results import Segment, Transcript
from whisper_opt.text.writers import FORMATS, SUBTITLE_FORMATS, write
from whisper_opt.transcription.live.speakers import spoken_by

__all__ = ["EXAMPLES", "add_live_arguments"]

EXAMPLES = """\
examples:
  whisper-opt live base --mic
  whisper-opt live base --mic --format srt,txt --output-dir captions
  whisper-opt live tiny.en talk.mp3 --realtime
  ffmpeg -i rtmp://... -f s16le -ar 16000 -ac 1 - | whisper-opt live base -

"""
_LEFT_OUT = (
    *("clip_timestamps", "transcript_prefix", "prefix", "strategy", "batch_size", "multilingual"),
    *("word_timestamps", "max_duration", "max_audio_bytes", "strict_audio"),
    *("channels", "draft"),
    *(f.name for f in dataclasses.fields(TranscribeOptions) if f.name.startswith("vad")),
)
"""Options of recordings that live sessions refuse, always use, or have of their own."""
_STDIN = "-"


def add_live_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command, and the function that runs it."""
    parser.add_argument("engine", metavar="MODEL", help=ENGINE_HELP)
    parser.add_argument(
        "audio",
        metavar="AUDIO",
        nargs="?",
        help="a recording; or -: samples of 16 bits, little endian, on standard input",
    )
    parser.add_argument("--mic", action="store_true", help="hear a microphone (extra 'mic')")
    parser.add_argument(
        "--mic-device",
        metavar="DEVICE",
        help="number or part of the name of a recording device; python -m sounddevice lists them",
    )
    parser.add_argument(
        "--realtime", action="store_true", help="play AUDIO at its own pace, not as fast as it goes"
    )
    parser.add_argument(
        "--rate", type=int, default=16_000, metavar="HZ", help="rate of - (default: 16000)"
    )
    parser.add_argument(
        "--channels", type=int, default=1, metavar="N", help="channels of -, mixed (default: 1)"
    )
    parser.add_argument(
        "--format",
        type=output_formats,
        metavar="FORMAT,...",
        help=f"{', '.join(FORMATS)} or all; needs --output-dir",
    )
    parser.add_argument(
        "--output-dir",
        "-o",
        metavar="DIR",
        type=Path,
        help="write DIR/NAME.FORMAT, again after each utterance; default format: txt",
    )
    add_options(parser.add_argument_group("live options"), LiveOptions)
    add_options(parser.add_argument_group("device options"), LoadOptions)
    add_options(
        parser.add_argument_group("transcription options"), TranscribeOptions, leave_out=_LEFT_OUT
    )
    formats = ", ".join(SUBTITLE_FORMATS)
    add_options(parser.add_argument_group(f"subtitle options ({formats})"), SubtitleOptions)
    parser.set_defaults(run=_live)


def _source(args: argparse.Namespace) -> Source:
    """What is heard; contradictory arguments are refused here, before any work.

    Raises:
        OptionError: it is not clear what is to be heard.
        BackendUnavailable: there is no PortAudio.
    """
    mic = args.mic or args.mic_device is not None
    if mic == (args.audio is not None):
        found = "both --mic and AUDIO are given" if mic else "nothing to hear is given"
        raise OptionError(f"{found}; expected --mic, or a recording, or -")
    if args.realtime and (mic or args.audio == _STDIN):
        raise OptionError("--realtime is given, but only a recording has a pace; leave it out")
    if mic:
        return Microphone(args.mic_device)
    if args.audio != _STDIN:
        return FileSource(args.audio, Path(args.audio).stem, paced=args.realtime)
    if sys.stdin is None or sys.stdin.closed or sys.stdin.isatty():
        raise OptionError(
            "- reads samples from standard input, which is no pipe; pipe some into it"
        )
    if args.rate < 1 or args.channels < 1:
        raise OptionError("--rate and --channels must be positive")
    return PcmSource(sys.stdin.buffer, args.rate, args.channels)


class _Files:
    """The files of the transcript, written whole after each utterance."""

    def __init__(
        self,
        folder: Union[Path, None],
        name: str,
        formats: tuple[str, ...],
        layout: SubtitleOptions,
    ) -> None:
        self._targets = [] if folder is None else [(f, folder / f"{name}.{f}") for f in formats]
        self._layout = layout
        self._segments: list[Segment] = []
        self._utterances: list[int] = []  # of each segment
        self._language, self._duration = "en", 0.0
        if folder is not None:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise WhisperOptError(f"cannot create {folder}: {error.strerror}") from error

    def add(self, found: Utterance) -> None:
        """Add an utterance."""
        if not self._targets:
            return
        for segment in found.segments:
            self._segments.append(dataclasses.replace(segment, id=len(self._segments)))
            self._utterances.append(found.utterance)
        self._language, self._duration = found.language, found.end
        self.write()

    def name(self, found: Speakers) -> None:
        """Name the speakers of all utterances again."""
        for i, number in enumerate(self._utterances):
            self._segments[i] = spoken_by(self._segments[i], found.names.get(number))
        if self._utterances:
            self.write()

    def write(self) -> None:
        """Write all files."""
        text = "".join(segment.text for segment in self._segments)
        transcript = Transcript(tuple(self._segments), self._language, self._duration, text)
        for form, target in self._targets:
            layout = self._layout if form in SUBTITLE_FORMATS else SubtitleOptions()
            write(transcript, target, form, layout)


class _Stopper:
    """Ends the audio at the first Ctrl-C or SIGTERM; the second Ctrl-C interrupts."""

    def __init__(self) -> None:
        self.event = threading.Event()

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Handle the signals in this context."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        signals = (signal.SIGINT, signal.SIGTERM)
        before = {each: signal.signal(each, self._stop) for each in signals}
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)

    def _stop(self, number: int, frame: object) -> None:
        if self.event.is_set():
            raise KeyboardInterrupt
        self.event.set()


class _Feeder:
    """Pushes the audio in a thread of its own, and finishes the session."""

    def __init__(self, source: Source, live: Any, view: View, stop: threading.Event) -> None:
        self.error: Union[BaseException, None] = None
        self._source, self._live, self._view, self._stop = source, live, view, stop
        threads = (self._push, self._finish)
        for target in threads:  # a read of standard input cannot be interrupted
            threading.Thread(target=target, daemon=True).start()

    def _push(self) -> None:
        try:
            self._source.run(self._heard, lambda: self._live.session.backlog, self._stop)
        except StreamError:  # the session has ended before
            pass
        except BaseException as error:
            self.error = error
        self._stop.set()

    def _finish(self) -> None:
        self._stop.wait()
        self._live.finish()

    def _heard(self, samples: Any) -> None:
        self._view.hear(samples)
        self._live.push(samples)


def _live(args: argparse.Namespace) -> int:
    from whisper_opt.serving.live.live import Live

    source = _source(args)
    names = [f.name for f in dataclasses.fields(TranscribeOptions) if f.name not in _LEFT_OUT]
    given = {name: getattr(args, name) for name in names if hasattr(args, name)}
    options = TranscribeOptions(**given, word_timestamps=True)
    how, layout = options_from(args, LiveOptions), options_from(args, SubtitleOptions)
    formats = args.format or ("txt",)
    if args.format and args.output_dir is None:
        raise OptionError("--format is given without --output-dir; add --output-dir DIR")
    check_subtitles(formats if args.output_dir else (), layout, options)
    files = _Files(args.output_dir, source.name, formats, layout)
    stopper = _Stopper()
    with (
        load(args) as model,
        Live(model, options, how, sample_rate=source.rate, channels=source.n_channels) as live,
        stopper.watching(),
    ):
        view = view_for(sys.stdout)
        feeder = _Feeder(source, live, view, stopper.event)
        try:
            n_failed = sum(_shown(event, view, files) for event in live.events())
        finally:
            stopper.event.set()
            view.close()
    if feeder.error is not None:
        raise feeder.error
    return 1 if n_failed else 0


def _shown(event: LiveEvent, view: View, files: _Files) -> bool:
    """Show an event; whether it is a failure."""
    view.show(event)
    if isinstance(event, Utterance):
        files.add(event)
    elif isinstance(event, Speakers):
        files.name(event)
    elif isinstance(event, Failed):
        complain(event.error)
        return True
    return False
