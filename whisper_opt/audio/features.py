"""Log-mel spectrogram, the input of Whisper.

The definition is ``log_mel_spectrogram`` of openai-whisper (whisper/audio.py) applied to the
recording followed by 30 s of zeros, as its ``transcribe`` does: periodic Hann window of 25 ms, 10
ms hop, centred frames with reflection at the left edge, power spectrum, Slaney mel filters with
area normalisation (Slaney 1998, Auditory Toolbox; ``librosa.filters.mel``), log10 clamped to 8
below the maximum, then (x + 4) / 4. All frames of the zeros have the same value, so only frames
that overlap the recording are computed. On speech the result is within 3e-5 of a float64
computation and within 1e-4 of the reference; most of that is the rounding of the reference.

The compiled kernels compute it if there are any; otherwise numpy does, which rounds differently.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import numpy as np

from whisper_opt.audio import mel_kernel
from whisper_opt.core.arrays import F32
from whisper_opt.core.dims import HOP_LENGTH, N_FFT, N_FRAMES, SAMPLE_RATE
from whisper_opt.core.errors import AudioError, OptionError

__all__ = ["LogMel", "log_mel", "log_mel_spectrogram", "mel_filters"]

_HALF = N_FFT // 2
_BLOCK = 128
"""Frames per block, few enough for its spectra to stay in the CPU cache."""
_GROUP = 8
"""Mel filters per matrix product.

