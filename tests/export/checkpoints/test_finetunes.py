"""Fine-tuned models as they are found on the hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.export.checkpoints.test_huggingface import EMBEDDING, OURS, edit, state
from tests.support.models import random_checkpoint, random_dims
from tests.support.models_write import rounded, write_huggingface, write_safetensors
from whisper_opt.export.checkpoints import Checkpoint, load_checkpoint

NARROW = {"n_audio_state": 64, "n_text_state": 64, "n_audio_layer": 1, "n_text_layer": 1}


def test_no_generation_configuration(small: Checkpoint, tmp_path: Path) -> None:
    folder = write_huggingface(small, tmp_path / "m")
    (folder / "generation_config.json").unlink()
    found = load_checkpoint(folder)
    assert (found.alignment_heads, found.suppress_tokens) == (None, None)
    assert found.multilingual


def test_an_embedding_padded_to_a_multiple_of_64(small: Checkpoint, tmp_path: Path) -> None:
    folder = write_huggingface(small, tmp_path / "m", dtype="float32")
    arrays = state(small)
    arrays[EMBEDDING] = np.pad(arrays[EMBEDDING], ((0, 48), (0, 0)), constant_values=7)
    write_safetensors(folder / "model.safetensors", arrays, "float32")
    edit(folder / "config.json", vocab_size=2048)
    found = load_checkpoint(folder)
    assert found.dims == small.dims
    np.testing.assert_array_equal(found.tensors[OURS].read(), small.tensors[OURS].read())


def test_added_tokens(tmp_path: Path) -> None:
    """Tokens after the timestamps, with rows of their own."""
    grown = random_checkpoint(random_dims(n_vocab=2003, **NARROW))
    folder = write_huggingface(grown, tmp_path / "m")
    before = json.loads(random_checkpoint(random_dims(n_vocab=2000, **NARROW)).tokenizer_json)
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    before["added_tokens"] += [
        {"id": 2000 + i, "content": f"<new{i}>", **flags, "special": False} for i in range(3)
    ]
    (folder / "tokenizer.json").write_text(json.dumps(before), encoding="utf-8")
    assert load_checkpoint(folder).dims.n_vocab == 2003


def test_types_that_differ_from_shard_to_shard(small: Checkpoint, tmp_path: Path) -> None:
    folder = write_huggingface(small, tmp_path / "m", shards=3, dtype="float32")
    second = folder / "model-00002-of-00003.safetensors"
    arrays = dict(list(state(small).items())[1::3])
    write_safetensors(second, arrays, "bfloat16")
    found = load_checkpoint(folder)
    assert found.source.dtype == "bfloat16+float32"
    for i, (name, tensor) in enumerate(small.tensors.items()):
        expected = rounded(tensor.read(), "bfloat16" if i % 3 == 1 else "float32")
        np.testing.assert_array_equal(found.tensors[name].read(), expected)


def test_fewer_positions_of_text(tmp_path: Path) -> None:
    short = random_checkpoint(random_dims(n_vocab=2000, n_text_ctx=224, **NARROW))
    found = load_checkpoint(write_huggingface(short, tmp_path / "m"))
    assert found.dims.n_text_ctx == 224


@pytest.mark.parametrize(
    ("generation", "config", "forced"),
    [
        ({"forced_decoder_ids": [[1, 400], [2, 500]]}, {}, "400"),
        ({}, {"forced_decoder_ids": [[1, 401], [2, 500]]}, "401"),
        ({"language": "<|nl|>", "forced_decoder_ids": [[1, 400]]}, {}, "<|nl|>"),
        ({"forced_decoder_ids": [[1, None], [2, 500]]}, {"forced_decoder_ids": [[1, 401]]}, None),
        ({"task": "transcribe", "forced_decoder_ids": [[1, 400]]}, {}, None),
        ({"forced_decoder_ids": "hostile"}, {}, None),
        ({"forced_decoder_ids": [3]}, {}, None),
    ],
)
def test_a_forced_language_is_told(
    generation: dict[str, Any],
    config: dict[str, Any],
    forced: str | None,
    small: Checkpoint,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = write_huggingface(small, tmp_path / "m")
    edit(folder / "generation_config.json", **generation)
    edit(folder / "config.json", **config)
    assert load_checkpoint(folder).dims == small.dims
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == (forced is not None)
    assert forced is None or forced in messages[0]


def test_a_tokenizer_of_words_and_merges_alone(wide: Checkpoint, tmp_path: Path) -> None:
    """The special tokens are those of OpenAI's layout, by the number of rows."""
    folder = write_huggingface(wide, tmp_path / "m")
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    (folder / "tokenizer.json").unlink()
    model = tokenizer["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(model["merges"]), encoding="utf-8")
    found = json.loads(load_checkpoint(folder).tokenizer_json)
    special = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    assert {token["content"]: token["id"] for token in found["added_tokens"]} == special


def test_no_languages_listed(small: Checkpoint, tmp_path: Path) -> None:
    """Languages are read from the tokenizer; ``lang_to_id`` is not needed."""
    folder = write_huggingface(small, tmp_path / "m")
    edit(folder / "generation_config.json", lang_to_id=None, task_to_id=None)
    assert load_checkpoint(folder).multilingual
