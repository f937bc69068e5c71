"""Opening an engine directory, and messages if it cannot be opened."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
from pathlib import Path
from typing import Any, Callable

import pytest

from tests.support.models import random_dims
from whisper_opt.core.errors import EngineError
from whisper_opt.runtime.engine import (
    ENGINE_FILES,
    FORMAT_VERSION,
    MANIFEST,
    FileEntry,
    Manifest,
    read_engine,
    sha256,
)
from whisper_opt.runtime.head_names import EMBEDDING, NORM, OWN_HEAD
from whisper_opt.runtime.tensors import TENSOR_SHAPES, TensorEntry, map_tensor

Change = Callable[[dict[str, Any]], None]


def manifest_of(folder: Path) -> Manifest:
    return Manifest(
        dims=random_dims(),
        precision="fp32",
        dialect="contrib",
        alignment_heads=((1, 0), (1, 1)),
        suppress_tokens=(1, 2, 50257),
        begin_suppress_tokens=None,
        source={"format": "openai", "name": "tiny.pt", "sha256": {"tiny.pt": "00ff"}},
        tools={"onnx": "1.19"},
        parity={"logits_error": 1.25e-05, "openai_whisper": None},
        files={
            name: FileEntry((folder / name).stat().st_size, sha256(folder / name))
            for name in ENGINE_FILES
        },
    )


@pytest.fixture
def engine_dir(tmp_path: Path) -> Path:
    """A directory with a valid manifest; its graphs are arbitrary bytes."""
    folder = tmp_path / "engine"
    folder.mkdir()
    for i, name in enumerate(ENGINE_FILES):
        (folder / name).write_bytes(f"content of {name}".encode() * (i + 1))
    (folder / MANIFEST).write_text(manifest_of(folder).to_json(), encoding="utf-8")
    return folder


def message(folder: Path, *, verify: bool = False) -> str:
    with pytest.raises(EngineError) as caught:
        read_engine(folder, verify=verify)
    return str(caught.value)


def edit(folder: Path, change: Change) -> None:
    """Change the manifest as parsed JSON."""
    values = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    change(values)
    (folder / MANIFEST).write_text(json.dumps(values), encoding="utf-8")


@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize("kind", [str, Path])
def test_opens(engine_dir: Path, kind: Callable[[Path], Any], verify: bool) -> None:
    engine = read_engine(kind(engine_dir), verify=verify)
    assert engine.path == engine_dir
    assert engine.manifest == manifest_of(engine_dir)
    assert engine.file("decoder.onnx") == engine_dir / "decoder.onnx"
    assert engine.tokenizer_json() == "content of tokenizer.json"


def test_a_manifest_round_trip(engine_dir: Path) -> None:
    first = manifest_of(engine_dir)
    none = dataclasses.replace(first, alignment_heads=None, suppress_tokens=None)
    empty = dataclasses.replace(first, alignment_heads=(), suppress_tokens=())
    told = dataclasses.replace(first, multilingual=False)
    for manifest in (first, none, empty, told):
        text = manifest.to_json()
        assert Manifest.from_json(text, "here") == manifest
        assert next(iter(json.loads(text))) == "format_version"
    assert '"suppress_tokens": [1, 2, 50257]' in first.to_json()  # lists on one line


def test_a_manifest_has_the_multilingual_flag(engine_dir: Path) -> None:
    first = manifest_of(engine_dir)
    assert first.dims.n_vocab == 51865
    assert first.is_multilingual  # from the size, as for older engines
    assert not dataclasses.replace(first, multilingual=False).is_multilingual
    small = dataclasses.replace(first, dims=random_dims(n_vocab=2000))
    assert not small.is_multilingual
    assert dataclasses.replace(small, multilingual=True).is_multilingual
    text = first.to_json().replace('"precision"', '"multilingual": "yes",\n  "precision"')
    with pytest.raises(EngineError, match="multilingual is 'yes', expected true or false"):
        Manifest.from_json(text, "here")


def test_no_directory(tmp_path: Path) -> None:
    said = message(tmp_path / "nothing")
    assert f"no engine at {tmp_path / 'nothing'}" in said
    assert f"whisper-opt export SOURCE {tmp_path / 'nothing'}" in said


def test_a_file_instead_of_a_directory(tmp_path: Path) -> None:
    file = tmp_path / "model.pt"
    file.write_bytes(b"weights")
    said = message(file)
    assert f"{file} is a file" in said
    assert "expected an engine directory holding manifest.json" in said


def test_a_directory_without_manifest(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    said = message(tmp_path)
    assert f"{tmp_path} holds no manifest.json" in said
    assert "whisper-opt export --help" in said


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not json",
        b"[1, 2]",
        b'"text"',
        b"7",
        b"null",
        b"{}",
        b'{"format_version"',
        b"\xff\xfe\x00garbage",
        b"[" * 100_000,
        b'{"format_version": ' + b"9" * 5_000 + b"}",
        b'{"format_version": 4, "format_version": 4}',
        b'{"format_version": NaN}',
        b'{"format_version": -Infinity}',
        b'{"format_version": 4, "more": "' + b"x" * (17 << 20) + b'"}',
    ],
    ids=lambda content: content[:24].decode("latin-1"),
)
def test_a_garbage_manifest(engine_dir: Path, content: bytes) -> None:
    (engine_dir / MANIFEST).write_bytes(content)
    said = message(engine_dir)
    assert str(engine_dir / MANIFEST) in said
    assert "is not an engine manifest" in said or "cannot read" in said


def test_a_newer_format(engine_dir: Path) -> None:
    edit(engine_dir, lambda values: values.update(format_version=FORMAT_VERSION + 1))
    said = message(engine_dir)
    assert f"{engine_dir / MANIFEST} has format version {FORMAT_VERSION + 1}" in said
    assert f"reads up to {FORMAT_VERSION}" in said
    assert "upgrade whisper-opt" in said


def test_a_newer_format_wins_over_fields_it_may_not_have(engine_dir: Path) -> None:
    newer = json.dumps({"format_version": FORMAT_VERSION + 1})
    (engine_dir / MANIFEST).write_text(newer, encoding="utf-8")
    assert "upgrade whisper-opt" in message(engine_dir)


@pytest.mark.parametrize("version", [0, -1, "1", 1.5, None, [1]])
def test_an_impossible_format_version(engine_dir: Path, version: object) -> None:
    edit(engine_dir, lambda values: values.update(format_version=version))
    said = message(engine_dir)
    assert f"has format version {version!r}; expected {FORMAT_VERSION}" in said


OTHERWISE = (
    "format_version",
    "calibration",
    "multilingual",
    "padding",
)  # tested above; optional
FIELDS = [f.name for f in dataclasses.fields(Manifest) if f.name not in OTHERWISE]


@pytest.mark.parametrize("name", FIELDS)
def test_a_missing_field(engine_dir: Path, name: str) -> None:
    edit(engine_dir, lambda values: values.pop(name))
    said = message(engine_dir)
    assert f"{engine_dir / MANIFEST} is malformed" in said
    assert name in said
    assert "export the engine again" in said


@pytest.mark.parametrize(
    "change",
    [
        lambda values: values.update(dims=3),
        lambda values: values["dims"].update(n_mels=0),
        lambda values: values["dims"].update(n_text_head=3),
        lambda values: values["dims"].pop("n_vocab"),
        lambda values: values.update(alignment_heads=[1, 2]),
        lambda values: values.update(alignment_heads=[[1, 2, 3]]),
        lambda values: values.update(suppress_tokens=["many"]),
        lambda values: values.update(source=None),
        lambda values: values.update(files=["encoder.onnx"]),
        lambda values: values.update(files={"encoder.onnx": 3}),
        lambda values: values.update(padding=[16, 16]),
        lambda values: values.update(padding=[0, values["dims"]["n_audio_ctx"]]),
        lambda values: values.update(padding=["many"]),
        lambda values: values["files"]["encoder.onnx"].pop("size"),
        lambda values: values["files"]["encoder.onnx"].update(size=1.5),
        lambda values: values["files"]["encoder.onnx"].update(size=True),
        lambda values: values["files"]["encoder.onnx"].update(size="16"),
        lambda values: values["files"]["encoder.onnx"].update(size=-1),
        lambda values: values["files"]["encoder.onnx"].update(size=2**63),
        lambda values: values["files"]["encoder.onnx"].update(sha256=0),
        lambda values: values["dims"].update(n_vocab=2**40),
        lambda values: values["dims"].update(n_mels=2**20),
        lambda values: values.update(dims=[["n_mels", 80]]),
        lambda values: values.update(alignment_heads=[[-1, 0]]),
        lambda values: values.update(alignment_heads=[[0.5, 0]]),
        lambda values: values.update(suppress_tokens=[-7]),
        lambda values: values.update(suppress_tokens=[2**63]),
        lambda values: values.update(padding=[True]),
        lambda values: values.update(precision=["fp32"]),
        lambda values: values.update(dialect=None),
        lambda values: values.update(dialect="latin"),
        lambda values: values.update(tensors={NORM: {}}),
        lambda values: values.update(tensors=[1]),
    ],
)
def test_a_malformed_field(engine_dir: Path, change: Change) -> None:
    edit(engine_dir, change)
    said = message(engine_dir)
    assert f"{engine_dir / MANIFEST} is malformed" in said
    assert "export the engine again" in said


OUTSIDE = [
    "../secret",
    "/etc/hostname",
    "sub/encoder.onnx",
    "..",
    ".",
    "",
    "~/x",
    "C:x",
    "a\\b",
    "a\0b",
    "\ud800",
    "x" * 300,
    "encoder.onnx\n",
]


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("verify", [False, True])
def test_only_files_of_the_directory_are_read(engine_dir: Path, name: str, verify: bool) -> None:
    secret = engine_dir.parent / "secret"
    secret.write_bytes(b"secret")
    entry = {"size": 6, "sha256": sha256(secret)}
    edit(engine_dir, lambda values: values["files"].update({name: entry}))
    said = message(engine_dir, verify=verify)
    assert "is malformed" in said
    assert "expected the name of a file in the engine directory" in said


def with_tensors(folder: Path, head: str = EMBEDDING) -> dict[str, dict[str, Any]]:
    """Add the tensors that a runtime reads itself to the engine; returns their entries."""
    sizes = random_dims().to_dict()
    entries, end = {}, 0
    names = [head, *(name for name in TENSOR_SHAPES if name not in (EMBEDDING, OWN_HEAD))]
    for name, shape in ((name, TENSOR_SHAPES[name]) for name in names):
        numbers = [sizes[n] if isinstance(n, str) else n for n in shape]
        entries[name] = {"file": "decoder.data", "offset": end, "shape": numbers}
        entries[name]["dtype"] = "float16" if len(numbers) == 2 else "float32"
        end += math.prod(numbers) * (2 if len(numbers) == 2 else 4)
    (folder / "decoder.data").write_bytes(bytes(end))
    entry = {"size": end, "sha256": sha256(folder / "decoder.data")}
    edit(folder, lambda values: values["files"].update({"decoder.data": entry}))
    edit(folder, lambda values: values.update(tensors=entries))
    return entries


@pytest.mark.parametrize("head", [EMBEDDING, OWN_HEAD])
def test_tensors_are_mapped(engine_dir: Path, head: str) -> None:
    entries = with_tensors(engine_dir, head)
    engine = read_engine(engine_dir, verify=True)
    for name, entry in entries.items():
        found = engine.tensor(name)
        assert found.shape == tuple(entry["shape"])
        assert found.dtype == entry["dtype"]
        assert not found.any()


@pytest.mark.parametrize(
    "wrong",
    [
        {"dtype": "object"},
        {"dtype": "O"},
        {"dtype": "float64"},
        {"dtype": "V4"},
        {"dtype": "uint8"},
        {"dtype": 4},
        {"file": "/etc/hostname"},
        {"file": "../secret"},
        {"file": "unlisted.data"},
        {"file": None},
        {"offset": -4},
        {"offset": 2**62},
        {"offset": 2**64},
        {"offset": 0.5},
        {"offset": "0"},
        {"shape": [-1]},
        {"shape": [0]},
        {"shape": []},
        {"shape": [2]},
        {"shape": [2**63]},
        {"shape": [1.0]},
        {"shape": 1},
    ],
    ids=str,
)
def test_a_tensor_that_no_engine_has(engine_dir: Path, wrong: dict[str, Any]) -> None:
    with_tensors(engine_dir)
    edit(engine_dir, lambda values: values["tensors"][NORM].update(wrong))
    said = message(engine_dir, verify=True)
    assert f"{engine_dir / MANIFEST} is malformed" in said


def test_a_tensor_beyond_the_end_of_its_file(engine_dir: Path) -> None:
    entries = with_tensors(engine_dir)
    offset = entries[NORM]["offset"]
    edit(engine_dir, lambda values: values["tensors"][NORM].update(offset=offset + 1))
    assert "is not within decoder.data" in message(engine_dir)


@pytest.mark.parametrize("name", TENSOR_SHAPES)
def test_tensors_are_there_together(engine_dir: Path, name: str) -> None:
    with_tensors(engine_dir, OWN_HEAD if name == OWN_HEAD else EMBEDDING)
    edit(engine_dir, lambda values: values["tensors"].pop(name))
    assert "is malformed" in message(engine_dir)


@pytest.mark.parametrize(
    "entry",
    [
        TensorEntry("x.data", 2**70, (4,), "float32"),
        TensorEntry("x.data", 0, (2**70,), "float32"),
        TensorEntry("x.data", 0, (-4,), "float32"),
        TensorEntry("x.data", 0, (0,), "float32"),
        TensorEntry("x.data", 0, (4,), "object"),
        TensorEntry("x.data", 52, (4,), "float32"),
        TensorEntry("../x.data", 0, (4,), "float32"),
        TensorEntry("y.data", 0, (4,), "float32"),
    ],
    ids=str,
)
def test_mapping_checks_again(tmp_path: Path, entry: TensorEntry) -> None:
    folder = tmp_path / "engine"
    folder.mkdir()
    for path in (folder / "x.data", tmp_path / "x.data"):
        path.write_bytes(b"A" * 64)
    assert map_tensor(folder, TensorEntry("x.data", 48, (4,), "float32")).shape == (4,)
    with pytest.raises(EngineError, match=r"cannot read a tensor at .*data"):
        map_tensor(folder, entry)


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_files_may_be_links_into_a_cache(engine_dir: Path) -> None:
    target = engine_dir.parent / "content"
    (engine_dir / "encoder.data").rename(target)
    (engine_dir / "encoder.data").symlink_to(target)
    assert read_engine(engine_dir, verify=True).file("encoder.data").is_symlink()
    target.write_bytes(b"another file")
    assert "encoder.data has 12 bytes" in message(engine_dir)


@pytest.mark.skipif(sys.platform != "linux", reason="names are bytes there")
def test_a_directory_whose_name_is_not_utf_8(engine_dir: Path) -> None:
    other = engine_dir.with_name(os.fsdecode(b"caf\xe9"))
    engine_dir.rename(other)
    said = message(other)
    assert r"/caf\xe9; rename the directory" in said
    assert said.isascii()


@pytest.mark.parametrize("name", ENGINE_FILES)
def test_a_file_that_the_manifest_does_not_list(engine_dir: Path, name: str) -> None:
    edit(engine_dir, lambda values: values["files"].pop(name))
    said = message(engine_dir)
    assert f"{engine_dir / MANIFEST} does not list {name}" in said
    assert "export the engine again" in said


@pytest.mark.parametrize("name", ENGINE_FILES)
def test_a_missing_file(engine_dir: Path, name: str) -> None:
    (engine_dir / name).unlink()
    assert message(engine_dir) == (
        f"engine file {engine_dir / name} is missing; export the engine again"
    )


@pytest.mark.parametrize("name", ENGINE_FILES)
@pytest.mark.parametrize("cut", [True, False])
def test_another_size(engine_dir: Path, name: str, cut: bool) -> None:
    content = (engine_dir / name).read_bytes()
    (engine_dir / name).write_bytes(content[:-1] if cut else content + b"!")
    said = message(engine_dir)
    found = len(content) - 1 if cut else len(content) + 1
    assert f"{engine_dir / name} has {found} bytes; its manifest says {len(content)}" in said
    assert "copy or export it again" in said


@pytest.mark.parametrize("name", ENGINE_FILES)
def test_one_changed_byte_is_found_when_asked_for(engine_dir: Path, name: str) -> None:
    content = bytearray((engine_dir / name).read_bytes())
    before = sha256(engine_dir / name)
    content[len(content) // 2] ^= 1
    (engine_dir / name).write_bytes(content)
    assert read_engine(engine_dir).manifest.files[name].sha256 == before
    said = message(engine_dir, verify=True)
    assert f"engine file {engine_dir / name} has sha256 {sha256(engine_dir / name)[:16]}" in said
    assert f"its manifest says {before[:16]}" in said
    assert "copy or export it again" in said


def test_a_damaged_tokenizer_is_an_engine_error(engine_dir: Path) -> None:
    file = engine_dir / "tokenizer.json"
    file.write_bytes(b"\xff" + file.read_bytes()[1:])
    engine = read_engine(engine_dir)
    with pytest.raises(EngineError, match=r"cannot read engine file .*tokenizer\.json.*again"):
        engine.tokenizer_json()


def test_sha256_is_sha256(tmp_path: Path) -> None:
    file = tmp_path / "abc"
    file.write_bytes(b"abc")
    assert sha256(file) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    file.write_bytes(b"a" * 1_000_000 * 3)  # more than one block
    once = sha256(file)
    with file.open("ab") as stream:
        stream.write(b"a")
    assert sha256(file) != once
