"""Both dialects against the numpy reference: cross-attention keys and values, and all scores.

Sessions are used as in decoding. The decoder graph is also run directly, in every cache capacity.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, Callable

import numpy as np
import pytest

from tests.conftest import Engines, model_dir
from tests.support.engines import DIALECTS, random_engine, require, sharp_checkpoint
from tests.support.models import as_tensor, random_checkpoint, random_dims
from whisper_opt.core.arrays import F32, Int, NDArray
from whisper_opt.core.dims import HEAD_DIM, N_FRAMES
from whisper_opt.export.checkpoints import Checkpoint, load_checkpoint
from whisper_opt.export.verification.reference import Reference, gelu, layer_norm
from whisper_opt.export.verification.verify import noise_mel
from whisper_opt.runtime.engine import Engine
from whisper_opt.runtime.head_names import APPROXIMATE, EXACT
from whisper_opt.runtime.onnxruntime.backend import OrtBackend, OrtEncoded
from whisper_opt.runtime.onnxruntime.session import CAPACITIES
from whisper_opt.text.vocabulary import Vocab

TOLERANCE = 1e-3
"""Largest absolute error of a score and of a cross key or value."""
TURBO = random_dims(n_mels=128, n_vocab=51866, n_audio_layer=6, n_text_layer=4)
AUDIO_OF_ROW = (0, 0, 0, 1, 1, 1)
STARTS = (31, 0, 7, 19, 25, 3)
"""Ragged first positions; the longest leaves room for 224 tokens and a step in 256."""
MODELS = (
    "turbo-shaped",
    pytest.param("tiny.en", marks=pytest.mark.slow),
    pytest.param("base", marks=pytest.mark.slow),
)


class Model:
    """One checkpoint: the reference computation, and an engine in each dialect."""

    def __init__(self, checkpoint: Checkpoint, make: Callable[[str], Engine]) -> None:
        vocab = Vocab(checkpoint.tokenizer_json, checkpoint.dims)
        self.n_vocab = checkpoint.dims.n_vocab
        self.start = vocab.start("en", "transcribe", timestamps=False)
        tensors = {name: as_tensor(tensor.read()) for name, tensor in checkpoint.tensors.items()}
        self.reference = Reference(dataclasses.replace(checkpoint, tensors=tensors))
        self._make = make
        self._backends: dict[str, OrtBackend] = {}
        self._encoded: dict[str, OrtEncoded] = {}
        self._scores: dict[tuple[int, bytes], F32] = {}
        self.mels: F32
        self.audio: list[F32]

    def encode(self, mels: F32) -> None:
        """Encode each window by the reference, once."""
        self.mels = mels
        self.audio = [self.reference.encode(mel) for mel in mels]

    def backend(self, dialect: str) -> OrtBackend:
        require(dialect)
        if dialect not in self._backends:
            self._backends[dialect] = OrtBackend(self._make(dialect), threads=1)
        return self._backends[dialect]

    def encoded(self, dialect: str) -> OrtEncoded:
        backend = self.backend(dialect)
        if dialect not in self._encoded:
            self._encoded[dialect] = backend.encode(self.mels)
        return self._encoded[dialect]

    def truth(self, audio: int, tokens: Int) -> F32:
        """The reference's scores [len(tokens), n_vocab]."""
        key = (audio, tokens.tobytes())
        if key not in self._scores:
            (self._scores[key],) = self.reference.logits(self.audio[audio], [tokens])
        return self._scores[key]


@pytest.fixture(scope="module", params=MODELS)
def model(
    request: pytest.FixtureRequest, engines: Engines, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Model]:
    name = str(request.param)
    if name == "turbo-shaped":
        checkpoint = sharp_checkpoint(TURBO)
        folder = tmp_path_factory.mktemp("turbo")
        found = Model(checkpoint, lambda d: random_engine(folder / d, TURBO, d))
    else:
        checkpoint = load_checkpoint(model_dir(name))
        found = Model(checkpoint, lambda d: engines.engine(name, d))
    dims = checkpoint.dims
    n_frames = 1000 if name == "turbo-shaped" else N_FRAMES
    found.encode(np.stack([noise_mel(dims, seed)[:, :n_frames] for seed in (1, 2)]))
    yield found
    found._backends.clear()


def draw(model: Model, seed: int, *lengths: int) -> list[Int]:
    """Random token sequences over the whole vocabulary, after the start-of-transcript tokens.

    Without these tokens real models are ill-conditioned: even correct computations in float32 and
    float64 then differ by more than the tolerance.
    """
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, model.n_vocab, (len(lengths), max(lengths)))
    tokens[:, : len(model.start)] = model.start[: max(lengths)]
    return [row[:n].astype(np.int64) for row, n in zip(tokens, lengths)]


