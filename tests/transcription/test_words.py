"""Words of segments compared with openai-whisper's, with synthetic timings."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from tests.support.align_cases import VOCAB, golden
from whisper_opt.text.results import Segment, Word
from whisper_opt.transcription.alignment import WordTiming
from whisper_opt.transcription.words import (
    Bounds,
    add_words,
    end_of_speech,
    is_anomalous,
    merge_punctuations,
    skip_silence,
)


def segment(start: float, end: float, tokens: tuple[int, ...] = (), **fields: Any) -> Segment:
    return Segment(0, start, end, " text", tokens, -0.3, 0.1, 1.5, 0.0, 0, **fields)


def timing(word: str, start: float, end: float, probability: float = 0.9) -> WordTiming:
    return WordTiming(word, tuple(word.encode()), start, end, probability)


@pytest.mark.parametrize("case", golden()["words"], ids=lambda _: "case")
def test_words_equal_the_reference(case: dict[str, Any]) -> None:
    offset = case["seek"] / 100
    segments = [
        segment(s["start"] + offset, s["end"] + offset, tuple(s["tokens"]))
        for s in case["segments"]
    ]
    found = add_words(
        segments,
        [WordTiming(word, tuple(tokens), *rest) for word, tokens, *rest in case["timings"]],
        text=VOCAB.text,
        offset=offset,
        last_speech=case["last_speech"],
        prepended=case["prepend"],
        appended=case["append"],
    )
    assert len(found) == len(case["result"])
    for mine, theirs in zip(found, case["result"]):
        assert (mine.start, mine.end) == (theirs["start"], theirs["end"])
        assert mine.words is not None
        words = [[w.word, w.start, w.end, w.probability] for w in mine.words]
        assert words == theirs["words"]


def test_the_goldens_reach_every_rule() -> None:
    """Guards the goldens themselves: joined marks, moved segments, kept segment times."""
    joined = moved = kept = 0
    for case in golden()["words"]:
        words = [word for s in case["result"] for word in s["words"]]
        joined += len(words) < len(case["timings"])
        for before, after in zip(case["segments"], case["result"]):
            start = before["start"] + case["seek"] / 100
            moved += bool(after["words"]) and start != after["start"]
            kept += bool(after["words"]) and start == after["start"] == after["words"][0][1]
    assert min(joined, moved, kept) > 15


def merged(*words: str, prepended: str = '"(', appended: str = '".,)') -> list[str]:
    timings = [timing(word, i, i + 0.5) for i, word in enumerate(words)]
    found = merge_punctuations(timings, prepended, appended)
    assert b"".join(bytes(t.tokens) for t in found) == "".join(words).encode()
    for each in found:  # times are those of the word itself
        assert words[int(each.start)].strip(' "(.,)') == each.word.strip(' "(.,)')
    return [each.word for each in found]


def test_punctuation_joins_its_word() -> None:
    assert merged(" he", " (", "so", ")", ",", ' "', "it", ".") == [" he", " (so),", ' "it.']
    assert merged(" he", ' "', " (", "so") == [" he", ' " (so']
    assert merged(" he", "(", "so") == [" he", "(", "so"]  # no space: not an opening mark
    assert merged(" he", " ", "so") == [" he", " so"]
    assert merged("he ", ".", " so") == ["he ", ".", " so"]
    assert merged(" he", ".,", " so") == [" he.,", " so"]  # part of the listed marks
    assert merged(" he", ",.", " so") == [" he", ",.", " so"]
    assert merged(".", " so", " (") == [".", " so", " ("]
    assert merged(" he", ".", prepended="", appended="") == [" he", "."]
    assert merged() == []


def test_the_words_of_no_text() -> None:
    (found,) = add_words(
        [segment(1.0, 2.0)],
        [],
        text=VOCAB.text,
        offset=0.0,
        last_speech=0.0,
        prepended="",
        appended="",
    )
    assert found == segment(1.0, 2.0, words=())


def fitted(given: Segment, *timings: WordTiming) -> Segment:
    """With the words of ``timings``; speech has just ended."""
    tokens = tuple(token for timing in timings for token in timing.tokens)
    (found,) = add_words(
        [dataclasses.replace(given, tokens=tokens)],
        timings,
        text=VOCAB.text,
        offset=0.0,
        last_speech=given.start,
        prepended="",
        appended="",
    )
    return found


def test_an_outer_word_half_a_second_too_long_is_cut_to_the_segment() -> None:
    found = fitted(segment(1.0, 3.0), timing(" so", 0.46, 1.4), timing(" it", 1.4, 3.54))
    assert (found.start, found.end) == (1.0, 3.0)
    assert found.words == (Word(0.7, 1.4, " so", 0.9), Word(1.4, 3.0, " it", 0.9))


def test_a_segment_follows_words_that_are_near() -> None:
    found = fitted(segment(1.0, 3.0), timing(" so", 0.52, 1.4), timing(" it", 1.4, 3.48))
    assert (found.start, found.end) == (0.52, 3.48)
    assert found.words == (Word(0.52, 1.4, " so", 0.9), Word(1.4, 3.48, " it", 0.9))


# --- hallucinations -------------------------------------------------------------------------------


def spoken(*words: tuple[float, float, float], text: str = " so") -> Segment:
    listed = tuple(Word(start, end, text, probability) for start, end, probability in words)
    return segment(listed[0].start, listed[-1].end, words=listed)


REAL = (1.0, 1.5, 0.9)
DOUBTFUL = (1.0, 1.5, 0.1)


def test_what_is_anomalous() -> None:
    assert not is_anomalous(None)
    assert not is_anomalous(segment(0, 1, words=()))
    assert not is_anomalous(segment(0, 1))
    assert not is_anomalous(spoken(REAL))
    assert is_anomalous(spoken(DOUBTFUL))
    assert not is_anomalous(spoken(DOUBTFUL, REAL))
    assert is_anomalous(spoken(*[REAL] * 5, *[DOUBTFUL] * 3))  # three points
    assert not is_anomalous(spoken(*[REAL] * 6, *[DOUBTFUL] * 3))  # the ninth is not looked at
    assert not is_anomalous(spoken((1.0, 1.133, 0.9), REAL))
    assert is_anomalous(spoken((1.0, 1.0, 0.9), REAL))  # 15 * 0.133 points
    assert not is_anomalous(spoken((0.0, 2.9, 0.15)))
    assert is_anomalous(spoken((0.0, 3.0, 0.15)))
    assert is_anomalous(spoken(DOUBTFUL, REAL, text="."))  # nothing but punctuation


def test_where_speech_ends() -> None:
    assert end_of_speech([]) is None
    assert end_of_speech([segment(1.0, 2.0, words=())]) == 2.0
    assert end_of_speech([spoken((1.0, 3.0, 0.9)), segment(4.0, 5.0, words=())]) == 3.0


BOUNDS = Bounds(start=10.0, audio_end=40.0, end=40.0, recording_end=100.0)


def test_silence_before_doubtful_text_is_skipped() -> None:
    late = spoken((15.0, 15.1, 0.1))
    assert skip_silence([late], BOUNDS, 4.0, 9.0) == (None, 1500)
    assert skip_silence([segment(10, 11, words=()), late], BOUNDS, 4.0, 9.0) == (None, 1500)
    assert skip_silence([], BOUNDS, 4.0, 9.0) == ([], None)


def test_doubtful_text_between_silences_is_dropped() -> None:
    real, made_up, more = spoken((11, 11.5, 0.9)), spoken((20, 20.1, 0.1)), spoken((30, 31, 0.9))
    assert skip_silence([real, made_up, more], BOUNDS, 4.0, 9.0) == ([real], 2000)
    # not alone: speech right before or after it
    for near in (16.5, 23.0):
        other = spoken((near, near + 0.5, 0.9))
        listed = sorted([real, made_up, more, other], key=lambda s: s.start)
        assert skip_silence(listed, BOUNDS, 4.0, 9.0) == (listed, None)
    # more of the same after it is as good as silence
    doubtful = spoken((21.0, 21.1, 0.1))
    assert skip_silence([real, made_up, doubtful], BOUNDS, 4.0, 9.0) == ([real], 2000)


def test_near_the_beginning_of_the_recording_doubtful_text_counts_as_alone() -> None:
    bounds = Bounds(start=0.0, audio_end=30.0, end=30.0, recording_end=100.0)
    real, made_up = spoken((1.0, 2.5, 0.9)), spoken((3.0, 3.1, 0.1))
    assert skip_silence([real, made_up], bounds, 4.0, 0.0) == ([real], 300)
    assert skip_silence([real, made_up], bounds, 2.9, 0.0) == ([real, made_up], None)


def test_at_the_edges_of_a_window_doubtful_text_counts_as_alone() -> None:
    first = spoken((11.0, 11.1, 0.1))
    assert skip_silence([first], BOUNDS, 4.0, 10.9) == ([], 1100)
    assert skip_silence([spoken((10.5, 10.6, 0.1))], BOUNDS, 4.0, 10.4) == ([], 1100)
    real, last = spoken((36.0, 36.5, 0.9)), spoken((38.0, 38.1, 0.1))
    bounds = Bounds(start=10.0, audio_end=39.0, end=40.0, recording_end=100.0)
    assert skip_silence([real, last], bounds, 1.2, 9.0) == ([real], 3800)
    bounds = Bounds(start=10.0, audio_end=39.0, end=40.2, recording_end=100.0)
    assert skip_silence([real, last], bounds, 1.2, 9.0) == ([real, last], None)


def test_doubtful_text_at_the_end_of_the_recording_ends_it() -> None:
    bounds = Bounds(start=10.0, audio_end=39.5, end=40.0, recording_end=39.5)
    real, last = spoken((11, 11.5, 0.9)), spoken((38.0, 38.1, 0.1))
    assert skip_silence([real, last], bounds, 1.5, 9.0) == ([real], 3950)
    assert skip_silence([real, last], bounds, 1.3, 9.0) == ([real], 3800)


def test_a_gap_of_nothing_is_not_skipped() -> None:
    """The reference would decode from the same frame endlessly."""
    kept, frame = skip_silence([spoken((10.001, 10.1, 0.1))], BOUNDS, 0.0, 9.0)
    assert kept == []
    assert frame == 1100
