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
from whisper_opt.export.checkpoints.checkpoint import OUTPUT_HEAD

EMBEDDING = "model.decoder.embed_tokens.weight"
OURS = "decoder.token_embedding.weight"


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


def test_another_output_head(small: Checkpoint, tmp_path: Path) -> None:
    folder = write_huggingface(small, tmp_path / "m")
    arrays = state(small)
    head = arrays[EMBEDDING].copy()
    head[-1, -1] += 1
    write_safetensors(folder / "model.safetensors", {**arrays, "proj_out.weight": head})
    found = load_checkpoint(folder).tensors
    np.testing.assert_allclose(found[OUTPUT_HEAD].read(), head, atol=1e-3)
    assert found[OUTPUT_HEAD].read()[-1, -1] > found[OURS].read()[-1, -1] + 0.9
    # Stored transposed, the same comparison goes through strides.
    values = {**arrays, "proj_out.weight": np.asfortranarray(head)}
    write_torch(folder / "pytorch_model.bin", values)
    (folder / "model.safetensors").unlink()
    found = load_checkpoint(folder).tensors
    np.testing.assert_allclose(found[OUTPUT_HEAD].read(), head, atol=1e-3)
    write_safetensors(folder / "model.safetensors", {**arrays, "proj_out.weight": head[:-1]})
    with pytest.raises(CheckpointError, match=r"head\.weight' has shape \[1999, 64\]"):
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
        ({"max_source_positions": 500}, r"500 positions.* windows of 10 s; expected 1500"),
    ],
)
def test_configuration(
    changes: dict[str, Any], message: str, small: Checkpoint, tmp_path: Path
) -> None:
    folder = write_huggingface(small, tmp_path / "m")
    edit(folder / "config.json", **changes)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(folder)


def test_scaling_that_is_null_is_none(small: Checkpoint, tmp_path: Path) -> None:
    folder = write_huggingface(small, tmp_path / "m")
    edit(folder / "config.json", scale_embedding=None)
    assert load_checkpoint(folder).dims == small.dims


@pytest.mark.parametrize(
    "prefix", ["_orig_mod.", "module.", "base_model.model.", "module._orig_mod."]
)
def test_prefixes_of_wrappers(prefix: str, small: Checkpoint, tmp_path: Path) -> None:
    folder = write_huggingface(small, tmp_path / "m", dtype="float32")
    arrays = state(small)
    arrays["proj_out.weight"] = arrays[EMBEDDING]
    wrapped = {prefix + name: values for name, values in arrays.items()}
    write_safetensors(folder / "model.safetensors", wrapped, "float32")
    found = load_checkpoint(folder).tensors
    assert found.keys() == small.tensors.keys()
    for name, tensor in found.items():
        np.testing.assert_array_equal(tensor.read(), small.tensors[name].read())


def test_a_prefix_that_only_some_names_have_stays(small: Checkpoint, tmp_path: Path) -> None:
    folder = write_huggingface(small, tmp_path / "m")
    arrays = state(small)
    odd = {f"module.{name}" if name == EMBEDDING else name: a for name, a in arrays.items()}
    write_safetensors(folder / "model.safetensors", odd)
    with pytest.raises(CheckpointError, match="module") as raised:
        load_checkpoint(folder)
    assert "adapter" not in str(raised.value)


def test_an_unmerged_adapter_in_a_wrapper(small: Checkpoint, tmp_path: Path) -> None:
    folder = write_huggingface(small, tmp_path / "m")
    arrays = state(small)
    arrays["model.decoder.layers.0.fc1.lora_B.default.weight"] = np.ones((256, 8), np.float32)
    wrapped = {f"base_model.model.{name}": values for name, values in arrays.items()}
    write_safetensors(folder / "model.safetensors", wrapped)
    with pytest.raises(CheckpointError, match=r"lora_B.*must be merged"):
        load_checkpoint(folder)


def test_heads_of_another_model_are_left_out(
    small: Checkpoint, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_huggingface(small, tmp_path / "m")
    edit(folder / "generation_config.json", alignment_heads=[[0, 0], [7, 0], [10, 17]])
    found = load_checkpoint(folder)
    assert found.alignment_heads is None
    assert found.heads == small.dims.default_alignment_heads
    (record,) = caplog.records
    assert "(7, 0)" in record.getMessage()
    assert "1 decoder layers of 1 heads" in record.getMessage()


def test_empty_lists_say_nothing(small: Checkpoint, tmp_path: Path) -> None:
    folder = write_huggingface(small, tmp_path / "m")
    edit(folder / "generation_config.json", suppress_tokens=[], begin_suppress_tokens=[])
    found = load_checkpoint(folder)
    assert (found.suppress_tokens, found.begin_suppress_tokens) == (None, None)


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
