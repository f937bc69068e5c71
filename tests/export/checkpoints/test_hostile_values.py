"""Hostile files that once did harm, and values that could."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from tests.export.checkpoints.test_hostile_files import DIMS, valid
from whisper_opt.core.dims import ModelDims
from whisper_opt.core.errors import CheckpointError, WhisperOptError
from whisper_opt.export.checkpoints import sidecar
from whisper_opt.export.checkpoints.safetensors_file import read_safetensors
from whisper_opt.export.checkpoints.tokenizer import find_tokenizer


def test_dims_without_end() -> None:
    """The names of all tensors depend on them."""
    for name in ("n_text_layer", "n_audio_layer", "n_vocab"):
        values = {**DIMS.to_dict(), name: 1 << 40}
        with pytest.raises(WhisperOptError, match="no Whisper model is of that size"):
            ModelDims.from_dict(values)


def nested(depth: int) -> list[Any]:
    """Lists in lists; their repr alone would exceed the recursion limit."""
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def test_values_that_cannot_be_shown_whole() -> None:
    deep = nested(5000)
    with pytest.raises(CheckpointError, match=r"alignment_heads .* is \[\[\[\[\["):
        sidecar.alignment_heads({"alignment_heads": deep}, DIMS)
    with pytest.raises(CheckpointError, match="expected a list of token ids"):
        sidecar.token_ids({"ids": deep}, "ids", 10)
    with pytest.raises(CheckpointError, match="expected a positive integer"):
        sidecar.positive_int({"d_model": deep}, "d_model", "config.json")
    with pytest.raises(CheckpointError, match="expected a positive integer"):
        ModelDims.from_dict({**DIMS.to_dict(), "n_mels": deep})


def test_a_text_file_without_end(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    with path.open("wb") as file:
        file.truncate((1 << 24) + 1)
    with pytest.raises(CheckpointError, match="has more than 16777216 bytes"):
        sidecar.read_json(path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("dtype", ["F32"], r"stores 'a' as \['F32'\]"),
        ("shape", [1] * 9, "not integers"),
        ("shape", [1 << 63, 0], "not integers"),
        ("data_offsets", [0, 1 << 64], "not integers"),
    ],
)
def test_entries_of_a_safetensors_header(
    key: str, value: Any, message: str, tmp_path: Path
) -> None:
    entry = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16], key: value}
    text = json.dumps({"a": entry}).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(16))
    with pytest.raises(CheckpointError, match=message):
        read_safetensors(path)


def changed_tokenizer(tmp_path: Path, **changes: str) -> Path:
    """A tokenizer.json with changes to its text."""
    text = valid()["hf/tokenizer.json"].decode()
    for before, after in changes.items():
        assert text.count(before) == 1
        text = text.replace(before, after)
    path = tmp_path / "tokenizer.json"
    path.write_text(text, encoding="utf-8")
    return path


def test_an_id_that_is_no_integer(tmp_path: Path) -> None:
    path = changed_tokenizer(tmp_path, **{'"id": 288,': '"id": 1e999,'})
    with pytest.raises(CheckpointError, match="or no BPE vocabulary"):
        find_tokenizer(path, DIMS)


def test_half_a_character(tmp_path: Path) -> None:
    """Half a surrogate pair can be escaped in JSON but not encoded when merges are restored."""
    changes = {'"a a", ': "", "<|su|>": "<|\\ud800|>"}
    with pytest.raises(CheckpointError, match="merges that do not fit its vocabulary"):
        find_tokenizer(changed_tokenizer(tmp_path, **changes), DIMS)


def test_long_tokens_take_no_time(tmp_path: Path) -> None:
    """Finding the merge of a token takes quadratic time: this one would take minutes."""
    long = "a" * 100_000
    path = changed_tokenizer(tmp_path, **{'"vocab": {': f'"vocab": {{"{long}": 398, '})
    assert long in find_tokenizer(path, DIMS)
