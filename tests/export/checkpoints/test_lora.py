"""LoRA adapters against PEFT's merged models, and damaged ones."""

from __future__ import annotations

import functools
import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.loopback_hub import LoopbackHub
from tests.support.lora_cases import (
    CASES,
    COLUMNS,
    DIMS,
    GOLDEN,
    RESIZED,
    TOKENS,
    adapter_values,
    mel,
)
from tests.support.models import random_checkpoint, tokenizer_json
from tests.support.models_write import write_huggingface, write_safetensors, write_torch
from whisper_opt.core.arrays import F32
from whisper_opt.core.errors import CheckpointError, OptionError
from whisper_opt.export.checkpoints import Checkpoint, load_checkpoint
from whisper_opt.export.checkpoints.checkpoint import OUTPUT_HEAD
from whisper_opt.export.verification.reference import Reference

EMBEDDING = "decoder.token_embedding.weight"


@functools.cache
def golden() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(gzip.decompress(GOLDEN.read_bytes()))
    return found


@pytest.fixture(scope="module")
def base() -> Checkpoint:
    return random_checkpoint(DIMS)


def values_of(case: str) -> dict[str, F32]:
    """The tensors of a case's file by name."""
    shapes = golden()["cases"][case]["shapes"]
    return {key: adapter_values(key, shape) for key, shape in shapes.items()}


def write_adapter(
    folder: Path,
    config: Mapping[str, Any],
    values: dict[str, F32],
    kind: str = "safetensors",
) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    write = {"safetensors": write_safetensors, "bin": write_torch}[kind]
    write(folder / f"adapter_model.{kind}", values, "float32")
    return folder


def adapter(folder: Path, case: str = "plain", **changes: Any) -> Path:
    return write_adapter(folder, {**golden()["cases"][case]["config"], **changes}, values_of(case))


def logits(checkpoint: Checkpoint) -> F32:
    reference = Reference(checkpoint)
    audio = reference.encode(mel())
    (found,) = reference.logits(audio, [np.array(TOKENS)])
    return found[:, COLUMNS]


@pytest.mark.parametrize("case", CASES)
def test_logits_of_the_merged_model(case: str, base: Checkpoint, tmp_path: Path) -> None:
    folder = adapter(tmp_path / "adapter", case)
    if case == "resized":
        (folder / "tokenizer.json").write_text(tokenizer_json(RESIZED), encoding="utf-8")
    found = logits(load_checkpoint(folder, base=base))
    expected = np.array(golden()["cases"][case]["logits"])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
    unchanged = np.array(golden()["base"])
    assert np.abs(expected[:, : unchanged.shape[1]] - unchanged).max() > 0.02


