"""Options without effect: left out where another program's callers give them all the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from whisper_opt.core.options.checks import AUTO, LANGUAGE_OPTIONS
from whisper_opt.core.options.fields import items
from whisper_opt.core.options.speakers import DIARIZE_OPTIONS

__all__ = ["effective_subtitles", "effective_transcription"]

_WORDS = (
    "prepend_punctuations",
    "append_punctuations",
    "hallucination_silence_threshold",
)
"""Options that need word timestamps."""


def effective_transcription(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values of :class:`TranscribeOptions` without those that the others leave without effect.

    The options are refused together by ``TranscribeOptions``; openai-whisper and faster-whisper
    ignore them silently. ``max_initial_timestamp`` 0, no limit in openai-whisper, becomes None.
    """
    kept = dict(values)
    if kept.get("max_initial_timestamp") == 0:
        kept["max_initial_timestamp"] = None
    for name in (*_idle_in_search(kept), *_idle_thresholds(kept), *_idle_elsewhere(kept)):
        kept.pop(name, None)
    return kept


def effective_subtitles(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values of :class:`SubtitleOptions` without those that the others leave without effect."""
    kept = dict(values)
    if kept.get("max_line_width") is None:
        kept.pop("max_line_count", None)
    else:
        kept.pop("max_words_per_line", None)
    return kept


def _temperatures(values: Mapping[str, Any]) -> tuple[float, ...]:
    """The temperatures; two if they are left out or are not numbers, which is refused later."""
    given = values.get("temperature", (0.0, 1.0))
    return (given,) if isinstance(given, (int, float)) else items(given) or (0.0, 1.0)


def _idle_in_search(values: dict[str, Any]) -> list[str]:
    """Options of searches that are not done, and of a choice between hypotheses."""
    temperatures = _temperatures(values)
    idle = []
    if 0 not in temperatures:
        idle += ["beam_size", "patience"]
    if not any(isinstance(t, (int, float)) and t > 0 for t in temperatures):
        idle += ["best_of", "seed"]
    used = {name: value for name, value in values.items() if name not in idle}
    if used.get("beam_size") is None:
        idle.append("patience")
    if (used.get("beam_size") or 1) == 1 and (used.get("best_of") or 1) == 1:
        idle.append("length_penalty")
    return idle


def _idle_thresholds(values: Mapping[str, Any]) -> list[str]:
    """Thresholds that decide on another attempt, if there is only one temperature."""
    if len(_temperatures(values)) > 1:
        return []
    silence = values.get("no_speech_threshold", 0.6) is not None
    return ["compression_ratio_threshold", *(() if silence else ("logprob_threshold",))]


def _idle_elsewhere(values: Mapping[str, Any]) -> list[str]:
    idle = []
    if values.get("without_timestamps"):
        idle.append("max_initial_timestamp")
    if not values.get("word_timestamps"):
        idle += _WORDS
    if not values.get("diarize"):
        idle += DIARIZE_OPTIONS
    if values.get("initial_prompt") is None:
        idle.append("carry_initial_prompt")
    language = values.get("language")
    if isinstance(language, str) and language.strip().lower() != AUTO:
        idle += LANGUAGE_OPTIONS
    return idle
