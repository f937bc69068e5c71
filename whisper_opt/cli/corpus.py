"""``whisper-opt corpus``: transcribe a list of recordings; may be killed and continued."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whisper_opt.cli.formats import check_subtitles, output_formats
from whisper_opt.cli.options import add_options, complain, options_from
from whisper_opt.cli.transcribe import ENGINE_HELP, add_load_arguments, load
from whisper_opt.core.options import SubtitleOptions, TranscribeOptions
from whisper_opt.text.writers import FORMATS
from whisper_opt.transcription.model import Whisper

if TYPE_CHECKING:  # slow to import, and needed by this command only
    from whisper_opt.serving.corpus import Corpus, Outcome
    from whisper_opt.serving.engine import Engine
    from whisper_opt.serving.manifests import Manifest, Recording

__all__ = ["EXAMPLES", "add_corpus_arguments"]

EXAMPLES = """\
examples:
  whisper-opt corpus engines/base list.txt transcripts
  whisper-opt corpus engines/base list.jsonl transcripts --shard 0/4 --format json,srt
  whisper-opt corpus engines/base list.jsonl transcripts --retry-failed

"""


def add_corpus_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command, and the function that runs it."""
    parser.add_argument("engine", metavar="MODEL", help=ENGINE_HELP)
    parser.add_argument(
        "manifest",
        metavar="MANIFEST",
        type=Path,
        help="a path per line; or a JSON object per line, with audio or path, perhaps id, and"
        " perhaps transcription options of this recording. Paths are relative to the manifest",
    )
    parser.add_argument(
        "out",
        metavar="OUT",
        type=Path,
        help="directory for ID.FORMAT of each recording; those that are there are not made again",
    )
    parser.add_argument(
        "--shard",
        metavar="I/N",
        default="0/1",
        help="transcribe only part I of N, numbered from 0; the part of a recording depends on its"
        " id alone (default: all)",
    )
    parser.add_argument(
        "--format",
        type=output_formats,
        metavar="FORMAT,...",
        default=("json",),
        help=f"{', '.join(FORMATS)} or all (default: json)",
    )
    parser.add_argument(
        "--retry-failed",
        action="store_true",
        help="also transcribe recordings that failed before and have not changed",
    )
    add_load_arguments(parser)
    group = parser.add_argument_group("transcription options")
    add_options(group, TranscribeOptions, leave_out=("draft",))  # recordings have their own
    add_options(parser.add_argument_group("subtitle options"), SubtitleOptions)
    parser.set_defaults(run=_corpus)


def _corpus(args: argparse.Namespace) -> int:
    from whisper_opt.serving.corpus import Corpus
    from whisper_opt.serving.manifests import Shard, check_options, read_manifest

    shard = Shard.parse(args.shard)
    options = options_from(args, TranscribeOptions)
    subtitles = options_from(args, SubtitleOptions)
    check_subtitles(args.format, subtitles, options)
    manifest = read_manifest(args.manifest, options)
    _report_ignored(manifest)
    recordings = [each for each in manifest.recordings if shard.has(each.id)]
    with load(args) as model:
        check_options(model, recordings)
        with Corpus(args.out, model, shard, args.format, subtitles) as corpus:
            run = _Run(corpus, recordings, args.retry_failed)
            run.transcribe(model, options.batch_size)
    return 1 if run.failed else 0


def _report_ignored(manifest: Manifest) -> None:
    if manifest.ignored:
        print(
            f"ignored keys of the manifest, which are no options: {', '.join(manifest.ignored)}",
            file=sys.stderr,
        )


class _Run:
    """One run of the command: what was done before, what is done now, and what failed."""

    def __init__(self, corpus: Corpus, recordings: Sequence[Recording], retry: bool) -> None:
        self.corpus = corpus
        self.n_all = len(recordings)
        self.failed: list[Outcome] = []
        self.left: list[Recording] = []
        for recording in recordings:
            before = corpus.outcome(recording)
            if before is None or (before.error is not None and retry):
                self.left.append(recording)
            elif before.error is not None:
                self.failed.append(before)
        self.n_before = self.n_all - len(self.left) - len(self.failed)
        self.n_new = 0
        self.seconds = 0.0

    def transcribe(self, model: Whisper, max_batch: int) -> None:
        """Transcribe what is left; the summary and the list of failures are always written."""
        from whisper_opt.serving.engine import Engine

        begin = time.perf_counter()
        try:
            if self.left:
                with _bar(len(self.left)) as bar, Engine(model, max_batch=max_batch) as engine:
                    self._consume(engine, bar, 2 * max_batch + 16)
        finally:
            listed = self.corpus.list_failed(self.failed)
            self._summarize(time.perf_counter() - begin)
            if listed is not None:
                complain(f"{len(self.failed)} of {self.n_all} recordings failed; see {listed}")

    def _consume(self, engine: Engine, bar: Any, ahead: int) -> None:
        from whisper_opt.serving.corpus_run import transcribe_corpus

        def on_progress(in_work: float) -> None:
            bar.set_postfix_str(f"{self.seconds + in_work:.0f} s of audio")

        outcomes = transcribe_corpus(
            engine, self.corpus, self.left, ahead=ahead, on_progress=on_progress
        )
        with contextlib.closing(outcomes):
            for found in outcomes:
                if found.error is None:
                    self.n_new += 1
                    self.seconds += found.seconds
                else:
                    self.failed.append(found)
                    bar.clear()
                    name = str(found.recording.audio)
                    complain(found.error if name in found.error else f"{name}: {found.error}")
                bar.update()

    def _summarize(self, elapsed: float) -> None:
        missing = self.n_all - self.n_before - self.n_new - len(self.failed)
        rest = f", {missing} not yet: the same command continues" if missing else ""
        factor = f", real-time factor {elapsed / self.seconds:.3f}" if self.seconds else ""
        print(
            f"{self.n_all} recordings: {self.n_new} transcribed, {self.n_before} were there,"
            f" {len(self.failed)} failed{rest}; {self.seconds:.1f} s of audio in {elapsed:.2f} s"
            f"{factor}",
            file=sys.stderr,
        )


@contextlib.contextmanager
def _bar(n: int) -> Iterator[Any]:
    """A progress bar in recordings; shows nothing if standard error is no terminal."""
    from tqdm import tqdm  # slow to import

    with tqdm(total=n, unit="recording", disable=None, leave=False) as bar:
        yield bar