def close(found: F32, expected: F32, where: object) -> None:
    error = float(np.abs(found - expected).max())
    assert error < TOLERANCE, (where, error)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_cross_keys_and_values(model: Model, dialect: str) -> None:
    found = model.encoded(dialect)
    dims = model.backend(dialect).dims
    assert len(found) == len(model.audio) == 2
    assert len(found.cross) == 2 * dims.n_text_layer
    for layer in range(dims.n_text_layer):
        for audio, encoded in enumerate(model.audio):
            pair = model.reference.cross(encoded, layer)
            for kind, expected in enumerate(pair):
                assert float(np.abs(expected).max()) > 100 * TOLERANCE
                close(
                    found.cross[2 * layer + kind][audio],
                    expected.transpose((1, 2, 0) if kind == 0 else (1, 0, 2)),
                    (layer, audio, "kv"[kind]),
                )


@dataclasses.dataclass
class Driven:
    """A session, and the number of tokens fed to each of its rows."""

    model: Model
    dialect: str
    n_checked: int = 0

    def __post_init__(self) -> None:
        backend = self.model.backend(self.dialect)
        self.session = backend.open(self.model.encoded(self.dialect))
        self.rows = [(0, 0), (1, 0)]
        """(audio, tokens so far) of each row."""

    def extend(self, sequences: list[Int], n_new: int, lengths: list[int], n_at: int) -> None:
        """Feed each row the next tokens of its sequence; every wanted score is checked."""
        n_seq = len(self.rows)
        tokens = np.zeros((n_seq, n_new), np.int64)
        at = np.zeros((n_seq, n_at), np.int64)
        for i, (_, n_fed) in enumerate(self.rows):
            tokens[i, : lengths[i]] = sequences[i][n_fed : n_fed + lengths[i]]
            at[i] = np.linspace(0, lengths[i] - 1, n_at)
        sizes = np.array(lengths, np.int64)
        found = self.session.extend(tokens, sizes, at).numpy()
        assert found.shape[:2] == (n_seq, n_at + 1)
        wanted = np.concatenate([at, sizes[:, None] - 1], axis=1)
        for i, (audio, n_fed) in enumerate(self.rows):
            expected = self.model.truth(audio, sequences[i])[n_fed + wanted[i]]
            close(found[i], expected, (n_new, i, n_fed))
            self.rows[i] = (audio, n_fed + lengths[i])
            self.n_checked += len(expected)

    def gather(self, rows: list[int]) -> None:
        self.session.gather(np.array(rows, np.int64))
        self.rows = [self.rows[row] for row in rows]


def beams(model: Model, prompts: tuple[int, int], tail: int) -> list[Int]:
    """Three continuations of each audio's prompt, all as long as the longest prompt and tail."""
    total = max(prompts) + tail
    sequences: list[Int] = []
    for audio, n in enumerate(prompts):
        three = draw(model, 10 + audio, *[total] * 3)
        sequences.extend(np.concatenate([three[0][:n], row[n:]]) for row in three)
    return sequences


@pytest.mark.parametrize("dialect", DIALECTS)
def test_session_with_short_prompts(model: Model, dialect: str) -> None:
    sequences = beams(model, (4, 2), tail=80)
    driven = Driven(model, dialect)
    driven.extend([sequences[0], sequences[3]], 4, [4, 2], 4)
    driven.gather(list(AUDIO_OF_ROW[:1] * 3 + AUDIO_OF_ROW[3:4] * 3))
    assert [audio for audio, _ in driven.rows] == list(AUDIO_OF_ROW)
    driven.extend(sequences, 4, [4, 1, 3, 2, 4, 3], 4)  # on top of a ragged past
    for _ in range(3):
        driven.extend(sequences, 1, [1] * 6, 0)
    keep = [5, 1, 0, 3]  # reorder, and drop one hypothesis of each audio
    driven.gather(keep)
    kept = [sequences[row] for row in keep]
    driven.extend(kept, 1, [1] * 4, 0)
    driven.extend(kept, 60, [60, 3, 57, 60], 5)  # out of the first capacity
    for _ in range(2):
        driven.extend(kept, 1, [1] * 4, 0)
    driven.gather([2])  # one audio is left
    driven.extend([kept[2]], 1, [1], 0)
    assert driven.n_checked > 90


