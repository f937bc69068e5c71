"""Reading transcripts: the text and times of plain text, SRT, WebVTT and JSON."""

from __future__ import annotations

import html
import json
import re
from typing import Any, Union

__all__ = ["read_transcript"]

_TIME = r"(?:(\d+):)?(\d{1,2}):(\d{2})[.,](\d{3})"
_CUE = re.compile(rf"^\s*{_TIME}\s*-->\s*{_TIME}[^\n]*\n((?:.*\S.*\n?)*)", re.MULTILINE)
_TAG = re.compile(r"</?[a-zA-Z0-9][^>]*>")


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
    cues = [
        {
            "start": _seconds(cue.groups()[:4]),
            "end": _seconds(cue.groups()[4:8]),
            "text": html.unescape(" ".join(_TAG.sub("", cue.group(9)).split())),
        }
        for cue in _CUE.finditer(text)
    ]
    return cues or text


def _seconds(parts: tuple[Union[str, None], ...]) -> float:
    hours, minutes, seconds, thousandths = (int(part or 0) for part in parts)
    return 3600 * hours + 60 * minutes + seconds + thousandths / 1000
