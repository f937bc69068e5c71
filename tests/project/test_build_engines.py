"""``scripts/build_engines.py``: lists, rebuilt and kept engines, failures."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import build_engines
import pytest
from build_engines import Builder, ListError, parse_toml, read_list

from tests.support.engines import require
from tests.support.models import random_checkpoint, random_dims
from tests.support.models_write import write_huggingface
from whisper_opt.core.errors import BackendUnavailable
from whisper_opt.runtime.engine import MANIFEST, read_engine, sha256

DIMS = random_dims(n_vocab=2000, n_audio_layer=1, n_text_layer=1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a checkpoint named ``mine``."""
    write_huggingface(random_checkpoint(DIMS), tmp_path / "mine")
    return tmp_path


def listed(folder: Path, text: str) -> Path:
    path = folder / "engines.toml"
    path.write_text(text, encoding="utf-8")
    return path


def build(path: Path, *more: str) -> tuple[int, dict[str, Any]]:
    status = build_engines.main([str(path), *more])
    index = path.parent / "out" / "engines.json"
    return status, json.loads(index.read_text(encoding="utf-8")) if index.exists() else {}


ONE = 'output = "out"\n[[engine]]\nsource = "mine"\n'


def test_the_list_of_the_repository() -> None:
    """It is valid, and the default of the script."""
    output, wanted = read_list(build_engines.DEFAULT)
    assert output.resolve() == build_engines.DEFAULT.parent
    assert {"tiny.en-fp32-contrib", "tiny.en-int8-contrib", "base-int8-contrib"} <= {
        engine.name for engine in wanted
    }


def test_recipes_are_committed_and_engines_are_not() -> None:
    def ignored(name: str) -> bool:
        command = ["git", "check-ignore", "--quiet", "--no-index", f"engines/{name}"]
        return not subprocess.run(
            command, cwd=build_engines.DEFAULT.parents[1], check=False
        ).returncode

    if not (build_engines.DEFAULT.parents[1] / ".git").exists():
        pytest.skip("not a git checkout")
    assert not ignored("README.md")
    assert not ignored("engines.toml")
    assert ignored("tiny.en/manifest.json")
    assert ignored("engines.json")


# making


def test_a_list_is_built_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = listed(folder, ONE)
    status, index = build(path)
    assert status == 0
    (name,) = index["engines"]
    entry = index["engines"][name]
    assert (name, entry["outcome"], entry["path"]) == ("mine-fp32-contrib", "exported", name)
    assert entry["source"] == "mine"  # no path of this machine
    engine = read_engine(folder / "out" / name, verify=True)
    assert entry["manifest_sha256"] == sha256(engine.file(MANIFEST))
    assert entry["bytes"] == sum(file.size for file in engine.manifest.files.values())
    assert index["list"] == {"name": "engines.toml", "sha256": sha256(path)}

    before = engine.file(MANIFEST).stat().st_mtime_ns
    status, index = build(path)
    assert (status, index["engines"][name]["outcome"]) == (0, "kept")
    assert engine.file(MANIFEST).stat().st_mtime_ns == before
    assert "mine-fp32-contrib: kept" in capsys.readouterr().out


def test_damaged_and_outdated_engines_are_rebuilt(folder: Path) -> None:
    path = listed(folder, ONE)
    build(path)
    home = folder / "out" / "mine-fp32-contrib"

    def outcome() -> Any:
        return build(path)[1]["engines"]["mine-fp32-contrib"]["outcome"]

    (home / "decoder.data").write_bytes(b"half")
    assert outcome() == "exported"
    write_huggingface(random_checkpoint(DIMS, seed=1), folder / "mine")
    assert outcome() == "exported"
    assert outcome() == "kept"
    listed(folder, ONE + "alignment_heads = [[0, 1]]\n")
    assert outcome() == "exported"
    assert read_engine(home).manifest.alignment_heads == ((0, 1),)
    assert outcome() == "kept"


