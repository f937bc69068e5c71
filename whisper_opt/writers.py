r"""Transcripts as text: txt, srt, vtt, tsv and json.

The formats are those of openai-whisper's writers (whisper/utils.py) without its word options, byte
for byte, with one exception: in srt and vtt, ``-->`` inside the text becomes ``->`` with word times
as well as without, because a player would take it for a cue's time line.

Every formatter is a pure function from a transcript to the text of a file with ``\n`` line ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType

from whisper_opt.errors import OptionError, WhisperOptError
from whisper_opt.results import Segment, Transcript

__all__ = [
    "FORMATS",
    "format_timestamp",
    "to_json",
    "to_srt",
    "to_tsv",
    "to_txt",
    "to_vtt",
    "write",
]

_LINE_WIDTH = 1000
"""Characters after which the reference breaks a line built from words."""


def to_txt(transcript: Transcript) -> str:
    """The text of each segment on a line of its own."""
    return "".join(f"{segment.text.strip()}\n" for segment in transcript)


def to_srt(transcript: Transcript) -> str:
    """SubRip subtitles: numbered cues with ``HH:MM:SS,mmm`` times."""
    cues = enumerate(_cues(transcript, always_hours=True, marker=","), start=1)
    return "".join(f"{i}\n{start} --> {end}\n{text}\n\n" for i, (start, end, text) in cues)


def to_vtt(transcript: Transcript) -> str:
    """WebVTT subtitles; hours appear in a time only when there are any."""
    cues = _cues(transcript, always_hours=False, marker=".")
    return "WEBVTT\n\n" + "".join(f"{start} --> {end}\n{text}\n\n" for start, end, text in cues)


def to_tsv(transcript: Transcript) -> str:
    """Tab-separated start and end in integer milliseconds, and text, under a header line."""
    rows = (
        f"{round(1000 * segment.start)}\t{round(1000 * segment.end)}\t"
        + segment.text.strip().replace("\t", " ")
        for segment in transcript
    )
    return "".join(f"{row}\n" for row in ("start\tend\ttext", *rows))


def to_json(transcript: Transcript) -> str:
    """:meth:`Transcript.to_dict` as one line of ASCII JSON, without a final line end."""
    return json.dumps(transcript.to_dict())


FORMATS: Mapping[str, Callable[[Transcript], str]] = MappingProxyType(
    {"txt": to_txt, "srt": to_srt, "vtt": to_vtt, "tsv": to_tsv, "json": to_json}
)
"""Formatter of each format by its file extension."""


def write(transcript: Transcript, path: str | os.PathLike[str], format: str) -> None:
    """Write ``transcript`` to ``path`` as UTF-8, whole or not at all.

    The text goes to a temporary file beside the target, which then replaces the target in one
    step; on failure the temporary file is removed and an older target is left as it was. A
    symbolic link is followed, so that the link itself survives.

    Raises:
        OptionError: ``format`` is not a key of :data:`FORMATS`.
        WhisperOptError: the file cannot be written.
    """
    if format not in FORMATS:
        raise OptionError(f"unknown output format {format!r}; expected one of {', '.join(FORMATS)}")
    text = FORMATS[format](transcript)
    target = os.path.realpath(path)
    partial = os.path.join(os.path.dirname(target), f".whisper-opt-{secrets.token_hex(8)}.tmp")
    try:
        try:
            with open(partial, "x", encoding="utf-8", newline="\n") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, target)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(partial)
            raise
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise WhisperOptError(
            f"cannot write the transcript to {os.fspath(path)!r}: {reason}; choose a file in a"
            " directory that exists and can be written"
        ) from error


def _cues(
    transcript: Transcript, *, always_hours: bool, marker: str
) -> Iterator[tuple[str, str, str]]:
    for segment in transcript:
        start, end, text = segment.start, segment.end, segment.text.strip()
        if segment.words is not None:
            if not segment.words:
                continue  # a segment the aligner found no word in has no cue
            start, end = segment.words[0].start, segment.words[-1].end
            text = _joined_words(segment)
        yield (
            format_timestamp(start, always_hours=always_hours, marker=marker),
            format_timestamp(end, always_hours=always_hours, marker=marker),
            text.replace("-->", "->"),
        )


def _joined_words(segment: Segment) -> str:
    parts: list[str] = []
    width = 0
    for word in segment.words or ():
        if width and width + len(word.word) <= _LINE_WIDTH:
            parts.append(word.word)
            width += len(word.word)
        else:  # a line starts without the space that precedes its first word
            stripped = word.word.strip()
            parts.append(f"\n{stripped}" if width else stripped)
            width = len(stripped)
    return "".join(parts)


def format_timestamp(seconds: float, *, always_hours: bool = False, marker: str = ".") -> str:
    """``[hh:]mm:ss.mmm``, as openai-whisper writes times; ``marker`` separates milliseconds."""
    if not seconds >= 0:
        raise WhisperOptError(
            f"a segment or word has time {seconds!r}; subtitles need times of 0 s or later"
        )
    whole, milliseconds = divmod(round(seconds * 1000.0), 1000)
    minutes, second = divmod(whole, 60)
    hours, minute = divmod(minutes, 60)
    prefix = f"{hours:02d}:" if always_hours or hours else ""
    return f"{prefix}{minute:02d}:{second:02d}{marker}{milliseconds:03d}"
