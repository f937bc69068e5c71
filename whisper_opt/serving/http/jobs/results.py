"""Transcripts as JSON that can be read again."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from whisper_opt.text.results import Dropped, Segment, Transcript, Turn, Word

__all__ = ["dumped", "loaded"]


def dumped(transcript: Transcript) -> str:
    """A transcript with all its fields, as JSON."""
    return json.dumps(dataclasses.asdict(transcript), ensure_ascii=False)


def loaded(text: str) -> Transcript:
    """The transcript that :func:`dumped` wrote."""
    entry = json.loads(text)
    entry["segments"] = tuple(map(_segment, entry["segments"]))
    entry["dropped"] = tuple(Dropped(**part) for part in entry["dropped"])
    entry["turns"] = tuple(Turn(**turn) for turn in entry.get("turns", ()))
    return Transcript(**entry)


def _segment(entry: dict[str, Any]) -> Segment:
    words = entry["words"]
    entry["words"] = None if words is None else tuple(Word(**word) for word in words)
    entry["tokens"] = tuple(entry["tokens"])
    logprobs = entry.get("token_logprobs")
    entry["token_logprobs"] = None if logprobs is None else tuple(logprobs)
    return Segment(**entry)
