r"""Formats of transcripts: txt, srt, vtt, tsv, json, lrc, ass and rttm.

The first five equal the output of openai-whisper's writers (whisper/utils.py) byte for byte, except
that srt and vtt avoid what players misread: of ``-->`` in the text the dashes before ``->`` are
dropped, blank lines in a cue are dropped, a cue of no duration takes time from its neighbours
(``subtitles.LEAST``), and with highlighting a state of no or negative duration, between two words
that overlap, is left out.

Speakers, if they are known: txt, srt, lrc and ass begin every line or cue with ``NAME: ``; ass has
the name in its field for it, too; vtt has voice tags, ``<v NAME>``; tsv has another column, json
other keys; rttm lists nothing else.

Every formatter is a pure function from a transcript to the text of a file with ``\n`` line ends.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Callable, Protocol, Union

from whisper_opt.core.errors import OptionError, WhisperOptError
from whisper_opt.core.files import replace_file
from whisper_opt.core.options import SubtitleOptions
from whisper_opt.text.results import Segment, Transcript, Word
from whisper_opt.text.rttm import rttm_lines
from whisper_opt.text.subtitles import PLAIN, Cue, cues, given

__all__ = [
    "FORMATS",
    "SUBTITLE_FORMATS",
    "TEXT_FORMATS",
    "format_timestamp",
    "render",
    "to_ass",
    "to_json",
    "to_lrc",
    "to_rttm",
    "to_srt",
    "to_tsv",
    "to_txt",
    "to_vtt",
    "write",
]

_ASS_HEADER = """\
[Script Info]
ScriptType: v4.00+
PlayResX: 1920
PlayResY: 1080
WrapStyle: 0
ScaledBorderAndShadow: yes

[V4+ Styles]
Format: Name, Fontname, Fontsize, PrimaryColour, SecondaryColour, OutlineColour, BackColour, \
Bold, Italic, Underline, StrikeOut, ScaleX, ScaleY, Spacing, Angle, BorderStyle, Outline, Shadow, \
Alignment, MarginL, MarginR, MarginV, Encoding
Style: Default,Arial,64,&H00FFFFFF,&H00A0A0A0,&H00000000,&H80000000,\
0,0,0,0,100,100,0,0,1,3,1,2,80,80,50,1

