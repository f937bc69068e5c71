"""``whisper.utils``: writers of results, formats of times, parsers of arguments."""

from __future__ import annotations

import json
import os
import sys
import zlib
from collections.abc import Callable, Mapping
from typing import Any, TextIO

import whisper_opt
from whisper_opt.compat.timestamps import format_timestamp

__all__ = [
    "ResultWriter",
    "SubtitlesWriter",
    "WriteJSON",
    "WriteSRT",
    "WriteTSV",
    "WriteTXT",
    "WriteVTT",
    "compression_ratio",
    "exact_div",
    "format_timestamp",
    "get_end",
    "get_start",
    "get_writer",
    "make_safe",
    "optional_float",
    "optional_int",
    "str2bool",
]

Result = Mapping[str, Any]
"""A result of ``transcribe``."""


def make_safe(string: str) -> str:
    """``string`` with a question mark for what the system's encoding does not have."""
    encoding = sys.getdefaultencoding()
    return string.encode(encoding, errors="replace").decode(encoding)


def exact_div(x: int, y: int) -> int:
    """``x // y``, which must leave no remainder."""
    if x % y:
        raise AssertionError(f"{y} does not divide {x}")
    return x // y


def str2bool(string: str) -> bool:
    """The value of ``True`` or ``False``; another text is a ValueError."""
    if string not in ("True", "False"):
        raise ValueError(f"{string!r}; expected True or False")
    return string == "True"


def optional_int(string: str) -> int | None:
    """An integer, or None for ``None``."""
    return None if string == "None" else int(string)


def optional_float(string: str) -> float | None:
    """A number, or None for ``None``."""
    return None if string == "None" else float(string)


def compression_ratio(text: str) -> float:
    """UTF-8 bytes of ``text`` over their size after zlib; high for repeated text."""
    data = text.encode("utf-8")
    return len(data) / len(zlib.compress(data))


def get_start(segments: list[dict[str, Any]]) -> float | None:
    """Start of the first word, else of the first segment, else None."""
    words = (word["start"] for segment in segments for word in segment["words"])
    return next(words, segments[0]["start"] if segments else None)


def get_end(segments: list[dict[str, Any]]) -> float | None:
    """End of the last word, else of the last segment, else None."""
    words = (w["end"] for segment in reversed(segments) for w in reversed(segment["words"]))
    return next(words, segments[-1]["end"] if segments else None)


class ResultWriter:
    """Writes results in one format to ``output_dir``."""

    extension: str

    def __init__(self, output_dir: str) -> None:
        self.output_dir = output_dir

    def __call__(
        self,
        result: Result,
        audio_path: str,
        options: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write ``result`` to a file with the name of the recording and the format's extension.

        Args:
            result: a result of ``transcribe``.
            audio_path: path of the recording; only its name is used.
            options: layout of words in subtitles: ``max_line_width``, ``max_line_count``,
                ``highlight_words``, ``max_words_per_line``.
            **kwargs: the same, one by one.
        """
        name = os.path.splitext(os.path.basename(audio_path))[0]
        path = os.path.join(self.output_dir, f"{name}.{self.extension}")
        text = self._text(result, {**(options or {}), **kwargs})
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)

    def write_result(
        self, result: Result, file: TextIO, options: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Write ``result`` to an open file; arguments as in a call of the writer."""
        file.write(self._text(result, {**(options or {}), **kwargs}))

    def _text(self, result: Result, options: Mapping[str, Any]) -> str:
        return whisper_opt.render(_transcript(result), self.extension)


class WriteTXT(ResultWriter):
    """Text, a line per segment."""

    extension = "txt"


class SubtitlesWriter(ResultWriter):
    """Subtitles; their layout needs word timestamps, and has no effect without."""

    def _text(self, result: Result, options: Mapping[str, Any]) -> str:
        given = {name: value for name, value in options.items() if value}
        segments = result["segments"]
        if not segments or "words" not in segments[0]:
            return whisper_opt.render(_transcript(result, words=False), self.extension)
        layout = whisper_opt.SubtitleOptions.tolerant(**given)
        return whisper_opt.render(_transcript(result), self.extension, layout)


class WriteVTT(SubtitlesWriter):
    """WebVTT subtitles."""

    extension = "vtt"


class WriteSRT(SubtitlesWriter):
    """SubRip subtitles."""

    extension = "srt"


class WriteTSV(ResultWriter):
    """Tab-separated start and end in milliseconds, and text."""

    extension = "tsv"


class WriteJSON(ResultWriter):
    """The result itself as JSON."""

    extension = "json"

    def _text(self, result: Result, options: Mapping[str, Any]) -> str:
        return json.dumps(result)


_WRITERS: Mapping[str, type[ResultWriter]] = {
    "txt": WriteTXT,
    "vtt": WriteVTT,
    "srt": WriteSRT,
    "tsv": WriteTSV,
    "json": WriteJSON,
}


def get_writer(output_format: str, output_dir: str) -> Callable[..., None]:
    """A writer of ``txt``, ``vtt``, ``srt``, ``tsv`` or ``json``, or of ``all`` of them.

    Call it with the result, the path of the recording, and the layout of subtitles.

    Raises:
        OptionError: the format is another.
    """
    if output_format == "all":
        writers = [writer(output_dir) for writer in _WRITERS.values()]

        def write_all(
            result: Result,
            audio_path: str,
            options: Mapping[str, Any] | None = None,
            **kwargs: Any,
        ) -> None:
            for writer in writers:
                writer(result, audio_path, options, **kwargs)

        return write_all
    if output_format not in _WRITERS:
        raise whisper_opt.OptionError(
            f"output_format is {output_format!r}; expected all, {', '.join(_WRITERS)}; or use"
            " whisper_opt.write, which has further formats"
        )
    return _WRITERS[output_format](output_dir)


def _transcript(result: Result, *, words: bool = True) -> whisper_opt.Transcript:
    segments = tuple(_segment(i, entry, words=words) for i, entry in enumerate(result["segments"]))
    return whisper_opt.Transcript(
        segments=segments,
        language=result.get("language", "en"),
        duration=max((segment.end for segment in segments), default=0.0),
        text=result.get("text", ""),
    )


def _segment(i: int, entry: Mapping[str, Any], *, words: bool) -> whisper_opt.Segment:
    """A segment with what the formats use; programs make entries that have nothing else."""
    timed = entry.get("words") if words else None
    return whisper_opt.Segment(
        id=i,
        start=entry["start"],
        end=entry["end"],
        text=entry["text"],
        tokens=(),
        avg_logprob=0.0,
        no_speech_prob=0.0,
        compression_ratio=0.0,
        temperature=0.0,
        seek=0,
        words=None if timed is None else tuple(_word(word) for word in timed),
    )


def _word(entry: Mapping[str, Any]) -> whisper_opt.Word:
    return whisper_opt.Word(
        entry["start"], entry["end"], entry["word"], entry.get("probability", 1.0)
    )
