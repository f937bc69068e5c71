"""Tests of all formats, and of recognising them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
import tracemalloc
import types
from pathlib import Path
from typing import Callable

import numpy as np
import pytest

from tests.support.flax_write import write_flax
from tests.support.ggml_write import write_ggml
from tests.support.models import TURBO, random_checkpoint, random_dims
from tests.support.models_write import (
    rounded,
    write_ctranslate2,
    write_huggingface,
    write_openai_pt,
)
from whisper_opt.core.errors import BackendUnavailable, CheckpointError
from whisper_opt.export.checkpoints import Checkpoint, expected_shapes, load_checkpoint

ENGLISH = random_dims(n_vocab=51864, n_audio_state=64, n_text_state=64, n_audio_layer=1)


def write_pt(checkpoint: Checkpoint, directory: Path, dtype: str, *, legacy: bool = False) -> Path:
    directory.mkdir()
    (directory / "tokenizer.json").write_text(checkpoint.tokenizer_json, encoding="utf-8")
    return write_openai_pt(checkpoint, directory / "model.pt", dtype, legacy=legacy)


def write_whisper_cpp(checkpoint: Checkpoint, directory: Path, dtype: str) -> Path:
    directory.mkdir()
    return write_ggml(checkpoint, directory / "ggml-model.bin", dtype)


WRITERS: dict[str, Callable[[Checkpoint, Path, str], Path]] = {
    "safetensors": lambda c, d, t: write_huggingface(c, d, dtype=t),
    "safetensors-shards": lambda c, d, t: write_huggingface(c, d, dtype=t, shards=3),
    "bin": lambda c, d, t: write_huggingface(c, d, dtype=t, kind="bin"),
    "bin-shards": lambda c, d, t: write_huggingface(c, d, dtype=t, kind="bin", shards=2),
    "bin-legacy": lambda c, d, t: write_huggingface(c, d, dtype=t, kind="legacy-bin"),
    "flax": lambda c, d, t: write_flax(c, d, dtype=t),
    "flax-shards": lambda c, d, t: write_flax(c, d, dtype=t, shards=3),
    "bare-names": lambda c, d, t: write_huggingface(c, d, dtype=t, prefix=""),
    "openai": write_pt,
    "openai-legacy": lambda c, d, t: write_pt(c, d, t, legacy=True),
    "ctranslate2": lambda c, d, t: write_ctranslate2(c, d, dtype=t),
}


@pytest.fixture(scope="module")
def turbo() -> Checkpoint:
    return random_checkpoint(TURBO, seed=1)


def assert_same(found: Checkpoint, wanted: Checkpoint, dtype: str) -> None:
    assert found.dims == wanted.dims
    assert set(found.tensors) == set(expected_shapes(wanted.dims))
    for name, tensor in wanted.tensors.items():
        values = found.tensors[name].read()
        assert values.dtype == np.float32
        assert values.flags.c_contiguous
        assert found.tensors[name].shape == values.shape
        np.testing.assert_array_equal(values, rounded(tensor.read(), dtype), err_msg=name)
    assert found.source.dtype == dtype


@pytest.mark.parametrize("kind", WRITERS)
def test_every_format_gives_the_tensors_written(
    kind: str, turbo: Checkpoint, tmp_path: Path
) -> None:
    found = load_checkpoint(WRITERS[kind](turbo, tmp_path / "turbo", "float16"))
    assert_same(found, turbo, "float16")
    assert found.tokenizer_json == turbo.tokenizer_json
    if not kind.startswith("openai"):
        assert found.alignment_heads == turbo.alignment_heads
        assert found.suppress_tokens == turbo.suppress_tokens
        assert found.begin_suppress_tokens == turbo.begin_suppress_tokens


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "kind", ["safetensors", "bin", "bin-legacy", "flax", "openai", "openai-legacy", "ctranslate2"]
)
def test_storage_types(kind: str, dtype: str, small: Checkpoint, tmp_path: Path) -> None:
    found = load_checkpoint(WRITERS[kind](small, tmp_path / "m", dtype))
    assert_same(found, small, dtype)


@pytest.mark.parametrize("kind", ["safetensors", "openai", "ctranslate2"])
def test_english_only_vocabulary(kind: str, tmp_path: Path) -> None:
    wanted = random_checkpoint(ENGLISH, seed=2)
    found = load_checkpoint(str(WRITERS[kind](wanted, tmp_path / "m", "float16")))
    assert_same(found, wanted, "float16")


def test_source_names_files_and_digests(small: Checkpoint, tmp_path: Path) -> None:
    folder = write_huggingface(small, tmp_path / "mine", shards=2)
    source = load_checkpoint(folder).source
    files = sorted(folder.glob("model-*"))
    assert source.format == "huggingface"
    assert source.name == "mine"
    assert source.sha256 == {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files
    }


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        *((kind, "float16") for kind in ("safetensors", "bin", "openai", "ctranslate2")),
        *((kind, "float16") for kind in ("bin-legacy", "openai-legacy", "flax")),
        *(("ctranslate2", "int8_float16"), ("ctranslate2", "int16"), ("ggml", "float16")),
    ],
)
def test_loading_and_reading_keep_only_one_tensor_in_memory(
    kind: str, dtype: str, wide: Checkpoint, tmp_path: Path
) -> None:
    path = (write_whisper_cpp if kind == "ggml" else WRITERS[kind])(wide, tmp_path / "m", dtype)
    largest = 4 * 51865 * 64  # the embedding, as float32
    checkpoint = load_checkpoint(path)
    checkpoint.tensors["decoder.ln.bias"].read()  # imports and caches
    tracemalloc.start()
    try:
        for tensor in checkpoint.tensors.values():
            tensor.read()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert largest < peak < 1.9 * largest


def test_a_file_changed_after_loading_is_noticed(small: Checkpoint, tmp_path: Path) -> None:
    folder = write_huggingface(small, tmp_path / "m")
    checkpoint = load_checkpoint(folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    last = list(checkpoint.tensors)[-1]
    with pytest.raises(CheckpointError, match="incomplete"):
        checkpoint.tensors[last].read()
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"cannot read model\.safetensors"):
        checkpoint.tensors[last].read()


@pytest.mark.parametrize("kind", ["safetensors", "bin", "openai"])
def test_missing_tensor(kind: str, small: Checkpoint, tmp_path: Path) -> None:
    tensors = dict(small.tensors)
    broken = types.SimpleNamespace(**{**vars(small), "tensors": tensors})
    del tensors["decoder.blocks.0.cross_attn.value.bias"]
    path = WRITERS[kind](broken, tmp_path / "m", "float16")  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match=r"lacks 1 of .*cross_attn\.value\.bias"):
        load_checkpoint(path)


@pytest.mark.parametrize("kind", ["safetensors", "bin", "openai"])
def test_wrong_shape(kind: str, small: Checkpoint, tmp_path: Path) -> None:
    wrong = dataclasses.replace(
        small.tensors["encoder.conv1.weight"], read=lambda: np.zeros((64, 81, 3), np.float32)
    )
    tensors = {**small.tensors, "encoder.conv1.weight": wrong}
    broken = types.SimpleNamespace(**{**vars(small), "tensors": tensors})
    path = WRITERS[kind](broken, tmp_path / "m", "float16")  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match=r"conv1.*\[64, 81, 3\].*\[64, 80, 3\]"):
        load_checkpoint(path)


@pytest.mark.parametrize("kind", ["safetensors", "ctranslate2"])
def test_missing_tokenizer_names_the_fix(kind: str, small: Checkpoint, tmp_path: Path) -> None:
    path = WRITERS[kind](small, tmp_path / "m", "float16")
    (path / "tokenizer.json").rename(tmp_path / "elsewhere.json")
    with pytest.raises(CheckpointError, match="tokenizer="):
        load_checkpoint(path)
    found = load_checkpoint(path, tokenizer=tmp_path / "elsewhere.json")
    assert found.tokenizer_json == small.tokenizer_json
    with pytest.raises(CheckpointError, match="does not exist"):
        load_checkpoint(path, tokenizer=tmp_path / "nowhere.json")


def test_tokenizer_of_another_model(wide: Checkpoint, tmp_path: Path) -> None:
    path = write_huggingface(wide, tmp_path / "m")
    english = random_checkpoint(ENGLISH).tokenizer_json
    (path / "tokenizer.json").write_text(english, encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"51864 ids.*51865: it belongs to another model"):
        load_checkpoint(path)


class TestRecognition:
    def test_neither_path_nor_hub_id(self, tmp_path: Path) -> None:
        for name in (str(tmp_path / "none"), "none", "folder/none.pt", tmp_path / "none"):
            with pytest.raises(CheckpointError, match="neither an existing path nor a Hugging"):
                load_checkpoint(name)

    def test_empty_directory(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match=r"looked for model\.safetensors, .*model\.bin"):
            load_checkpoint(tmp_path)

    def test_adapter_only(self, tmp_path: Path) -> None:
        (tmp_path / "adapter_config.json").write_text("{}", encoding="utf-8")
        with pytest.raises(CheckpointError, match="merge"):
            load_checkpoint(tmp_path)

    def test_one_file_of_a_directory(self, small: Checkpoint, tmp_path: Path) -> None:
        folder = write_ctranslate2(small, tmp_path / "m")
        with pytest.raises(CheckpointError, match="pass the directory"):
            load_checkpoint(folder / "model.bin")

    def test_other_file(self, tmp_path: Path) -> None:
        (tmp_path / "notes.txt").write_text("not a model", encoding="utf-8")
        with pytest.raises(CheckpointError, match=r"notes\.txt is not a checkpoint"):
            load_checkpoint(tmp_path / "notes.txt")

    @pytest.mark.parametrize(
        ("start", "message"),
        [
            (b"GGUF\3\0\0\0", r"a GGUF file; whisper\.cpp .*convert-h5-to-ggml"),
            (b"tjgg\1\0\0\0", r"a ggjt file of llama\.cpp"),
            (b"fmgg\1\0\0\0", r"a ggmf file of llama\.cpp"),
            (b"\x89HDF\r\n\x1a\n", r"an HDF5 file of TensorFlow.*from_tf=True"),
        ],
    )
    def test_formats_that_are_not_read(self, start: bytes, message: str, tmp_path: Path) -> None:
        (tmp_path / "x.bin").write_bytes(start + bytes(100))
        with pytest.raises(CheckpointError, match=message):
            load_checkpoint(tmp_path / "x.bin")

    def test_a_directory_of_tensorflow(self, tmp_path: Path) -> None:
        (tmp_path / "tf_model.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
        with pytest.raises(CheckpointError, match=r"tf_model\.h5 is an HDF5 file"):
            load_checkpoint(tmp_path)

    def test_revision_of_a_local_path(self, small: Checkpoint, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="revision 'main'"):
            load_checkpoint(write_huggingface(small, tmp_path / "m"), revision="main")


class TestHub:
    def test_client_not_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "huggingface_hub", None)
        with pytest.raises(BackendUnavailable, match=r"pip install '\.\[hf\]'"):
            load_checkpoint("someone/model")

    def test_an_existing_path_wins(
        self, small: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "huggingface_hub", None)
        monkeypatch.chdir(tmp_path)
        write_huggingface(small, tmp_path / "someone" / "model")
        assert_same(load_checkpoint("someone/model"), small, "float16")


def test_json_errors_name_the_file(small: Checkpoint, tmp_path: Path) -> None:
    folder = write_huggingface(small, tmp_path / "m")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for text in ("{", "[]", json.dumps({**config, "d_model": "wide"})):
        (folder / "config.json").write_text(text, encoding="utf-8")
        with pytest.raises(CheckpointError, match=r"config\.json"):
            load_checkpoint(folder)
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load_checkpoint(folder)
