"""What Whisper.load opens: names, hub ids, checkpoints, and the engine cache."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.loopback_hub import LoopbackHub
from tests.support.models import random_checkpoint
from tests.support.models_write import write_huggingface
from whisper_opt import Whisper, available_models
from whisper_opt.core.errors import (
    BackendUnavailable,
    CheckpointError,
    EngineError,
    OptionError,
)
from whisper_opt.core.model_names import MODEL_NAMES
from whisper_opt.core.options import LoadOptions
from whisper_opt.export import build, prepare
from whisper_opt.runtime.engine import read_engine
from whisper_opt.runtime.engine_cache import SOURCES, EngineCache
from whisper_opt.transcription.model_source import engine_directory, engine_precision

COMMIT, NEWER = "1" * 40, "2" * 40


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_huggingface(random_checkpoint(), tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture
def exports(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Targets of the exports that are made."""
    made: list[Path] = []
    export = build.export

    def counted(source: Any, target: Path, **options: Any) -> Any:
        made.append(target)
        return export(source, target, **options)

    monkeypatch.setattr(prepare, "export", counted)
    return made


@pytest.fixture
def hub(loopback: LoopbackHub, checkpoint: Path) -> Callable[[str], None]:
    """Sets the commit at which `main` is; an empty one: there is no network from now on."""

    def move(commit: str) -> None:
        if not commit:
            loopback.stop()
            return
        for name in ("someone/whisper", MODEL_NAMES["tiny"].hub_id):
            loopback.add(name, checkpoint, commit=commit)

    move(str(MODEL_NAMES["tiny"].revision))
    move(COMMIT)
    return move


def test_checkpoint_is_exported_once(checkpoint: Path, exports: list[Path], tmp_path: Path) -> None:
    stages: list[str] = []
    for _ in range(2):
        with Whisper.load(
            checkpoint,
            cache_dir=str(tmp_path),
            on_progress=lambda stage, done, total: stages.append(stage),
        ) as model:
            assert model.engine.path.parent == tmp_path
            assert model.engine.manifest.precision == "int8"
    assert len(exports) == 1
    assert "write" in stages


def test_each_precision_has_an_engine(
    checkpoint: Path, exports: list[Path], tmp_path: Path
) -> None:
    for precision in ("fp32", "int8"):
        options = LoadOptions(precision=precision, cache_dir=str(tmp_path))
        engine = engine_directory(checkpoint, options)
        assert read_engine(engine).manifest.precision == precision
    assert len(exports) == 2


def test_changed_weights_are_exported_again(exports: list[Path], tmp_path: Path) -> None:
    options = LoadOptions(precision="fp32", cache_dir=str(tmp_path / "cache"))
    engines = {
        engine_directory(
            write_huggingface(random_checkpoint(seed=seed), tmp_path / f"{seed}" / "model"), options
        )
        for seed in (1, 2)
    }
    assert len(engines) == len(exports) == 2


def test_engine_directory_is_opened_as_it_is(checkpoint: Path, tmp_path: Path) -> None:
    engine = engine_directory(checkpoint, LoadOptions(precision="fp32", cache_dir=str(tmp_path)))
    other = LoadOptions(cache_dir=str(tmp_path / "unused"), local_files_only=True)
    assert engine_directory(engine, other) == engine
    assert not (tmp_path / "unused").exists()
    with pytest.raises(OptionError, match=r"revision is 'main'.*a local path"):
        engine_directory(engine, LoadOptions(revision="main"))


def test_directory_without_a_model_is_no_engine(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="not an engine"):
        Whisper.load(tmp_path)
    with pytest.raises(EngineError, match="whisper-opt export"):
        Whisper.load(tmp_path / "missing" / "deeper" / "engine")


def test_hub_id_is_exported_once_per_commit(
    hub: Callable[[str], None], exports: list[Path], tmp_path: Path
) -> None:
    options = LoadOptions(precision="fp32", cache_dir=str(tmp_path / "cache"))
    first = engine_directory("someone/whisper", options)
    assert engine_directory("someone/whisper", options) == first
    assert read_engine(first).manifest.source["name"] == f"someone/whisper@{COMMIT}"
    hub(NEWER)
    assert engine_directory("someone/whisper", options) != first
    assert engine_directory(f"someone/whisper@{COMMIT}", options) == first
    assert len(exports) == 2


