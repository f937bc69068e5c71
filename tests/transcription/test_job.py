"""Segments of a chunk, placed in the recording."""

from __future__ import annotations

from typing import Any

import pytest

from whisper_opt import Segment, Word
from whisper_opt.transcription.job import Chunk


@pytest.mark.parametrize("start", [0.0, 12.3456, 41.298])
def test_words_begin_and_end_with_their_segment(start: float) -> None:
    nothing: Any = None
    chunk = Chunk(nothing, nothing, start)
    words = (Word(0.35, 0.8, " A", 0.9), Word(0.8, 28.45, " B", 0.9))
    chunk.segments = [Segment(0, 0.35, 28.45, " A B", (1, 2), -0.1, 0.0, 1.0, 0.0, 0, words)]
    (placed,) = chunk.take(5)
    assert placed.words is not None
    assert (placed.words[0].start, placed.words[-1].end) == (placed.start, placed.end)
    assert placed.end == round(start + 28.45, 3)
    assert placed.id == 5