@pytest.mark.parametrize("dialect", DIALECTS)
def test_session_with_long_prompts(model: Model, dialect: str) -> None:
    sequences = beams(model, (224, 97), tail=45)
    driven = Driven(model, dialect)
    driven.extend([sequences[0], sequences[3]], 224, [224, 97], 16)
    driven.gather([0, 0, 0, 1, 1, 1])
    driven.extend(sequences, 4, [4, 2, 3, 1, 4, 4], 4)
    for _ in range(3):
        driven.extend(sequences, 1, [1] * 6, 0)
    driven.extend(sequences, 32, [32, 28, 1, 32, 9, 30], 6)  # from 256 positions to 448
    for _ in range(2):
        driven.extend(sequences, 1, [1] * 6, 0)
    assert driven.n_checked > 90


@pytest.mark.parametrize("dialect", DIALECTS)
def test_session_to_the_end_of_the_context(model: Model, dialect: str) -> None:
    n_ctx = model.backend(dialect).dims.n_text_ctx
    sequences = draw(model, 12, n_ctx, n_ctx)
    driven = Driven(model, dialect)
    driven.extend(sequences, n_ctx - 3, [n_ctx - 3, 5], 4)
    for _ in range(2):
        driven.extend(sequences, 1, [1, 1], 0)
    driven.extend(sequences, 2, [1, 2], 1)  # one row is full, and padded
    assert driven.rows == [(0, n_ctx), (1, 9)]


class Decoder:
    """The decoder graph of one engine, fed directly: six rows, two audios."""

    def __init__(self, model: Model, dialect: str) -> None:
        backend = model.backend(dialect)
        self.dims = backend.dims
        self.session: Any = backend.decoder.session
        names = [f"cross_{kind}_{i}" for i in range(self.dims.n_text_layer) for kind in "kv"]
        self.cross = dict(zip(names, model.encoded(dialect).cross))
        self.cache_names = [name.replace("cross", "self") for name in names]

    def empty(self, capacity: int) -> dict[str, F32]:
        """A cache of arbitrary values: unwritten values must not affect results."""
        shape = (len(AUDIO_OF_ROW), self.dims.n_text_head, capacity, HEAD_DIM)
        rng = np.random.default_rng(3)
        return {name: rng.standard_normal(shape, np.float32) * 3 for name in self.cache_names}

    def run(
        self, tokens: Int, start: Int, at: Int, cache: dict[str, F32]
    ) -> tuple[F32, dict[str, F32]]:
        """Scores [6, n_at, n_vocab] and the new cache."""
        names = ["logits", *(f"{name}_out" for name in cache)]
        feeds: dict[str, NDArray] = {"tokens": tokens, "start": start, "at": at}
        feeds["aligned"] = np.zeros(0, np.int64)
        if any(value.name == APPROXIMATE for value in self.session.get_inputs()):
            feeds[EXACT], feeds[APPROXIMATE] = np.arange(at.shape[1]), np.zeros(0, np.int64)
        logits, *new = self.session.run(names, {**feeds, **self.cross, **cache})
        return logits, dict(zip(cache, new))

    def filled(self, sequences: list[Int], capacity: int) -> dict[str, F32]:
        """A cache that holds the first STARTS[i] tokens of each row, and noise behind them."""
        longest = max(STARTS)
        tokens = np.stack([sequence[:longest] for sequence in sequences])
        at = np.full((len(sequences), 1), longest - 1, np.int64)
        start = np.zeros(len(sequences), np.int64)
        _, cache = self.run(tokens, start, at, self.empty(capacity))
        noise = self.empty(capacity)
        for name, values in cache.items():
            for row, n_fed in enumerate(STARTS):
                values[row, :, n_fed:] = noise[name][row, :, n_fed:]
        return cache


FITTING = [
    (n, capacity) for n in (1, 4, 224) for capacity in CAPACITIES["standard"] if n < capacity
]


