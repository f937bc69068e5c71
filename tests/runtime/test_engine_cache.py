"""The engine cache: its place, use of its engines, and what it knows of local checkpoints."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.exports import SMALL
from tests.support.models import random_checkpoint
from tests.support.models_write import write_huggingface
from whisper_opt.core.options import LoadOptions
from whisper_opt.export import export, prepare
from whisper_opt.export.checkpoints import load_checkpoint
from whisper_opt.runtime import engine_cache
from whisper_opt.runtime.engine_cache import LAST_USED, SOURCES, EngineCache, fingerprint
from whisper_opt.transcription.model_source import cached_engine, engine_directory

ROOT = Path(__file__).parents[2]


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A local checkpoint; changes of its files are recognized however soon they come."""
    monkeypatch.setattr(engine_cache, "_SETTLED", -3600.0)
    monkeypatch.setattr(engine_cache, "_SETTLED_COARSE", -3600.0)
    return write_huggingface(random_checkpoint(SMALL), tmp_path / "source")


@pytest.fixture
def readings(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Checkpoints that are read."""
    found: list[Any] = []

    def counted(source: Any, **options: Any) -> Any:
        found.append(source)
        return load_checkpoint(source, **options)

    monkeypatch.setattr(prepare, "load_checkpoint", counted)
    return found


def options(tmp_path: Path, precision: str = "fp32") -> LoadOptions:
    return LoadOptions(precision=precision, cache_dir=str(tmp_path / "cache"))


# its place


def test_default_place_is_that_of_the_platform(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("WHISPER_OPT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    if sys.platform == "win32":
        expected = Path(os.environ["LOCALAPPDATA"], "whisper_opt", "Cache")
    elif sys.platform == "darwin":
        expected = tmp_path / "Library" / "Caches" / "whisper_opt"
    else:
        expected = tmp_path / ".cache" / "whisper_opt"
    assert EngineCache().path == expected


# last use


def test_use_is_recorded(source: Path, tmp_path: Path) -> None:
    engine = engine_directory(source, options(tmp_path))
    assert (engine / LAST_USED).exists()
    for named in (source, engine):
        os.utime(engine / LAST_USED, (1e9, 1e9))
        engine_directory(named, options(tmp_path))
        assert (engine / LAST_USED).stat().st_mtime > 1e9
    os.utime(engine / LAST_USED, (1e9, 1e9))
    cached_engine(source, options(tmp_path))  # looked up, not used
    assert (engine / LAST_USED).stat().st_mtime == 1e9


def test_engines_elsewhere_are_left_as_they_are(source: Path, tmp_path: Path) -> None:
    engine = engine_directory(source, options(tmp_path))
    elsewhere = engine.rename(tmp_path / "elsewhere")
    (elsewhere / LAST_USED).unlink()
    assert engine_directory(elsewhere, options(tmp_path)) == elsewhere
    assert not (elsewhere / LAST_USED).exists()


def test_a_cache_that_is_only_readable(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_directory(source, options(tmp_path))
    for path in (tmp_path / "cache" / SOURCES).iterdir():
        path.unlink()  # so that the checkpoint is read, and what is found cannot be recorded

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "touch", refuse)
    monkeypatch.setattr(engine_cache, "replace_file", refuse)
    monkeypatch.setattr(engine_cache, "file_lock", refuse)
    assert engine_directory(source, options(tmp_path)) == engine


# local checkpoints


OPENED = """
import json, sys
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
from whisper_opt.core.options import LoadOptions
from whisper_opt.transcription.model_source import engine_directory
engine = engine_directory(sys.argv[1], LoadOptions(precision="fp32", cache_dir=sys.argv[2]))
inside = sorted({name for name in opened if name.startswith(sys.argv[1])})
print(json.dumps([str(engine), inside, sorted(sys.modules)]))
"""


def opened(source: Path, cache: Path) -> tuple[str, set[str], set[str]]:
    """A process finds the engine: its directory, the files it opens of the source, its modules."""
    command = [sys.executable, "-c", OPENED, str(source), str(cache)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    engine, inside, modules = json.loads(done.stdout)
    return engine, {Path(name).name for name in inside}, set(modules)


def test_a_second_load_opens_no_file_of_a_checkpoint(source: Path, tmp_path: Path) -> None:
    first, read, _ = opened(source, tmp_path / "cache")
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= read
    second, read, modules = opened(source, tmp_path / "cache")
    assert second == first
    assert read == set()
    assert not {"onnx", "onnxruntime", "numpy.ma"} & modules  # nor is anything of the export needed


def test_another_precision_is_exported_of_a_known_checkpoint(
    source: Path, tmp_path: Path, readings: list[Any]
) -> None:
    engine_directory(source, options(tmp_path))
    assert cached_engine(source, options(tmp_path, "int8")) is None
    made = engine_directory(source, options(tmp_path, "int8"))
    assert cached_engine(source, options(tmp_path, "int8")) == made
    assert len(readings) == 3


def rewrite(source: Path) -> None:
    """Other weights, with the size and the time of the old ones."""
    path = source / "model.safetensors"
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size


def add(source: Path) -> None:
    (source / "generation_config.json").write_text('{"suppress_tokens": [5]}')


def remove(source: Path) -> None:
    (source / "notes.txt").unlink()


@pytest.mark.parametrize("change", [rewrite, add, remove])
def test_a_changed_checkpoint_is_read_again(
    change: Any, source: Path, tmp_path: Path, readings: list[Any]
) -> None:
    (source / "notes.txt").touch()
    engine_directory(source, options(tmp_path))
    engine_directory(source, options(tmp_path))
    assert len(readings) == 1
    change(source)
    engine_directory(source, options(tmp_path))
    assert len(readings) == 2


def test_a_checkpoint_that_may_still_be_written_is_not_recorded(
    source: Path, tmp_path: Path, readings: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A change within the resolution of the file system's times would not be seen."""
    monkeypatch.setattr(engine_cache, "_SETTLED", 3600.0)
    for _ in range(2):
        engine_directory(source, options(tmp_path))
    assert len(readings) == 2


def test_a_checkpoint_that_changes_while_it_is_read_is_not_recorded(
    source: Path, tmp_path: Path, readings: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def changing(*args: Any, **named: Any) -> Any:
        add(source)
        return export(*args, **named)

    monkeypatch.setattr(prepare, "export", changing)
    for _ in range(2):
        engine_directory(source, options(tmp_path))
    assert len(readings) == 2


def test_a_damaged_record_is_made_again(source: Path, tmp_path: Path, readings: list[Any]) -> None:
    engine = engine_directory(source, options(tmp_path))
    (record,) = (tmp_path / "cache" / SOURCES).iterdir()
    whole = json.loads(record.read_text())
    for damaged in ("", "[]", "{}", json.dumps({**whole, "name": 5})):
        record.write_text(damaged)
        assert engine_directory(source, options(tmp_path)) == engine
        assert json.loads(record.read_text()) == whole
    record.write_text(json.dumps({**whole, "version": "0.0.1"}))  # which may have read otherwise
    engine_directory(source, options(tmp_path))
    assert len(readings) == 6


def test_files_of_a_fingerprint(tmp_path: Path) -> None:
    file = tmp_path / "model.pt"
    file.write_bytes(b"1")
    alone = fingerprint(file)
    assert alone is not None
    (tmp_path / "other.pt").touch()
    assert fingerprint(file) is not None
    assert fingerprint(file).files == alone.files  # type: ignore[union-attr]
    (tmp_path / "tokenizer.json").touch()
    assert fingerprint(file).files != alone.files  # type: ignore[union-attr]
    assert fingerprint(tmp_path / "missing") is None


def test_the_local_base_of_an_adapter_belongs_to_it(tmp_path: Path) -> None:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    for folder in (base, adapter):
        folder.mkdir()
        (folder / "weights").touch()
    config = adapter / "adapter_config.json"
    for named in ("org/model", str(tmp_path / "gone"), str(adapter), 5):
        config.write_text(json.dumps({"base_model_name_or_path": named}))
        assert fingerprint(adapter) is None  # it may change elsewhere
    config.write_text(json.dumps({"base_model_name_or_path": str(base)}))
    before = fingerprint(adapter)
    assert before is not None
    assert [entry[0] for entry in before.files] == [
        "adapter_config.json",
        "weights",
        "base/weights",
    ]
    (base / "weights").write_text("changed")
    after = fingerprint(adapter)
    assert after is not None
    assert after.files != before.files