class TestBase:
    def test_path_in_the_configuration(self, base: Checkpoint, tmp_path: Path) -> None:
        beside = write_huggingface(base, tmp_path / "base", dtype="float32")
        folder = adapter(tmp_path / "adapter", base_model_name_or_path=str(beside))
        found = load_checkpoint(folder)
        source = found.source
        assert (source.format, source.name) == ("huggingface+lora", "adapter")
        assert set(source.sha256) == {
            "adapter_config.json",
            "adapter_model.safetensors",
            "base/model.safetensors",
        }
        given = load_checkpoint(folder, base=base)
        for name, tensor in found.tensors.items():
            np.testing.assert_array_equal(tensor.read(), given.tensors[name].read())

    def test_base_wins_over_the_configuration(self, base: Checkpoint, tmp_path: Path) -> None:
        beside = write_huggingface(base, tmp_path / "base", dtype="float32")
        folder = adapter(tmp_path / "adapter", base_model_name_or_path="someone/gone")
        assert load_checkpoint(folder, base=beside).dims == DIMS

    def test_no_base(self, tmp_path: Path) -> None:
        folder = adapter(tmp_path / "adapter", base_model_name_or_path=None)
        with pytest.raises(CheckpointError, match=r"names None as base model.*base="):
            load_checkpoint(folder)

    def test_a_base_that_is_gone(self, tmp_path: Path) -> None:
        folder = adapter(tmp_path / "adapter", base_model_name_or_path="/home/someone/base")
        with pytest.raises(CheckpointError, match=r"base model of the adapter.*passed as base="):
            load_checkpoint(folder)

    def test_an_adapter_as_base(self, tmp_path: Path) -> None:
        first = adapter(tmp_path / "first")
        folder = adapter(tmp_path / "adapter", base_model_name_or_path=str(first))
        with pytest.raises(CheckpointError, match="is an adapter itself"):
            load_checkpoint(folder)

    def test_base_of_what_is_no_adapter(self, base: Checkpoint, tmp_path: Path) -> None:
        folder = write_huggingface(base, tmp_path / "base")
        with pytest.raises(OptionError, match=r"base= was given, but 'base' is no adapter"):
            load_checkpoint(folder, base=base)

    def test_an_adapter_of_the_hub(
        self, base: Checkpoint, tmp_path: Path, loopback: LoopbackHub
    ) -> None:
        """It is fetched, and may not name a path of this machine."""
        beside = write_huggingface(base, tmp_path / "base", dtype="float32")
        folder = adapter(tmp_path / "adapter", base_model_name_or_path=str(beside))
        loopback.add("someone/adapter", folder, commit="1" * 40, branch="v2")
        loopback.add("someone/adapter", folder, commit="2" * 40)
        found = load_checkpoint("someone/adapter", base=base, revision="v2")
        assert found.source.name == "someone/adapter@v2"
        files = {path.rsplit("/")[-1] for path in loopback.asked("/resolve/", "HEAD")}
        assert files == {"adapter_config.json", "adapter_model.safetensors"}
        with pytest.raises(CheckpointError, match="as base model; expected a hub id: pass"):
            load_checkpoint("someone/adapter")

    def test_adapter_and_base_of_the_hub(
        self, base: Checkpoint, tmp_path: Path, loopback: LoopbackHub
    ) -> None:
        folder = adapter(tmp_path / "adapter", base_model_name_or_path="someone/base")
        loopback.add("someone/adapter", folder, commit="1" * 40)
        beside = write_huggingface(base, tmp_path / "base", dtype="float32")
        loopback.add("someone/base", beside, commit="2" * 40)
        expected = load_checkpoint(folder, base=base)
        for local_files_only in (False, True):
            found = load_checkpoint("someone/adapter", local_files_only=local_files_only)
            for name, tensor in expected.tensors.items():
                np.testing.assert_array_equal(found.tensors[name].read(), tensor.read())

    def test_base_is_looked_for_on_this_machine_only(
        self, tmp_path: Path, loopback: LoopbackHub
    ) -> None:
        folder = adapter(tmp_path / "adapter", base_model_name_or_path="someone/base")
        with pytest.raises(CheckpointError, match=r"'someone/base' .* local_files_only is set"):
            load_checkpoint(folder, local_files_only=True)
        assert loopback.requests == []

    def test_a_base_of_another_size(self, tmp_path: Path) -> None:
        other = random_checkpoint(dims=DIMS.__class__(**{**DIMS.to_dict(), "n_text_layer": 1}))
        with pytest.raises(CheckpointError, match=r"decoder.layers.1.*another model.*base="):
            load_checkpoint(adapter(tmp_path / "adapter"), base=other)


def test_the_base_keeps_its_tokenizer_unless_the_adapter_has_one(
    base: Checkpoint, tmp_path: Path
) -> None:
    folder = adapter(tmp_path / "adapter")
    assert load_checkpoint(folder, base=base).tokenizer_json == base.tokenizer_json
    changed = json.dumps({**json.loads(base.tokenizer_json), "version": "2.0"})
    (folder / "tokenizer.json").write_text(changed, encoding="utf-8")
    assert load_checkpoint(folder, base=base).tokenizer_json == changed


def test_padding_rows_of_the_base(base: Checkpoint, tmp_path: Path) -> None:
    """An adapter of an embedding that was padded, whose padding is left out on reading."""
    values = values_of("embeddings")
    key = "base_model.model.model.decoder.embed_tokens.lora_embedding_A"
    whole = load_checkpoint(adapter(tmp_path / "a", "embeddings"), base=base)
    values = {k: v for k, v in values.items() if not k.endswith("base_layer.weight")}
    values[key] = np.pad(values[key], ((0, 0), (0, 24)))
    config = golden()["cases"]["embeddings"]["config"]
    found = load_checkpoint(write_adapter(tmp_path / "b", config, values), base=base)
    assert found.dims == whole.dims
    rows = base.tensors[EMBEDDING].read() + (values[key].T @ values[key.replace("_A", "_B")].T)[
        : DIMS.n_vocab
    ] * np.float32(config["lora_alpha"] / 2)
    np.testing.assert_allclose(found.tensors[EMBEDDING].read(), rows, atol=1e-5)


def test_a_saved_head_unties(base: Checkpoint, tmp_path: Path) -> None:
    tied = load_checkpoint(adapter(tmp_path / "a", "head"), base=base)
    assert OUTPUT_HEAD not in tied.tensors
    untied = load_checkpoint(adapter(tmp_path / "b", "saved-head"), base=base)
    np.testing.assert_array_equal(
        untied.tensors[OUTPUT_HEAD].read(),
        values_of("saved-head")["base_model.model.proj_out.weight"],
    )
    np.testing.assert_array_equal(untied.tensors[EMBEDDING].read(), base.tensors[EMBEDDING].read())


