"""Repetition in the audio, as opposed to repetition loops of the model.

Repeated text has a high compression ratio. It is usually a loop of the model, but refrains, prayers
and announcements are repeated in the audio. Voice activity detection distinguishes them: spoken
words take about the same time whenever they are repeated, and the amount of text fits the duration
of speech.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence

from whisper_opt.text.results import Segment
from whisper_opt.transcription.fallback import WindowResult, compression_ratio

__all__ = ["Attempt", "Times", "covers", "is_spoken_repetition", "most_probable"]

Times = Sequence["tuple[float, float]"]
"""Spans of speech: (start, end) in seconds, in order."""

LIKELY = -0.3
"""Mean log-probability above which repeated text may be accepted at the first attempt."""
SPARSE = 5.0
"""UTF-8 bytes per second of speech below which text covers only a small part of it (speech: about
14 in Latin letters)."""
DENSE = 30.0
"""Characters per second of speech above which text cannot have been spoken."""
_SIMILAR = 1.6
"""Largest ratio of the durations of the same words."""
_ON_SPEECH = 0.5
"""Part of a segment that must overlap speech."""


@dataclasses.dataclass(frozen=True)
class Attempt:
    """A result of one window at one temperature.

    Attributes:
        result: the result.
        segments: its segments, without empty ones.
        end: start of the next window in seconds from the start of the recording.
    """

    result: WindowResult
    segments: Sequence[Segment]
    end: float


def covers(attempt: Attempt, speech: Times) -> bool:
    """Whether the result has text for most of the speech before its end."""
    seconds = sum(max(0.0, min(end, attempt.end) - start) for start, end in speech)
    n_bytes = sum(len(segment.text.strip().encode()) for segment in attempt.segments)
    return n_bytes >= SPARSE * seconds


def most_probable(tried: Sequence[Attempt], speech: Times) -> WindowResult | None:
    """The most probable result whose amount of text fits the speech; None if there is none."""
    plausible = [each.result for each in tried if _is_plausible(each, speech)]
    return max(plausible, key=lambda each: each.avg_logprob, default=None)


def _is_plausible(attempt: Attempt, speech: Times) -> bool:
    """Whether the result covers the speech, and all of its text can have been spoken there."""
    if attempt.result.truncated or not covers(attempt, speech):
        return False
    seconds = sum(end - start for start, end in speech)
    n_characters = sum(len(segment.text.strip()) for segment in attempt.segments)
    if n_characters > DENSE * seconds:
        return False
    return all(
        _overlap(segment, speech) >= _ON_SPEECH * (segment.end - segment.start)
        for segment in attempt.segments
    )


def is_spoken_repetition(attempt: Attempt, phrases: Times, threshold: float) -> bool:
    """Whether the result is probable and each of its segments has phrases of its own.

    Args:
        attempt: the result.
        phrases: speech in the window, split at short pauses.
        threshold: compression ratio above which a single segment is repetitive.
    """
    result, segments = attempt.result, attempt.segments
    if result.truncated or result.avg_logprob <= LIKELY or len(segments) < 2:
        return False
    if any(compression_ratio(segment.text.strip()) > threshold for segment in segments):
        return False
    own = _assigned(segments, phrases)
    same: dict[str, list[float]] = collections.defaultdict(list)
    for segment, seconds in zip(segments, own):
        text = segment.text.strip()
        if not seconds or len(text) > DENSE * seconds or len(text.encode()) < SPARSE * seconds:
            return False
        same[text.casefold()].append(seconds)
    return all(max(times) <= _SIMILAR * min(times) for times in same.values())


def _assigned(segments: Sequence[Segment], phrases: Times) -> list[float]:
    """Seconds of speech per segment; a phrase belongs to the segment that it overlaps most."""
    own = [0.0] * len(segments)
    for start, end in phrases:
        shared = [min(end, segment.end) - max(start, segment.start) for segment in segments]
        most = max(range(len(segments)), key=shared.__getitem__)
        if shared[most] > 0:
            own[most] += end - start
    return own


def _overlap(segment: Segment, speech: Times) -> float:
    return sum(max(0.0, min(end, segment.end) - max(start, segment.start)) for start, end in speech)
