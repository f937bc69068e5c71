"""Random programs give the same scores on every backend: 500 of them, 0 mismatches.

A few are run by default, all with ``WHISPER_OPT_PROGRAMS=all`` in the environment. The backends of
the model are compared with one truth, which makes them equal to one another; the fake one and that
of 8 bits, which have scores of their own, with themselves.
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
from tests.support.programs import N_AUDIO, Truths, mismatch, program, run
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
        if name in ("fake", "contrib", ROUNDED) or runs("standard")
    }


@pytest.mark.parametrize("name", [*BACKENDS, ROUNDED])
def test_random_programs(backends: dict[str, Backend], name: str) -> None:
    if name not in backends:
        pytest.skip("not tested: this ONNX Runtime does not run the standard dialect")
    backend = backends[name]
    encoded = backend.encode(mels(N_AUDIO))
    truths = Truths(backend if name in ("fake", ROUNDED) else backends["contrib"])
    tolerance = ROUNDED_TOLERANCE if name == ROUNDED else TOLERANCE
    for seed in SEEDS:
        answers = run(backend, encoded, program(seed))
        expected = truths.of(answers)
        for answer in answers:
            error = mismatch(answer, expected[answer.audio, answer.tokens])
            assert error < tolerance, f"program {seed}: off by {error:.1e}: {answer}"


def test_programs_ask_everything() -> None:
    """What the bar is worth: every verb, every size of group, both ends of the context."""
    verbs: collections.Counter[str] = collections.Counter()
    full = grown = 0
    for seed in range(N_PROGRAMS):
        lengths = [0]
        for step in program(seed):
            verbs[step.verb] += 1
            if step.verb == "extend":
                lengths += [len(tokens) for tokens in step.what[0]]
            grown += step.verb == "gather" and len(step.what) > 4
        full += max(lengths) > N_CTX - 15
    every = "open extend gather append attention overfull top close run"
    for verb in every.split():
        assert verbs[verb] > 100, verbs
    assert full > 40
    assert grown > 200
    assert [step.verb for step in program(7)] == [step.verb for step in program(7)]
