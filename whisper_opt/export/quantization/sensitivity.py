"""What rounding each group of products costs on recordings, and which are worth keeping exact.

``whisper-opt export --calibrate``: the checkpoint hears a few recordings in numpy float32 and
writes down what it hears; then one group of products after the other is rounded as the engine would
round it, and the scores along that text are compared. What costs most for its size is kept a step
more exact, as far as a budget of bytes goes.
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
from whisper_opt.export.graphs.groups import CROSS, chosen, groups_of, products_of
from whisper_opt.export.graphs.precision import Precision
from whisper_opt.export.quantization.activation_stats import (
    ActivationSample,
    Spread,
    made_up,
    observe,
)
from whisper_opt.export.quantization.int4 import BLOCK
from whisper_opt.export.quantization.rounding import Rounded
from whisper_opt.text.vocabulary import Vocab

__all__ = ["RECORDINGS", "Calibration", "Cost", "calibrate", "choose", "find_recordings"]

RECORDINGS = 8
"""How many recordings are heard, spread evenly over those that are there."""
_SECONDS = 10
_TOKENS = 48
_HELD = 1 << 30
"""Weights of up to so many bytes (as float32) stay in memory between passes."""
_SUFFIXES = {
    *(".aac", ".aif", ".aiff", ".flac", ".m4a", ".mp3", ".mp4"),
    *(".oga", ".ogg", ".opus", ".wav", ".webm", ".wma"),
}


@dataclasses.dataclass(frozen=True)
class Cost:
    """What rounding one group of products does, all others being exact.

    Attributes:
        group: name (:mod:`whisper_opt.export.graphs.groups`).
        more_bytes: what it takes on disk to keep the group a step more exact.
        cross: error of the cross-attention keys and values, root mean square, as a share of theirs;
            0 for groups of the decoder.
        divergence: of the scores, nats a token (Kullback and Leibler).
    """

    group: str
    more_bytes: int
    cross: float
    divergence: float


@dataclasses.dataclass(frozen=True)
class Calibration:
    """What was measured, and what follows from it.

    Attributes:
        spreads: what every product was given, in recordings and made-up sounds.
        precision: the one asked for, with more groups kept.
        report: for the manifest.
    """

    spreads: Mapping[str, Spread]
    precision: Precision
    report: Mapping[str, Any]


def find_recordings(folder: Path) -> list[Path]:
    """Files below a folder that look like sound, by their names.

    Raises:
        OptionError: it is no folder, or there are none.
    """
    if not folder.is_dir():
        raise OptionError(f"--calibrate {folder} is not a folder; expected one with recordings")
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES)
    if not found:
        known = " ".join(sorted(_SUFFIXES))
        raise OptionError(f"--calibrate: there are no recordings in {folder}; looked for {known}")
    return found


class _Model(Rounded):
    """A model that remembers the cross-attention keys and values of one audio, while exact."""

    heard: tuple[F32, list[tuple[F32, F32]]] | None = None

    def hear(self, audio: F32) -> list[tuple[F32, F32]]:
        self.heard = None
        pairs = [self.cross(audio, i) for i in range(self._dims.n_text_layer)]
        self.heard = audio, pairs
        return pairs

    def cross(self, audio: F32, layer: int) -> tuple[F32, F32]:
        if self.heard is not None and audio is self.heard[0] and CROSS not in self.groups:
            return self.heard[1][layer]
        return super().cross(audio, layer)


@dataclasses.dataclass(frozen=True)
class _Exact:
    """What the exact model makes of a sample.

    Attributes:
        layers: float32 [n_ctx, n_audio_state], input of every encoder layer.
        audio: float32 [n_ctx, n_audio_state], encoder output.
        cross: keys and values of every decoder layer.
        tokens: int64 [n].
        first: position whose scores are the first to count: the last of the prompt.
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
    """Log-mel of the first seconds of a recording, and of no silence after its end."""
    samples = load_audio(path)[: _SECONDS * SAMPLE_RATE]
    frames = max(2, len(samples) // HOP_LENGTH // 2 * 2)
    return np.ascontiguousarray(log_mel(samples, n_mels).head()[:, :frames])


def _prompt(model: _Model, audio: F32, vocab: Vocab) -> list[int]:
    """Start of the text, in the language that is likeliest."""
    language = vocab.default_language
    if vocab.is_multilingual:
        scores = model.logits(audio, [np.array([vocab.sot])])[0][0]
        language = max(vocab.languages, key=lambda code: scores[vocab.languages[code]])
    return vocab.start(language, "transcribe", timestamps=False)


def _said(model: _Model, audio: F32, vocab: Vocab, checkpoint: Checkpoint) -> tuple[Int, int]:
    """Prompt and text by the exact model, greedily, and the length of the prompt."""
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


def _listen(model: _Model, mel: F32, vocab: Vocab, checkpoint: Checkpoint) -> _Exact:
    model.groups = ()
    layers = [model.stem(mel)]
    for i in range(checkpoint.dims.n_audio_layer):
        layers.append(model.layer(layers[-1], i))
    audio = model.encode_from(layers[-1], len(layers) - 1)
    cross = model.hear(audio)
    tokens, n_prompt = _said(model, audio, vocab, checkpoint)
    scores = _log_softmax(model.logits(audio, [tokens])[0][n_prompt - 1 :])
    return _Exact(layers, audio, cross, tokens, n_prompt - 1, scores)


def _first_layer(groups: Collection[str]) -> int | None:
    """The first encoder layer that has one of the groups."""
    layers = [int(group.split(".")[2]) for group in groups if group.startswith("encoder.blocks.")]
    return min(layers, default=None)


def _measure(
    model: _Model, samples: Sequence[_Exact], groups: Collection[str]
) -> tuple[float, float]:
    """Error of keys and values and divergence of scores with some groups rounded."""
    model.groups = groups
    first = _first_layer(groups)
    squares = np.zeros(2)
    divergence, n = 0.0, 0
    for sample in samples:
        audio = sample.audio
        if first is not None:
            audio = model.encode_from(sample.layers[first], first)
        model.heard = (audio, list(sample.cross)) if audio is sample.audio else None
        if first is not None or CROSS in groups:
            found = model.hear(audio)
            for pair, exact in zip(found, sample.cross):
                for a, b in zip(pair, exact):
                    squares += np.square(a - b).sum(), np.square(b).sum()
        scores = _log_softmax(model.logits(audio, [sample.tokens])[0][sample.first :])
        divergence += float((np.exp(sample.scores) * (sample.scores - scores)).sum())
        n += len(scores)
    return math.sqrt(squares[0] / squares[1]) if squares[1] else 0.0, divergence / n


def more_bytes(group: str, checkpoint: Checkpoint, precision: Precision) -> int:
    """What a group takes more on disk when it is kept: 16 bits for 8, or 8 for 4."""
    names = [f"{name}.weight" for name in products_of(group, checkpoint.dims)]
    weights = sum(math.prod(checkpoint.tensors[name].shape) for name in names)
    if precision.bits == 4 and not group.startswith("encoder."):
        return round(weights * (8 - 4 - 16 / BLOCK) / 8)
    return weights


def choose(costs: Sequence[Cost], budget: int) -> frozenset[str]:
    """Groups to keep: what costs most a byte first, as long as it fits into ``budget`` bytes."""
    found = []
    for cost in sorted(costs, key=lambda cost: -cost.divergence / cost.more_bytes):
        if cost.divergence > 0 and cost.more_bytes <= budget:
            budget -= cost.more_bytes
            found.append(cost.group)
    return frozenset(found)


def _held(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with its weights in memory, if it is small: they are read many times."""
    if 4 * sum(math.prod(tensor.shape) for tensor in checkpoint.tensors.values()) > _HELD:
        return checkpoint
    known: dict[str, F32] = {}

    def hold(name: str, tensor: Tensor) -> Tensor:
        def read() -> F32:
            if name not in known:
                known[name] = tensor.read()
            return known[name]

        return Tensor(tensor.shape, read)

    tensors = {name: hold(name, tensor) for name, tensor in checkpoint.tensors.items()}
    return dataclasses.replace(checkpoint, tensors=tensors)


def calibrate(
    checkpoint: Checkpoint,
    precision: Precision,
    folder: Path,
    budget: int,
    on_progress: Callable[[float, float], None] | None = None,
) -> Calibration:
    """Measure what rounding costs on recordings, and keep what is worth it.

    Args:
        checkpoint: the model.
        precision: int8 or int4.
        folder: recordings; the first 10 s of up to :data:`RECORDINGS` of them are heard.
        budget: bytes on disk that may be spent on keeping groups a step more exact.
        on_progress: called with what is done, and all, in passes.

    Raises:
        OptionError: there are no recordings.
        AudioError: one cannot be read.
    """
    paths = find_recordings(folder)
    n = min(RECORDINGS, len(paths))
    paths = [paths[i * len(paths) // n] for i in range(n)]
    report = on_progress or (lambda done, total: None)
    checkpoint = _held(checkpoint)
    vocab = Vocab(checkpoint.tokenizer_json, checkpoint.dims, checkpoint.multilingual)
    groups = groups_of(checkpoint.dims)
    loose = [group for group in groups if not chosen(group, precision.kept)]
    total = 2 * len(paths) + len(loose) + 2
    mels = [_mel(path, checkpoint.dims.n_mels) for path in paths]
    # what the products are given does not hang on rounding: exact, with no spread known yet
    model = _Model(checkpoint, {}, precision)
    samples = []
    for done, mel in enumerate(mels):
        report(done, total)
        samples.append(_listen(model, mel, vocab, checkpoint))
    report(len(paths), total)
    heard = [ActivationSample(mel, sample.tokens) for mel, sample in zip(mels, samples)]
    spreads = observe(checkpoint, [*made_up(checkpoint), *heard])
    model = _Model(checkpoint, spreads, precision)
    costs = []
    for done, group in enumerate(loose, 2 * len(paths)):
        report(done, total)
        size = more_bytes(group, checkpoint, precision)
        costs.append(Cost(group, size, *_measure(model, samples, [group])))
    kept = choose(costs, budget)
    report(total - 2, total)
    before = _measure(model, samples, groups)
    report(total - 1, total)
    final = dataclasses.replace(precision, kept=precision.kept | kept)
    after = _after(model, samples, groups, final, spreads, checkpoint)
    report(total, total)
    found = _report(paths, samples, budget, costs, kept, (before, after))
    return Calibration(spreads, final, found)


def _after(
    model: _Model,
    samples: Sequence[_Exact],
    groups: Sequence[str],
    final: Precision,
    spreads: Mapping[str, Spread],
    checkpoint: Checkpoint,
) -> tuple[float, float]:
    """Errors with the groups kept that were chosen."""
    if final.bits == 4:  # what is kept in the decoder has 8 bits now
        model = _Model(checkpoint, spreads, final)
    exact = [
        group
        for group in groups
        if chosen(group, final.kept) and (final.bits == 8 or group.startswith("encoder."))
    ]
    return _measure(model, samples, [group for group in groups if group not in exact])


def _report(
    paths: Sequence[Path],
    samples: Sequence[_Exact],
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
                "more_bytes": cost.more_bytes,
                "cross_error": rounded(cost.cross),
                "divergence": rounded(cost.divergence),
                "kept": cost.group in kept,
            }
            for cost in costs
        },
    }
