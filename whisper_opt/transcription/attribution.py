"""Who says each word: segments are divided between words where the speaker changes."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from typing import Callable

from whisper_opt.text.results import Segment, Word

__all__ = ["Encode", "divided", "finished"]

Encode = Callable[[str], Sequence[int]]
"""Text to tokens."""


def divided(segment: Segment, parts: Sequence[Sequence[Word]], encode: Encode) -> list[Segment]:
    """The parts of a segment, each with some of its words.

    Args:
        segment: a segment with words.
        parts: runs of its words in order, each of one speaker; words may be missing. A word may
            have a speaker that the segment does not know yet.
        encode: text to tokens.

    Returns:
        One segment per part. The outer ones keep the outer times of the segment. If there is one
        part with all words, its text and tokens are those of the segment; other parts have the text
        of their words and the tokens of that text. Probabilities are those of the segment.
    """
    found = []
    for words in filter(None, parts):
        part = dataclasses.replace(segment, words=tuple(words), speaker=words[0].speaker)
        if len(words) < len(segment.words or ()):
            text = "".join(word.word for word in words)
            part = dataclasses.replace(part, text=text, tokens=tuple(encode(text)))
            part = _timed(part, segment)
        found.append(part)
    return found


def _timed(part: Segment, whole: Segment) -> Segment:
    """The part from its first to its last word, or to the end of the whole it was cut from."""
    assert part.words
    assert whole.words
    first, last = part.words[0], part.words[-1]
    begins = first.start == whole.words[0].start
    ends = last.end == whole.words[-1].end
    start = whole.start if begins else first.start
    return dataclasses.replace(part, start=start, end=max(start, whole.end if ends else last.end))


def finished(segments: Iterable[Segment], *, words: bool) -> list[Segment]:
    """Segments with text, numbered.

    Args:
        segments: in order of time.
        words: whether words were asked for; otherwise they are removed.
    """
    spoken = (segment for segment in segments if segment.text.strip())
    return [
        dataclasses.replace(segment, id=i, words=segment.words if words else None)
        for i, segment in zip(itertools.count(), spoken)
    ]
