"""500 random programs give the same scores on every backend, with 0 mismatches.

One in ten is run by default, all with ``WHISPER_OPT_PROGRAMS=all`` in the environment. The backends
of the float model are compared with the same expected scores. The fake backend and the 8-bit one
have other scores, and are compared with themselves; so is that of Optimum, which pads windows to
30 s.
"""

from __future__ import annotations

import collections
import os
from pathlib import Path

import pytest

from tests.support.backend_subjects import (
    BACKENDS,
    N_CTX,
    ROUNDED,
    ROUNDED_TOLERANCE,
    TOLERANCE,
    make_backend,
    mels,
)
from tests.support.engines import runs
from tests.support.program_runs import ExpectedScores, mismatch, run
from tests.support.programs import N_AUDIO, program
from whisper_opt.core.backend import Backend

N_PROGRAMS = 500
EVERY = 1 if os.environ.get("WHISPER_OPT_PROGRAMS") == "all" else 10
SEEDS = range(0, N_PROGRAMS, EVERY)


@pytest.fixture(scope="module")
def backends(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Backend]:
    folder: Path = tmp_path_factory.mktemp("engines")
    return {
        name: make_backend(name, folder / name)
        for name in (*BACKENDS, ROUNDED)
        if name in ("fake", "contrib", "optimum", ROUNDED) or runs("standard")
    }


@pytest.mark.parametrize("name", [*BACKENDS, ROUNDED])
def test_random_programs(backends: dict[str, Backend], name: str) -> None:
    if name not in backends:
        pytest.skip("not tested: this ONNX Runtime does not run the standard dialect")
    backend = backends[name]
    encoded = backend.encode(mels(N_AUDIO))
    reference = ExpectedScores(
        backend if name in ("fake", "optimum", ROUNDED) else backends["contrib"]
    )
    tolerance = ROUNDED_TOLERANCE if name == ROUNDED else TOLERANCE
    for seed in SEEDS:
        results = run(backend, encoded, program(seed))
        expected = reference.of(results)
        for result in results:
            error = mismatch(result, expected[result.audio, result.tokens])
            assert error < tolerance, f"program {seed}: off by {error:.1e}: {result}"


def test_programs_cover_everything() -> None:
    """Every operation, every group size, and both ends of the context occur often enough."""
    counts: collections.Counter[str] = collections.Counter()
    full = grown = 0
    for seed in range(N_PROGRAMS):
        lengths = [0]
        for step in program(seed):
            counts[step.operation] += 1
            if step.operation == "extend":
                lengths += [len(tokens) for tokens in step.arguments[0]]
            grown += step.operation == "gather" and len(step.arguments) > 4
        full += max(lengths) > N_CTX - 15
    every = "open extend gather append attention overfull top close run"
    for operation in every.split():
        assert counts[operation] > 100, counts
    assert full > 40
    assert grown > 200
    assert [step.operation for step in program(7)] == [step.operation for step in program(7)]
