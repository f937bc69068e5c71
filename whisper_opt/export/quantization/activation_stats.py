"""Statistics of the inputs of a model's matrix products, per channel.

Quantized graphs are built from them. Some channels of Whisper's activations are fifteen times as
large as the others for any audio. That is a property of the weights, so synthetic audio shows it as
well as recordings do (docs/quantization.md compares both).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from whisper_opt.audio.features import log_mel
from whisper_opt.core.arrays import F32, Int
from whisper_opt.core.dims import HOP_LENGTH, SAMPLE_RATE
from whisper_opt.export.checkpoints.checkpoint import Checkpoint
from whisper_opt.export.verification.reference import Reference
from whisper_opt.export.verification.synthetic_audio import sample_times, synthetic_voice
from whisper_opt.export.verification.verify import noise_mel

__all__ = ["ActivationSample", "ActivationStats", "collect_stats", "synthetic_samples"]

_SECONDS = 10
"""Length of a synthetic window. The statistics of longer ones differ little."""
_TOKENS = 48


class ActivationSample(NamedTuple):
    """Audio and its transcript.

    Attributes:
        mel: float32 [n_mels, n_frames].
        tokens: int64 [n], prompt and text; may be empty.
    """

    mel: F32
    tokens: Int


@dataclasses.dataclass(frozen=True)
class ActivationStats:
    """Statistics of the input of one product.

    Attributes:
        mean: float32 [n_in], mean of each channel.
        peak: float32 [n_in], largest distance from the mean.
    """

    mean: F32
    peak: F32


class _StatsReference(Reference):
    """The model, which records the ranges and sums of the inputs of its products."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint)
        self.recorded: dict[str, list[F32]] = {}

    def _linear(self, x: F32, name: str, *, bias: bool = True) -> F32:
        low, high, total = x.min(axis=0), x.max(axis=0), x.sum(axis=0, dtype=np.float64)
        if name in self.recorded:
            a, b, c, n = self.recorded[name]
            low, high, total = np.minimum(low, a), np.maximum(high, b), total + c
            self.recorded[name] = [low, high, total, n + len(x)]
        else:
            self.recorded[name] = [low, high, total, np.asarray(len(x))]
        return super()._linear(x, name, bias=bias)


def collect_stats(
    checkpoint: Checkpoint, samples: Iterable[ActivationSample]
) -> Mapping[str, ActivationStats]:
    """Run a model on samples; returns the statistics of the input of each product by name."""
    model = _StatsReference(checkpoint)
    for sample in samples:
        audio = model.encode(sample.mel)
        model.decode(audio, [sample.tokens])
    return {name: _stats(*recorded) for name, recorded in model.recorded.items()}


def _stats(low: F32, high: F32, total: F32, n: F32) -> ActivationStats:
    peak = np.maximum(high - low, 1e-6).astype(np.float32)
    # rounded to a coarse grid, so that other machines' rounding errors do not change the engine
    grid = np.exp2(np.floor(np.log2(peak)) - 5)
    mean = (np.rint(total / n / grid) * grid).astype(np.float32)
    return ActivationStats(mean, np.maximum(high - mean, mean - low).astype(np.float32))


def synthetic_samples(checkpoint: Checkpoint) -> Sequence[ActivationSample]:
    """Samples without recordings: noise, and tones that glide and pause as speech does."""
    dims = checkpoint.dims
    frames = _SECONDS * SAMPLE_RATE // HOP_LENGTH
    time = sample_times(_SECONDS * SAMPLE_RATE)
    draw = np.random.default_rng(1)
    mels = [noise_mel(dims)[:, :frames]]
    for pitch, pace in ((120.0, 3.0), (210.0, 4.5)):
        audio = synthetic_voice(time, pitch, pace, time < 0.7 * _SECONDS)
        mels.append(np.ascontiguousarray(log_mel(audio, dims.n_mels).head()[:, :frames]))
    n = min(_TOKENS, dims.n_text_ctx)
    return [
        ActivationSample(mel, draw.integers(0, dims.n_vocab, n).astype(np.int64)) for mel in mels
    ]
