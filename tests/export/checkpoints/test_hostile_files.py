"""Damaged and hostile files by the thousand: each is refused with an error of the library.

Nothing else may happen: no other exception, no crash, nothing opened that is elsewhere, at most one
gigabyte of memory and ten seconds each. WHISPER_OPT_FUZZ sets how many per reader.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
import random
import struct
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Callable
from unittest import mock

import numpy as np
import onnx
import pytest
from onnx import helper

from tests.support.flax_write import write_flax
from tests.support.fuzzing import fuzz, n_inputs
from tests.support.ggml_write import write_ggml
from tests.support.hostile import (
    hostile_json,
    hostile_legacy,
    hostile_pickle,
    hostile_zip,
    only_here,
)
from tests.support.models import random_checkpoint, random_dims
from tests.support.models_write import (
    write_ctranslate2,
    write_huggingface,
    write_safetensors,
    write_torch,
    write_torch_legacy,
)
from tests.support.optimum_dirs import optimum_config
from whisper_opt.core.errors import WhisperOptError
from whisper_opt.export.checkpoints import (
    Checkpoint,
    ctranslate2,
    ggml,
    huggingface,
    load_checkpoint,
)
from whisper_opt.export.checkpoints.blob import Blob
from whisper_opt.export.checkpoints.flax_msgpack import read_flax
from whisper_opt.export.checkpoints.safetensors_file import read_safetensors
from whisper_opt.export.checkpoints.tokenizer import find_tokenizer
from whisper_opt.export.checkpoints.torch_pickle import read_torch
from whisper_opt.runtime.engine import read_engine
from whisper_opt.runtime.head_names import OWN_HEAD
from whisper_opt.runtime.optimum.directory import read_optimum
from whisper_opt.runtime.tensors import TENSOR_SHAPES

N_INPUTS = 10_000
DIMS = random_dims(
    n_mels=1,
    n_audio_ctx=4,
    n_text_ctx=4,
    n_audio_state=64,
    n_text_state=64,
    n_audio_layer=1,
    n_text_layer=1,
    n_vocab=400,
)


@functools.cache
def valid() -> Mapping[str, bytes]:
    """Small valid files by name; always the same bytes."""
    checkpoint = random_checkpoint(DIMS)
    found = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_huggingface(checkpoint, folder / "hf")
        write_ctranslate2(checkpoint, folder / "ct2")
        values = np.arange(12, dtype=np.float32).reshape(3, 4)
        nested = {"a": values, "b": {"t": np.asfortranarray(values)}, "dims": DIMS.to_dict()}
        write_torch(folder / "x.pt", nested)
        write_torch_legacy(folder / "old.pt", nested)
        write_ctranslate2(checkpoint, folder / "int8", dtype="int8_float16")
        write_flax(checkpoint, folder / "flax")
        _write_adapter(folder / "lora")
        (folder / "ggml").mkdir()
        write_ggml(checkpoint, folder / "ggml" / "ggml-x.bin", "q5_1")
        for path in sorted(folder.rglob("*.*")):
            found[str(path.relative_to(folder))] = path.read_bytes()
    entries = {"a": [2, 3], "b": [4], "c": []}
    header, end = {}, 0
    for key, shape in entries.items():
        begin, end = end, end + 4 * int(np.prod(shape))
        header[key] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    found["x.safetensors"] = struct.pack("<Q", len(text)) + text + bytes(end)
    found.update(_parts(found))
    found["manifest.json"] = _manifest()
    found.update(_optimum())
    found["shards/one.safetensors"] = weights = found["hf/model.safetensors"]
    names = json.loads(weights[8 : 8 + struct.unpack("<Q", weights[:8])[0]])
    index = {"weight_map": {name: "one.safetensors" for name in names if name != "__metadata__"}}
    found["shards/model.safetensors.index.json"] = json.dumps(index).encode()
    for name in ("config.json", "tokenizer.json"):
        found[f"shards/{name}"] = found[f"hf/{name}"]
    return found


def _write_adapter(folder: Path) -> None:
    folder.mkdir()
    settings = {
        "peft_type": "LORA",
        "base_model_name_or_path": None,
        "r": 2,
        "lora_alpha": 4,
        "use_rslora": True,
        "rank_pattern": {"fc1": 1, "v_proj": 1},
        "alpha_pattern": {r".*layers.\d+.(fc1|fc2)": 3},
        "modules_to_save": ["layer_norm"],
        "trainable_token_indices": [5, 7],
        "init_lora_weights": True,
    }
    (folder / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
    layer = "base_model.model.model.decoder.layers.0"
    shapes = {
        f"{layer}.self_attn.q_proj.lora_A.weight": (2, 64),
        f"{layer}.self_attn.q_proj.lora_B.weight": (64, 2),
        f"{layer}.self_attn.q_proj.lora_magnitude_vector": (64,),
        f"{layer}.fc1.lora_A.weight": (1, 64),
        f"{layer}.fc1.lora_B.weight": (256, 1),
        f"{layer}.fc1.lora_B.bias": (256,),
        "base_model.model.model.decoder.layer_norm.bias": (64,),
        "base_model.model.model.decoder.embed_tokens.token_adapter.trainable_tokens_delta": (2, 64),
    }
    values = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    write_safetensors(folder / "adapter_model.safetensors", values)


def _parts(found: Mapping[str, bytes]) -> dict[str, bytes]:
    """The older files of a tokenizer."""
    tokenizer = json.loads(found["hf/tokenizer.json"])
    added = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    model = tokenizer["model"]
    merges = "\n".join(["#version: 0.2", *model["merges"], ""])
    return {
        "parts/vocab.json": json.dumps(model["vocab"]).encode(),
        "parts/added_tokens.json": json.dumps(added).encode(),
        "parts/merges.txt": merges.encode(),
    }


@functools.cache
def _optimum() -> dict[str, bytes]:
    """The parts of a directory of Optimum that are not read by ONNX Runtime."""
    dims = random_dims(n_vocab=2000)
    tensor = onnx.TensorProto(name="w", data_location=onnx.TensorProto.EXTERNAL, dims=[1])
    tensor.external_data.add(key="location", value="encoder_model.onnx_data")
    inner = helper.make_graph([], "inner", [], [], [tensor])
    branch = helper.make_node("If", ["c"], ["z"], then_branch=inner, else_branch=inner)
    model = helper.make_model(helper.make_graph([branch], "g", [], []))
    generation = {"alignment_heads": [[0, 1]], "suppress_tokens": [1], "is_multilingual": False}
    return {
        "optimum/config.json": json.dumps(optimum_config(dims)).encode(),
        "optimum/generation_config.json": json.dumps(generation).encode(),
        "optimum/tokenizer.json": b"{}",
        "optimum/encoder_model.onnx": model.SerializeToString(),
        "optimum/decoder_model_merged.onnx": model.SerializeToString(),
        "optimum/encoder_model.onnx_data": bytes(4),
    }


ENGINE = {
    name: f"{name}, or as many bytes".encode()
    + bytes(2 * 65 * 400 if name == "decoder.data" else 64)
    for name in ("tokenizer.json", "encoder.onnx", "encoder.data", "decoder.onnx", "decoder.data")
}
HEAD_TENSORS = sorted(TENSOR_SHAPES.keys() - {OWN_HEAD})


def _manifest() -> bytes:
    files = {
        name: {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in ENGINE.items()
    }
    sizes = DIMS.to_dict()
    shapes = {name: [sizes.get(str(n), 1) for n in TENSOR_SHAPES[name]] for name in HEAD_TENSORS}
    values = {
        "format_version": 4,
        "dims": DIMS.to_dict(),
        "precision": "fp32",
        "dialect": "contrib",
        "alignment_heads": [[0, 0]],
        "suppress_tokens": [1, 2],
        "begin_suppress_tokens": None,
        "source": {"format": "openai", "name": "tiny", "dtype": "float32", "sha256": {}},
        "tools": {"whisper_opt": "1"},
        "parity": {"encoder": 1e-5},
        "files": files,
        "tensors": {
            name: {"file": "decoder.data", "offset": 16, "shape": shape, "dtype": "float16"}
            for name, shape in shapes.items()
        },
        "padding": [1, 3],
        "calibration": {},
    }
    return json.dumps(values).encode()


# --- readers of one input; run in a child process ------------------------------------------------


def _any_window(*arguments: Any) -> None:
    """Takes any dimensions."""


@contextlib.contextmanager
def short_windows() -> Iterator[None]:
    """Loaders take models with few encoder positions, so that the valid files are small."""
    with contextlib.ExitStack() as stack:
        for module in (ctranslate2, ggml, huggingface):
            stack.enter_context(mock.patch.object(module, "check_window", _any_window))
        yield


def _values(found: Any) -> None:
    """Read every tensor in what was loaded."""
    if isinstance(found, Blob):
        assert found.read().shape == found.shape
    elif isinstance(found, dict):
        for value in found.values():
            _values(value)


def _write(name: str, data: bytes) -> Path:
    path = Path(name)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    return path


def read_safetensors_file(data: bytes) -> None:
    chance = random.Random(data)
    if chance.random() < 0.7:
        seed = valid()["x.safetensors"]
        size = struct.unpack("<Q", seed[:8])[0]
        text = hostile_json(chance, seed[8 : 8 + size].decode())
        size = chance.choice((len(text),) * 9 + (len(text) + 1, 1 << 63, 0, 100_000_000))
        data = struct.pack("<Q", size) + text + seed[8 + struct.unpack("<Q", seed[:8])[0] :]
    path = _write("x.safetensors", data)
    with only_here():
        _values(read_safetensors(path))


def read_torch_file(data: bytes) -> None:
    chance = random.Random(data)
    if chance.random() < 0.8:
        data = valid()["x.pt"]
        if chance.random() < 0.8:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                members = {name: archive.read(name) for name in archive.namelist()}
            members["x/data.pkl"] = hostile_pickle(chance, members["x/data.pkl"])
            raw = io.BytesIO()
            with zipfile.ZipFile(raw, "w") as archive:
                for name, content in members.items():
                    archive.writestr(zipfile.ZipInfo(name), content)
            data = raw.getvalue()
        if chance.random() < 0.3:
            data = hostile_zip(chance, data)
    path = _write("x.pt", data)
    with only_here():
        _values(read_torch(path))


def read_legacy_torch_file(data: bytes) -> None:
    chance = random.Random(data)
    if chance.random() < 0.7:
        data = hostile_legacy(chance, valid()["old.pt"])
    path = _write("old.pt", data)
    with only_here():
        _values(read_torch(path))


def read_flax_file(data: bytes) -> None:
    path = _write("flax_model.msgpack", data)
    with only_here():
        found = read_flax(path)
        _values(dict(random.Random(data).sample(sorted(found.items()), min(2, len(found)))))


def _read_model(place: Path, data: bytes) -> None:
    """Load a checkpoint and read two of its tensors."""
    with only_here(), short_windows():
        checkpoint = load_checkpoint(place)
        for tensor in random.Random(data).sample(list(checkpoint.tensors.values()), 2):
            assert tensor.read().shape == tensor.shape


def read_ctranslate2_model(data: bytes) -> None:
    for name in ("config.json", "tokenizer.json"):
        if not Path("ct2", name).exists():
            _write(f"ct2/{name}", valid()[f"ct2/{name}"])
    _write("ct2/model.bin", data)
    _read_model(Path("ct2"), data)


def read_ggml_model(data: bytes) -> None:
    if not Path("ggml/tokenizer.json").exists():
        _write("ggml/tokenizer.json", valid()["ggml/tokenizer.json"])
    _read_model(_write("ggml/ggml-x.bin", data), data)


def read_adapter(data: bytes) -> None:
    """An adapter with a changed configuration or changed weights, on a valid base."""
    chance = random.Random(data)
    weights = valid()["lora/adapter_model.safetensors"]
    settings = valid()["lora/adapter_config.json"]
    if chance.random() < 0.6:
        settings = hostile_json(chance, settings.decode())
    elif chance.random() < 0.7:
        size = struct.unpack("<Q", weights[:8])[0]
        text = hostile_json(chance, weights[8 : 8 + size].decode())
        weights = struct.pack("<Q", len(text)) + text + weights[8 + size :]
    else:
        weights = data
    _write("lora/adapter_config.json", settings)
    _write("lora/adapter_model.safetensors", weights)
    with only_here():
        checkpoint = load_checkpoint(Path("lora"), base=_base())
        with np.errstate(all="ignore"):
            for name in ("decoder.blocks.0.attn.query.weight", "decoder.token_embedding.weight"):
                tensor = checkpoint.tensors[name]
                assert tensor.read().shape == tensor.shape


@functools.cache
def _base() -> Checkpoint:
    return random_checkpoint(DIMS)


CONFIGS = (
    ("ct2", "config.json", ("model.bin", "tokenizer.json")),
    ("hf", "config.json", ("model.safetensors", "tokenizer.json", "generation_config.json")),
    ("hf", "generation_config.json", ("model.safetensors", "tokenizer.json", "config.json")),
    (
        "shards",
        "model.safetensors.index.json",
        ("one.safetensors", "config.json", "tokenizer.json"),
    ),
)


def read_config(data: bytes) -> None:
    """A changed JSON file among valid files."""
    chance = random.Random(data)
    folder, name, others = chance.choice(CONFIGS)
    for other in others:
        if not Path(folder, other).exists():
            _write(f"{folder}/{other}", valid()[f"{folder}/{other}"])
    before = valid()[f"{folder}/{name}"]
    path = _write(f"{folder}/{name}", hostile_json(chance, before.decode()))
    try:
        with only_here(), short_windows():
            load_checkpoint(Path(folder))
    finally:
        path.write_bytes(before)


def read_tokenizer(data: bytes) -> None:
    chance = random.Random(data)
    if chance.random() < 0.6:
        if chance.random() < 0.7:
            data = hostile_json(chance, valid()["hf/tokenizer.json"].decode())
        path = _write("tokenizer.json", data)
    else:
        path = Path("parts")
        names = ("vocab.json", "added_tokens.json", "merges.txt")
        for name in names:
            _write(f"parts/{name}", valid()[f"parts/{name}"])
        name = chance.choice(names)
        text = valid()[f"parts/{name}"].decode()
        changed = data if name == "merges.txt" else hostile_json(chance, text)
        _write(f"parts/{name}", changed)
    with only_here():
        find_tokenizer(path, DIMS).encode("utf-8")


def read_manifest(data: bytes) -> None:
    chance = random.Random(data)
    for name, content in ENGINE.items():
        if not Path("engine", name).exists():
            _write(f"engine/{name}", content)
    if chance.random() < 0.8:
        data = hostile_json(chance, valid()["manifest.json"].decode())
    _write("engine/manifest.json", data)
    with only_here():
        engine = read_engine("engine", verify=chance.random() < 0.5)
        engine.tokenizer_json()
        for name in engine.manifest.tensors:
            repr(np.array(engine.tensor(name)))


def read_optimum_directory(data: bytes) -> None:
    """A changed graph or configuration among valid files."""
    chance = random.Random(data)
    changed = ("encoder_model.onnx", "config.json", "generation_config.json")
    for name in _optimum():
        if name.split("/")[1] in changed or not Path(name).exists():
            _write(name, valid()[name])
    if chance.random() < 0.5:
        _write("optimum/encoder_model.onnx", data)
    else:
        name = chance.choice(("optimum/config.json", "optimum/generation_config.json"))
        _write(name, hostile_json(chance, valid()[name].decode()))
    with only_here():
        read_optimum(Path("optimum")).select("auto")


# --- the tests -----------------------------------------------------------------------------------


READERS: Mapping[str, tuple[Callable[[bytes], None], str]] = {
    "safetensors": (read_safetensors_file, "x.safetensors"),
    "torch": (read_torch_file, "x.pt"),
    "legacy-torch": (read_legacy_torch_file, "old.pt"),
    "flax": (read_flax_file, "flax/flax_model.msgpack"),
    "ctranslate2": (read_ctranslate2_model, "ct2/model.bin"),
    "ctranslate2-int8": (read_ctranslate2_model, "int8/model.bin"),
    "ggml": (read_ggml_model, "ggml/ggml-x.bin"),
    "adapter": (read_adapter, "lora/adapter_model.safetensors"),
    "configuration": (read_config, "hf/config.json"),
    "tokenizer": (read_tokenizer, "hf/tokenizer.json"),
    "manifest": (read_manifest, "manifest.json"),
    "optimum": (read_optimum_directory, "optimum/encoder_model.onnx"),
}


def test_the_valid_files_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    readers = {"x.safetensors": read_safetensors, "x.pt": read_torch, "old.pt": read_torch}
    for name, reader in readers.items():
        _values(reader(_write(name, valid()[name])))
    for name, content in valid().items():
        _write(name, content)
    with short_windows():
        for name in ("hf", "ct2", "shards", "int8", "flax", "ggml/ggml-x.bin"):
            assert load_checkpoint(Path(name)).dims == DIMS
        assert load_checkpoint(Path("lora"), base=_base()).dims == DIMS
    assert isinstance(find_tokenizer(Path("parts"), DIMS), str)
    for name, content in {**ENGINE, "manifest.json": valid()["manifest.json"]}.items():
        _write(f"engine/{name}", content)
    assert read_optimum(Path("optimum")).select("auto").precision == "fp32"
    engine = read_engine("engine", verify=True)
    assert {engine.tensor(name).dtype.name for name in HEAD_TENSORS} == {"float16"}


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited on Linux alone")
@pytest.mark.slow
@pytest.mark.fuzz
@pytest.mark.parametrize("name", READERS)
def test_changed_files(name: str) -> None:
    reader, seed = READERS[name]
    target = f"{__name__}:{reader.__name__}"
    failures = fuzz(target, {seed: valid()[seed]}, n_inputs(N_INPUTS))
    assert not failures, "\n\n".join(map(str, failures))


def test_files_elsewhere_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check above can fail."""
    outside = tmp_path / "outside"
    outside.write_text("secret", encoding="utf-8")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with only_here(), pytest.raises(AssertionError, match="is opened, which is not in"):
        Path("../outside").read_text(encoding="utf-8")
    assert outside.read_text(encoding="utf-8") == "secret"
    assert issubclass(WhisperOptError, Exception)
