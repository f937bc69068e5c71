"""Log-mel features against openai-whisper's and against their definition in float64."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whisper_opt.audio import features, mel_kernel
from whisper_opt.audio.features import LogMel, log_mel, log_mel_spectrogram, mel_filters
from whisper_opt.core.arrays import F32, NDArray
from whisper_opt.core.errors import AudioError, OptionError
from whisper_opt.runtime.native import why_no_kernels

PATHS = ("kernels", "numpy")
DATA = pathlib.Path(__file__).parents[1] / "data" / "mel"


@pytest.fixture(params=PATHS)
def _computed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the compiled kernels, and without them."""
    computed(request.param, monkeypatch)


def computed(by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Skips if there are no kernels."""
    if by == "numpy":
        monkeypatch.setattr(mel_kernel, "_function", lambda: None)
    elif why_no_kernels():
        pytest.skip(f"not tested: {why_no_kernels()}")


both = pytest.mark.usefixtures("_computed")


def noise(n_samples: int, seed: int = 0) -> F32:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(n_samples) * 0.1).astype(np.float32)


def definition(samples: F32, n_mels: int, padding: int = 480_000) -> NDArray:
    """All frames of the recording and of zeros after it, by the definition."""
    padded = np.pad(np.concatenate([samples, np.zeros(padding)]), 200, mode="reflect")
    n_frames = (len(samples) + padding) // 160
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    windows = np.lib.stride_tricks.sliding_window_view(padded, 400)[::160][:n_frames]
    power = np.abs(np.fft.rfft(windows * window)) ** 2
    logs = np.log10(np.maximum(mel_filters(n_mels).astype(float) @ power.T, 1e-10))
    result: NDArray = (np.maximum(logs, logs.max() - 8) + 4) / 4
    return result


@both
@pytest.mark.parametrize("n_mels", [80, 128])
@pytest.mark.parametrize("name", ["speech", "noise", "short", "tiny", "quiet"])
def test_equals_the_reference(name: str, n_mels: int) -> None:
    with np.load(DATA / f"{name}.npz") as golden:
        samples = golden["samples"].astype(np.float32) / np.float32(32768)
        expected, silence = golden[f"frames_{n_mels}"], golden[f"silence_{n_mels}"]
    mel = log_mel(samples, n_mels)
    assert mel.frames.dtype == np.float32
    assert mel.n_frames == len(samples) // 160
    n_shared = min(mel.frames.shape[1], expected.shape[1])
    assert n_shared >= mel.n_frames
    np.testing.assert_allclose(mel.frames[:, :n_shared], expected[:, :n_shared], atol=5e-5, rtol=0)
    np.testing.assert_allclose(mel.frames[:, n_shared:], silence, atol=1e-6, rtol=0)
    np.testing.assert_allclose(expected[:, n_shared:], silence, atol=1e-6, rtol=0)
    assert mel.silence == pytest.approx(float(silence), abs=1e-6)


@pytest.mark.parametrize("n_mels", [80, 128])
def test_filters_equal_the_reference(n_mels: int) -> None:
    with np.load(DATA / "filters.npz") as golden:
        expected = golden[f"mel_{n_mels}"]
    filters = mel_filters(n_mels)
    assert filters.dtype == np.float32
    np.testing.assert_allclose(filters, expected, atol=1e-8, rtol=0)
    assert mel_filters(n_mels) is filters
    assert not filters.flags.writeable


@pytest.mark.parametrize("by", PATHS)
@settings(max_examples=25, deadline=None)
@given(
    n_samples=st.integers(0, 700) | st.integers(19_000, 22_000),
    n_mels=st.sampled_from([1, 7, 80, 128]),
    gain=st.sampled_from([0.0, 1e-6, 1.0]),
)
def test_equals_the_definition_for_any_length(
    by: str, n_samples: int, n_mels: int, gain: float
) -> None:
    samples = noise(n_samples) * np.float32(gain)
    with pytest.MonkeyPatch.context() as patch:
        computed(by, patch)
        mel, expected = log_mel(samples, n_mels), definition(samples, n_mels)
    n_computed = mel.frames.shape[1]
    assert mel.frames.shape[0] == n_mels
    assert mel.n_frames == n_samples // 160
    assert n_computed <= mel.n_frames + 3  # frames of the padding are not computed
    np.testing.assert_allclose(mel.frames, expected[:, :n_computed], atol=1e-4, rtol=0)
    np.testing.assert_allclose(expected[:, n_computed:], mel.silence, atol=1e-6, rtol=0)
    np.testing.assert_allclose(mel.head(), expected[:, :3000], atol=1e-4, rtol=0)


@both
def test_loudness_is_relative_to_the_whole_recording() -> None:
    quiet, loud = noise(16_000) * np.float32(1e-4), noise(16_000)
    alone, before_loud = log_mel(quiet, 80), log_mel(np.concatenate([quiet, loud]), 80)
    assert before_loud.frames[:, :90].min() == pytest.approx(before_loud.frames.max() - 2.0)
    assert alone.silence < before_loud.silence


def test_block_size_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    computed("numpy", monkeypatch)
    samples = noise(30_001)
    expected = log_mel(samples, 80).frames
    monkeypatch.setattr(features, "_BLOCK", 7)
    np.testing.assert_allclose(log_mel(samples, 80).frames, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("n_mels", [80, 128])
def test_filter_products_stay_single_threaded(n_mels: int) -> None:
    # OpenBLAS starts its threads above 2**18 multiplications (SMP_THRESHOLD_MIN x 4).
    for band in features._bands(n_mels):
        assert band.weights.size * features._BLOCK <= 1 << 18


@both
def test_samples_need_not_be_contiguous() -> None:
    samples = noise(8_000)
    np.testing.assert_array_equal(
        log_mel(samples[::2], 80).frames, log_mel(samples[::2].copy(), 80).frames
    )


@both
def test_samples_are_not_modified() -> None:
    samples = noise(5_000)
    samples.flags.writeable = False
    log_mel(samples, 80)
    np.testing.assert_array_equal(samples, noise(5_000))


@pytest.fixture(scope="module")
def long_mel() -> LogMel:
    """3,501 frames: a little more than 35 s."""
    return log_mel(noise(35 * 16_000 + 200), 80)


@pytest.mark.parametrize(
    ("start", "size", "kept"),
    [(0, 3000, 3000), (10, 100, 100), (3400, 3000, 101), (3500, 1, 1), (3501, 5, 0), (0, 0, 0)],
)
def test_window_is_a_cut_in_zeros(long_mel: LogMel, start: int, size: int, kept: int) -> None:
    window = long_mel.window(start, size)
    assert window.shape == (80, 3000)
    assert window.dtype == np.float32
    np.testing.assert_array_equal(window[:, :kept], long_mel.frames[:, start : start + kept])
    assert not window[:, kept:].any()


def test_windows_and_heads_are_new_arrays(long_mel: LogMel) -> None:
    for cut in (long_mel.window(0, 3000), long_mel.head()):
        assert not np.shares_memory(cut, long_mel.frames)


def test_head_of_a_long_recording_is_its_first_30_seconds(long_mel: LogMel) -> None:
    np.testing.assert_array_equal(long_mel.head(), long_mel.frames[:, :3000])


@pytest.mark.parametrize(("start", "size"), [(-1, 10), (0, -1), (0, 3001)])
def test_impossible_windows_are_refused(long_mel: LogMel, start: int, size: int) -> None:
    with pytest.raises(OptionError, match="mel window"):
        long_mel.window(start, size)


@pytest.mark.parametrize(
    "samples",
    [np.zeros(1600), np.zeros((1600, 1), np.float32), np.zeros(1600, np.int16)],
    ids=["float64", "2-d", "int16"],
)
def test_other_arrays_are_refused(samples: F32) -> None:
    with pytest.raises(AudioError, match="float32"):
        log_mel(samples, 80)


@both
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
def test_samples_that_are_not_finite_are_refused(value: float) -> None:
    samples = noise(50_000)
    samples[40_000] = value
    with pytest.raises(AudioError, match="NaN, infinity"):
        log_mel(samples, 80)


@pytest.mark.parametrize("n_mels", [0, -80])
def test_number_of_bins_must_be_positive(n_mels: int) -> None:
    with pytest.raises(OptionError, match="n_mels"):
        log_mel(noise(1600), n_mels)


@both
@pytest.mark.parametrize(("n_samples", "padding"), [(16_001, 0), (201, 0), (16_001, 100), (0, 480)])
def test_a_spectrogram_is_reflected_at_both_edges(n_samples: int, padding: int) -> None:
    samples = noise(n_samples)
    expected = definition(samples, 80, padding)
    found = log_mel_spectrogram(samples, padding=padding)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)


def test_spectrograms_of_nothing_are_refused() -> None:
    with pytest.raises(AudioError, match="there are 200 samples; expected more than 200"):
        log_mel_spectrogram(noise(200))
    with pytest.raises(OptionError, match="padding is -1"):
        log_mel_spectrogram(noise(500), padding=-1)


def test_numpy_1_gives_the_same_within_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """There a transform cannot be written to a given array."""
    computed("numpy", monkeypatch)
    samples = np.random.default_rng(0).standard_normal(20_000).astype(np.float32) * 0.1
    expected = log_mel_spectrogram(samples)
    monkeypatch.setattr("whisper_opt.audio.features._RFFT_HAS_OUT", False)
    np.testing.assert_allclose(log_mel_spectrogram(samples), expected, atol=1e-5)


def test_kernels_equal_numpy_within_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    computed("kernels", monkeypatch)
    samples = noise(30_001)
    samples[10_000:20_000] = 0  # exactly the silence
    found = log_mel(samples, 80)
    computed("numpy", monkeypatch)
    expected = log_mel(samples, 80)
    np.testing.assert_allclose(found.frames, expected.frames, atol=2e-5, rtol=0)
    assert found.frames.min() == pytest.approx(found.silence, abs=1e-7)


def test_digital_silence_by_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but the least power, with the value of the silence after it."""
    computed("kernels", monkeypatch)
    mel = log_mel(np.zeros(16_000, np.float32), 80)
    assert mel.silence == -1.5
    assert (mel.frames == mel.silence).all()


def test_a_variant_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library says so when it is asked; numpy computes then."""
    computed("numpy", monkeypatch)
    expected = log_mel(noise(5_000), 80)
    monkeypatch.setattr(mel_kernel, "_function", lambda: lambda arguments: -1)
    np.testing.assert_array_equal(log_mel(noise(5_000), 80).frames, expected.frames)
