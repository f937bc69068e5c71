"""The simulation of queues: against formulas where there are some."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def scale(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("scale")


def service(scale: Any, **given: Any) -> Any:
    values = {"read": 0.0, "window": 0.9, "step": 0.1, "row": 0.0, "tokens": 0.1, "lengths": (10,)}
    return scale.Service(**{**values, **given})


def test_one_row_is_a_queue_with_one_server(scale: Any) -> None:
    found = scale.simulate(
        service(scale), processes=1, rows=1, per_second=0.6, n=30_000, seed=1
    )  # each takes 1 s
    expected = 1 + 0.6 / (2 * (1 - 0.6))  # Pollaczek and Khinchine, constant service time
    assert np.mean(found) == pytest.approx(expected, rel=0.03)
    assert min(found) == pytest.approx(1.0)


def test_lengths_that_vary_wait_longer(scale: Any) -> None:
    varied = service(scale, read=0.05, window=0.0, step=0.0, lengths=(2, 2, 2, 34))
    mean, square = 0.5, (3 * 0.1**2 + 1.7**2) / 4  # seconds of service
    rate = 0.7 / mean
    found = scale.simulate(varied, processes=1, rows=1, per_second=rate, n=60_000, seed=2)
    expected = mean + rate * square / (2 * (1 - 0.7))
    assert np.mean(found) == pytest.approx(expected, rel=0.05)


def test_more_processes_wait_less_at_the_same_load(scale: Any) -> None:
    one, many = (
        np.mean(
            scale.simulate(
                service(scale), processes=k, rows=1, per_second=0.8 * k, n=20_000, seed=3
            )
        )
        for k in (1, 16)
    )
    assert 1 <= many < 1.2 < one


def test_rows_share_a_step(scale: Any) -> None:
    shared = service(scale, window=0.0, tokens=1.0)
    assert shared.capacity(4) == pytest.approx(4 * shared.capacity(1))
    found = scale.simulate(shared, processes=1, rows=4, per_second=2.0, n=5_000, seed=4)
    assert max(found) < 60  # twice what one row can do, half of what four can
    assert shared.windows(10) == [10]
    assert shared.windows(61) == [20, 20, 20]


def bench(**given: Any) -> dict[str, Any]:
    def run(batch: int) -> dict[str, Any]:
        return {
            "name": f"batch {batch}", "engine": "a", "threads": 2, "beam_size": 1, "device": "cpu",
            "batch_size": batch, "audio_s": 100.0, "median_s": 10.0 / batch, "rounds_s": [1.0, 1.0],
            "windows": 10, "tokens": 200, "step_ms": {"n": 2 * 200 / batch},
            "stages_s": {
                "audio": 1.0, "mel": 0.5, "vad": 0.0, "other": 0.5, "encode": 3.0, "prefill": 1.0,
                "align": 0.0, "step": 200 / batch * (0.01 + 0.002 * batch),
            },
            "memory": {"peak_bytes": (100 + 20 * batch) * 2**20},
        }  # fmt: skip

    return {"configurations": [run(1), run(4)], "recordings": [{"seconds": 10.0}] * 10, **given}


def test_service_times_are_those_of_the_measurement(scale: Any) -> None:
    found = scale.Service.of(bench())
    expected = scale.Service(0.02, 0.4, 0.01, 0.002, 2.0, (10.0,) * 10)
    assert dataclasses.astuple(found)[:5] == pytest.approx(dataclasses.astuple(expected)[:5])
    assert found.lengths == expected.lengths
    mixed = bench()
    mixed["configurations"][0]["engine"] = "b"
    with pytest.raises(SystemExit, match="expected batch sizes only"):
        scale.Service.of(mixed)


def test_sizes(scale: Any) -> None:
    # 240 h per day are 10 s per s
    assert scale.sizing(bench(), 240.0, 0.5) == [
        ["batch 1", "10", "5", "120", "-", "2"],
        ["batch 4", "40", "20", "180", "20", "1"],
    ]
