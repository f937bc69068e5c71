"""Speakers in requests and responses: known speakers, ``diarized_json``."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from typing import Any

from whisper_opt.serving.http.errors import ApiError, invalid
from whisper_opt.text.results import Segment, Transcript

__all__ = ["MAX_KNOWN", "diarized", "diarized_segment", "known_speakers", "put_speakers"]

MAX_KNOWN = 16
"""Known speakers of a request; OpenAI's API allows 4."""
_DATA_URL = re.compile(r"data:[\w.+/-]*(?:;[\w.+=-]+)*;base64,", re.ASCII)
_NAMES, _CLIPS = "known_speaker_names", "known_speaker_references"


def known_speakers(names: Sequence[str], clips: Sequence[str]) -> tuple[tuple[str, bytes], ...]:
    """Names and clips of the fields ``known_speaker_names`` and ``known_speaker_references``.

    Raises:
        ApiError: there are not as many names as clips, or too many; or a clip is no data URL.
    """
    if len(names) != len(clips):
        raise invalid(_NAMES, f"has {len(names)} names for {len(clips)} {_CLIPS}", "one for each")
    if len(names) > MAX_KNOWN:
        raise invalid(_NAMES, f"has {len(names)} names", f"at most {MAX_KNOWN}")
    if len({name.strip() for name in names}) < len(names) or not all(map(str.strip, names)):
        raise invalid(_NAMES, "has a name twice, or an empty one", "different names")
    return tuple((name.strip(), _clip(i, url)) for i, (name, url) in enumerate(zip(names, clips)))


def _clip(i: int, url: str) -> bytes:
    head = _DATA_URL.match(url)
    expected = "a data URL: data:audio/wav;base64,..."
    if head is None:
        raise invalid(_CLIPS, f"number {i + 1} is no data URL", expected)
    try:
        return base64.b64decode(url[head.end() :], validate=True)
    except (binascii.Error, ValueError):
        raise invalid(_CLIPS, f"number {i + 1} is no valid base64", expected) from None


def put_speakers(
    known: tuple[tuple[str, bytes], ...],
    response_format: str,
    values: dict[str, Any],
    parameters: dict[str, str],
) -> None:
    """Set the options that tell speakers apart.

    Args:
        known: known speakers.
        response_format: the format; ``diarized_json`` turns ``diarize`` on.
        values: options of the request.
        parameters: the field that gave each option.

    Raises:
        ApiError: the fields contradict one another.
    """
    by_channel = values.get("channels") == "split"
    if response_format == "diarized_json" and not by_channel:
        if values.get("diarize") is False:
            raise invalid("diarize", "is false with response_format 'diarized_json'", "true")
        if "diarize" not in values:
            values["diarize"], parameters["diarize"] = True, "response_format"
    if known and not values.get("diarize"):
        raise ApiError(
            400,
            f"{_NAMES} is given, but speakers are not told apart by their voice; use"
            " response_format diarized_json, or diarize=true",
            param=_NAMES,
            code="invalid_value",
        )
    if known:
        values["known_speakers"], parameters["known_speakers"] = known, _CLIPS


def diarized(transcript: Transcript, text: str, usage: dict[str, Any]) -> dict[str, Any]:
    """The body of ``diarized_json``.

    Args:
        transcript: with speakers.
        text: its text.
        usage: what is counted.
    """
    return {
        "task": "transcribe",
        "duration": transcript.duration,
        "text": text,
        "segments": [diarized_segment(segment) for segment in transcript],
        "usage": usage,
    }


def diarized_segment(segment: Segment) -> dict[str, Any]:
    """A segment of ``diarized_json``, and its event in a stream."""
    return {
        "type": "transcript.text.segment",
        "id": f"seg_{segment.id:03d}",
        "start": segment.start,
        "end": segment.end,
        "text": segment.text.strip(),
        "speaker": segment.speaker or "",
    }
