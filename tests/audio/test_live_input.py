"""Blocks of live sessions: types, shapes, rates."""

from __future__ import annotations

import numpy as np
import pytest

from whisper_opt import AudioError, load_audio
from whisper_opt.audio.live_input import LiveInput, as_block, check_rate
from whisper_opt.core.arrays import F32


def tone(seconds: float, rate: int) -> F32:
    times = np.arange(round(seconds * rate)) / rate
    return (0.5 * np.sin(2 * np.pi * 440 * times)).astype(np.float32)


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100, 48_000])
@pytest.mark.parametrize("size", [1, 37, 160, 4_800])
def test_blocks_of_any_size_give_what_the_whole_gives(rate: int, size: int) -> None:
    sound = tone(0.4, rate)
    whole = load_audio(sound, sample_rate=rate)
    stream = LiveInput()
    parts = [stream.feed(sound[i : i + size, None], rate) for i in range(0, len(sound), size)]
    found = np.concatenate([*parts, stream.finish()])
    assert abs(len(found) - len(whole)) <= 1
    n = min(len(found), len(whole))
    np.testing.assert_allclose(found[:n], whole[:n], atol=2e-3)


def test_the_rate_may_change() -> None:
    stream = LiveInput()
    parts = [stream.feed(tone(0.2, rate)[:, None], rate) for rate in (48_000, 16_000, 8_000)]
    assert len(np.concatenate([*parts, stream.finish()])) == pytest.approx(9_600, abs=3)


def test_int16_bytes_and_floats_are_the_same() -> None:
    numbers = np.array([[0, 16_384], [-32_768, 32_767]], np.int16)
    floats = numbers.astype(np.float32) / 32_768
    as_bytes = as_block(numbers.astype("<i2").tobytes(), 2)
    for block in (as_block(numbers, 1), as_block(numbers.ravel(), 2), as_bytes):
        np.testing.assert_array_equal(LiveInput().feed(block, 16_000), floats.mean(axis=1))
    np.testing.assert_allclose(LiveInput().feed(as_block(floats, 1), 16_000), floats.mean(axis=1))


def test_the_caller_may_use_its_array_again() -> None:
    given = np.ones(4, np.float32)
    block = as_block(given, 1)
    given[:] = 0
    assert block.tolist() == [[1.0]] * 4


@pytest.mark.parametrize(
    "samples",
    [
        b"\0\0\0",
        np.zeros(3, np.complex64),
        np.zeros((1, 2, 3), np.float32),
        np.array([np.nan], np.float32),
        np.array([30_000.0], np.float32),
        [0.0, 0.1],
    ],
)
def test_what_is_no_audio_is_refused(samples: object) -> None:
    with pytest.raises(AudioError):
        as_block(samples, 1)  # type: ignore[arg-type]


@pytest.mark.parametrize("rate", [0, 16_000.0, True, 10**9])
def test_what_is_no_rate_is_refused(rate: object) -> None:
    with pytest.raises(AudioError):
        check_rate(rate)  # type: ignore[arg-type]
