"""Checkpoints of every size with random weights from a seed: nothing is downloaded.

Speed does not depend on the values of weights. A weight is generated when it is read and released
when it is written, so that large-v3 needs no more memory than its largest tensor.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Mapping

import numpy as np

from tests.support.models import sinusoids, tokenizer_json
from whisper_opt.core.arrays import F32
from whisper_opt.core.dims import HEAD_DIM, ModelDims
from whisper_opt.export.checkpoints.checkpoint import Checkpoint, Source, Tensor, expected_shapes

__all__ = ["SIZES", "random_checkpoint"]


def _dims(
    state: int, n_audio_layer: int, n_text_layer: int, n_vocab: int = 51865, n_mels: int = 80
) -> ModelDims:
    return ModelDims(
        n_mels=n_mels,
        n_audio_ctx=1500,
        n_audio_state=state,
        n_audio_head=state // HEAD_DIM,
        n_audio_layer=n_audio_layer,
        n_vocab=n_vocab,
        n_text_ctx=448,
        n_text_state=state,
        n_text_head=state // HEAD_DIM,
        n_text_layer=n_text_layer,
    )


SIZES: Mapping[str, ModelDims] = {
    "test": _dims(128, 2, 2, n_vocab=2000),
    "tiny": _dims(384, 4, 4),
    "base": _dims(512, 6, 6),
    "turbo": _dims(1280, 32, 4, 51866, 128),
    "small": _dims(768, 12, 12),
    "large-v3": _dims(1280, 32, 32, 51866, 128),
    "medium": _dims(1024, 24, 24),
}
"""OpenAI's sizes, in the order in which they are checked; ``test`` is for tests of the checks."""


def _values(name: str, shape: tuple[int, ...], seed: int) -> F32:
    """Random weights like those of a new model, with larger queries, so that inputs matter."""
    if name == "encoder.positional_embedding":
        return sinusoids(*shape)
    noise = np.random.default_rng([seed, zlib.crc32(name.encode())]).standard_normal(
        shape, dtype=np.float32
    )
    if "ln" in name.split(".")[-2]:
        noise *= np.float32(0.1)
        if name.endswith("weight"):
            noise += np.float32(1)
    elif name.endswith("bias") or "embedding" in name:
        noise *= np.float32(0.02)
    else:
        sharper = 4.0 if "query" in name else 1.0
        noise *= np.float32(sharper * np.prod(shape[1:]) ** -0.5)
    return noise


def random_checkpoint(size: str, seed: int = 0) -> Checkpoint:
    """A checkpoint of one of ``SIZES``; the same seed gives the same weights everywhere."""
    dims = SIZES[size]
    tensors = {
        name: Tensor(shape, functools.partial(_values, name, shape, seed))
        for name, shape in expected_shapes(dims).items()
    }
    return Checkpoint(
        dims=dims,
        tensors=tensors,
        tokenizer_json=tokenizer_json(dims),
        alignment_heads=None,
        suppress_tokens=None,
        begin_suppress_tokens=None,
        source=Source(format="openai", name=f"random-{size}-{seed}", dtype="float32", sha256={}),
    )
