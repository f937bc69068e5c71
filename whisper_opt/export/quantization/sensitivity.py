"""Measures the cost of quantizing each group of products, and selects groups to keep.

``whisper-opt export --calibrate``: the checkpoint transcribes a few recordings in numpy float32.
Then each group of products alone is quantized as in the engine, and its scores along the same text
are compared. The groups with the highest cost per byte keep a higher precision, within a budget of
bytes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Callable

import numpy as np

from whisper_opt.audio.decode import load_audio
from whisper_opt.audio.features import log_mel
from whisper_opt.core.arrays import F32, Int
from whisper_opt.core.dims import HOP_LENGTH, SAMPLE_RATE
from whisper_opt.core.errors import OptionError
from whisper_opt.export.checkpoints.checkpoint import Checkpoint, Tensor
from whisper_opt.export.graphs.groups import CROSS, groups_of, matches, products_of
from whisper_opt.export.graphs.precision import Precision
from whisper_opt.export.quantization.activation_stats import (
    ActivationSample,
    ActivationStats,
    collect_stats,
    synthetic_samples,
)
from whisper_opt.export.quantization.int4 import BLOCK
from whisper_opt.export.quantization.rounding import QuantizedReference
from whisper_opt.text.vocabulary import Vocab

__all__ = ["MAX_RECORDINGS", "Calibration", "Cost", "calibrate", "find_recordings", "select_groups"]

MAX_RECORDINGS = 8
"""Largest number of recordings, taken at equal distances from those found."""
_SECONDS = 10
_TOKENS = 48
_MAX_CACHED_BYTES = 1 << 30
"""Models of up to so many bytes (as float32) stay in memory between passes."""
_SUFFIXES = {
    *(".aac", ".aif", ".aiff", ".flac", ".m4a", ".mp3", ".mp4"),
    *(".oga", ".ogg", ".opus", ".wav", ".webm", ".wma"),
}


@dataclasses.dataclass(frozen=True)
class Cost:
    """Errors from quantizing one group of products alone.

    Attributes:
        group: name (:mod:`whisper_opt.export.graphs.groups`).
        extra_bytes: additional bytes on disk if the group keeps the higher precision.
        cross: relative root mean square error of the cross-attention keys and values; 0 for groups
            of the decoder.
        divergence: Kullback-Leibler divergence of the scores, nats per token.
    """

    group: str
    extra_bytes: int
    cross: float
    divergence: float


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Results of a calibration.

    Attributes:
        stats: statistics of the inputs of all products, on recordings and synthetic audio.
        precision: the requested precision with the selected groups kept.
        report: entry of the manifest.
    """

    stats: Mapping[str, ActivationStats]
    precision: Precision
    report: Mapping[str, Any]


def find_recordings(folder: Path) -> list[Path]:
    """Audio files below a folder, recognised by their suffixes.

    Raises:
        OptionError: ``folder`` is not a folder, or has no recordings.
    """
    if not folder.is_dir():
        raise OptionError(f"--calibrate {folder} is not a folder; expected one with recordings")
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES)
    if not found:
        known = " ".join(sorted(_SUFFIXES))
        raise OptionError(f"--calibrate: there are no recordings in {folder}; looked for {known}")
    return found


class _CachedCrossReference(QuantizedReference):
    """A model that caches the cross-attention keys and values of one audio."""

    cached: tuple[F32, list[tuple[F32, F32]]] | None = None

    def cache_cross(self, audio: F32) -> list[tuple[F32, F32]]:
        """Compute and cache the pairs of all layers."""
        self.cached = None
        pairs = [self.cross(audio, i) for i in range(self._dims.n_text_layer)]
        self.cached = audio, pairs
        return pairs

    def cross(self, audio: F32, layer: int) -> tuple[F32, F32]:
        if self.cached is not None and audio is self.cached[0] and CROSS not in self.groups:
            return self.cached[1][layer]
        return super().cross(audio, layer)


@dataclasses.dataclass(frozen=True)
class _ExactResult:
    """Results of the exact model for one recording.

    Attributes:
        layers: float32 [n_ctx, n_audio_state], input of every encoder layer.
        audio: float32 [n_ctx, n_audio_state], encoder output.
        cross: keys and values of every decoder layer.
        tokens: int64 [n].
        first: first position whose scores are compared: the last of the prompt.
        scores: float32 [n - first, n_vocab] logarithms of probabilities.
    """

    layers: Sequence[F32]
    audio: F32
    cross: Sequence[tuple[F32, F32]]
    tokens: Int
    first: int
    scores: F32


def _log_softmax(scores: F32) -> F32:
    lifted = scores - scores.max(axis=-1, keepdims=True)
    found: F32 = lifted - np.log(np.exp(lifted).sum(axis=-1, keepdims=True))
    return found