def test_a_failure_does_not_stop_other_engines_and_is_recorded(folder: Path) -> None:
    (folder / "broken").mkdir()
    path = listed(folder, 'output = "out"\n[[engine]]\nsource = "broken"\n' + ONE.split("\n", 1)[1])
    status, index = build(path)
    assert status == 1
    outcomes = {name: entry["outcome"] for name, entry in index["engines"].items()}
    assert outcomes == {"broken-fp32-contrib": "failed", "mine-fp32-contrib": "exported"}
    assert "no Whisper weights" in index["engines"]["broken-fp32-contrib"]["error"]
    assert not (folder / "out" / "broken-fp32-contrib").exists()


def test_an_interrupted_list_continues(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = listed(folder, ONE + 'name = "a"\n' + ONE.split("\n", 1)[1] + 'name = "b"\n')
    from whisper_opt.export import export as real

    def interrupted(checkpoint: Any, target: Path, **options: Any) -> Any:
        if target.name.startswith("b-"):
            raise KeyboardInterrupt
        return real(checkpoint, target, **options)

    monkeypatch.setattr(build_engines, "export", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build(path)
    index = json.loads((folder / "out" / "engines.json").read_text(encoding="utf-8"))
    assert list(index["engines"]) == ["a-fp32-contrib"]
    monkeypatch.undo()
    status, index = build(path)
    outcomes = [entry["outcome"] for entry in index["engines"].values()]
    assert (status, outcomes) == (0, ["kept", "exported"])
    assert not [found for found in (folder / "out").iterdir() if found.name.startswith(".")]


def test_a_dry_run_writes_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = listed(folder, ONE + 'precision = ["fp32", "fp16"]\ndialect = ["contrib", "standard"]\n')
    assert build_engines.main([str(path), "--dry-run"]) == 0
    assert not (folder / "out").exists()
    out = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in out] == [
        f"mine-{kind}"
        for kind in ("fp32-contrib", "fp32-standard", "fp16-contrib", "fp16-standard")
    ]
    assert all("export (not there)" in line for line in out)


def test_an_output_that_cannot_be_written_is_reported(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "out").write_text("a file", encoding="utf-8")
    assert build_engines.main([str(listed(folder, ONE))]) == 1
    assert "cannot write" in capsys.readouterr().err


# plans

PLANS = (
    'precision = "fp16"\ndialect = ["standard"]\n[engine.plans]\nmax_batch = 4\n'
    'library = "tensorrt-rtx"\ngpus = ["sm_86"]\n'
)


def test_plans_are_built_as_listed_and_indexed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from whisper_opt.export.tensorrt import build as tensorrt

    require("standard")
    asked = []

    def built(engine: Any, spec: Any, *, library: str, gpus: list[str], check_tokens: Any) -> Any:
        assert callable(check_tokens)
        asked.append((engine.path.name, spec.max_batch, library, gpus))
        path = engine.path / "trt" / "sm86-tensorrt-rtx-1.7"
        path.mkdir(parents=True, exist_ok=True)
        (path / "build.json").write_text("{}", encoding="utf-8")
        target = SimpleNamespace(library=library, version="1.7", gpus=("sm_86",))
        record = SimpleNamespace(target=target, tokens={"status": "not checked"})
        return SimpleNamespace(path=path, record=record)

    monkeypatch.setattr(tensorrt, "build_plans", built)
    status, index = build(listed(folder, ONE + PLANS))
    assert status == 0
    assert asked == [("mine-fp16-standard", 4, "tensorrt-rtx", ["sm_86"])]
    plans = index["engines"]["mine-fp16-standard"]["plans"]
    assert plans["path"] == "mine-fp16-standard/trt/sm86-tensorrt-rtx-1.7"
    assert (plans["library"], plans["gpus"]) == ("tensorrt-rtx 1.7", ["sm_86"])
    record = folder / "out" / plans["path"] / "build.json"
    assert plans["record_sha256"] == sha256(record)


def test_plans_that_fail_fail_their_engine(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from whisper_opt.export.tensorrt import build as tensorrt

    require("standard")

    def no_library(*_: Any, **__: Any) -> Any:
        raise BackendUnavailable("tensorrt-rtx is not installed")

    monkeypatch.setattr(tensorrt, "build_plans", no_library)
    status, index = build(listed(folder, ONE + PLANS))
    entry = index["engines"]["mine-fp16-standard"]
    assert (status, entry["outcome"], entry["error"]) == (
        1,
        "failed",
        "tensorrt-rtx is not installed",
    )


# lists


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no [[engine]]"),
        ("engine = 3", "no [[engine]]"),
        ("output = [", "not TOML"),
        ('outptu = "x"', "unknown key 'outptu'"),
        ('output = ""\n[[engine]]\nsource = "mine"', "output is ''"),
        ("[[engine]]\n", "source is None"),
        ('[[engine]]\nsource = "mine"\nprecison = "fp16"', "unknown key 'precison'"),
        ('[[engine]]\nsource = "mine"\nprecision = "fp8"', "precision is 'fp8'"),
        ('[[engine]]\nsource = "mine"\nprecision = []', "precision is []"),
        ('[[engine]]\nsource = "mine"\ndialect = [1]', "dialect is [1]"),
        ('[[engine]]\nsource = "mine"\nname = "../x"', "name is '../x'"),
        ('[[engine]]\nsource = "mine"\nrevision = 3', "revision is 3"),
        ('[[engine]]\nsource = "mine"\nalignment_heads = "some"', "alignment_heads is 'some'"),
        ('[[engine]]\nsource = "mine"\nalignment_heads = [[1]]', "alignment_heads is [[1]]"),
        ('[[engine]]\nsource = "mine"\n[[engine]]\nsource = "mine"', "two engines are named"),
        ('[[engine]]\nsource = "mine"\n[engine.plans]\nmax_batch = 4', "no fp16 standard engine"),
        (ONE + PLANS.replace("4", "0"), "plans of mine: max_batch is 0"),
        (ONE + PLANS.replace("max_batch", "max_bach"), "unknown key 'max_bach'"),
    ],
)
def test_a_list_with_a_mistake_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, words: str
) -> None:
    assert build_engines.main([str(listed(tmp_path, text))]) == 2
    assert words in capsys.readouterr().err
    assert [found.name for found in tmp_path.iterdir()] == ["engines.toml"]


