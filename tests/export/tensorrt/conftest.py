"""Fixtures of the tests of TensorRT plans."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest

from tests.support.engines import require
from tests.support.exports import SMALL
from tests.support.fake_tensorrt import Machine
from tests.support.models import random_checkpoint
from whisper_opt.export import export
from whisper_opt.runtime.engine import Engine


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    require("standard")
    target = tmp_path_factory.mktemp("engines") / "small"
    return export(random_checkpoint(SMALL), target, dialect="standard")


@pytest.fixture
def engine(exported: Engine) -> Iterator[Engine]:
    """An engine whose manifest says fp16, without plans."""
    manifest = dataclasses.replace(exported.manifest, precision="fp16")
    yield Engine(exported.path, manifest)
    for folder in (exported.path / "trt").glob("*"):
        for path in [*folder.glob("*"), folder] if folder.is_dir() else [folder]:
            path.rmdir() if path.is_dir() else path.unlink()


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def plan_names(engine: Engine) -> list[str]:
    """Names in the directory of plans."""
    return sorted(path.name for path in (engine.path / "trt").glob("*") if path.name != ".lock")
