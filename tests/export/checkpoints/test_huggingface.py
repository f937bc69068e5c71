from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.models_write import (
    huggingface_names,
    write_huggingface,
    write_safetensors,
    write_torch,
)
from whisper_opt.core.arrays import F32
from whisper_opt.core.errors import CheckpointError
from whisper_opt.export.checkpoints import Checkpoint, load_checkpoint

EMBEDDING = "model.decoder.embed_tokens.weight"


def state(checkpoint: Checkpoint) -> dict[str, F32]:
    names = huggingface_names(list(checkpoint.tensors))
    return {names[name]: tensor.read() for name, tensor in checkpoint.tensors.items()}


def edit(file: Path, **changes: Any) -> None:
    value = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**value, **changes}), encoding="utf-8")


def test_equal_output_head_is_ignored(small: Checkpoint, tmp_path: Path) -> None:
    folder = write_huggingface(small, tmp_path / "m")
    arrays = state(small)
    write_safetensors(
        folder / "model.safetensors", {**arrays, "proj_out.weight": arrays[EMBEDDING]}
    )
    assert "proj_out.weight" not in load_checkpoint(folder).tensors


def test_other_output_head_is_refused(small: Checkpoint, tmp_path: Path) -> None:
    folder = write_huggingface(small, tmp_path / "m")
    arrays = state(small)
    head = arrays[EMBEDDING].copy()
    head[-1, -1] += 1
    write_safetensors(folder / "model.safetensors", {**arrays, "proj_out.weight": head})
    with pytest.raises(CheckpointError, match=r"proj_out\.weight differs"):
        load_checkpoint(folder)
    # Stored transposed, the same comparison goes through strides.
    values = {**arrays, "proj_out.weight": np.asfortranarray(head)}
    write_torch(folder / "pytorch_model.bin", values)
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"proj_out\.weight differs"):
        load_checkpoint(folder)
    write_safetensors(folder / "model.safetensors", {**arrays, "proj_out.weight": head[:-1]})
    with pytest.raises(CheckpointError, match=r"proj_out\.weight differs"):
        load_checkpoint(folder)


def test_key_bias(small: Checkpoint, tmp_path: Path) -> None:
    folder = write_huggingface(small, tmp_path / "m")
    name = "model.encoder.layers.0.self_attn.k_proj.bias"
    bias = np.zeros(64, dtype=np.float32)
    write_safetensors(folder / "model.safetensors", {**state(small), name: bias})
    load_checkpoint(folder)
    write_safetensors(folder / "model.safetensors", {**state(small), name: bias + 1})
    with pytest.raises(CheckpointError, match="is not zero"):
        load_checkpoint(folder)


def test_unknown_tensor_is_not_dropped_silently(small: Checkpoint, tmp_path: Path) -> None:
    folder = write_huggingface(small, tmp_path / "m")
    name = "model.decoder.layers.0.self_attn.q_proj.lora_A.weight"
    adapter = np.ones((8, 64), np.float32)
    write_safetensors(folder / "model.safetensors", {**state(small), name: adapter})
    with pytest.raises(CheckpointError, match=r"lora_A.*merged"):
        load_checkpoint(folder)


def test_generation_config_wins_over_config(small: Checkpoint, tmp_path: Path) -> None:
    folder = write_huggingface(small, tmp_path / "m")
    edit(folder / "config.json", suppress_tokens=[5], begin_suppress_tokens=[6])
    assert load_checkpoint(folder).suppress_tokens == small.suppress_tokens
    (folder / "generation_config.json").unlink()
    found = load_checkpoint(folder)
    assert (found.suppress_tokens, found.begin_suppress_tokens) == ((5,), (6,))
    assert found.alignment_heads is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "bart"}, "model_type = 'bart'"),
        ({"activation_function": "relu"}, "activation_function = 'relu'"),
        ({"scale_embedding": True}, "scale_embedding = True"),
        ({"vocab_size": None}, "vocab_size = None"),
        ({"encoder_layers": 2}, "lacks"),
        ({"encoder_attention_heads": 2}, "heads"),
        ({"max_source_positions": 1499}, "belongs to another model|shape"),
    ],
)
def test_configuration(
    changes: dict[str, Any], message: str, small: Checkpoint, tmp_path: Path
) -> None:
    folder = write_huggingface(small, tmp_path / "m")
    edit(folder / "config.json", **changes)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(folder)


class TestShards:
    def test_missing_file(self, small: Checkpoint, tmp_path: Path) -> None:
        folder = write_huggingface(small, tmp_path / "m", shards=2)
        (folder / "model-00002-of-00002.safetensors").unlink()
        with pytest.raises(CheckpointError, match="cannot read model-00002-of-00002"):
            load_checkpoint(folder)

    def test_tensor_in_the_wrong_shard(self, small: Checkpoint, tmp_path: Path) -> None:
        folder = write_huggingface(small, tmp_path / "m", shards=2)
        first, second = (folder / f"model-0000{i}-of-00002.safetensors" for i in (1, 2))
        first.write_bytes(second.read_bytes())
        with pytest.raises(CheckpointError, match=r"model-00001.* lacks tensor"):
            load_checkpoint(folder)

    @pytest.mark.parametrize("weight_map", [None, {"a": "../secret.safetensors"}, {"a": 1}])
    def test_index(self, weight_map: Any, small: Checkpoint, tmp_path: Path) -> None:
        folder = write_huggingface(small, tmp_path / "m", shards=2)
        edit(folder / "model.safetensors.index.json", weight_map=weight_map)
        with pytest.raises(CheckpointError, match="weight_map"):
            load_checkpoint(folder)


@pytest.mark.parametrize("value", [{"a": 1}, {1: 2}, ("a",)])
def test_bin_that_is_no_state_dict(value: Any, small: Checkpoint, tmp_path: Path) -> None:
    folder = write_huggingface(small, tmp_path / "m", kind="bin")
    write_torch(folder / "pytorch_model.bin", value)
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin"):
        load_checkpoint(folder)