def _mel(path: Path, n_mels: int) -> F32:
    """Log-mel of the first seconds of a recording, without padding."""
    samples = load_audio(path)[: _SECONDS * SAMPLE_RATE]
    frames = max(2, len(samples) // HOP_LENGTH // 2 * 2)
    return np.ascontiguousarray(log_mel(samples, n_mels).head()[:, :frames])


def _prompt(model: _CachedCrossReference, audio: F32, vocab: Vocab) -> list[int]:
    """Start-of-transcript tokens in the detected language."""
    language = vocab.default_language
    if vocab.is_multilingual:
        scores = model.logits(audio, [np.array([vocab.sot])])[0][0]
        language = max(vocab.languages, key=lambda code: scores[vocab.languages[code]])
    return vocab.start(language, "transcribe", timestamps=False)


def _decode_text(
    model: _CachedCrossReference, audio: F32, vocab: Vocab, checkpoint: Checkpoint
) -> tuple[Int, int]:
    """Prompt and greedily decoded text, and the length of the prompt."""
    tokens = _prompt(model, audio, vocab)
    n_prompt = len(tokens)
    never = np.zeros(checkpoint.dims.n_vocab, np.bool_)
    never[list(checkpoint.suppress_tokens or ())] = True
    never[vocab.eot + 1 :] = True
    never[list(vocab.text.added)] = False
    for step in range(min(_TOKENS, checkpoint.dims.n_text_ctx - n_prompt)):
        scores = model.logits(audio, [np.array(tokens)])[0][-1]
        scores[never] = -np.inf
        if step == 0:
            scores[list(checkpoint.begin_suppress_tokens or ())] = -np.inf
        best = int(scores.argmax())
        if best == vocab.eot:
            break
        tokens.append(best)
    return np.array(tokens, np.int64), n_prompt


def _run_exact(
    model: _CachedCrossReference, mel: F32, vocab: Vocab, checkpoint: Checkpoint
) -> _ExactResult:
    """Encode and transcribe one recording without quantization."""
    model.groups = ()
    layers = [model.stem(mel)]
    for i in range(checkpoint.dims.n_audio_layer):
        layers.append(model.layer(layers[-1], i))
    audio = model.encode_from(layers[-1], len(layers) - 1)
    cross = model.cache_cross(audio)
    tokens, n_prompt = _decode_text(model, audio, vocab, checkpoint)
    scores = _log_softmax(model.logits(audio, [tokens])[0][n_prompt - 1 :])
    return _ExactResult(layers, audio, cross, tokens, n_prompt - 1, scores)


def _first_layer(groups: Collection[str]) -> int | None:
    """The first encoder layer that contains one of the groups."""
    layers = [int(group.split(".")[2]) for group in groups if group.startswith("encoder.blocks.")]
    return min(layers, default=None)


def _measure(
    model: _CachedCrossReference, samples: Sequence[_ExactResult], groups: Collection[str]
) -> tuple[float, float]:
    """Error of keys and values and divergence of scores with some groups quantized."""
    model.groups = groups
    first = _first_layer(groups)
    squares = np.zeros(2)
    divergence, n = 0.0, 0
    for sample in samples:
        audio = sample.audio
        if first is not None:
            audio = model.encode_from(sample.layers[first], first)
        model.cached = (audio, list(sample.cross)) if audio is sample.audio else None
        if first is not None or CROSS in groups:
            found = model.cache_cross(audio)
            for pair, exact in zip(found, sample.cross):
                for a, b in zip(pair, exact):
                    squares += np.square(a - b).sum(), np.square(b).sum()
        scores = _log_softmax(model.logits(audio, [sample.tokens])[0][sample.first :])
        divergence += float((np.exp(sample.scores) * (sample.scores - scores)).sum())
        n += len(scores)
    return math.sqrt(squares[0] / squares[1]) if squares[1] else 0.0, divergence / n


def extra_bytes(group: str, checkpoint: Checkpoint, precision: Precision) -> int:
    """Additional bytes on disk if a group is kept: 16 bits instead of 8, or 8 instead of 4."""
    names = [f"{name}.weight" for name in products_of(group, checkpoint.dims)]
    weights = sum(math.prod(checkpoint.tensors[name].shape) for name in names)
    if precision.bits == 4 and not group.startswith("encoder."):
        return round(weights * (8 - 4 - 16 / BLOCK) / 8)
    return weights


def select_groups(costs: Sequence[Cost], budget: int) -> frozenset[str]:
    """Groups to keep, by descending cost per byte, while they fit into ``budget`` bytes."""
    found = []
    for cost in sorted(costs, key=lambda cost: -cost.divergence / cost.extra_bytes):
        if cost.divergence > 0 and cost.extra_bytes <= budget:
            budget -= cost.extra_bytes
            found.append(cost.group)
    return frozenset(found)


def _cached(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with its weights cached in memory, if it is small."""
    n_weights = sum(math.prod(tensor.shape) for tensor in checkpoint.tensors.values())
    if 4 * n_weights > _MAX_CACHED_BYTES:
        return checkpoint
    known: dict[str, F32] = {}

    def cached(name: str, tensor: Tensor) -> Tensor:
        def read() -> F32:
            if name not in known:
                known[name] = tensor.read()
            return known[name]

        return Tensor(tensor.shape, read)

    tensors = {name: cached(name, tensor) for name, tensor in checkpoint.tensors.items()}
    return dataclasses.replace(checkpoint, tensors=tensors)


def calibrate(
    checkpoint: Checkpoint,
    precision: Precision,
    folder: Path,
    budget: int,
    on_progress: Callable[[float, float], None] | None = None,
) -> Calibration:
    """Measure the cost of quantization on recordings, and select groups to keep.

    Args:
        checkpoint: the model.
        precision: int8 or int4.
        folder: folder of recordings. The first 10 s of up to :data:`MAX_RECORDINGS` are used.
        budget: additional bytes on disk for groups at higher precision.
        on_progress: called with passes done and their total number.

    Raises:
        OptionError: there are no recordings.
        AudioError: a recording cannot be read.
    """
    paths = find_recordings(folder)
    n = min(MAX_RECORDINGS, len(paths))
    paths = [paths[i * len(paths) // n] for i in range(n)]
    report = on_progress or (lambda done, total: None)
    checkpoint = _cached(checkpoint)
    vocab = Vocab(checkpoint.tokenizer_json, checkpoint.dims, checkpoint.multilingual)
    groups = groups_of(checkpoint.dims)
    candidates = [group for group in groups if not matches(group, precision.kept)]
    total = 2 * len(paths) + len(candidates) + 2
    mels = [_mel(path, checkpoint.dims.n_mels) for path in paths]
    # activation statistics are those of the exact model
    model = _CachedCrossReference(checkpoint, {}, precision)
    samples = []
    for done, mel in enumerate(mels):
        report(done, total)
        samples.append(_run_exact(model, mel, vocab, checkpoint))
    report(len(paths), total)
    recorded = [ActivationSample(mel, sample.tokens) for mel, sample in zip(mels, samples)]
    stats = collect_stats(checkpoint, [*synthetic_samples(checkpoint), *recorded])
    model = _CachedCrossReference(checkpoint, stats, precision)
    costs = []
    for done, group in enumerate(candidates, 2 * len(paths)):
        report(done, total)
        size = extra_bytes(group, checkpoint, precision)
        costs.append(Cost(group, size, *_measure(model, samples, [group])))
    kept = select_groups(costs, budget)
    report(total - 2, total)
    before = _measure(model, samples, groups)
    report(total - 1, total)
    final = dataclasses.replace(precision, kept=precision.kept | kept)
    after = _after(model, samples, groups, final, stats, checkpoint)
    report(total, total)
    found = _report(paths, samples, budget, costs, kept, (before, after))
    return Calibration(stats, final, found)


def _after(
    model: _CachedCrossReference,
    samples: Sequence[_ExactResult],
    groups: Sequence[str],
    final: Precision,
    stats: Mapping[str, ActivationStats],
    checkpoint: Checkpoint,
) -> tuple[float, float]:
    """Errors with the selected groups kept."""
    if final.bits == 4:  # kept groups of the decoder have 8 bits
        model = _CachedCrossReference(checkpoint, stats, final)
    exact = [
        group
        for group in groups
        if matches(group, final.kept) and (final.bits == 8 or group.startswith("encoder."))
    ]
    return _measure(model, samples, [group for group in groups if group not in exact])


def _report(
    paths: Sequence[Path],
    samples: Sequence[_ExactResult],
    budget: int,
    costs: Sequence[Cost],
    kept: Collection[str],
    errors: Sequence[tuple[float, float]],
) -> dict[str, Any]:
    def rounded(value: float) -> float:
        return float(f"{value:.4g}")

    (cross, divergence), (cross_kept, divergence_kept) = errors
    return {
        "recordings": [path.name for path in paths],
        "tokens": sum(len(sample.scores) for sample in samples),
        "budget_bytes": budget,
        "cross_error": rounded(cross),
        "divergence": rounded(divergence),
        "kept_cross_error": rounded(cross_kept),
        "kept_divergence": rounded(divergence_kept),
        "groups": {
            cost.group: {
                "more_bytes": cost.extra_bytes,
                "cross_error": rounded(cost.cross),
                "divergence": rounded(cost.divergence),
                "kept": cost.group in kept,
            }
            for cost in costs
        },
    }