@pytest.mark.parametrize(("n_new", "capacity"), FITTING)
@pytest.mark.parametrize("dialect", DIALECTS)
def test_decoder_in_every_capacity(model: Model, dialect: str, n_new: int, capacity: int) -> None:
    decoder = Decoder(model, dialect)
    sequences = draw(model, 4, *[max(STARTS) + 225] * 6)
    ragged = dialect == "standard" or n_new == 1
    start = np.array(STARTS if ragged else [0] * 6, np.int64)
    cache = decoder.filled(sequences, capacity) if ragged else decoder.empty(capacity)
    shorter = np.array([0, 1, 100, 2, 0, 3]) if n_new > 1 else np.zeros(6, np.int64)
    lengths = np.maximum(n_new - shorter, 1)
    tokens = np.stack([row[at : at + n_new] for row, at in zip(sequences, start)])
    for row, length in enumerate(lengths):
        tokens[row, length:] = 0  # padding
    at = np.linspace(np.zeros(6), lengths - 1, min(n_new, 9), axis=1).astype(np.int64)
    found, cache = decoder.run(tokens, start, at, cache)
    for row, audio in enumerate(AUDIO_OF_ROW):
        expected = model.truth(audio, sequences[row])[start[row] + at[row]]
        close(found[row], expected, ("extend", row))
    # the next step reads the written values and overwrites padding
    start = start + lengths
    tokens = np.array([[row[i]] for row, i in zip(sequences, start)], np.int64)
    found, _ = decoder.run(tokens, start, np.zeros((6, 1), np.int64), cache)
    for row, audio in enumerate(AUDIO_OF_ROW):
        close(found[row, 0], model.truth(audio, sequences[row])[start[row]], ("step", row))


def test_scores_are_far_apart_compared_with_the_tolerance(model: Model) -> None:
    """Another audio, another past or another position changes scores by more than the tolerance."""
    (tokens,) = draw(model, 4, 40)
    scores = model.truth(0, tokens)
    other_audio = model.truth(1, tokens)
    other_past = model.truth(0, np.concatenate([tokens[:4], tokens[4:5] ^ 1, tokens[5:]]))
    assert np.abs(scores - other_audio).max(axis=1).min() > 30 * TOLERANCE
    assert np.abs(scores - other_past)[4:].max(axis=1).min() > 10 * TOLERANCE
    assert np.abs(scores[1:] - scores[:-1]).max(axis=1).min() > 3 * TOLERANCE


def test_gelu_is_exact() -> None:
    values = np.concatenate(
        [
            np.random.default_rng(0).standard_normal(4000) * 3,
            np.linspace(-12, 12, 2001),
            [0.0, 1e-6, -1e-6, 1e-20],
        ]
    ).astype(np.float32)
    expected = [0.5 * x * (1 + math.erf(x / math.sqrt(2))) for x in values.astype(float)]
    np.testing.assert_allclose(gelu(values), expected, rtol=2e-6, atol=2e-6)


def test_layer_norm_is_its_definition() -> None:
    rng = np.random.default_rng(1)
    values = (rng.standard_normal((50, 128)) * 4 + 2).astype(np.float32)
    values[0] = 3  # no variance: epsilon alone
    weight, bias = rng.standard_normal((2, 128)).astype(np.float32)
    wide = values.astype(float)
    mean = wide.sum(-1, keepdims=True) / 128
    variance = ((wide - mean) ** 2).sum(-1, keepdims=True) / 128
    expected = (wide - mean) / np.sqrt(variance + 1e-5) * weight + bias
    np.testing.assert_allclose(layer_norm(values, weight, bias), expected, rtol=0, atol=2e-5)


def test_reference_is_causal() -> None:
    checkpoint = random_checkpoint(random_dims(n_vocab=2000))
    reference = Reference(checkpoint)
    audio = reference.encode(noise_mel(checkpoint.dims)[:, :200])
    tokens = np.random.default_rng(2).integers(0, 2000, 12).astype(np.int64)
    (whole,) = reference.logits(audio, [tokens])
    for n in (1, 5, 11):
        (prefix,) = reference.logits(audio, [tokens[:n]])
        np.testing.assert_allclose(prefix, whole[:n], rtol=0, atol=1e-5)
        changed = np.concatenate([tokens[:n], (tokens[n:] + 7) % 2000])
        (found,) = reference.logits(audio, [changed])
        np.testing.assert_allclose(found[:n], whole[:n], rtol=0, atol=1e-5)
        assert np.abs(found[n:] - whole[n:]).max() > 0.05


def test_reference_takes_one_sequence_as_it_takes_many() -> None:
    checkpoint = random_checkpoint(random_dims(n_vocab=2000))
    reference = Reference(checkpoint)
    audio = reference.encode(noise_mel(checkpoint.dims)[:, :200])
    rng = np.random.default_rng(3)
    sequences = [rng.integers(0, 2000, n).astype(np.int64) for n in (3, 1, 9)]
    together = reference.logits(audio, sequences)
    for sequence, scores in zip(sequences, together):
        (alone,) = reference.logits(audio, [sequence])
        np.testing.assert_array_equal(alone, scores)
