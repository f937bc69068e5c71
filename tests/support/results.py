"""Transcripts made by hand."""

from __future__ import annotations

from typing import Any

from whisper_opt import Dropped, Segment, Transcript, Word

__all__ = ["segment", "transcript", "word"]


def word(text: str, start: float, end: float, probability: float = 0.9) -> Word:
    return Word(start, end, text, probability)


def segment(i: int, start: float, end: float, text: str, **others: Any) -> Segment:
    usual = {
        "tokens": (),
        "avg_logprob": -0.2,
        "no_speech_prob": 0.0,
        "compression_ratio": 1.0,
        "temperature": 0.0,
        "seek": 0,
    }
    return Segment(id=i, start=start, end=end, text=text, **{**usual, **others})


def transcript(
    *segments: Segment, duration: float = 2.0, dropped: tuple[str, float, float] | None = None
) -> Transcript:
    """A transcript in English; ``dropped``: a reason, its start and end."""
    parts = () if dropped is None else (Dropped(dropped[1], dropped[2], dropped[0]),)
    text = "".join(one.text for one in segments)
    return Transcript(segments, "en", duration, text, dropped=parts)
