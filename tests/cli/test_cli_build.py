"""``whisper-opt build``: output, errors, and the arguments of ``build_plans``."""

from __future__ import annotations

import dataclasses
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.engines import require
from tests.support.exports import SMALL
from tests.support.fake_tensorrt import NO_CARD, Machine
from tests.support.models import random_checkpoint
from tests.support.models_write import write_huggingface
from whisper_opt.cli import build as cli_build
from whisper_opt.cli.main import main
from whisper_opt.export import export
from whisper_opt.export.tensorrt.build import build_plans
from whisper_opt.runtime.engine import MANIFEST, Engine
from whisper_opt.runtime.engine_cache import EngineCache
from whisper_opt.runtime.tensorrt.plan_spec import PlanSpec
from whisper_opt.runtime.tensorrt.plans import graphs_of


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """A directory that is accepted as an fp16 engine."""
    require("standard")
    folder = tmp_path_factory.mktemp("engines") / "small"
    engine = export(random_checkpoint(SMALL), folder, dialect="standard")
    manifest = dataclasses.replace(engine.manifest, precision="fp16")
    (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    return Engine(folder, manifest)


@pytest.fixture
def engine(exported: Engine) -> Engine:
    shutil.rmtree(exported.path / "trt", ignore_errors=True)
    return exported


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def run(*arguments: object) -> int:
    return main(["build", *map(str, arguments)])


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The error that the command printed, which must be the only line."""
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert captured.out == ""
    assert len(lines) == 1, lines
    assert lines[0].startswith("whisper-opt: error: ")
    return lines[0]


def test_build_then_fresh(
    machine: Machine,
    engine: Engine,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    verdict = {"status": "equal", "detail": "24 of 24"}
    monkeypatch.setattr(
        "whisper_opt.export.tensorrt.token_check.token_check", lambda index: lambda *_: verdict
    )
    assert run(engine.path) == 0
    n_plans = len(graphs_of(engine.manifest))
    line = capsys.readouterr().out
    assert line.startswith(f"{engine.path / 'trt' / 'sm86-tensorrt-11.4.0.106'}: {n_plans} plans")
    assert "for sm_86, 0 MB, built in 0." in line
    assert line.endswith("s; tokens: equal (24 of 24)\n")
    assert run(engine.path) == 0
    assert "up to date, nothing to build" in capsys.readouterr().out
    assert len(machine.trt.configs) == n_plans
    assert run(engine.path, "--force") == 0
    assert "built in" in capsys.readouterr().out
    assert len(machine.trt.configs) == 2 * n_plans


def test_every_option_is_passed_on(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    given: dict[str, Any] = {}

    def note(path: Path, spec: PlanSpec, **options: Any) -> Any:
        given.update(options, engine=path, spec=spec)
        raise KeyboardInterrupt

    monkeypatch.setattr("whisper_opt.export.tensorrt.build.build_plans", note)
    arguments = [
        "--library=tensorrt-rtx",
        "--gpu",
        "sm_86",
        "8.9",
        "--device-index",
        "1",
        "--force",
        "--max-batch",
        "3",
        "--max-beam",
        "2",
        "--profile",
        "prefill.n_new=1:2:3",
        "--version-compatible",
        "--hardware-compatibility",
        "same-sm",
        "--weight-streaming",
    ]
    assert run(engine.path, *arguments, "--timing-cache", tmp_path / "cache") == 1
    for name in ("check_tokens", "on_progress", "on_wait"):
        assert callable(given.pop(name))
    assert given == {
        "engine": engine.path,
        "spec": PlanSpec(3, 2, "prefill.n_new=1:2:3", True, "same-sm", True),
        "library": "tensorrt-rtx",
        "gpus": ["sm_86", "8.9"],
        "device_index": 1,
        "timing_cache": tmp_path / "cache",
        "force": True,
    }


def test_every_option_has_an_argument(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run("--help")
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for field in dataclasses.fields(PlanSpec):
        flag = f"\n  --{field.name.replace('_', '-')}"
        assert (flag in text) is (field.name != "capacity")
    assert "(default: 8)" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--max-batch", 0), "max_batch is 0; expected a positive integer"),
        (("--max-beam", "none"), "max_beam is None; expected a positive integer"),
        (("--profile", "align.n_new=1:64:449"), "expected at most 448, the positions"),
        (("--profile", "oops"), "expected PROFILE.DIMENSION=MIN:TYPICAL:MAX"),
        (("--gpu", "sm_90"), "builds no plans for sm_90; expected sm_86, the GPU here"),
        (("--gpu", "big"), "gpu is 'big'; expected a compute capability such as sm_86"),
    ],
)
def test_bad_options(
    arguments: tuple[object, ...],
    message: str,
    machine: Machine,
    engine: Engine,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(engine.path, *arguments) == 2
    assert message in error_line(capsys)
    assert not (engine.path / "trt").exists()


def test_failures(machine: Machine, engine: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(engine.path / "nowhere") == 1
    assert "no engine at" in error_line(capsys)
    machine.trt.failure = "no kernel"
    assert run(engine.path) == 1
    assert "encoder.onnx: no kernel" in error_line(capsys)
    machine.driver = NO_CARD
    assert run(engine.path) == 1
    assert "builds plans on the GPU that runs them, and there is none" in error_line(capsys)


def test_without_a_library(
    engine: Engine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, module, None)
    assert run(engine.path) == 1
    line = error_line(capsys)
    assert "pip install" in line
    assert "whisper-opt[tensorrt-cu13]" in line


def test_foreign_plans(
    machine: Machine, engine: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    verdict = {"status": "differ", "detail": "all 5 tokens"}
    with pytest.raises(Exception, match="other tokens"):
        build_plans(engine, check_tokens=lambda engine, plans: verdict)
    assert run(engine.path) == 1
    line = error_line(capsys)
    assert "will not be replaced: their tokens differ from those of the ONNX engine" in line
    assert "--force" in line


def test_examples_are_valid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They parse, and then fail because there is no engine."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "engines" / "base-fp16").mkdir(parents=True)
    for line in cli_build.EXAMPLES.splitlines():
        if line.startswith("  whisper-opt "):
            assert main(line.split()[1:]) == 1
            assert "is not an engine" in capsys.readouterr().err


def test_a_checkpoint_is_exported_for_tensorrt(
    machine: Machine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Once, to the engine cache; and its plans are built there."""
    source = write_huggingface(random_checkpoint(SMALL), tmp_path / "source")
    for _ in range(2):
        assert run(source, "--cache-dir", tmp_path / "cache") == 0
        printed = capsys.readouterr().out
    (engine,) = EngineCache(tmp_path / "cache").path.glob("source-fp16-standard-*")
    assert printed.startswith(f"{engine / 'trt'}")
    assert "up to date, nothing to build" in printed
