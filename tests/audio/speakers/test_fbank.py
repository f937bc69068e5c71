"""Filter banks are Kaldi's, whatever the blocks."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from whisper_opt.audio.speakers.fbank import FilterBanks
from whisper_opt.core.arrays import F32


def reference(samples: F32) -> npt.NDArray[np.float64]:
    """One frame after another, as the description of the method says, in float64."""
    rows = []
    low, high = (1127 * np.log1p(f / 700) for f in (20.0, 8000.0))
    centres = low + (high - low) / 81 * np.arange(82)
    window = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 399)) ** 0.85
    for start in range(0, len(samples) - 399, 160):
        frame = samples[start : start + 400].astype(np.float64)
        frame = frame - frame.mean()
        frame = np.concatenate([[frame[0] * 0.03], frame[1:] - 0.97 * frame[:-1]]) * window
        power = np.abs(np.fft.rfft(frame, 512)) ** 2
        energies = []
        for band in range(80):
            left, centre, right = centres[band : band + 3]
            total = 0.0
            for i in range(256):
                mel = 1127 * np.log1p(i * 31.25 / 700)
                if left < mel < right:
                    rise, fall = (mel - left) / (centre - left), (right - mel) / (right - centre)
                    total += power[i] * min(rise, fall)
            energies.append(np.log(max(total, np.finfo(np.float32).eps)))
        rows.append(energies)
    return np.array(rows)


@pytest.mark.parametrize("block", [100, 399, 1600, 16_000])
def test_filter_banks_equal_the_method(block: int) -> None:
    samples = np.random.default_rng(0).standard_normal(4000).astype(np.float32) * np.float32(0.1)
    banks = FilterBanks()
    found = [banks.feed(samples[i : i + block]) for i in range(0, len(samples), block)]
    np.testing.assert_allclose(np.concatenate(found), reference(samples), atol=2e-3)


def test_silence_has_the_smallest_value() -> None:
    found = FilterBanks().feed(np.zeros(800, np.float32))
    assert found.shape == (3, 80)
    assert np.unique(found).tolist() == [np.log(np.finfo(np.float32).eps)]
