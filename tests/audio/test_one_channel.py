"""One channel of a recording with several."""

from __future__ import annotations

import io

import numpy as np
import pytest
import soundfile

from whisper_opt import AudioError, load_audio
from whisper_opt.audio.downmix import OneChannel
from whisper_opt.core.arrays import F32


@pytest.fixture
def channels() -> F32:
    return (np.random.default_rng(0).standard_normal((48_000, 3)) * 0.1).astype(np.float32)


@pytest.mark.parametrize("rate", [16_000, 44_100])
@pytest.mark.parametrize("channel", [0, 2])
def test_a_channel_is_that_of_a_recording_of_it_alone(
    channel: int, rate: int, channels: F32
) -> None:
    file = io.BytesIO()
    soundfile.write(file, channels, rate, format="WAV", subtype="FLOAT")
    expected = load_audio(channels[:, channel], sample_rate=rate)
    assert np.array_equal(load_audio(file.getvalue(), channel=channel), expected)
    assert np.array_equal(load_audio(channels, sample_rate=rate, channel=channel), expected)


@pytest.mark.parametrize("channel", [3, -1])
def test_a_channel_that_is_not_there_is_named(channel: int, channels: F32) -> None:
    with pytest.raises(AudioError, match=rf"channel is {channel}, but the array has 3 channel"):
        load_audio(channels, channel=channel)


def test_silence_for_missing_packets_is_that_of_every_channel(channels: F32) -> None:
    taken = OneChannel(2, "talk.m4a")
    assert np.array_equal(taken.feed(np.zeros((5, 1), np.float32)), np.zeros(5))
    assert np.array_equal(taken.feed(channels), channels[:, 2])
    assert taken.finish().size == 0
