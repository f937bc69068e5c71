"""Seeded inputs of the word-time goldens, computed on both sides so that no array is stored."""

from __future__ import annotations

import functools
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.models import random_dims, tokenizer_json
from whisper_opt.core.arrays import F32
from whisper_opt.text.vocabulary import Vocab
from whisper_opt.transcription.alignment import CrossAttention

__all__ = ["DIMS", "GOLDEN", "VOCAB", "attention", "golden", "matrix"]

DIMS = random_dims(n_vocab=2000, n_text_ctx=32)
"""English-only: single bytes, letter pairs, and letters after a space."""
VOCAB = Vocab(tokenizer_json(DIMS), DIMS)
GOLDEN = Path(__file__).parents[1] / "data" / "align" / "golden.json.gz"


@functools.cache
def golden() -> dict[str, Any]:
    """The goldens of ``tools/goldens/make_align_golden.py``."""
    values: dict[str, Any] = json.loads(gzip.decompress(GOLDEN.read_bytes()))
    return values


def matrix(seed: int, shape: tuple[int, ...], levels: int = 0) -> F32:
    """Normal float32 values, or integers below ``levels``, with many ties."""
    rng = np.random.default_rng(seed)
    if levels:
        return rng.integers(0, levels, shape).astype(np.float32)
    return rng.standard_normal(shape, dtype=np.float32)


def attention(seed: int, n_text: int, n_frames: int, n_start: int = 1) -> CrossAttention:
    """Two heads that attend to one position after another, with noise.

    Some words are instantaneous, some last for seconds, some are improbable; speech may end long
    before the window does, or run into its end.
    """
    rng = np.random.default_rng(seed)
    n_positions = n_frames // 2
    steps = rng.choice([0, 1, 4, 9, 20, 60, 160], n_text + 2)
    places = np.cumsum(steps)
    if rng.random() < 0.5:
        places = places * n_positions // (places[-1] + 1)
    places = np.minimum(np.concatenate([np.zeros(n_start, np.int64), places]), n_positions)
    distance = (np.arange(DIMS.n_audio_ctx) - places[:, None]) / rng.choice([2.0, 4.0, 8.0])
    noise = rng.standard_normal((2, *distance.shape))
    scores = (8 * np.exp(-0.5 * distance**2) + 0.7 * noise).astype(np.float32)
    probs = rng.choice([0.01, 0.1, 0.3, 0.7, 0.95, 0.999], n_text).astype(np.float32)
    return CrossAttention(scores, probs)
