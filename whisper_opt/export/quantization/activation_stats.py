"""How large the inputs of a model's products become, channel by channel.

Quantized graphs are built from these figures. Some channels of a Whisper's activations are fifteen
times as large as the others, in every sound: that is a property of the weights, so that sounds made
up here show it as well as recordings do (docs/quantization.md has both).
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

__all__ = ["ActivationSample", "ActivationStats", "synthetic_samples", "collect_stats"]

_SECONDS = 10
"""Length of a made-up window: what each position becomes differs little in a longer one."""
_TOKENS = 48


class ActivationSample(NamedTuple):
    """Sound and what is said in it.

    Attributes:
        mel: float32 [n_mels, n_frames].
        tokens: int64 [n], prompt and text; may be empty.
    """

    mel: F32
    tokens: Int


@dataclasses.dataclass(frozen=True)
class ActivationStats:
    """What one product is given.

    Attributes:
        mean: float32 [n_in], mean of every channel.
        peak: float32 [n_in], largest distance from the mean.
    """

    mean: F32
    peak: F32


class _StatsReference(Reference):
    """The model, which notes what its products are given."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint)
        self.seen: dict[str, list[F32]] = {}

    def _linear(self, x: F32, name: str, *, bias: bool = True) -> F32:
        low, high, total = x.min(axis=0), x.max(axis=0), x.sum(axis=0, dtype=np.float64)
        if name in self.seen:
            a, b, c, n = self.seen[name]
            low, high, total = np.minimum(low, a), np.maximum(high, b), total + c
            self.seen[name] = [low, high, total, n + len(x)]
        else:
            self.seen[name] = [low, high, total, np.asarray(len(x))]
        return super()._linear(x, name, bias=bias)


def collect_stats(
    checkpoint: Checkpoint, samples: Iterable[ActivationSample]
) -> Mapping[str, ActivationStats]:
    """Run a model on samples and return what each of its products was given, by name."""
    model = _StatsReference(checkpoint)
    for sample in samples:
        audio = model.encode(sample.mel)
        model.decode(audio, [sample.tokens])
    return {name: _stats(*seen) for name, seen in model.seen.items()}


def _stats(low: F32, high: F32, total: F32, n: F32) -> ActivationStats:
    peak = np.maximum(high - low, 1e-6).astype(np.float32)
    # on a coarse grid: another machine's last digits make no other engine
    grid = np.exp2(np.floor(np.log2(peak)) - 5)
    mean = (np.rint(total / n / grid) * grid).astype(np.float32)
    return ActivationStats(mean, np.maximum(high - mean, mean - low).astype(np.float32))


def synthetic_samples(checkpoint: Checkpoint) -> Sequence[ActivationSample]:
    """Samples that need no recording: noise, and tones that glide and pause, as voices do."""
    dims = checkpoint.dims
    frames = _SECONDS * SAMPLE_RATE // HOP_LENGTH
    time = sample_times(_SECONDS * SAMPLE_RATE)
    draw = np.random.default_rng(1)
    mels = [noise_mel(dims)[:, :frames]]
    for pitch, pace in ((120.0, 3.0), (210.0, 4.5)):
        sound = synthetic_voice(time, pitch, pace, time < 0.7 * _SECONDS)
        mels.append(np.ascontiguousarray(log_mel(sound, dims.n_mels).head()[:, :frames]))
    n = min(_TOKENS, dims.n_text_ctx)
    return [
        ActivationSample(mel, draw.integers(0, dims.n_vocab, n).astype(np.int64)) for mel in mels
    ]
