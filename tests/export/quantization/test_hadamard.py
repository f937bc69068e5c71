"""Queries and keys in the Hadamard basis: the same scores, closer to float32 after rounding."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from tests.support.engines import sharp_checkpoint
from tests.support.models import random_dims
from whisper_opt.core.arrays import F32
from whisper_opt.core.dims import HEAD_DIM
from whisper_opt.export.graphs.dialects import make_dialect
from whisper_opt.export.graphs.graph import build_decoder, build_encoder
from whisper_opt.export.graphs.precision import FP16, PRECISIONS, Precision
from whisper_opt.export.quantization.hadamard import apply_hadamard

DIMS = random_dims(n_vocab=2000)
STATE = DIMS.n_text_state


def test_multiplies_each_head_by_the_hadamard_matrix() -> None:
    matrix = np.ones((1, 1))
    while len(matrix) < HEAD_DIM:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    values = np.random.default_rng(0).standard_normal((5, 3 * HEAD_DIM)).astype(np.float32)
    expected = values.reshape(5, 3, HEAD_DIM) @ (matrix / 8)
    assert np.allclose(apply_hadamard(values), expected.reshape(5, -1), atol=1e-6)
    assert apply_hadamard(values[0]).shape == (3 * HEAD_DIM,)
    assert apply_hadamard(values[0]).dtype == np.float32


def test_scores_stay_and_one_channel_spreads_over_all() -> None:
    queries, keys = np.random.default_rng(1).standard_normal((2, 9, HEAD_DIM)).astype(np.float32)
    transformed = apply_hadamard(queries)
    assert np.allclose(transformed @ apply_hadamard(keys).T, queries @ keys.T, atol=1e-5)
    single = np.zeros(HEAD_DIM, np.float32)
    single[5] = 40
    assert np.array_equal(np.abs(apply_hadamard(single)), np.full(HEAD_DIM, 5, np.float32))


def weights_of(stem: str, types: Precision) -> dict[str, F32]:
    make = build_encoder if stem == "encoder" else build_decoder
    tensors = sharp_checkpoint(DIMS).tensors
    graph, _ = make(DIMS, tensors, make_dialect("contrib"), types=types)
    return {weight.name: weight.read() for weight in graph.weights}


@pytest.mark.parametrize("stem", ["encoder", "decoder"])
def test_only_queries_and_keys_of_the_decoder_are_transformed(stem: str) -> None:
    plain = weights_of(stem, dataclasses.replace(FP16, hadamard=False))
    found = weights_of(stem, FP16)
    assert list(found) == list(plain)
    changed = {name for name in found if not np.array_equal(found[name], plain[name])}
    parts = [f"decoder.blocks.{i}.attn.qkv.{part}" for i in (0, 1) for part in ("bias", "weight")]
    assert sorted(changed) == (parts if stem == "decoder" else [])
    for name in changed:
        assert np.array_equal(found[name][..., 2 * STATE :], plain[name][..., 2 * STATE :])
        transformed = apply_hadamard(plain[name][..., : 2 * STATE])
        assert np.array_equal(found[name][..., : 2 * STATE], transformed)


def test_only_fp16_uses_it() -> None:
    assert [name for name, types in PRECISIONS.items() if types.hadamard] == ["fp16"]


def test_rounding_errors_of_scores_are_smaller() -> None:
    """Queries of 8 and keys of 4 in two channels, as in a head of base; 1 in the others."""
    queries, keys = np.random.default_rng(2).standard_normal((2, 500, HEAD_DIM)).astype(np.float32)
    queries[:, [3, 23]] += 8
    keys[:, [3, 23]] *= 4

    def error(queries: F32, keys: F32) -> float:
        q, k = (values.astype(np.float16).astype(np.float64) for values in (queries, keys))
        found, exact = q @ k.T, queries.astype(np.float64) @ keys.astype(np.float64).T
        return float(np.sqrt(np.mean((found - exact) ** 2)))

    assert error(apply_hadamard(queries), apply_hadamard(keys)) < 0.5 * error(queries, keys)
