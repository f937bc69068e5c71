"""Words of segments, and detection of hallucinations by word times.

The rules are openai-whisper's: ``add_word_timestamps`` in whisper/timing.py, and
``hallucination_silence_threshold`` in whisper/transcribe.py. Segments are not changed in place.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Sequence
from dataclasses import replace

import numpy as np

from whisper_opt.core.dims import FRAMES_PER_SECOND
from whisper_opt.text.results import Segment, Word
from whisper_opt.transcription.alignment import WordTiming

__all__ = [
    "Bounds",
    "add_words",
    "end_of_speech",
    "is_anomalous",
    "merge_punctuations",
    "skip_silence",
]

_SENTENCE_ENDS = ".。!！?？"  # noqa: RUF001 - full-width marks are meant
_PUNCTUATION = "\"'“¿([{-\"'.。,，!！?？:：”)]}、"  # noqa: RUF001 - full-width marks are meant
_LONGEST_MEDIAN = 0.7
"""Seconds; half of the longest duration of a word next to a pause."""


# --- words of segments --------------------------------------------------------------------------


def merge_punctuations(
    timings: Sequence[WordTiming], prepended: str, appended: str
) -> list[WordTiming]:
    """Join opening punctuation to the word after it, and closing punctuation to the one before.

    Times and probabilities are those of the word. A mark is punctuation if it is part of
    ``prepended`` (and has a leading space) or of ``appended``.
    """
    following: list[WordTiming] = []  # last word first
    for timing in reversed(timings):
        if following and timing.word.startswith(" ") and timing.word.strip() in prepended:
            following[-1] = _joined(timing, following[-1], keep=following[-1])
        else:
            following.append(timing)
    merged: list[WordTiming] = []
    for timing in reversed(following):
        if merged and not merged[-1].word.endswith(" ") and timing.word in appended:
            merged[-1] = _joined(merged[-1], timing, keep=merged[-1])
        else:
            merged.append(timing)
    return merged


def _joined(left: WordTiming, right: WordTiming, *, keep: WordTiming) -> WordTiming:
    return replace(keep, word=left.word + right.word, tokens=left.tokens + right.tokens)


def _end_sentences(timings: Sequence[WordTiming], longest: float) -> list[WordTiming]:
    """Shorten punctuation at the end of a sentence, or the word after it, if it is too long."""
    shortened = list(timings[:1])
    for before, timing in zip(timings, timings[1:]):
        start, end = timing.start, timing.end
        if end - start > longest:
            if timing.word in _SENTENCE_ENDS:
                end = start + longest
            elif before.word in _SENTENCE_ENDS:
                start = end - longest
        shortened.append(replace(timing, start=start, end=end))
    return shortened


def add_words(
    segments: Sequence[Segment],
    timings: Sequence[WordTiming],
    *,
    text: Container[int],
    offset: float,
    last_speech: float,
    prepended: str,
    appended: str,
) -> list[Segment]:
    """Add words to the segments of one window, and set the segment times by them.

    Words are assigned to segments by their number of tokens. A word across two segments belongs to
    the first one, which shifts the words after it, as in the reference.

    Args:
        segments: of one window, with all their tokens.
        timings: of all their words, in seconds from the start of the window.
        text: ids that are text.
        offset: start of the window in seconds.
        last_speech: end of speech before the window, in seconds.
        prepended: opening punctuation.
        appended: closing punctuation.
    """
    durations = [timing.end - timing.start for timing in timings if timing.end != timing.start]
    usual = min(_LONGEST_MEDIAN, float(np.median(durations))) if durations else 0.0
    if durations:
        timings = _end_sentences(timings, 2 * usual)
    left = merge_punctuations(timings, prepended, appended)[::-1]
    result = []
    for segment in segments:
        missing = sum(token in text for token in segment.tokens)
        words = []
        while left and missing > 0:
            timing = left.pop()
            missing -= len(timing.tokens)
            start, end = round(offset + timing.start, 2), round(offset + timing.end, 2)
            words.append(Word(start, end, timing.word, timing.probability))
        if words:
            _shorten_after_pause(words, usual, last_speech)
            segment = _fitted(segment, words, usual)
            last_speech = segment.end
        result.append(replace(segment, words=tuple(words)))
    return result


def _shorten_after_pause(words: list[Word], usual: float, last_speech: float) -> None:
    """Shorten the first two words if they seem to include the pause before them."""
    longest = 2 * usual
    first, second = words[0], words[1] if len(words) > 1 else None
    if first.end - last_speech <= 4 * usual:
        return
    is_long = first.end - first.start > longest
    if not is_long and (second is None or second.end - first.start <= 2 * longest):
        return
    if second is not None and second.end - second.start > longest:
        first = replace(first, end=second.end - longest)
        words[1] = replace(second, start=first.end)
    words[0] = replace(first, start=first.end - longest)


def _fitted(segment: Segment, words: list[Word], usual: float) -> Segment:
    """The segment with the times of its words; a word far outside the segment is shortened."""
    first = words[0]
    if segment.start < first.end and segment.start - 0.5 > first.start:
        words[0] = replace(first, start=max(0.0, min(first.end - usual, segment.start)))
    else:
        segment = replace(segment, start=first.start)
    last = words[-1]
    if segment.end > last.start and segment.end + 0.5 < last.end:
        words[-1] = replace(last, end=max(last.start + usual, segment.end))
    else:
        segment = replace(segment, end=last.end)
    return segment


def end_of_speech(segments: Sequence[Segment]) -> float | None:
    """End of the last word in seconds; without words of the last segment; None without segments."""
    for segment in reversed(segments):
        if segment.words:
            return segment.words[-1].end
    return segments[-1].end if segments else None


# --- hallucinations -----------------------------------------------------------------------------


def is_anomalous(segment: Segment | None) -> bool:
    """Whether the words of a segment are too short, too long or too improbable to be speech.

    Uses the first eight words that are not punctuation. A segment without words is not anomalous.
    """
    if segment is None or not segment.words:
        return False
    words = [word for word in segment.words if word.word not in _PUNCTUATION][:8]
    score = sum(_anomaly(word) for word in words)
    return score >= 3 or score + 0.01 >= len(words)


def _anomaly(word: Word) -> float:
    duration = word.end - word.start
    score = 1.0 if word.probability < 0.15 else 0.0
    if duration < 0.133:
        score += (0.133 - duration) * 15
    if duration > 2.0:
        score += duration - 2.0
    return score


@dataclasses.dataclass(frozen=True)
class Bounds:
    """Times of a window in seconds from the start of the recording.

    Attributes:
        start: start of the window.
        audio_end: end of the audio in it.
        end: 30 s after its start.
        recording_end: end of the recording.
    """

    start: float
    audio_end: float
    end: float
    recording_end: float


def skip_silence(
    segments: list[Segment], bounds: Bounds, threshold: float, last_speech: float
) -> tuple[list[Segment] | None, int | None]:
    """Drop anomalous segments next to silence, which are probably hallucinations.

    Args:
        segments: of one window, with words.
        bounds: the window.
        threshold: seconds of silence next to an anomalous segment for which it is dropped.
        last_speech: end of speech before the window, in seconds.

    Returns:
        The segments to keep and the first frame of the next window. The segments are None if the
        window must only be moved past the silence at its start; the frame is None if no segment
        was dropped.
    """
    spoken = [i for i, segment in enumerate(segments) if segment.words]
    if spoken and is_anomalous(segments[spoken[0]]):
        gap = segments[spoken[0]].start - bounds.start
        frames = round(gap * FRAMES_PER_SECOND)
        if gap > threshold and frames > 0:
            return None, round(bounds.start * FRAMES_PER_SECOND) + frames
    for i, following in zip(spoken, [*spoken[1:], None]):
        segment, after = segments[i], None if following is None else segments[following]
        if is_anomalous(segment) and _is_alone(segment, after, bounds, threshold, last_speech):
            if bounds.recording_end - segment.end < threshold:
                return segments[:i], round(bounds.recording_end * FRAMES_PER_SECOND)
            return segments[:i], round(max(bounds.start + 1, segment.start) * FRAMES_PER_SECOND)
        last_speech = segment.end
    return segments, None


def _is_alone(
    segment: Segment,
    following: Segment | None,
    bounds: Bounds,
    threshold: float,
    last_speech: float,
) -> bool:
    """Whether silence, an anomalous segment or an edge of the window is on both sides."""
    next_start = following.words[0].start if following and following.words else bounds.audio_end
    before = (
        segment.start - last_speech > threshold
        or segment.start < threshold
        or segment.start - bounds.start < 2.0
    )
    after = (
        next_start - segment.end > threshold
        or is_anomalous(following)
        or bounds.end - segment.end < 2.0
    )
    return before and after