A filter is non-zero on a few neighbouring bins only, so products of eight filters need a fraction
of the dense product. They also stay below the size at which OpenBLAS starts its thread pool, whose
threads would spin for about 0.1 s on the cores that the encoder needs next.
"""


@dataclasses.dataclass(frozen=True, eq=False)
class LogMel:
    """Log-mel frames of one recording.

    Attributes:
        frames: F32 [n_mels, n_frames + tail]; the frames of the recording, and one or two after
            it whose window still overlaps it.
        n_frames: complete hops of 10 ms in the recording (``n_samples // 160``).
        silence: value of every bin of all later frames if zeros follow the recording.
    """

    frames: F32
    n_frames: int
    silence: float

    def window(self, start: int, size: int) -> F32:
        """Frames ``start`` to ``start + size``, clipped to ``n_frames``, padded with zeros.

        The padding is 0, not ``silence``: openai-whisper's ``transcribe`` cuts the spectrogram and
        pads it with 0, and the timestamps of the models depend on that.

        Returns:
            F32 [n_mels, 3000], a new array.

        Raises:
            OptionError: ``start`` is negative, or ``size`` is not in 0 to 3000.
        """
        if start < 0 or not 0 <= size <= N_FRAMES:
            raise OptionError(
                f"mel window of {size} frames at {start}; expected a start of 0 or more and 0 to"
                f" {N_FRAMES} frames"
            )
        result = np.zeros((self.frames.shape[0], N_FRAMES), np.float32)
        stop = min(start + size, self.n_frames)
        if start < stop:
            result[:, : stop - start] = self.frames[:, start:stop]
        return result

    def head(self, start: int = 0) -> F32:
        """30 s of the recording, padded with silence: the input of language detection.

        Args:
            start: first frame.

        Returns:
            F32 [n_mels, 3000], a new array.
        """
        result = np.full((self.frames.shape[0], N_FRAMES), self.silence, np.float32)
        kept = self.frames[:, start : start + N_FRAMES]
        result[:, : kept.shape[1]] = kept
        return result


def log_mel(samples: F32, n_mels: int) -> LogMel:
    """Log-mel spectrogram of a recording.

    Args:
        samples: F32 [n_samples] at 16 kHz; n_samples may be 0.
        n_mels: mel bins (80 or 128 in released models).

    Raises:
        AudioError: ``samples`` is not a one-dimensional float32 array, or has values that are not
            finite or whose squares overflow.
        OptionError: ``n_mels`` is not positive.
    """
    samples = _checked(samples)
    last = (len(samples) + _HALF - 1) // HOP_LENGTH  # the last frame that overlaps the samples
    frames, floor = _log_frames(samples, last + 1, n_mels)
    silence = (np.maximum(np.float32(-10.0), floor) + np.float32(4.0)) * np.float32(0.25)
    return LogMel(frames, len(samples) // HOP_LENGTH, float(silence))


def log_mel_spectrogram(samples: F32, n_mels: int = 80, padding: int = 0) -> F32:
    """Log-mel spectrogram as one array, by the definition of openai-whisper's function.

    Unlike :func:`log_mel`, which assumes zeros after the recording, the signal is reflected at its
    right edge too.

    Args:
        samples: F32 [n_samples] at 16 kHz.
        n_mels: mel bins (80 or 128 in released models).
        padding: zero samples to append first.

    Returns:
        F32 [n_mels, (n_samples + padding) // 160]; a frame is 10 ms.

    Raises:
        AudioError: ``samples`` is not a one-dimensional float32 array, has values that are not
            finite or whose squares overflow, or is too short to be reflected.
        OptionError: ``n_mels`` is not positive, or ``padding`` is negative.
    """
    if padding < 0:
        raise OptionError(f"padding is {padding}; expected 0 samples or more")
    samples = np.concatenate([_checked(samples), np.zeros(padding, np.float32)])
    if len(samples) <= _HALF:
        raise AudioError(
            f"there are {len(samples)} samples; expected more than {_HALF}, or padding: the signal"
            " is reflected at its edges"
        )
    reflected = np.concatenate([samples, samples[-2 : -_HALF - 2 : -1]])
    return _log_frames(reflected, len(samples) // HOP_LENGTH, n_mels)[0]


def _checked(samples: F32) -> F32:
    if samples.ndim != 1 or samples.dtype != np.float32:
        raise AudioError(
            f"samples are {samples.dtype} {list(samples.shape)}; expected float32 [n_samples] at"
            " 16 kHz, as load_audio returns"
        )
    return np.ascontiguousarray(samples)


def _log_frames(samples: F32, n_frames: int, n_mels: int) -> tuple[F32, np.float32]:
    """The first ``n_frames`` frames, clamped and scaled; and the clamp before scaling."""
    found = mel_kernel.log_frames(samples, n_frames, _hann(), _sparse_filters(n_mels))
    if found is None:
        found = _log_frames_by_numpy(samples, n_frames, n_mels)
    if not np.isfinite(found[1]):
        raise AudioError("samples contain NaN, infinity or huge values; expected about -1 to 1")
    return found


def _log_frames_by_numpy(samples: F32, n_frames: int, n_mels: int) -> tuple[F32, np.float32]:
    """Without compiled kernels: as :func:`_log_frames`; the clamp may be no number or infinite."""
    bands, spectra = _bands(n_mels), _PowerSpectra()
    frames = np.empty((n_mels, n_frames), np.float32)
    peak = np.float32(-10.0)  # of the padding: log10 of the smallest power, 1e-10
    with np.errstate(invalid="ignore", over="ignore"):  # the peak is then not finite
        for start in range(0, n_frames, _BLOCK):
            block = frames[:, start : start + _BLOCK]
            _power_to_mel(spectra.of(samples, start, block.shape[1]), bands, block)
            np.maximum(block, np.float32(1e-10), out=block)
            np.log10(block, out=block)
            peak = np.maximum(peak, block.max())
    floor = peak - np.float32(8.0)
    for start in range(0, n_frames, _BLOCK):
        block = frames[:, start : start + _BLOCK]
        np.maximum(block, floor, out=block)
        block += np.float32(4.0)
        block *= np.float32(0.25)
    return frames, floor


@functools.cache
def mel_filters(n_mels: int) -> F32:
    """Triangular filters from the power spectrum to mel bins.

    Slaney's mel scale: linear below 1 kHz (200/3 Hz per mel), logarithmic above (27 mels for a
    factor of 6.4). Each triangle has unit area.

    Returns:
        F32 [n_mels, 201], read-only, shared between calls.

    Raises:
        OptionError: ``n_mels`` is not positive.
    """
    if n_mels < 1:
        raise OptionError(f"n_mels is {n_mels}; expected 80 or 128, or another positive number")
    knee, per_mel = 15.0, np.log(6.4) / 27  # 15 mels are 1 kHz
    top = knee + np.log(SAMPLE_RATE / 2 / 1000) / per_mel
    mels = np.linspace(0.0, top, n_mels + 2)
    corners = np.where(mels < knee, mels * 200 / 3, 1000 * np.exp((mels - knee) * per_mel))
    bins = np.linspace(0.0, SAMPLE_RATE / 2, N_FFT // 2 + 1)
    left, centre, right = corners[:-2, None], corners[1:-1, None], corners[2:, None]
    rising, falling = (bins - left) / (centre - left), (right - bins) / (right - centre)
    triangles = np.maximum(0.0, np.minimum(rising, falling)) * (2.0 / (right - left))
    filters: F32 = triangles.astype(np.float32)
    filters.flags.writeable = False
    return filters


@functools.cache
def _sparse_filters(n_mels: int) -> mel_kernel.SparseFilters:
    return mel_kernel.SparseFilters.of(mel_filters(n_mels))


class _Band(NamedTuple):
    """Neighbouring mel filters and the bins on which they are non-zero."""

    mels: slice
    bins: slice
    weights: F32  # [n_mels in the band, n_bins in the band]


@functools.cache
def _bands(n_mels: int) -> tuple[_Band, ...]:
    filters = mel_filters(n_mels)
    bands = []
    for first in range(0, n_mels, _GROUP):
        rows = filters[first : first + _GROUP]
        used = np.flatnonzero(rows.any(axis=0))
        bins = slice(int(used[0]), int(used[-1]) + 1) if used.size else slice(0, 0)
        weights = np.ascontiguousarray(rows[:, bins])
        bands.append(_Band(slice(first, first + len(rows)), bins, weights))
    return tuple(bands)


@functools.cache
def _hann() -> F32:
    """Periodic Hann window, F32 [400]."""
    phase = 2 * np.pi * np.arange(N_FFT) / N_FFT
    window = (0.5 - 0.5 * np.cos(phase)).astype(np.float32)
    window.flags.writeable = False
    return window


def _span(samples: F32, start: int, stop: int) -> F32:
    """Samples ``start`` to ``stop`` of the padded signal: reflected at 0, zeros after the end."""
    if start >= 0 and stop <= len(samples):
        return samples[start:stop]
    index = np.abs(np.arange(start, stop))
    inside = index < len(samples)
    result = np.zeros(stop - start, np.float32)
    result[inside] = samples[index[inside]]
    return result


_RFFT_HAS_OUT = np.lib.NumpyVersion(np.__version__) >= "2.0.0"
"""Whether transforms are written to a given array. NumPy 1 is no requirement of this package's, but
what some Triton servers run with (docs/scale.md)."""


class _PowerSpectra:
    """Power spectra of blocks of frames, in arrays that are allocated once.

    New arrays per block are large enough for the C library to ask the system for memory and return
    it each time: that took most of the time.
    """

    def __init__(self) -> None:
        self._windows = np.empty((_BLOCK, N_FFT), np.float32)
        # numpy's annotations know float64 only
        self._spectrum: Any = np.empty((_BLOCK, _HALF + 1), np.complex64)
        self._power = np.empty((_BLOCK, _HALF + 1), np.float32)

    def of(self, samples: F32, start: int, n_frames: int) -> F32:
        """Frames ``start`` to ``start + n_frames``: F32 [n_frames, 201], valid until the next."""
        first = start * HOP_LENGTH - _HALF
        span = _span(samples, first, first + (n_frames - 1) * HOP_LENGTH + N_FFT)
        windows = np.lib.stride_tricks.sliding_window_view(span, N_FFT)[::HOP_LENGTH]
        np.multiply(windows, _hann(), out=self._windows[:n_frames])
        spectrum = self._spectrum[:n_frames]
        if _RFFT_HAS_OUT:
            np.fft.rfft(self._windows[:n_frames], out=spectrum)
        else:
            spectrum[:] = np.fft.rfft(self._windows[:n_frames])
        parts = spectrum.view(np.float32)  # real and imaginary parts in turns
        np.square(parts, out=parts)
        power: F32 = np.add(parts[:, ::2], parts[:, 1::2], out=self._power[:n_frames])
        return power


def _power_to_mel(power: F32, bands: tuple[_Band, ...], out: F32) -> None:
    """Apply the filters to F32 [n, 201], writing F32 [n_mels, n] into ``out``."""
    for band in bands:
        np.matmul(band.weights, power[:, band.bins].T, out=out[band.mels])
