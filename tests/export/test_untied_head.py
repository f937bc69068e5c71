"""A model whose output head is not its embedding."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from tests.support.engines import sharp_checkpoint
from tests.support.models import as_tensor, random_dims
from whisper_opt import Whisper
from whisper_opt.core.arrays import F32
from whisper_opt.core.backend import TokenMask
from whisper_opt.export import export
from whisper_opt.export.build import _with_special_rows
from whisper_opt.export.checkpoints import Checkpoint
from whisper_opt.export.checkpoints.checkpoint import OUTPUT_HEAD
from whisper_opt.export.graphs.groups import HEAD, matches
from whisper_opt.export.graphs.precision import make_precision
from whisper_opt.export.quantization.int4 import N_SPECIAL
from whisper_opt.export.verification.openai import openai_logits
from whisper_opt.export.verification.reference import Reference
from whisper_opt.export.verification.verify import noise_mel
from whisper_opt.runtime.engine import Engine

DIMS = random_dims(n_vocab=3000, n_audio_state=64, n_text_state=64, n_audio_layer=1, n_text_layer=1)
EMBEDDING = "decoder.token_embedding.weight"
WORDS = 1300  # of 3,000 ids; in 4 bits the last 1,632 rows stay as they are
ORDER = np.concatenate([np.random.default_rng(7).permutation(WORDS), np.arange(WORDS, 3000)])
TOKENS = np.array([5, 1700, 12, 900, 3], np.int64)


@pytest.fixture(scope="module")
def tied() -> Checkpoint:
    return sharp_checkpoint(DIMS)


@pytest.fixture(scope="module")
def untied(tied: Checkpoint) -> Checkpoint:
    """The same model with rows of the head in another order: its scores are in that order too."""
    head = tied.tensors[EMBEDDING].read()[ORDER]
    tensors = {**tied.tensors, OUTPUT_HEAD: as_tensor(head)}
    return dataclasses.replace(tied, tensors=tensors)


def scores(engine: Engine) -> F32:
    """All scores of one sequence, [n, n_vocab]."""
    with Whisper.load(engine.path, device="cpu", threads=1) as model:
        backend = model._backend
        assert backend is not None
        session = backend.open(backend.encode(noise_mel(DIMS)[None]))
        logits = session.extend(TOKENS[None], at=np.arange(len(TOKENS) - 1)[None])
        found: F32 = logits.numpy()[0]
        session.close()
    return found


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int4"])
def test_scores_are_those_of_its_own_head(
    precision: str, tied: Checkpoint, untied: Checkpoint, tmp_path: Path
) -> None:
    own = export(untied, tmp_path / "own", precision=precision)
    shared = export(tied, tmp_path / "shared", precision=precision)
    expected = scores(shared)[:, ORDER]
    found = scores(own)
    scale = np.abs(expected).max()
    assert np.abs(expected - expected[:, np.argsort(ORDER)]).max() > 0.1 * scale
    np.testing.assert_allclose(found, expected, atol=1e-2 * scale if precision == "fp16" else 1e-3)
    names = own.manifest.tensors
    assert (OUTPUT_HEAD in names) == (precision == "fp32")
    assert EMBEDDING not in names


def test_special_tokens_are_never_rounded_to_4_bits() -> None:
    """Rows of 4 bits are all but the last; added tokens move the special ones away from the end."""
    types = make_precision("int4")
    assert _with_special_rows(types, N_SPECIAL) is types
    assert matches(HEAD, _with_special_rows(types, N_SPECIAL + 1).kept)
    assert _with_special_rows(types, N_SPECIAL + 1).head.bits == 8
    whole = make_precision("int8")
    assert _with_special_rows(whole, N_SPECIAL + 1) is whole


def test_the_reference_has_it_too(tied: Checkpoint, untied: Checkpoint) -> None:
    mel = noise_mel(DIMS)[:, :200]
    found, expected = (
        model.logits(model.encode(mel), [TOKENS])[0]
        for model in (Reference(untied), Reference(tied))
    )
    np.testing.assert_allclose(found, expected[:, ORDER], atol=1e-5)


def test_openai_whisper_does_not_know_it(untied: Checkpoint) -> None:
    assert openai_logits(untied, noise_mel(DIMS), [TOKENS]) is None


def test_the_best_tokens(untied: Checkpoint, tmp_path: Path) -> None:
    """The candidates of the two-stage head are those of the head, not of the embedding."""
    with Whisper.load(export(untied, tmp_path / "own").path, device="cpu", threads=1) as model:
        backend = model._backend
        assert backend is not None
        session = backend.open(backend.encode(noise_mel(DIMS)[None]))
        mask = TokenMask(np.zeros((1, 3000), np.bool_), np.array([3000]))
        top = session.extend(TOKENS[None]).top(5, mask)
        session.close()
    reference = Reference(untied)
    expected = reference.logits(reference.encode(noise_mel(DIMS)), [TOKENS])[0][-1]
    best = np.argsort(-expected)[:5]
    assert top.tokens[0].tolist() == best.tolist()
