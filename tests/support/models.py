"""Small random Whisper models for tests, and their tokenizer; writers are in ``models_write``."""

from __future__ import annotations

import functools
import json

import numpy as np

from whisper_opt.core.arrays import F32
from whisper_opt.core.dims import HEAD_DIM, ModelDims
from whisper_opt.export.checkpoints.checkpoint import Checkpoint, Source, Tensor, expected_shapes
from whisper_opt.text.languages import LANGUAGES

__all__ = [
    "TURBO",
    "random_checkpoint",
    "random_dims",
    "random_tensors",
    "special_ids",
    "tokenizer_json",
]


def random_dims(**overrides: int) -> ModelDims:
    """Multilingual dimensions with two narrow layers per side; heads follow an overridden state."""
    values = {
        "n_mels": 80,
        "n_audio_ctx": 1500,
        "n_audio_state": 128,
        "n_audio_layer": 2,
        "n_vocab": 51865,
        "n_text_ctx": 448,
        "n_text_state": 128,
        "n_text_layer": 2,
        **overrides,
    }
    for side in ("audio", "text"):
        values.setdefault(f"n_{side}_head", values[f"n_{side}_state"] // HEAD_DIM)
    return ModelDims(**values)


TURBO = random_dims(n_mels=128, n_vocab=51866, n_audio_layer=3, n_text_layer=1)
"""Differences of turbo from the first models: 128 mels, Cantonese, fewer decoder layers."""


def sinusoids(length: int, channels: int) -> F32:
    """The encoder's positions [length, channels] (openai-whisper, model.py)."""
    half = channels // 2
    scales = np.exp(-np.log(10000.0) / (half - 1) * np.arange(half))
    angles = np.arange(length)[:, None] * scales[None]
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


def _values(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> F32:
    if name == "encoder.positional_embedding":
        return sinusoids(*shape)
    noise = rng.standard_normal(shape, dtype=np.float32)
    if "ln" in name.split(".")[-2]:
        noise *= np.float32(0.1)
        if name.endswith("weight"):
            noise += np.float32(1.0)
    elif name.endswith("bias") or "embedding" in name:
        noise *= np.float32(0.02)
    else:
        noise *= np.float32(np.prod(shape[1:]) ** -0.5)
    return noise


def random_tensors(dims: ModelDims, seed: int = 0) -> dict[str, F32]:
    """Canonical name -> float32 values, scaled like a fresh model's."""
    rng = np.random.default_rng(seed)
    return {name: _values(name, shape, rng) for name, shape in expected_shapes(dims).items()}


def as_tensor(values: F32) -> Tensor:
    """A lazy tensor over an array in memory."""
    return Tensor(shape=values.shape, read=values.copy)


def random_checkpoint(dims: ModelDims | None = None, seed: int = 0) -> Checkpoint:
    """A complete checkpoint with random weights, held in memory."""
    dims = dims or random_dims()
    last = dims.n_text_layer - 1
    return Checkpoint(
        dims=dims,
        tensors={name: as_tensor(values) for name, values in random_tensors(dims, seed).items()},
        tokenizer_json=tokenizer_json(dims),
        alignment_heads=tuple((last, head) for head in range(dims.n_text_head)),
        suppress_tokens=(1, 2, 7, special_ids(dims)["<|startoftranscript|>"]),
        begin_suppress_tokens=(220, special_ids(dims)["<|endoftext|>"]),
        source=Source(format="openai", name=f"random-{seed}", dtype="float32", sha256={}),
    )


def special_ids(dims: ModelDims) -> dict[str, int]:
    """Special tokens -> ids in openai-whisper's order; the timestamps fill the rest.

    A vocabulary smaller than OpenAI's has the same special tokens after fewer words.
    """
    n_languages = 100 if dims.n_vocab >= 51866 else 99
    names = [
        "<|endoftext|>",
        "<|startoftranscript|>",
        *(f"<|{code}|>" for code in list(LANGUAGES)[:n_languages]),
        "<|translate|>",
        "<|transcribe|>",
        "<|startoflm|>",
        "<|startofprev|>",
        "<|nospeech|>",
        "<|notimestamps|>",
    ]
    first = dims.n_vocab - (dims.n_audio_ctx + 1) - len(names)
    return {name: first + i for i, name in enumerate(names)}


def byte_alphabet() -> dict[int, str]:
    """Byte -> character, in the order of GPT-2's first 256 ids (space, id 220, is "Ġ")."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in printable]
    return {
        **{byte: chr(byte) for byte in printable},
        **{byte: chr(256 + i) for i, byte in enumerate(rest)},
    }


@functools.cache
def tokenizer_json(dims: ModelDims) -> str:
    """A byte-level BPE with OpenAI's special ids: all bytes, letter pairs, filler tokens.

    It spells any text, and every id has some text. ``dims.n_vocab`` must be 1,864 or more.
    """
    special = special_ids(dims)
    letters = "abcdefghijklmnopqrstuvwxyz"
    n_words = special["<|endoftext|>"]
    if n_words < 256:
        raise ValueError(f"a vocabulary of {dims.n_vocab} has no room for the 256 bytes")
    merges = [(a, b) for a in "Ġ" + letters for b in letters][: n_words - 256]
    tokens = [*byte_alphabet().values(), *(a + b for a, b in merges)]
    tokens += [f"filler{i}" for i in range(len(tokens), n_words)]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    tokenizer = {
        "version": "1.0",
        "added_tokens": [
            {"id": index, "content": content, **flags, "special": True}
            for content, index in special.items()
        ],
        "pre_tokenizer": {**level, "use_regex": True},
        "decoder": {**level, "use_regex": True},
        "model": {
            "type": "BPE",
            "vocab": {token: index for index, token in enumerate(tokens)},
            "merges": [f"{a} {b}" for a, b in merges],
        },
    }
    return json.dumps(tokenizer)
