"""Facts from a tokenizer: number of tokens, multilingual or not."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.models import as_tensor, random_dims, special_ids, tokenizer_json
from tests.support.models_write import write_ctranslate2, write_huggingface
from whisper_opt.core.errors import CheckpointError
from whisper_opt.export.checkpoints import Checkpoint, load_checkpoint
from whisper_opt.export.checkpoints.checkpoint import expected_shapes
from whisper_opt.export.checkpoints.tokenizer import find_tokenizer
from whisper_opt.export.checkpoints.vocabulary import is_multilingual

EMBEDDING = "decoder.token_embedding.weight"
ENGLISH = random_dims(n_vocab=51864)


def with_rows(checkpoint: Checkpoint, n: int) -> Checkpoint:
    """The checkpoint with rows added to or removed from the end of the embedding."""
    rows = checkpoint.tensors[EMBEDDING].read()
    rows = np.concatenate([rows, np.ones((max(n, 0), rows.shape[1]), np.float32)])[: len(rows) + n]
    tensors = {**checkpoint.tensors, EMBEDDING: as_tensor(rows)}
    dims = dataclasses.replace(checkpoint.dims, n_vocab=len(rows))
    return dataclasses.replace(checkpoint, dims=dims, tensors=tensors)


def added(text: str, *tokens: tuple[str, int], special: bool = False) -> str:
    """A tokenizer with more tokens."""
    value = json.loads(text)
    for content, index in tokens:
        value["added_tokens"].append({"id": index, "content": content, "special": special})
    return json.dumps(value)


def edit(file: Path, **changes: Any) -> None:
    value = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**value, **changes}), encoding="utf-8")


# --- padded embeddings --------------------------------------------------------------------------


@pytest.mark.parametrize("write", [write_huggingface, write_ctranslate2])
def test_padded_rows_are_left_out(write: Any, small: Checkpoint, tmp_path: Path) -> None:
    folder = write(with_rows(small, 48), tmp_path / "m")  # 2,048 rows
    found = load_checkpoint(folder)
    assert found.dims == small.dims
    rows = found.tensors[EMBEDDING].read()
    np.testing.assert_allclose(rows, small.tensors[EMBEDDING].read(), atol=1e-3)


@pytest.mark.parametrize("n", [1, 4, 47, 256, 1000])
def test_rows_that_are_no_padding(n: int, small: Checkpoint, tmp_path: Path) -> None:
    folder = write_huggingface(with_rows(small, n), tmp_path / "m")
    with pytest.raises(CheckpointError, match=f"2000 ids.*{2000 + n}: it belongs to another model"):
        load_checkpoint(folder)


def test_a_model_without_timestamp_tokens(small: Checkpoint, tmp_path: Path) -> None:
    folder = write_huggingface(with_rows(small, -1501), tmp_path / "m")
    with pytest.raises(CheckpointError, match=r"499 token rows.*no timestamp tokens"):
        load_checkpoint(folder)


def test_added_tokens_have_rows(small: Checkpoint, tmp_path: Path) -> None:
    text = added(small.tokenizer_json, ("word", 2000), (" other", 2001))
    more = dataclasses.replace(with_rows(small, 2), tokenizer_json=text)
    found = load_checkpoint(write_huggingface(more, tmp_path / "m"))
    assert found.dims.n_vocab == 2002
    assert expected_shapes(found.dims)[EMBEDDING] == (2002, 64)


# --- languages ----------------------------------------------------------------------------------


def test_multilingual_by_the_tokenizer() -> None:
    full, few = random_dims(), random_dims(n_vocab=21608)
    assert is_multilingual(tokenizer_json(full), None)
    assert is_multilingual(tokenizer_json(few), None)
    english = tokenizer_json(ENGLISH)
    assert "<|de|>" in english  # OpenAI's English-only vocabulary lists languages too
    assert not is_multilingual(english, None)
    assert not is_multilingual(added(english, ("word", 51864)), None)
    assert not is_multilingual(added(english, ("word", 51864), ("other", 51865)), None)


def test_multilingual_by_the_configuration() -> None:
    few, english = tokenizer_json(random_dims(n_vocab=2000)), tokenizer_json(ENGLISH)
    assert not is_multilingual(few, False)
    assert is_multilingual(english, True)
    value = json.loads(few)
    for lost in ("<|transcribe|>", None):
        tokens = [t for t in value["added_tokens"] if t["content"] != lost]
        if lost is None:
            tokens = [t for t in tokens if len(t["content"]) > 7]
        bare = json.dumps({**value, "added_tokens": tokens})
        assert not is_multilingual(bare, None)
        with pytest.raises(CheckpointError, match=r"is_multilingual, but the tokenizer"):
            is_multilingual(bare, True)


def test_loaders_set_multilingual(small: Checkpoint, tmp_path: Path) -> None:
    folder = write_huggingface(small, tmp_path / "m")
    assert load_checkpoint(folder).multilingual is True
    edit(folder / "generation_config.json", is_multilingual=False)
    assert load_checkpoint(folder).multilingual is False
    edit(folder / "generation_config.json", is_multilingual="no")
    with pytest.raises(CheckpointError, match=r"is_multilingual.*expected true or false"):
        load_checkpoint(folder)
    assert load_checkpoint(write_ctranslate2(small, tmp_path / "c")).multilingual is True


# --- slow tokenizers ----------------------------------------------------------------------------


def test_added_tokens_in_the_configuration_of_the_tokenizer(tmp_path: Path) -> None:
    """As newer transformers write the files of slow tokenizers."""
    dims = random_dims(n_vocab=2000)
    wanted = json.loads(tokenizer_json(dims))
    parts = {
        "vocab.json": wanted["model"]["vocab"],
        "tokenizer_config.json": {
            "added_tokens_decoder": {
                **{
                    str(index): {"content": name, "special": True}
                    for name, index in special_ids(dims).items()
                },
                "2000": {"content": " word", "special": False},
                "2001": {"content": "[NOISE]", "special": True},
            }
        },
    }
    for name, part in parts.items():
        (tmp_path / name).write_text(json.dumps(part), encoding="utf-8")
    merges = "\n".join(["#version: 0.2", *wanted["model"]["merges"], ""])
    (tmp_path / "merges.txt").write_text(merges, encoding="utf-8")
    found = json.loads(find_tokenizer(tmp_path, dataclasses.replace(dims, n_vocab=2002)))
    listed = {token["content"]: token for token in found["added_tokens"]}
    assert {name: listed[name]["id"] for name in special_ids(dims)} == special_ids(dims)
    assert (listed[" word"]["id"], listed[" word"]["special"]) == (2000, False)
    assert (listed["[NOISE]"]["id"], listed["[NOISE]"]["special"]) == (2001, True)
    assert found["model"]["merges"] == wanted["model"]["merges"]


@pytest.mark.parametrize("decoder", [[1], {"a": {"content": "b"}}, {"1": {}}])
def test_damaged_configuration_of_the_tokenizer(decoder: Any, tmp_path: Path) -> None:
    for name in ("vocab.json", "tokenizer_config.json"):
        (tmp_path / name).write_text("{}", encoding="utf-8")
    (tmp_path / "merges.txt").write_text("", encoding="utf-8")
    edit(tmp_path / "tokenizer_config.json", added_tokens_decoder=decoder)
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json"):
        find_tokenizer(tmp_path, random_dims())


def test_added_words_of_slow_tokenizers_are_text(tmp_path: Path) -> None:
    dims = random_dims(n_vocab=2000)
    wanted = json.loads(tokenizer_json(dims))
    for name, part in (
        ("vocab.json", wanted["model"]["vocab"]),
        ("added_tokens.json", {**special_ids(dims), " word": 2000}),
    ):
        (tmp_path / name).write_text(json.dumps(part), encoding="utf-8")
    merges = "\n".join(wanted["model"]["merges"])
    (tmp_path / "merges.txt").write_text(merges, encoding="utf-8")
    found = json.loads(find_tokenizer(tmp_path, dataclasses.replace(dims, n_vocab=2001)))
    special = {token["content"]: token["special"] for token in found["added_tokens"]}
    assert special.pop(" word") is False
    assert all(special.values())
