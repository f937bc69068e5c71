"""``whisper-opt engines``, and the engine cache under removal, several processes and kills."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from tests.support.exports import SMALL
from tests.support.models import random_checkpoint
from tests.support.models_write import write_huggingface
from whisper_opt import Whisper
from whisper_opt.cli.main import main
from whisper_opt.core.options import LoadOptions, TranscribeOptions
from whisper_opt.runtime.cache_contents import cached_engines
from whisper_opt.runtime.engine import FORMAT_VERSION, MANIFEST, read_engine
from whisper_opt.runtime.engine_cache import LAST_USED, EngineCache
from whisper_opt.transcription import model
from whisper_opt.transcription.model_source import engine_directory

COMMIT = "1" * 40
DAY = 86_400
SOURCE = "the checkpoint"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_huggingface(random_checkpoint(SMALL), tmp_path_factory.mktemp("source") / "mine")


@pytest.fixture(scope="module")
def exported(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with the fp32 and int8 engines of the checkpoint."""
    folder = tmp_path_factory.mktemp("exported")
    for precision in ("fp32", "int8"):
        engine_directory(checkpoint, LoadOptions(precision=precision, cache_dir=str(folder)))
    return folder


@pytest.fixture
def cache(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EngineCache:
    """A copy of that cache, which is the default one."""
    shutil.copytree(exported, tmp_path / "cache")
    monkeypatch.setenv("WHISPER_OPT_CACHE", str(tmp_path / "cache"))
    return EngineCache()


def run(*argv: object) -> int:
    return main([str(arg) for arg in argv])


def engines(cache: EngineCache) -> dict[str, Path]:
    """Directories by precision."""
    return {engine.precision: engine.path for engine in cached_engines(cache)}


def hub_engine(cache: EngineCache, hub_id: str, commit: str, precision: str = "int8") -> Path:
    """A copy of the int8 engine as if it came from the hub."""
    path = cache.engine(hub_id, f"{hub_id}@{commit}", precision, "contrib")
    shutil.copytree(engines(cache)["int8"], path)
    edit(path, source={"name": f"{hub_id}@{commit}"})
    return path


def edit(engine: Path, **entries: object) -> None:
    """Change entries of a manifest."""
    values = json.loads((engine / MANIFEST).read_text())
    (engine / MANIFEST).write_text(json.dumps({**values, **entries}))


# list


def test_list(cache: EngineCache, capsys: pytest.CaptureFixture[str]) -> None:
    hub_engine(cache, "openai/whisper-tiny", COMMIT)
    (cache.path / "notes").mkdir()  # not ours
    assert run("engines", "list") == 0
    heading, *rows, total = capsys.readouterr().out.splitlines()
    assert heading.split()[:3] == ["NAME", "PRECISION", "DIALECT"]
    assert [row.split()[:3] for row in rows] == [
        ["mine", "fp32", "contrib"],
        ["mine", "int8", "contrib"],
        ["openai/whisper-tiny@11111111", "int8", "contrib"],
    ]
    assert all(row.split()[-2] == "current" for row in rows)
    assert all(Path(row.split()[-1]).is_dir() for row in rows)
    assert total.startswith("3 engines, ")
    assert total.endswith(f" MB, in {cache.path}")


def test_list_as_json(cache: EngineCache, capsys: pytest.CaptureFixture[str]) -> None:
    path = engines(cache)["int8"]
    os.utime(path / LAST_USED, (1e9, 1e9))
    assert run("engines", "list", "--json", "--cache-dir", cache.path) == 0
    found = {entry["precision"]: entry for entry in json.loads(capsys.readouterr().out)}
    entry = found["int8"]
    assert Path(entry["path"]) == path
    assert entry["last_used"] == "2001-09-09T01:46:40Z"
    assert entry["size"] == sum(file.stat().st_size for file in path.iterdir())
    assert (entry["name"], entry["revision"], entry["dialect"]) == ("mine", None, "contrib")
    assert (entry["state"], entry["problem"]) == ("current", None)


def test_list_says_what_cannot_be_used(
    cache: EngineCache, capsys: pytest.CaptureFixture[str]
) -> None:
    found = engines(cache)
    edit(found["fp32"], tools={"whisper_opt": "0.0.1"})
    (found["int8"] / "encoder.data").unlink()
    assert run("engines", "list", "--json") == 0
    states = {e["precision"]: e["state"] for e in json.loads(capsys.readouterr().out)}
    assert states == {"fp32": "superseded", "int8": "unreadable"}


def test_list_of_no_cache(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("engines", "list", "--cache-dir", tmp_path / "none") == 0
    assert capsys.readouterr().out == f"no engines in {tmp_path / 'none'}\n"
    assert not (tmp_path / "none").exists()


# path, inspect


def test_path_is_what_load_opens(
    cache: EngineCache, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for precision in ("int8", "fp32"):
        assert run("engines", "path", checkpoint, "--precision", precision) == 0
        path = Path(capsys.readouterr().out.strip())
        assert path == engines(cache)[precision]
        with Whisper.load(checkpoint, precision=precision) as loaded:
            assert loaded.engine.path == path
    assert run("engines", "path", path) == 0  # an engine directory is itself
    assert Path(capsys.readouterr().out.strip()) == path


def test_path_of_a_hub_id_needs_no_network(
    cache: EngineCache, capsys: pytest.CaptureFixture[str]
) -> None:
    path = hub_engine(cache, "someone/whisper", COMMIT)
    cache.record_commit("someone/whisper", None, COMMIT)
    assert run("engines", "path", "someone/whisper") == 0
    assert Path(capsys.readouterr().out.strip()) == path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("tiny",), "has no int8 engine of it"),
        (("tiny", "--device", "tensorrt"), "no fp16 engine of it (standard dialect)"),
        (("someone/other",), "whisper-opt transcribe someone/other AUDIO"),
        (("mine",), "are those of a local checkpoint: give its path"),
        ((SOURCE, "--precision", "int4"), "there is one in fp32, int8 (--precision)"),
        (("./nothing",), "neither a path nor the name"),
    ],
)
def test_path_without_an_engine(
    arguments: tuple[str, ...],
    message: str,
    cache: EngineCache,
    checkpoint: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = sorted(cache.path.iterdir())
    given = (checkpoint if argument == SOURCE else argument for argument in arguments)
    assert run("engines", "path", *given) == 1
    assert message in capsys.readouterr().err
    assert sorted(cache.path.iterdir()) == before


def test_inspect_takes_names_and_exports_nothing(
    cache: EngineCache, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("inspect", checkpoint, "--precision", "fp32") == 0
    assert str(engines(cache)["fp32"]) in capsys.readouterr().out
    assert run("inspect", engines(cache)["int8"].name) == 0  # as list prints it
    assert "precision    int8" in capsys.readouterr().out
    assert run("inspect", "tiny") == 1
    assert "has no int8 engine of it" in capsys.readouterr().err
    assert len(engines(cache)) == 2


# remove


def test_remove_all_precisions(cache: EngineCache, capsys: pytest.CaptureFixture[str]) -> None:
    other = hub_engine(cache, "openai/whisper-tiny", COMMIT)
    assert run("engines", "remove", "mine") == 0
    assert capsys.readouterr().out.count("removed mine-") == 2
    assert [engine.path for engine in cached_engines(cache)] == [other]
    assert run("engines", "remove", "mine") == 1
    assert "has no engine of 'mine'" in capsys.readouterr().err
    assert {path.name for path in cache.path.iterdir()} <= {other.name, "sources"}


def test_remove_one_precision(cache: EngineCache, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("engines", "remove", "mine", "--precision", "fp32") == 0
    assert set(engines(cache)) == {"int8"}
    assert run("engines", "remove", "mine", "--precision", "fp32") == 1
    assert "no engine of 'mine' in fp32, only in int8" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["tiny", "openai/whisper-tiny", "openai/whisper-tiny@1111"])
def test_remove_takes_the_names_of_a_model(name: str, cache: EngineCache) -> None:
    path = hub_engine(cache, "openai/whisper-tiny", COMMIT)
    assert run("engines", "remove", name) == 0
    assert not path.exists()
    assert set(engines(cache)) == {"fp32", "int8"}


def test_remove_takes_a_directory_of_the_cache(cache: EngineCache) -> None:
    assert run("engines", "remove", engines(cache)["fp32"].name) == 0
    assert set(engines(cache)) == {"int8"}


def test_an_engine_that_is_being_exported_is_not_removed(
    cache: EngineCache, capsys: pytest.CaptureFixture[str]
) -> None:
    path = engines(cache)["fp32"]
    with cache.lock(path):
        assert run("engines", "remove", "mine") == 1
    assert "another process is exporting" in capsys.readouterr().err
    assert set(engines(cache)) == {"fp32"}


def test_an_engine_that_is_in_use_works_after_its_removal(
    cache: EngineCache, checkpoint: Path
) -> None:
    noise = np.random.default_rng(0).standard_normal(16_000).astype(np.float32)
    options = TranscribeOptions(language="en", max_new_tokens=4, temperature=(0.0,), vad="off")
    with Whisper.load(checkpoint, precision="fp32") as loaded:
        before = loaded.transcribe(noise, options=options).segments
        assert run("engines", "remove", "mine", "--precision", "fp32") == 0
        assert loaded.transcribe(noise, options=options).segments == before


def test_an_engine_that_is_removed_while_it_is_opened_is_exported_again(
    cache: EngineCache, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    removed: list[Path] = []

    def after_removal(path: Path, *, verify: bool) -> object:
        if not removed:
            removed.append(path)
            assert run("engines", "remove", "mine") == 0
        return read_engine(path, verify=verify)

    monkeypatch.setattr(model, "read_engine", after_removal)
    with Whisper.load(checkpoint, precision="fp32") as loaded:
        assert loaded.engine.path == removed[0]
    assert set(engines(cache)) == {"fp32"}


# prune


def test_prune(cache: EngineCache, capsys: pytest.CaptureFixture[str]) -> None:
    found = engines(cache)
    old = hub_engine(cache, "a/old", COMMIT)
    edit(old, tools={"whisper_opt": "0.0.1"})
    future = hub_engine(cache, "a/future", COMMIT)
    edit(future, format_version=99)
    broken = hub_engine(cache, "a/broken", COMMIT)
    (broken / "decoder.onnx").write_bytes(b"")
    partial = cache.path / f".{found['fp32'].name}.partial-123"
    partial.mkdir()
    (partial / "encoder.data").write_bytes(bytes(2_000_000))
    half_removed = cache.path / f".{old.name}.removed-{'0' * 16}"
    half_removed.mkdir()
    stale = cache.lock_file(cache.engine("gone", 1, "fp32", "contrib"))
    stale.touch()
    notes = cache.path / "notes.txt"
    notes.write_text("not ours")
    before = sorted(cache.path.rglob("*"))

    assert run("engines", "prune", "--dry-run") == 0
    planned = capsys.readouterr().out
    assert sorted(cache.path.rglob("*")) == before
    assert run("engines", "prune") == 0
    done = capsys.readouterr().out
    assert (
        planned.replace("would be removed", "were removed").replace("would remove", "removed")
        == done
    )
    for path, reason in (
        (old, f"exported by whisper-opt 0.0.1, format {FORMAT_VERSION};"),
        (future, "format 99"),
        (broken, "cannot be read"),
        (partial, "interrupted export"),
        (half_removed, "half removed"),
        (stale, "stale lock"),
    ):
        (line,) = (line for line in done.splitlines() if line.startswith(f"removed {path.name} ("))
        assert reason in line
    kept = {*found.values(), notes, cache.path / "sources"}
    assert set(cache.path.iterdir()) <= kept
    assert set(found.values()) <= set(cache.path.iterdir())


def test_prune_leaves_exports_in_progress(cache: EngineCache) -> None:
    engine = cache.engine("busy", 1, "fp32", "contrib")
    partial = cache.path / f".{engine.name}.partial-{os.getpid()}"
    partial.mkdir()
    with cache.lock(engine):
        assert run("engines", "prune") == 0
        assert partial.is_dir()
        assert cache.lock_file(engine).exists()
    assert run("engines", "prune") == 0
    assert not partial.exists()


def test_prune_by_last_use(
    cache: EngineCache, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    now = time.time()
    for path, days in zip(engines(cache).values(), (10, 40)):
        os.utime(path / LAST_USED, (now - days * DAY, now - days * DAY))
    assert run("engines", "prune") == 0
    assert run("engines", "prune", "--older-than", "30") == 0
    assert "not used for 40 days" in capsys.readouterr().out
    assert set(engines(cache)) == {"fp32"}
    engine_directory(checkpoint, LoadOptions(precision="fp32"))  # used now
    assert run("engines", "prune", "--older-than", "1") == 0
    assert set(engines(cache)) == {"fp32"}
    assert run("engines", "prune", "--older-than", "-1") == 2
    assert "--older-than is -1" in capsys.readouterr().err


def test_prune_forgets_checkpoints_that_are_gone(cache: EngineCache, tmp_path: Path) -> None:
    sources = cache.path / "sources"
    known = set(sources.glob("*.json"))
    (sources / f"{'0' * 32}.json").write_text(json.dumps({"path": str(tmp_path / "gone")}))
    (sources / f"{'1' * 32}.json").write_text("[")
    assert run("engines", "prune") == 0
    assert set(sources.glob("*.json")) == known
