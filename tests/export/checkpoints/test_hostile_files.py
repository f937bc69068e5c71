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

from tests.support.fuzzing import fuzz, n_inputs
from tests.support.hostile import hostile_json, hostile_pickle, hostile_zip, only_here
from tests.support.models import random_checkpoint, random_dims
from tests.support.models_write import write_ctranslate2, write_huggingface, write_torch
from tests.support.optimum_dirs import huggingface_config
from whisper_opt.core.dims import ModelDims
from whisper_opt.core.errors import CheckpointError, WhisperOptError
from whisper_opt.export.checkpoints import ctranslate2, huggingface, load_checkpoint, sidecar
from whisper_opt.export.checkpoints.blob import Blob
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
        "optimum/config.json": json.dumps(huggingface_config(dims)).encode(),
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


@contextlib.contextmanager
def short_windows() -> Iterator[None]:
    """Loaders take models with few encoder positions, so that the valid files are small."""
    with contextlib.ExitStack() as stack:
        for module in (ctranslate2, huggingface):
            stack.enter_context(mock.patch.object(module, "check_window"))
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


def read_ctranslate2_model(data: bytes) -> None:
    for name in ("config.json", "tokenizer.json"):
        if not Path("ct2", name).exists():
            _write(f"ct2/{name}", valid()[f"ct2/{name}"])
    _write("ct2/model.bin", data)
    with only_here(), short_windows():
        checkpoint = load_checkpoint(Path("ct2"))
        for tensor in random.Random(data).sample(list(checkpoint.tensors.values()), 2):
            assert tensor.read().shape == tensor.shape


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
    for name, content in _optimum().items():
        _write(name, content)
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
    "ctranslate2": (read_ctranslate2_model, "ct2/model.bin"),
    "configuration": (read_config, "hf/config.json"),
    "tokenizer": (read_tokenizer, "hf/tokenizer.json"),
    "manifest": (read_manifest, "manifest.json"),
    "optimum": (read_optimum_directory, "optimum/encoder_model.onnx"),
}


def test_the_valid_files_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, reader in (("x.safetensors", read_safetensors), ("x.pt", read_torch)):
        _values(reader(_write(name, valid()[name])))
    for name, content in valid().items():
        _write(name, content)
    with short_windows():
        for name in ("hf", "ct2", "shards"):
            assert load_checkpoint(Path(name)).dims == DIMS
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


def test_dims_without_end() -> None:
    """The names of all tensors depend on them."""
    for name in ("n_text_layer", "n_audio_layer", "n_vocab"):
        values = {**DIMS.to_dict(), name: 1 << 40}
        with pytest.raises(WhisperOptError, match="no Whisper model is of that size"):
            ModelDims.from_dict(values)


# --- faults that were found -----------------------------------------------------------------------


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
