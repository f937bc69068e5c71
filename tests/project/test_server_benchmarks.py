"""The parts of the benchmarks of the server that need no server."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("server_memory")


@pytest.mark.parametrize("most", [1, 60, 500, 501, 1700, 12_345])
def test_memory_is_measured_after_the_last_request(memory: Any, most: int) -> None:
    found = memory.steps(most)
    assert found[-1] == most
    assert found == sorted(set(found))
    assert (memory.FIRST in found) is (most >= memory.FIRST)
