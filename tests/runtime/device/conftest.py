"""Fixtures: a standard engine of a tiny random model, on the CPU executor."""

from __future__ import annotations

import pytest

from tests.support.backend_subjects import DIMS
from tests.support.cpu_executor import CpuExecutor
from tests.support.engines import random_engine
from tests.support.program_runs import ExpectedScores
from whisper_opt.runtime.device.backend import DeviceBackend
from whisper_opt.runtime.engine import Engine


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return random_engine(tmp_path_factory.mktemp("device") / "engine", DIMS, "standard")


@pytest.fixture(scope="module")
def backend(engine: Engine) -> DeviceBackend:
    return DeviceBackend(CpuExecutor(engine, threads=1), DIMS)


@pytest.fixture(scope="module")
def reference(backend: DeviceBackend) -> ExpectedScores:
    return ExpectedScores(backend)