def test_without_a_network_the_last_commit_is_used(
    hub: Callable[[str], None], exports: list[Path], tmp_path: Path
) -> None:
    options = LoadOptions(precision="fp32", cache_dir=str(tmp_path / "cache"))
    engine = engine_directory("someone/whisper", options)
    hub("")
    assert engine_directory("someone/whisper", options) == engine
    local = LoadOptions(precision="fp32", cache_dir=str(tmp_path / "cache"), local_files_only=True)
    assert engine_directory("someone/whisper", local) == engine
    with pytest.raises(CheckpointError, match=r"'someone/other' .*could not be fetched"):
        engine_directory("someone/other", options)
    assert len(exports) == 1


def test_cached_short_name_needs_neither_network_nor_exporter(
    hub: Callable[[str], None],
    exports: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = LoadOptions(precision="fp32", cache_dir=str(tmp_path / "cache"))
    engine = engine_directory("tiny", options)
    name = MODEL_NAMES["tiny"]
    assert read_engine(engine).manifest.source["name"] == f"{name.hub_id}@{name.revision}"
    hub("")
    monkeypatch.setitem(sys.modules, "whisper_opt.export.prepare", None)
    assert engine_directory("tiny", options) == engine
    assert (
        engine_directory(
            "openai/whisper-tiny",
            LoadOptions(
                cache_dir=str(tmp_path / "cache"), precision="fp32", revision=name.revision
            ),
        )
        == engine
    )
    with pytest.raises(BackendUnavailable, match=r"no engine of it in the cache.*\[export\]"):
        engine_directory("base", options)


def test_misspelled_names() -> None:
    with pytest.raises(OptionError, match=r"'larg-v3' is neither.*did you mean large-v3"):
        engine_directory("larg-v3", LoadOptions())
    with pytest.raises(OptionError, match="names the revision 'a', but revision is 'b'"):
        engine_directory("someone/whisper@a", LoadOptions(revision="b"))
    assert {"tiny.en", "large-v3", "turbo"} < set(available_models())


@pytest.mark.parametrize("separator", ["/", "\\"])
def test_a_path_is_no_misspelled_name(separator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows has two separators."""
    monkeypatch.setattr(os, "sep", separator)
    for name in ("./larg-v3", f".{separator}larg-v3"):
        assert engine_directory(name, LoadOptions()) == Path(name)


def test_precision_follows_the_device() -> None:
    assert engine_precision(LoadOptions()) == ("int8", "contrib")
    assert engine_precision(LoadOptions(precision="fp32")) == ("fp32", "contrib")
    assert engine_precision(LoadOptions(encoder_precision="bf16")) == ("fp32", "contrib")
    assert engine_precision(LoadOptions(device="tensorrt")) == ("fp16", "standard")


def test_place_of_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WHISPER_OPT_CACHE", str(tmp_path / "a"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert EngineCache(str(tmp_path / "c")).path == tmp_path / "c"
    assert EngineCache().path == tmp_path / "a"
    monkeypatch.delenv("WHISPER_OPT_CACHE")
    assert EngineCache().path == tmp_path / "b" / "whisper_opt"


def test_cache_that_cannot_be_written(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EngineError, match="WHISPER_OPT_CACHE"):
        engine_directory(checkpoint, LoadOptions(cache_dir=str(tmp_path / "file" / "cache")))


def test_damaged_record_of_commits_is_made_again(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path)
    (tmp_path / "revisions.json").write_text("[")
    assert cache.commit("a/b", None) is None
    cache.record_commit("a/b", None, COMMIT)
    assert cache.commit("a/b", None) == COMMIT


def test_processes_export_once(checkpoint: Path, tmp_path: Path) -> None:
    """Three processes at once on an empty cache; then none is left half-made."""
    program = (
        "import logging, sys; logging.basicConfig(level='INFO');"
        "from whisper_opt.core.options import LoadOptions;"
        "from whisper_opt.transcription.model_source import engine_directory;"
        "print(engine_directory(sys.argv[1], LoadOptions(precision='fp32', cache_dir=sys.argv[2])))"
    )
    command = [sys.executable, "-c", program, str(checkpoint), str(tmp_path / "cache")]
    running = [
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for _ in range(3)
    ]
    results = [process.communicate(timeout=300) for process in running]
    assert [process.returncode for process in running] == [0] * 3, results
    assert len({out for out, _ in results}) == 1
    assert sum("exporting" in log for _, log in results) == 1
    left = {str(path) for path in (tmp_path / "cache").iterdir() if path.name != SOURCES}
    assert left == {results[0][0].strip()}
