"""Output formats of the commands that transcribe."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from whisper_opt.core.errors import OptionError
from whisper_opt.core.options import SubtitleOptions, TranscribeOptions
from whisper_opt.text.subtitles import given
from whisper_opt.text.writers import FORMATS, SUBTITLE_FORMATS, TEXT_FORMATS

__all__ = ["check_subtitles", "output_formats"]


def output_formats(text: str) -> tuple[str, ...]:
    """Names of formats separated by commas, or ``all`` but rttm; raises ArgumentTypeError."""
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    for name in names:
        if name not in (*FORMATS, "all"):
            raise argparse.ArgumentTypeError(
                f"unknown format {name!r}; expected all, or one or more of {','.join(FORMATS)}"
            )
    if "all" not in names:
        return names
    return (*TEXT_FORMATS, *(name for name in names if name not in (*TEXT_FORMATS, "all")))


def check_subtitles(
    formats: Sequence[str], subtitles: SubtitleOptions, options: TranscribeOptions
) -> None:
    """Raise OptionError if there are no subtitles, or no words, to lay out; or no speakers."""
    if "rttm" in formats and not options.speaker_options.needs_words:
        raise OptionError(
            "--format rttm lists speakers, but they are not told apart; add --diarize, or"
            " --channels split"
        )
    if not subtitles.needs_words:
        return
    if not any(form in SUBTITLE_FORMATS for form in formats):
        raise OptionError(
            f"{given(subtitles)}: set, but no subtitle format is written; add one of"
            f" {', '.join(SUBTITLE_FORMATS)} to --format"
        )
    if not options.word_timestamps:
        raise OptionError(
            f"{given(subtitles)}: set, but there are no word timestamps; add --word-timestamps"
        )
