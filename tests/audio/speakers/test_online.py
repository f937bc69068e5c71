"""Speakers of utterances as they come, and again at the end."""

from __future__ import annotations

from itertools import groupby

import numpy as np
import pytest

from tests.support.speaker_networks import ToneNetworks, tones
from whisper_opt.audio.speakers.diarizer import main_voice
from whisper_opt.audio.speakers.online import OnlineSpeakers
from whisper_opt.core.arrays import F32

AXES = np.eye(8, dtype=np.float32)


def near(axis: int, towards: int = 7, share: float = 0.0) -> F32:
    """A voice of unit length between two directions."""
    found = AXES[axis] * np.float32(1 - share) + AXES[towards] * np.float32(share)
    unit: F32 = found / np.linalg.norm(found)
    return unit


def test_speakers_are_told_apart_as_they_come() -> None:
    speakers = OnlineSpeakers()
    found = [speakers.feed(near(axis, 7, 0.2), 2.0) for axis in (0, 1, 0, 2, 1, 2, 0)]
    assert found == ["A", "B", "A", "C", "B", "C", "A"]
    assert speakers.finish() == tuple(found)


def test_no_voice_is_that_of_the_utterance_before() -> None:
    speakers = OnlineSpeakers()
    found = [speakers.feed(voice, 4.0) for voice in (None, near(0), None, near(1), None)]
    assert found == [None, "A", "A", "B", "B"]
    assert speakers.finish() == tuple(found)
    assert OnlineSpeakers().finish() == ()


def test_a_voice_of_less_than_a_second_begins_no_speaker() -> None:
    speakers = OnlineSpeakers()
    assert [speakers.feed(near(0), 0.5), speakers.feed(near(1), 0.5)] == ["A", "A"]
    assert speakers.feed(near(2), 2.0) == "B"


def test_names_are_mended_at_the_end() -> None:
    """The second speaker was first heard with much of the first one's voice."""
    speakers = OnlineSpeakers()
    voices = (near(0), 9.0), (near(1, 0, 0.45), 3.0), (near(1), 3.0), (near(1), 3.0), (near(0), 9.0)
    found = [speakers.feed(voice, seconds) for voice, seconds in voices]
    assert found == ["A", "A", "B", "B", "A"]
    assert speakers.finish() == ("A", "B", "B", "B", "A")


@pytest.mark.parametrize("high", [1, 2])
def test_the_number_of_speakers_is_kept(high: int) -> None:
    speakers = OnlineSpeakers(high=high)
    found = [speakers.feed(near(axis), 4.0) for axis in (0, 1, 2, 3)]
    assert len(set(found)) == high
    assert len(set(speakers.finish())) == high


def test_known_speakers_have_their_names() -> None:
    speakers = OnlineSpeakers(known={"Ann": near(1), "B": near(2)})
    found = [speakers.feed(near(axis, 7, 0.2), 4.0) for axis in (0, 1, 3, 2)]
    assert found == ["A", "Ann", "C", "B"]
    assert speakers.finish() == tuple(found)


def test_names_stay_with_most_of_the_speech() -> None:
    speakers = OnlineSpeakers(low=2)
    found = [speakers.feed(near(axis), 2.0 + axis) for axis in (2, 0, 2, 0, 2)]
    assert [name for name, _ in groupby(found)] == ["A", "B", "A", "B", "A"]
    assert speakers.finish() == tuple(found)


def test_the_main_voice_is_that_of_who_speaks_most() -> None:
    networks = ToneNetworks.networks()
    sound = tones([(0.5, 2.0, 0), (2.5, 7.0, 2), (7.5, 8.0, 1)], 9.0)
    voice, seconds = main_voice(networks, sound)
    assert voice is not None
    assert voice.argmax() == 2
    assert seconds == 3.0  # no more of it is used
    assert main_voice(networks, tones([], 4.0)) == (None, 0.0)
