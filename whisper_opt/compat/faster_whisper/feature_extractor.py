"""``faster_whisper.feature_extractor``: log-mel spectrograms."""

from __future__ import annotations

from typing import Any

import numpy as np

import whisper_opt
from whisper_opt.compat.faster_whisper.audio import SAMPLING_RATE

__all__ = ["FeatureExtractor"]

_FIXED = {
    "sampling_rate": SAMPLING_RATE,
    "hop_length": 160,
    "chunk_length": 30,
    "n_fft": 400,
}


class FeatureExtractor:
    """Computes log-mel spectrograms, the input of the models."""

    def __init__(
        self,
        feature_size: int = 80,
        sampling_rate: int = SAMPLING_RATE,
        hop_length: int = 160,
        chunk_length: int = 30,
        n_fft: int = 400,
    ) -> None:
        """``feature_size``: mel bins; the other values are those of the models.

        Raises:
            OptionError: another value than the default is given for one of the others.
        """
        given = (sampling_rate, hop_length, chunk_length, n_fft)
        for (name, expected), value in zip(_FIXED.items(), given):
            if value != expected:
                raise whisper_opt.OptionError(
                    f"{name} is {value}; expected {expected}, that of every Whisper model"
                )
        self.feature_size = feature_size
        self.sampling_rate = sampling_rate
        self.hop_length = hop_length
        self.chunk_length = chunk_length
        self.n_fft = n_fft
        self.n_samples = chunk_length * sampling_rate
        self.nb_max_frames = self.n_samples // hop_length
        self.time_per_frame = hop_length / sampling_rate

    def __call__(self, waveform: Any, padding: int = 160, chunk_length: int | None = None) -> Any:
        """Log-mel spectrogram, float32 [feature_size, n_frames]; a frame is 10 ms.

        Args:
            waveform: float32 [n] at 16 kHz.
            padding: zero samples to append first.
            chunk_length: None or 30; another length of windows is refused.

        Raises:
            AudioError: there are fewer than 201 samples, padding included.
            OptionError: ``chunk_length`` is another.
        """
        check_chunk_length(chunk_length)
        samples = np.asarray(waveform, np.float32)
        return whisper_opt.log_mel_spectrogram(samples, self.feature_size, padding)


def check_chunk_length(chunk_length: int | None) -> None:
    """Refuse windows of another length than 30 s; raises OptionError."""
    if chunk_length not in (None, _FIXED["chunk_length"]):
        raise whisper_opt.OptionError(
            f"chunk_length is {chunk_length}; windows have 30 s, the length that the models were"
            " trained with; leave it out, and give shorter parts as clip_timestamps"
        )
