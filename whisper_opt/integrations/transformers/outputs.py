"""Transcripts as the pipeline returns them: plain dictionaries and lists."""

from __future__ import annotations

from typing import Any

import whisper_opt
from whisper_opt.integrations.transformers.generation import Settings

__all__ = ["output"]


def output(
    transcript: whisper_opt.Transcript,
    settings: Settings,
    model: whisper_opt.Whisper,
    duration: float,
) -> dict[str, Any]:
    """``text`` and, with timestamps or languages, ``chunks``.

    Args:
        transcript: of one recording.
        settings: what the call asked for.
        model: the model.
        duration: seconds of the recording; no word ends after it.
    """
    segments = [segment for segment in transcript if segment.text]
    text = "".join(segment.text for segment in segments)
    language = None
    if model.is_multilingual:
        language = whisper_opt.LANGUAGES.get(transcript.language, transcript.language)
    extra = {"language": language} if settings.language else {}
    chunks: list[dict[str, Any]]
    if settings.timestamps == "word":
        chunks = [
            {"text": word.word, "timestamp": _times(word.start, word.end, duration), **extra}
            for segment in segments
            for word in segment.words or ()
        ]
    elif settings.timestamps:
        chunks = [
            {**extra, "timestamp": _span(segment, model), "text": segment.text}
            for segment in segments
        ]
    elif settings.language:
        chunks = [{**extra, "text": text}]
    else:
        return {"text": text}
    return {"text": text, "chunks": chunks}


def _times(start: float, end: float, duration: float) -> tuple[float, float]:
    return round(min(start, duration), 2), round(min(end, duration), 2)


def _span(segment: whisper_opt.Segment, model: whisper_opt.Whisper) -> tuple[float, float | None]:
    """Start and end; the end is None if the model gave none: its text goes on after the window."""
    ended = not segment.tokens or segment.tokens[-1] in model.vocab.times
    return round(segment.start, 2), round(segment.end, 2) if ended else None
