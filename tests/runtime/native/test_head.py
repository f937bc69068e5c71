"""The output head of 8-bit engines against its definition.

Run on the oldest supported Python and ONNX Runtime too, by test_pythons.py.
"""

from __future__ import annotations

import numpy as np
import pytest

from tests.support.one_node import graph, head_constants, head_graph, run, session
from whisper_opt.core.arrays import F32, NDArray
from whisper_opt.export.graphs.head import head8
from whisper_opt.runtime.head_bounds import STEPS

pytestmark = pytest.mark.usefixtures("kernels")

ROWS = (1, 2, 3, 4, 5, 6, 7, 40)


def hidden(n_seq: int, n_at: int, n_in: int) -> F32:
    """Rows with very different magnitudes, also between channels."""
    rng = np.random.default_rng([n_seq, n_at, n_in])
    scale = np.exp(2 * rng.standard_normal((n_seq, n_at, 1)))
    channels = np.exp(rng.standard_normal(n_in))
    return (rng.standard_normal((n_seq, n_at, n_in)) * scale * channels).astype(np.float32)


def by_hand(given: F32, n_vocab: int) -> tuple[NDArray, NDArray]:
    """The definition of the kernel in float64, and an upper limit of the scores of each row."""
    shrink, weight, scale, mean = head_constants(given.shape[-1], n_vocab).values()
    shrunk = given * shrink
    step = np.maximum(np.abs(shrunk).max(axis=-1, keepdims=True), 1e-30) / np.float32(STEPS)
    steps = shrunk / step
    high = np.rint(steps)
    low = np.rint((steps - high) * np.float32(2 * STEPS))
    wide = [part.astype(np.float64) @ weight.astype(np.float64) for part in (high, low)]
    scores = (wide[0] + wide[1] / (2 * STEPS)) * step * scale
    offset = given.astype(np.float64) @ mean
    size = np.abs(scores).max(axis=-1) + (np.abs(given) @ np.abs(mean))
    return scores + offset[..., None], size


@pytest.mark.parametrize("n_in", [64, 80, 384])
@pytest.mark.parametrize("n_vocab", [1, 63, 64, 70, 2000])
def test_scores(n_in: int, n_vocab: int) -> None:
    """The same integers, so only the last bits differ; close to the definition.

    Measured: 2e-7 of the sum of a row, and 3e-4 of the norm of a row.
    """
    model = head_graph(n_in, n_vocab)
    plain = session(model, kernels=False)
    one, two = (session(model, kernels=True, threads=threads) for threads in (1, 2))
    for n_rows in ROWS:
        for shape in ((1, n_rows), (n_rows, 1), (2, n_rows)):
            given = hidden(*shape, n_in)
            found = run(one, hidden=given)
            np.testing.assert_array_equal(found, run(two, hidden=given))
            expected, size = by_hand(given, n_vocab)
            assert (np.abs(found - expected).max(axis=-1) / size).max() < 1e-6
            far = np.abs(found - run(plain, hidden=given)).max(axis=-1)
            assert (far / np.linalg.norm(given, axis=-1)).max() < 1e-3


@pytest.mark.parametrize("threads", [1, 2])
def test_rows_do_not_depend_on_the_batch(threads: int) -> None:
    runner = session(head_graph(128, 70), kernels=True, threads=threads)
    given = hidden(1, 40, 128)
    together = run(runner, hidden=given)
    for n in (1, 2, 3, 4, 5, 7):  # a tile has three rows
        for first in range(0, 40 - n, 5):
            part = given[:, first : first + n]
            np.testing.assert_array_equal(run(runner, hidden=part), together[:, first : first + n])


def test_precision_of_two_rows_of_bytes() -> None:
    """Inputs keep about 14 bits, far more than one row of 8 bits."""
    model = head_graph(128, 1000)
    given = np.random.default_rng(4).standard_normal((1, 20, 128)).astype(np.float32)
    shrink, weight, scale, mean = head_constants(128, 1000).values()
    exact = (given * shrink) @ weight * scale + (given @ mean)[..., None]
    found = run(session(model, kernels=True), hidden=given)
    assert np.linalg.norm(found - exact) < 1e-4 * np.linalg.norm(exact)


@pytest.mark.parametrize("value", [0.0, 1e-38, 1e-28, 1e-20, 1e20, -3.0])
def test_extreme_rows(value: float) -> None:
    model = head_graph(64, 70)
    given = np.full((1, 2, 64), value, np.float32)
    given[0, 1, 1:] = 0
    found = run(session(model, kernels=True), hidden=given)
    assert np.isfinite(found).all()
    expected, size = by_hand(given, 70)
    assert (np.abs(found - expected).max(axis=-1) <= 1e-6 * size + 1e-30).all()


def test_no_rows_are_no_error() -> None:
    runner = session(head_graph(64, 70), kernels=True)
    for shape in ((0, 1), (1, 0), (3, 0)):
        assert run(runner, hidden=np.zeros((*shape, 64), np.float32)).shape == (*shape, 70)


def test_rows_of_another_length() -> None:
    constants: dict[str, NDArray] = {
        "shrink": np.ones(64, np.float32),
        "weight": np.ones((64, 70), np.int8),
        "scale": np.ones(70, np.float32),
        "mean": np.zeros(64, np.float32),
    }
    model = graph(head8((64, 70)), constants, {"hidden": ["s", "p", "n"]}, ["s", "p", 70])
    with pytest.raises(Exception, match=r"hidden is not \[\.\., n_in\]"):
        run(session(model, kernels=True), hidden=np.zeros((1, 2, 80), np.float32))
