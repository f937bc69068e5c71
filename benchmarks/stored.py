"""Texts of openai-whisper that need not be made again: the goldens of the tests."""

from __future__ import annotations

from common import clip_pcm
from systems import Settings, System

from tests.support.golden import GoldenClip, Window, golden

__all__ = ["openai_text", "stored_text"]

COMPRESSION_RATIO, LOGPROB, NO_SPEECH = 2.4, -1.0, 0.6
"""openai-whisper's default thresholds."""


def _refused(window: Window, compression_ratio: float) -> bool:
    """Whether openai-whisper would have tried the next temperature after this answer."""
    unlikely = window["avg_logprob"] < LOGPROB
    if unlikely and window["no_speech_prob"] > NO_SPEECH:
        return False  # it takes the window for silence
    return unlikely or compression_ratio > COMPRESSION_RATIO


def _ratio(clip: GoldenClip, window: Window) -> float:
    known = window.get("compression_ratio")
    if known is not None:
        return known
    found = (s["compression_ratio"] for s in clip["segments"] if s["seek"] == window["seek"])
    return max(found, default=0.0)  # no segments: skipped as silence


def stored_text(model: str, clip_id: str, beam_size: int) -> str | None:
    """What openai-whisper's default options give on a clip, None when no golden says so.

    Goldens are made at temperature 0 alone. Where every answer passes the thresholds, the other
    temperatures are never tried, and the golden is the default transcript too.
    """
    try:
        found = golden(model, {1: "ts", 5: "beam5"}[beam_size]).get(clip_id)
    except (FileNotFoundError, KeyError):
        return None
    if found is None or any(_refused(w, _ratio(found, w)) for w in found["windows"]):
        return None
    return found["text"].strip()


def openai_text(openai: System, model: str, clip_id: str, beam_size: int) -> str:
    """The golden's text, or else that of a run with default options."""
    known = stored_text(model, clip_id, beam_size)
    if known is not None:
        return known
    return openai.transcribe(clip_pcm(clip_id), Settings(beam_size=beam_size))
