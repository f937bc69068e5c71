"""Reading transcripts: the text and times of plain text, SRT, WebVTT and JSON."""

from __future__ import annotations

import html
import itertools
import json
import re
from collections.abc import Iterator
from typing import Any, Union

__all__ = ["read_transcript"]

# files come from strangers: every pattern looks at a character a bounded number of times
_TIME = r"(?:(\d{1,6}):)?(\d{1,2}):(\d{2})[.,](\d{3})"
_TIMES = re.compile(rf"[ \t]*{_TIME}[ \t]*-->[ \t]*{_TIME}")
_TAG = re.compile(r"</?[a-zA-Z0-9][^<>]*>")


def read_transcript(text: str) -> Union[str, list[dict[str, Any]], dict[str, Any]]:
    """What a file with a transcript holds; its format is recognized by its content.

    Args:
        text: contents of a file: the JSON of openai-whisper, SRT, WebVTT, or else plain text.

    Returns:
        Text; or segments with ``start`` and ``end`` in seconds, and ``text``; or the JSON.
    """
    text = text.replace("\r\n", "\n").lstrip("\ufeff")
    if text.lstrip().startswith(("{", "[")):
        try:
            found: Union[list[dict[str, Any]], dict[str, Any]] = json.loads(text)
        except (ValueError, RecursionError):
            return text
        only_text = isinstance(found, dict) and "segments" not in found and found.get("text")
        return only_text if isinstance(only_text, str) else found
    return list(_cues(text)) or text


def _cues(text: str) -> Iterator[dict[str, Any]]:
    """The cues of SRT or WebVTT: a line with two times, and the lines up to the next blank one."""
    lines = iter(text.split("\n"))
    for line in lines:
        times = _TIMES.match(line)
        if times is not None:
            said = " ".join(itertools.takewhile(str.strip, lines))
            yield {
                "start": _seconds(times.groups()[:4]),
                "end": _seconds(times.groups()[4:]),
                "text": html.unescape(" ".join(_TAG.sub("", said).split())),
            }


def _seconds(parts: tuple[Union[str, None], ...]) -> float:
    hours, minutes, seconds, thousandths = (int(part or 0) for part in parts)
    return 3600 * hours + 60 * minutes + seconds + thousandths / 1000