@pytest.mark.parametrize("prefix", ["base_model.model.", "base_model.model.model.", "module.", ""])
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_names_and_files(kind: str, prefix: str, base: Checkpoint, tmp_path: Path) -> None:
    config = golden()["cases"]["plain"]["config"]
    values = values_of("plain")
    renamed = {key.replace("base_model.model.model.", prefix): v for key, v in values.items()}
    found = load_checkpoint(write_adapter(tmp_path / "a", config, renamed, kind), base=base)
    whole = load_checkpoint(write_adapter(tmp_path / "b", config, values), base=base)
    name = "decoder.blocks.1.cross_attn.query.weight"
    np.testing.assert_array_equal(found.tensors[name].read(), whole.tensors[name].read())


class TestRefused:
    @pytest.mark.parametrize("kind", ["IA3", "ADALORA", "PREFIX_TUNING", "LOHA", None, ["LORA"]])
    def test_other_adapters(self, kind: Any, base: Checkpoint, tmp_path: Path) -> None:
        folder = adapter(tmp_path / "adapter", peft_type=kind)
        with pytest.raises(CheckpointError, match=r"peft_type = .*merge_and_unload"):
            load_checkpoint(folder, base=base)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"use_qalora": True}, "use_qalora, for QALoRA.*merge_and_unload"),
            ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens, for aLoRA"),
            ({"layer_replication": [[0, 1]]}, "layer_replication"),
            ({"init_lora_weights": "pissa"}, "init_lora_weights = 'pissa'.*base's weights"),
            ({"init_lora_weights": "loftq"}, "init_lora_weights = 'loftq'"),
            ({"r": 0}, "r = 0; expected a positive integer"),
            ({"r": 3}, "says rank 3"),
            ({"lora_alpha": None}, "lora_alpha = None"),
            ({"lora_alpha": float("nan")}, "lora_alpha = nan"),
            ({"alpha_pattern": {"(q": 1}}, r"regular expression"),
            ({"alpha_pattern": {"(a+)+": 1}}, "simple regular expressions"),
            ({"alpha_pattern": {".*.*.*.*.*x": 1}}, "simple regular expressions"),
            ({"rank_pattern": [1]}, r"rank_pattern = \[1\]"),
            ({"modules_to_save": "proj_out"}, "a list of module names"),
            ({"trainable_token_indices": ["a"]}, "token ids"),
            ({"base_model_name_or_path": 3}, "base_model_name_or_path = 3"),
        ],
    )
    def test_settings(
        self, changes: dict[str, Any], message: str, base: Checkpoint, tmp_path: Path
    ) -> None:
        folder = adapter(tmp_path / "adapter", **changes)
        with pytest.raises(CheckpointError, match=message):
            load_checkpoint(folder, base=base)

    @pytest.mark.parametrize(
        ("key", "shape", "message"),
        [
            ("decoder.layers.0.self_attn.q_proj.lora_B.weight", None, "lacks one of the two"),
            ("decoder.layers.0.self_attn.q_proj.lora_B.weight", [65, 2], "do not fit"),
            ("decoder.layers.0.self_attn.q_proj.lora_A.weight", [2, 63], "do not fit"),
            ("decoder.layers.0.self_attn.q_proj.lora_A.weight", [2], "have shapes"),
            ("decoder.layers.9.self_attn.q_proj.lora_A.weight", [2, 64], "lacks one|layers.9"),
            ("decoder.layers.0.self_attn.k_proj.bias", [64], "does not have"),
            ("decoder.layers.0.fc1.weight", [64, 64], r"requires? \[256, 64\]|require"),
            ("decoder.layers.0.self_attn.q_proj.lora_diag", [2], "as PEFT saves it"),
            pytest.param("module." * 10_000 + "fc1.weight", [2], "as PEFT saves it", id="long"),
            ("decoder.embed_tokens.token_adapter.trainable_tokens_delta", [2, 64], "no train"),
        ],
    )
    def test_tensors(
        self, key: str, shape: list[int] | None, message: str, base: Checkpoint, tmp_path: Path
    ) -> None:
        values = values_of("plain")
        key = f"base_model.model.model.{key}"
        if shape is None:
            del values[key]
        else:
            values[key] = np.zeros(shape, np.float32)
        folder = write_adapter(tmp_path / "a", golden()["cases"]["plain"]["config"], values)
        with pytest.raises(CheckpointError, match=message):
            load_checkpoint(folder, base=base)

    def test_no_weights(self, base: Checkpoint, tmp_path: Path) -> None:
        folder = adapter(tmp_path / "adapter")
        (folder / "adapter_model.safetensors").unlink()
        with pytest.raises(CheckpointError, match=r"no weights; expected adapter_model\.safet"):
            load_checkpoint(folder, base=base)

    def test_a_truncated_file(self, base: Checkpoint, tmp_path: Path) -> None:
        folder = adapter(tmp_path / "adapter")
        file = folder / "adapter_model.safetensors"
        file.write_bytes(file.read_bytes()[:-1])
        with pytest.raises(CheckpointError, match="incomplete or damaged"):
            load_checkpoint(folder, base=base)
