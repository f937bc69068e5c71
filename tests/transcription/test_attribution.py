"""Segments that are divided between words."""

from __future__ import annotations

import dataclasses

from whisper_opt import Segment, Word
from whisper_opt.transcription.attribution import divided, finished

WORDS = tuple(
    Word(i + 0.2, i + 0.7, f" {name}", 0.9) for i, name in enumerate(("one", "two", "three"))
)
WHOLE = Segment(4, 0.0, 3.0, " one two three", (9, 8, 7), -0.1, 0.0, 1.0, 0.0, 0, WORDS)


def encode(text: str) -> bytes:
    return text.encode()


def named(word: Word, speaker: str) -> Word:
    return dataclasses.replace(word, speaker=speaker)


def test_parts_have_their_own_words_text_and_times() -> None:
    first, second, third = WORDS
    left, right = divided(WHOLE, [[named(first, "A"), named(second, "A")], [third]], encode)
    assert (left.text, left.start, left.end, left.speaker) == (" one two", 0.0, 1.7, "A")
    assert (right.text, right.start, right.end, right.speaker) == (" three", 2.2, 3.0, None)
    assert bytes(left.tokens) == b" one two"
    assert right.words == (third,)
    assert right.avg_logprob == WHOLE.avg_logprob


def test_a_whole_segment_keeps_its_text_tokens_and_times() -> None:
    (found,) = divided(WHOLE, [[], WORDS, []], encode)
    assert found == WHOLE


def test_words_may_be_left_out() -> None:
    (found,) = divided(WHOLE, [WORDS[1:2]], encode)
    assert (found.text, found.start, found.end) == (" two", 1.2, 1.7)
    assert divided(WHOLE, [], encode) == []


def test_segments_are_numbered_and_empty_ones_left_out() -> None:
    empty = dataclasses.replace(WHOLE, text=" ", words=())
    found = finished([WHOLE, empty, WHOLE], words=True)
    assert [(each.id, each.words) for each in found] == [(0, WORDS), (1, WORDS)]
    assert [each.words for each in finished([WHOLE], words=False)] == [None]
