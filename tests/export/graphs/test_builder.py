"""Weights that are computed together."""

from __future__ import annotations

import weakref

import numpy as np

from whisper_opt.core.arrays import NDArray
from whisper_opt.export.graphs.builder import Together


def test_weights_are_computed_once_and_dropped_after_the_last_read() -> None:
    made: list[weakref.ref[NDArray]] = []

    def compute() -> tuple[NDArray, NDArray]:
        values = np.arange(6.0)
        made.append(weakref.ref(values))
        return values, values[:2] + 1

    both = Together(compute)
    values = both.part("values", lambda found: found[0])
    scales = both.part("scales", lambda found: found[1])
    assert values().tolist() == [0, 1, 2, 3, 4, 5]
    assert len(made) == 1
    assert made[0]() is not None
    assert scales().tolist() == [1, 2]
    assert len(made) == 1
    assert made[0]() is None


def test_weights_that_are_read_again_are_computed_again() -> None:
    one = Together(lambda: np.arange(3.0))
    read = one.part("values", lambda found: found)
    assert read() is not read()
    np.testing.assert_array_equal(read(), [0, 1, 2])