def test_no_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert build_engines.main([str(tmp_path / "none.toml")]) == 2
    assert "cannot read" in capsys.readouterr().err


def test_paths_are_relative_to_the_list_and_hub_ids_stay(folder: Path) -> None:
    text = (
        ONE
        + 'tokenizer = "tok.json"\n[[engine]]\nsource = "openai/whisper-base"\nrevision = "main"'
    )
    output, (mine, hub) = read_list(listed(folder, text))
    assert output == folder / "out"
    assert mine.source == str(folder / "mine")
    assert mine.load == {"tokenizer": str(folder / "tok.json")}
    assert (hub.source, hub.name) == ("openai/whisper-base", "whisper-base-fp32-contrib")
    assert hub.load == {"revision": "main"}


def test_the_list_in_the_help_is_a_list(tmp_path: Path) -> None:
    text = (build_engines.__doc__ or "").split("The list is TOML:")[1].split("Engines are")[0]
    _, wanted = read_list(listed(tmp_path, text))
    assert [one.name for one in wanted] == [
        f"base-{kind}"
        for kind in ("fp32-contrib", "fp32-standard", "fp16-contrib", "fp16-standard")
    ]
    assert [one.plans is not None for one in wanted] == [False, False, False, True]


@pytest.mark.skipif(sys.version_info >= (3, 11), reason="TOML is read by Python itself")
def test_a_python_without_tomllib_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tomli", None)
    with pytest.raises(ListError, match="pip install tomli"):
        parse_toml("")


def test_one_checkpoint_serves_all_its_engines(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = []
    from whisper_opt.export.checkpoints import load_checkpoint as real

    def load(source: str, **options: Any) -> Any:
        loads.append(source)
        return real(source, **options)

    monkeypatch.setattr(build_engines, "load_checkpoint", load)
    builder = Builder(listed(folder, ONE + 'precision = ["fp32", "fp16"]\n'), lambda line: None)
    builder.run()
    assert len(loads) == 1
