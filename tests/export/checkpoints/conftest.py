from __future__ import annotations

import base64
from pathlib import Path

import pytest

from tests.support.models import random_checkpoint, random_dims
from whisper_opt.export.checkpoints import Checkpoint

NARROW = {"n_audio_state": 64, "n_text_state": 64, "n_audio_layer": 1, "n_text_layer": 1}


@pytest.fixture(scope="session")
def small() -> Checkpoint:
    """One narrow layer per side and a small vocabulary, for tests of formats."""
    return random_checkpoint(random_dims(n_vocab=2000, **NARROW))


@pytest.fixture(scope="session")
def wide() -> Checkpoint:
    """Like ``small`` with the whole multilingual vocabulary."""
    return random_checkpoint(random_dims(**NARROW))


@pytest.fixture(scope="session")
def tiktoken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ranks of a complete BPE of 50,257 tokens in openai-whisper's file format."""
    alphabet = [bytes([b]) for b in (*range(33, 127), *range(161, 173), *range(174, 256))]
    alphabet += [bytes([b]) for b in range(256) if bytes([b]) not in alphabet]
    pairs = [a + b for a in alphabet for b in alphabet]
    triples = [b"he" + a for a in alphabet]  # each a merge of "he" and a byte
    tokens = [*alphabet, *pairs[: 50256 - 512], *triples]
    lines = [f"{base64.b64encode(token).decode()} {i}" for i, token in enumerate(tokens)]
    file = tmp_path_factory.mktemp("tiktoken") / "multilingual.tiktoken"
    file.write_text("\n".join([*lines, f"= {len(tokens)}", ""]), encoding="utf-8")
    return file