[Events]
Format: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text
"""
"""One style: white with a black outline, bottom centre; words that follow are grey."""


_SYNTAX = re.compile(r"-+(?=->)|[\r\n]\s*(?=[\r\n])|[\r\n]\s*\Z")
"""Text to remove from cues of srt and vtt: blank lines, which end a cue, and the dashes of ``-->``
before its last two characters, which mark a time line."""


RECORDING = "recording"
"""The name of a recording in rttm if no other is given."""


class Formatter(Protocol):
    """Formats a transcript as the text of a file."""

    def __call__(self, transcript: Transcript, options: SubtitleOptions = PLAIN) -> str:
        """The text.

        Raises:
            OptionError: ``options`` cannot be honoured in this format or without word times.
            WhisperOptError: a time is negative.
        """


def to_txt(transcript: Transcript, options: SubtitleOptions = PLAIN) -> str:
    """The text of each segment on a line of its own."""
    _refuse(options, "txt")
    return "".join(f"{_said_by(segment)}{segment.text.strip()}\n" for segment in transcript)


def to_srt(transcript: Transcript, options: SubtitleOptions = PLAIN) -> str:
    """SubRip subtitles: numbered cues with ``HH:MM:SS,mmm`` times."""
    entries = enumerate(_entries(transcript, options, always_hours=True, marker=","), start=1)
    return "".join(f"{i}\n{start} --> {end}\n{text}\n\n" for i, (start, end, text) in entries)


def to_vtt(transcript: Transcript, options: SubtitleOptions = PLAIN) -> str:
    """WebVTT subtitles; times have hours only from one hour on."""
    entries = _entries(transcript, options, always_hours=False, marker=".", said_by=_voice)
    return "WEBVTT\n\n" + "".join(f"{start} --> {end}\n{text}\n\n" for start, end, text in entries)


def to_tsv(transcript: Transcript, options: SubtitleOptions = PLAIN) -> str:
    """Tab-separated start and end in integer milliseconds, and text, under a header line.

    If speakers are known, they are in a fourth column.
    """
    _refuse(options, "tsv")
    named = any(segment.speaker is not None for segment in transcript)
    rows = (
        f"{round(1000 * segment.start)}\t{round(1000 * segment.end)}\t"
        + segment.text.strip().replace("\t", " ")
        + (f"\t{_one_line(segment.speaker or '').replace(chr(9), ' ')}" if named else "")
        for segment in transcript
    )
    header = "start\tend\ttext" + ("\tspeaker" if named else "")
    return "".join(f"{row}\n" for row in (header, *rows))


def to_json(transcript: Transcript, options: SubtitleOptions = PLAIN) -> str:
    """:meth:`Transcript.to_dict` as one line of ASCII JSON, without a final line end."""
    _refuse(options, "json")
    return json.dumps(transcript.to_dict())


def to_lrc(transcript: Transcript, options: SubtitleOptions = PLAIN) -> str:
    """Lyrics: ``[mm:ss.xx]text`` for every line of every cue, with the start of its first word.

    ``highlight_words`` writes the enhanced form, which has ``<mm:ss.xx>`` before each word and
    after the last. Minutes may exceed 99, as the format has no hours. Cues without text are left
    out. A text that begins with a bracket is preceded by U+2060, which is invisible, because
    players would parse the bracket as that of a time.

    The format has no standard; this is the simple and the enhanced ("A2") one as described at
    https://en.wikipedia.org/wiki/LRC_(file_format).
    """
    lines = (line for cue in cues(transcript, options) for line in _lines(cue))
    return "".join(
        f"[{_minutes(line[0].start)}]{_said_by(line[0])}{_lyrics(line, options.highlight_words)}\n"
        for line in lines
    )


def to_ass(transcript: Transcript, options: SubtitleOptions = PLAIN) -> str:
    r"""Advanced SubStation Alpha (v4.00+) subtitles, one ``Dialogue`` line per cue.

    ``highlight_words`` is karaoke, the format's own way to time words: ``{\k<centiseconds>}``
    before each, which turns from the style's secondary to its primary colour as it is spoken. Cues
    without text are left out.

    After the format's specification ("Sub Station Alpha v4.00+ Script Format"). It has no escape
    for braces and backslashes; as in libass and FFmpeg, braces are escaped by a backslash, and a
    backslash is followed by U+2060, which is invisible.
    """
    events = (
        f"Dialogue: 0,{_hours(cue.start)},{_hours(cue.end)},Default,{_ass_name(cue)},0,0,0,,"
        + _ass_text(_said_by(cue))
        + (_karaoke(cue) if options.highlight_words else _ass_text(cue.text))
        for cue in cues(transcript, options)
        if cue.text.strip()
    )
    return _ASS_HEADER + "".join(f"{event}\n" for event in events)


def to_rttm(
    transcript: Transcript, options: SubtitleOptions = PLAIN, *, name: str = RECORDING
) -> str:
    """Who speaks when, one line per turn; ``name`` of the recording is its second field."""
    _refuse(options, "rttm")
    return "".join(f"{line}\n" for line in rttm_lines(transcript, name))


FORMATS: Mapping[str, Formatter] = MappingProxyType(
    {
        "txt": to_txt,
        "srt": to_srt,
        "vtt": to_vtt,
        "tsv": to_tsv,
        "json": to_json,
        "lrc": to_lrc,
        "ass": to_ass,
        "rttm": to_rttm,
    }
)
"""Formatter of each format by its file extension."""

TEXT_FORMATS = tuple(name for name in FORMATS if name != "rttm")
"""Formats that hold the text, so that every transcript can be written in all of them."""

SUBTITLE_FORMATS = ("srt", "vtt", "lrc", "ass")
"""Formats that accept :class:`SubtitleOptions`; the others have no cues."""


def render(
    transcript: Transcript,
    format: str,
    options: SubtitleOptions = PLAIN,
    *,
    name: str = RECORDING,
) -> str:
    r"""``transcript`` as the text of a file with ``\n`` line ends.

    Args:
        transcript: what to write.
        format: a key of :data:`FORMATS`.
        options: layout of words in subtitle formats.
        name: of the recording, which rttm states in every line.

    Raises:
        OptionError: ``format`` is not a key of :data:`FORMATS`, or ``options`` cannot be honoured.
        WhisperOptError: a time is negative.
    """
    if format not in FORMATS:
        raise OptionError(f"unknown output format {format!r}; expected one of {', '.join(FORMATS)}")
    if format == "rttm":
        return to_rttm(transcript, options, name=name)
    return FORMATS[format](transcript, options)


def write(
    transcript: Transcript,
    path: str | os.PathLike[str],
    format: str,
    options: SubtitleOptions = PLAIN,
) -> None:
    """Write ``transcript`` to ``path`` as UTF-8, completely or not at all.

    The text is written to a temporary file beside the target, which then replaces the target
    atomically; on failure the temporary file is removed and an existing target stays unchanged. The
    file keeps the permissions of the one it replaces. Symbolic links are followed; devices and
    pipes are written directly.

    Raises:
        OptionError: ``format`` is not a key of :data:`FORMATS`, or ``options`` cannot be honoured.
        WhisperOptError: the file cannot be written.
    """
    text = render(transcript, format, options, name=Path(path).stem)
    try:
        replace_file(path, text.encode("utf-8"))
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise WhisperOptError(
            f"cannot write the transcript to {os.fspath(path)!r}: {reason}; choose a file in a"
            " directory that exists and can be written"
        ) from error


def _refuse(options: SubtitleOptions, format: str) -> None:
    if options.needs_words:
        raise OptionError(
            f"{given(options)}: set, but {format} has no subtitles to lay out; expected one of"
            f" {', '.join(SUBTITLE_FORMATS)}"
        )


# speakers


def _said_by(said: Union[Segment, Word, Cue]) -> str:
    """What is before a text whose speaker is known."""
    return "" if said.speaker is None else f"{_one_line(said.speaker)}: "


def _voice(said: Union[Segment, Word, Cue]) -> str:
    """The start of a voice span of WebVTT, which ends with the cue."""
    if said.speaker is None:
        return ""
    name = _one_line(said.speaker).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return f"<v {name}>"


def _ass_name(cue: Cue) -> str:
    """The speaker as a field of a line; fields are separated by commas."""
    return _one_line(cue.speaker or "").replace(",", ";")


# srt and vtt


def _entries(
    transcript: Transcript,
    options: SubtitleOptions,
    *,
    always_hours: bool,
    marker: str,
    said_by: Callable[[Cue], str] = _said_by,
) -> Iterator[tuple[str, str, str]]:
    """Start, end and text of every cue or, with ``highlight_words``, of every state of it."""
    for cue in map(_readable, cues(transcript, options)):
        states = _states(cue) if options.highlight_words else [(cue.start, cue.end, cue.text)]
        for start, end, text in states:
            yield (
                format_timestamp(start, always_hours=always_hours, marker=marker),
                format_timestamp(end, always_hours=always_hours, marker=marker),
                said_by(cue) + text.lstrip(" ") if cue.speaker else text,
            )


def _readable(cue: Cue) -> Cue:
    """The cue without characters that a player would parse as syntax."""
    drop = {i for match in _SYNTAX.finditer(cue.text) for i in range(*match.span())}
    if not drop:
        return cue
    kept, begin = [], 0
    for word in cue.words:
        letters = (c for i, c in enumerate(word.word, begin) if i not in drop)
        kept.append(dataclasses.replace(word, word="".join(letters)))
        begin += len(word.word)
    return Cue(tuple(kept))


def _states(cue: Cue) -> Iterator[tuple[float, float, str]]:
    """The cue with each word underlined in turn, and with no underline in pauses."""
    last = cue.start
    texts = [word.word for word in cue.words]
    for i, word in enumerate(cue.words):
        if round(word.start * 1000.0) > round(last * 1000.0):
            yield last, word.start, cue.text
        if round(word.end * 1000.0) > round(word.start * 1000.0):
            marked = [*texts[:i], _underlined(word.word), *texts[i + 1 :]]
            yield word.start, word.end, "".join(marked)
        last = word.end


def _underlined(text: str) -> str:
    return re.sub(r"\A(\s*)(.*?)(\n?)\Z", r"\1<u>\2</u>\3", text, flags=re.DOTALL)


def format_timestamp(seconds: float, *, always_hours: bool = False, marker: str = ".") -> str:
    """``[hh:]mm:ss.mmm``, as in openai-whisper; ``marker`` separates milliseconds."""
    whole, milliseconds = divmod(_units(seconds, 1000), 1000)
    minutes, second = divmod(whole, 60)
    hours, minute = divmod(minutes, 60)
    prefix = f"{hours:02d}:" if always_hours or hours else ""
    return f"{prefix}{minute:02d}:{second:02d}{marker}{milliseconds:03d}"


def _units(seconds: float, per_second: int) -> int:
    """A time in whole milliseconds (1000) or centiseconds (100)."""
    if not 0 <= seconds < math.inf:
        raise WhisperOptError(
            f"a segment or word has time {seconds!r}; subtitles need times of 0 s or later"
        )
    return round(seconds * per_second)


# lrc


def _lines(cue: Cue) -> Iterator[list[Word]]:
    """The words of each line of a cue; lines without text are left out."""
    line: list[Word] = []
    for word in cue.words:
        if word.word.startswith("\n"):
            yield from _spoken(line)
            line = []
        line.append(word)
    yield from _spoken(line)


def _spoken(line: list[Word]) -> Iterator[list[Word]]:
    if any(word.word.strip() for word in line):
        yield line


def _lyrics(line: list[Word], timed: bool) -> str:
    if not timed:
        text = _one_line("".join(word.word for word in line)).strip()
        return f"\u2060{text}" if text.startswith("[") else text
    parts: list[str] = []
    for word in line:
        text = word.word.lstrip()
        space = " " if parts and text != word.word else ""
        parts.append(f"{space}<{_minutes(word.start)}>{_one_line(text)}")
    return "".join(parts) + f"<{_minutes(line[-1].end)}>"


def _one_line(text: str) -> str:
    return re.sub(r"[\r\n]+", " ", text)


def _minutes(seconds: float) -> str:
    whole, hundredths = divmod(_units(seconds, 100), 100)
    return f"{whole // 60:02d}:{whole % 60:02d}.{hundredths:02d}"


# ass


def _hours(seconds: float) -> str:
    whole, hundredths = divmod(_units(seconds, 100), 100)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}.{hundredths:02d}"


def _karaoke(cue: Cue) -> str:
    r"""Every word after a ``{\k}`` with its duration; a pause is a ``{\k}`` without a word."""
    parts: list[str] = []
    clock = _units(cue.start, 100)
    for word in cue.words:
        text = word.word.lstrip()
        parts.append(_ass_text(word.word[: len(word.word) - len(text)]))
        start = max(clock, _units(word.start, 100))
        end = max(start, _units(word.end, 100))
        pause = rf"{{\k{start - clock}}}" if start > clock else ""
        parts.append(rf"{pause}{{\k{end - start}}}{_ass_text(text)}")
        clock = end
    return "".join(parts)


def _ass_text(text: str) -> str:
    text = text.replace("\\", "\\\u2060").replace("{", r"\{").replace("}", r"\}")
    return re.sub(r"\r\n|\r|\n", r"\\N", text)
