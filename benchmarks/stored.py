"""Texts of openai-whisper from the goldens of the tests."""

from __future__ import annotations

from common import clip_pcm
from systems import Settings, System

from tests.support.golden import GoldenClip, Window, golden

__all__ = ["openai_text", "stored_text"]

COMPRESSION_RATIO, LOGPROB, NO_SPEECH = 2.4, -1.0, 0.6
"""openai-whisper's default thresholds."""


def _refused(window: Window, compression_ratio: float) -> bool:
    """Whether openai-whisper would have tried the next temperature after this result."""
    unlikely = window["avg_logprob"] < LOGPROB
    if unlikely and window["no_speech_prob"] > NO_SPEECH:
        return False  # the window is silence
    return unlikely or compression_ratio > COMPRESSION_RATIO


def _ratio(clip: GoldenClip, window: Window) -> float:
    known = window.get("compression_ratio")
    if known is not None:
        return known
    found = (s["compression_ratio"] for s in clip["segments"] if s["seek"] == window["seek"])
    return max(found, default=0.0)  # no segments: skipped as silence


def stored_text(model: str, clip_id: str, beam_size: int) -> str | None:
    """The text of openai-whisper with default options, or None if no golden has it.

    Goldens are decoded at temperature 0 only. If every result passes the thresholds, the other
    temperatures are never tried, and the golden equals the default transcript.
    """
    try:
        found = golden(model, {1: "ts", 5: "beam5"}[beam_size]).get(clip_id)
    except (FileNotFoundError, KeyError):
        return None
    if found is None or any(_refused(w, _ratio(found, w)) for w in found["windows"]):
        return None
    return found["text"].strip()


def openai_text(openai: System, model: str, clip_id: str, beam_size: int) -> str:
    """The text of the golden, or else that of a run with default options."""
    known = stored_text(model, clip_id, beam_size)
    if known is not None:
        return known
    return openai.transcribe(clip_pcm(clip_id), Settings(beam_size=beam_size))
