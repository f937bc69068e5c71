"""Repetition that is real speech, told from loops by the speech it lies on.

The compression ratio finds answers that repeat themselves. Most are loops of the model; refrains,
prayers and announcements are not. Voice activity detection tells them apart: the same words take
about the same time whenever they are said, and there is as much text as there is speech.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence

from whisper_opt.text.results import Segment
from whisper_opt.transcription.fallback import WindowResult, compression_ratio

__all__ = ["Attempt", "Times", "covers", "is_spoken_repetition", "likeliest"]

Times = Sequence["tuple[float, float]"]
"""Speech: (start, end) in seconds, in order."""

LIKELY = -0.3
"""Mean log-probability from which a repetition may be accepted at the first attempt."""
SPARSE = 5.0
"""UTF-8 bytes per second of speech below which an answer leaves most of it without text (speech:
about 14 in Latin letters)."""
DENSE = 30.0
"""Characters per second of speech above which nobody speaks."""
_SIMILAR = 1.6
"""The same words take at most this many times their shortest duration."""
_ON_SPEECH = 0.5
"""Share of a segment that must lie on speech."""


@dataclasses.dataclass(frozen=True)
class Attempt:
    """An answer of the model to one window.

    Attributes:
        result: the answer.
        segments: what it says, without empty segments.
        end: where the next window would begin, in seconds from the start of the recording.
    """

    result: WindowResult
    segments: Sequence[Segment]
    end: float


def covers(attempt: Attempt, speech: Times) -> bool:
    """Whether the answer has text for most of the speech up to where it ends."""
    seconds = sum(max(0.0, min(end, attempt.end) - start) for start, end in speech)
    n_bytes = sum(len(segment.text.strip().encode()) for segment in attempt.segments)
    return n_bytes >= SPARSE * seconds


def likeliest(tried: Sequence[Attempt], speech: Times) -> WindowResult | None:
    """The likeliest answer that is as much text as there is speech; None if there is none."""
    plausible = [each.result for each in tried if _is_plausible(each, speech)]
    return max(plausible, key=lambda each: each.avg_logprob, default=None)


def _is_plausible(attempt: Attempt, speech: Times) -> bool:
    """Whether the answer covers the speech, and all of it can have been said there."""
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
    """Whether each segment of a likely answer is said in phrases of its own.

    Args:
        attempt: the answer.
        phrases: speech in the window, divided at every short pause.
        threshold: compression ratio above which one segment repeats itself.
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
    """Seconds of speech of each segment: every phrase counts for the segment it overlaps most."""
    own = [0.0] * len(segments)
    for start, end in phrases:
        shared = [min(end, segment.end) - max(start, segment.start) for segment in segments]
        most = max(range(len(segments)), key=shared.__getitem__)
        if shared[most] > 0:
            own[most] += end - start
    return own


def _overlap(segment: Segment, speech: Times) -> float:
    return sum(max(0.0, min(end, segment.end) - max(start, segment.start)) for start, end in speech)
