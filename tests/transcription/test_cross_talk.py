"""Merging of channels: order, and words that a louder channel has too."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest

from whisper_opt import Segment, Word
from whisper_opt.core.arrays import F32
from whisper_opt.transcription.cross_talk import Levels, merge_channels

SECONDS = 12


def speech(seed: int) -> F32:
    """Noise whose loudness changes every 50 ms by up to 30 dB."""
    rng = np.random.default_rng(seed)
    loud = 10 ** rng.uniform(-1.5, 0, SECONDS * 20)
    sound: F32 = (rng.standard_normal(SECONDS * 16000) * np.repeat(loud, 800)).astype(np.float32)
    sound *= np.float32(0.1)
    return sound


def levels(*channels: F32) -> list[Levels]:
    found = []
    for samples in channels:
        found.append(Levels())
        for block in np.array_split(samples, 7):
            found[-1].feed(block)
    return found


def said(channel: int, text: str, start: float, step: float = 0.4, gap: float = 0.0) -> Segment:
    """A segment of words of 0.3 s; a gap follows the word that ends with a comma."""
    words = []
    for word in text.split():
        words.append(Word(round(start, 2), round(start + 0.3, 2), f" {word}", 0.9))
        start += step + gap * word.endswith(",")
    end = words[-1].end
    text = "".join(word.word for word in words)
    tokens = tuple(text.encode())
    return Segment(
        0, words[0].start, end, text, tokens, -0.1, 0, 1, 0, 0, tuple(words), channel=channel
    )


def merged(segments: Sequence[Segment], *channels: F32) -> tuple[list[tuple[int, str]], list[str]]:
    """(channel, text) of what is kept, and what was removed."""
    kept, dropped = merge_channels(segments, levels(*channels), lambda text: tuple(text.encode()))
    assert all(bytes(segment.tokens).decode() == segment.text for segment in kept)
    assert all(segment.speaker == f"channel {segment.channel}" for segment in kept)
    assert {part.reason for part in dropped} <= {"cross-talk"}
    assert [s.start for s in kept] == sorted(s.start for s in kept)
    return [(s.channel or 0, s.text) for s in kept], [part.text for part in dropped]


ALONE = speech(1)
OTHER = speech(2)


def test_channels_are_merged_in_order_of_time() -> None:
    segments = [said(0, "one two", 0), said(0, "five six", 6), said(1, "three four", 3)]
    kept, dropped = merged(segments, ALONE, OTHER)
    assert kept == [(0, " one two"), (1, " three four"), (0, " five six")]
    assert dropped == []


def test_a_segment_is_divided_where_another_channel_speaks_between_its_words() -> None:
    segments = [said(0, "one two, five six", 0, gap=3.0), said(1, "three four", 1.5)]
    kept, dropped = merged(segments, ALONE, OTHER)
    assert kept == [(0, " one two,"), (1, " three four"), (0, " five six")]
    assert dropped == []


def test_a_segment_whose_words_were_spoken_together_is_whole() -> None:
    segments = [said(0, "one two three", 0), said(1, "yes", 0.45)]
    assert merged(segments, ALONE, OTHER) == ([(0, " one two three"), (1, " yes")], [])


@pytest.mark.parametrize("text", ["Hello there my friend", "Hello"])
def test_words_that_a_louder_channel_has_too_are_removed(text: str) -> None:
    heard = OTHER * np.float32(0.01) + ALONE * np.float32(0.1)
    for channels, owner in (((ALONE, heard), 0), ((heard, ALONE), 1)):
        segments = [said(0, text, 1.0), said(1, text.lower(), 1.05)]
        kept, dropped = merged(segments, *channels)
        assert kept == [(owner, segments[owner].text)]
        assert dropped == [segments[1 - owner].text]


def test_the_rest_of_what_is_heard_quietly_goes_too() -> None:
    heard = OTHER * np.float32(0.01) + ALONE * np.float32(0.1)
    segments = [
        said(0, "shall we begin the meeting", 1.0),
        said(1, "shell we begin them eating", 1),
    ]
    kept, dropped = merged(segments, ALONE, heard)
    assert kept == [(0, " shall we begin the meeting")]
    assert dropped == [" shell we begin them eating"]


def test_what_is_heard_quietly_goes_whatever_whisper_understood() -> None:
    heard = OTHER * np.float32(0.01) + ALONE * np.float32(0.1)
    segments = [said(0, "shall we begin", 1.0), said(1, "chalet big inn", 1.1)]
    kept, dropped = merged(segments, ALONE, heard)
    assert kept == [(0, " shall we begin")]
    assert dropped == [" chalet big inn"]


def test_words_far_below_another_channel_are_cross_talk() -> None:
    """Nobody speaks there, whatever can be heard: the speaker of this channel is louder."""
    half = np.arange(SECONDS * 16000) < 6 * 16000
    mine = np.where(half, OTHER * np.float32(0.01), OTHER).astype(np.float32)
    theirs = np.where(half, ALONE, ALONE * np.float32(1e-3)).astype(np.float32)
    segments = [said(1, "wind and weather, fine thanks", 2.0, gap=5.0), said(0, "hello", 2.0)]
    kept, dropped = merged(segments, theirs, mine)
    assert kept == [(0, " hello"), (1, " fine thanks")]
    assert dropped == [" wind and weather,"]


def test_own_words_beside_cross_talk_stay() -> None:
    both = OTHER.copy()  # silent while the other one speaks, but for what is heard
    both[: 4 * 16000] = ALONE[: 4 * 16000] * np.float32(0.1)
    segments = [said(0, "how are you", 1.0), said(1, "how are you, fine thanks", 1.0, gap=3)]
    kept, dropped = merged(segments, ALONE, both)
    assert kept == [(0, " how are you"), (1, " fine thanks")]
    assert dropped == [" how are you,"]


def test_two_people_may_say_the_same_word_at_once() -> None:
    segments = [said(0, "yes of course", 1.0), said(1, "yes I do", 1.0)]
    quieter = OTHER * np.float32(0.1)
    assert merged(segments, ALONE, quieter) == ([(0, " yes of course"), (1, " yes I do")], [])


def test_of_copies_the_first_is_kept() -> None:
    segments = [said(channel, "one two", 1.0) for channel in range(3)]
    kept, dropped = merged(segments, ALONE, ALONE, ALONE)
    assert kept == [(0, " one two")]
    assert dropped == [" one two", " one two"]


def test_the_same_words_later_are_no_cross_talk() -> None:
    segments = [said(0, "one two three", 1.0), said(1, "one two three", 5.0)]
    quieter = OTHER * np.float32(0.1)
    kept, dropped = merged(segments, ALONE, quieter)
    assert [channel for channel, _ in kept] == [0, 1]
    assert dropped == []


def test_segments_without_words_stay() -> None:
    bare = dataclasses.replace(said(1, "so", 2.0), words=())
    assert merged([said(0, "one", 0.0), bare], ALONE, OTHER)[0] == [(0, " one"), (1, " so")]


def test_levels_are_those_of_the_samples() -> None:
    (found,) = levels(ALONE)
    power = float(np.square(ALONE[16000:48000], dtype=np.float64).mean())
    assert found.decibels(1.0, 3.0) == pytest.approx(10 * np.log10(power), abs=1e-3)
    assert found.decibels(100.0, 101.0) == -120.0
    (same,) = levels(ALONE * np.float32(0.01))
    (other,) = levels(OTHER)
    assert min(found.similarity(same, 2.0, 3.0)) > 0.999
    assert found.follows(same, 2.0, 3.0)
    assert not found.follows(other, 2.0, 3.0)
    assert found.similarity(same, 100.0, 101.0) == (0.0, 0.0)
