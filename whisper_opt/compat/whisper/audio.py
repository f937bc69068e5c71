"""``whisper.audio``: recordings and log-mel spectrograms."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

import whisper_opt
from whisper_opt.compat.whisper.arrays import Array, as_array

__all__ = [
    "CHUNK_LENGTH",
    "FRAMES_PER_SECOND",
    "HOP_LENGTH",
    "N_FFT",
    "N_FRAMES",
    "N_SAMPLES",
    "N_SAMPLES_PER_TOKEN",
    "SAMPLE_RATE",
    "TOKENS_PER_SECOND",
    "load_audio",
    "log_mel_spectrogram",
    "pad_or_trim",
]

SAMPLE_RATE = 16_000
N_FFT = 400
HOP_LENGTH = 160
CHUNK_LENGTH = 30
N_SAMPLES = CHUNK_LENGTH * SAMPLE_RATE
N_FRAMES = N_SAMPLES // HOP_LENGTH
N_SAMPLES_PER_TOKEN = HOP_LENGTH * 2
FRAMES_PER_SECOND = SAMPLE_RATE // HOP_LENGTH
TOKENS_PER_SECOND = SAMPLE_RATE // N_SAMPLES_PER_TOKEN


def load_audio(file: Any, sr: int = SAMPLE_RATE) -> Array:
    """A recording as mono samples, float32 [n_samples] at 16 kHz.

    Args:
        file: path, or another source of :func:`whisper_opt.load_audio`.
        sr: 16,000; another rate is refused.

    Raises:
        AudioError: the recording cannot be read.
        OptionError: ``sr`` is another rate.
    """
    if sr != SAMPLE_RATE:
        raise whisper_opt.OptionError(
            f"sr is {sr}; expected {SAMPLE_RATE}, the rate of the models; resample the result with"
            " soxr or scipy"
        )
    return whisper_opt.load_audio(file).view(Array)


def pad_or_trim(array: Any, length: int = N_SAMPLES, *, axis: int = -1) -> Array:
    """``array`` cut, or padded with zeros, to ``length`` along ``axis``."""
    array = as_array(array)
    array = array.take(range(min(length, array.shape[axis])), axis)
    padding = [(0, 0)] * array.ndim
    padding[axis] = (0, length - array.shape[axis])
    return np.pad(array, padding).view(Array)


def log_mel_spectrogram(
    audio: Any, n_mels: int = 80, padding: int = 0, device: Any = None
) -> Array:
    """Log-mel spectrogram, float32 [n_mels, n_frames]; a frame is 10 ms.

    Args:
        audio: path, or samples [n_samples] at 16 kHz as an array or a tensor.
        n_mels: mel bins of the model: 80, or 128 from large-v3 on.
        padding: zero samples to append first.
        device: no effect: the result is a numpy array.

    Raises:
        AudioError: the recording cannot be read or used.
        OptionError: ``n_mels`` or ``padding`` is out of range.
    """
    if isinstance(audio, (str, os.PathLike)):
        audio = load_audio(audio)
    samples = as_array(audio).astype(np.float32, copy=False)
    return whisper_opt.log_mel_spectrogram(samples, n_mels, padding).view(Array)
