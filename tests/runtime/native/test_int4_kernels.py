"""Kernels of products with 4-bit weights against their definition.

Run on the oldest supported Python and ONNX Runtime too, by test_pythons.py.
"""

from __future__ import annotations

import platform

import numpy as np
import pytest

from tests.runtime.native.test_kernels import extreme, feeds, refused, some_rows
from tests.support.one_node import (
    difference,
    embedding4_graph,
    head4_constants,
    head4_graph,
    linear4_constants,
    linear4_graph,
    run,
    session,
)
from whisper_opt.core.arrays import F32, NDArray
from whisper_opt.export.graphs.int4_operators import BLOCK, LINEARS4
from whisper_opt.export.graphs.operators import Operator
from whisper_opt.export.quantization.int4 import unpack_int4

pytestmark = pytest.mark.usefixtures("kernels")

linears = pytest.mark.parametrize("operator", LINEARS4, ids=lambda operator: operator.name)
OTHER_ROUNDING = 2e-2 if platform.machine().lower() in ("aarch64", "arm64") else 0.0
"""Where ONNX Runtime rounds whole rows of inputs, not blocks: so much is added to relative errors.

The kernels have the same bits there (``test_products_by_hand``, docs/kernels.md).
"""


def by_hand(x: F32, constants: dict[str, NDArray]) -> tuple[NDArray, NDArray]:
    """x [.., n_in] times the weights in float64, and the sum of the magnitudes of the products.

    x is rounded as the kernels round it: each block to 127 steps of either sign.
    """
    blocks = x.reshape(*x.shape[:-1], -1, BLOCK)
    absmax = np.maximum(np.abs(blocks).max(axis=-1, keepdims=True), np.float32(1e-20))
    integers = np.rint(blocks * (np.float32(127) / absmax))
    rounded = (integers * np.float64(absmax / np.float32(127))).reshape(x.shape)
    weight = unpack_int4(constants["weight"], constants["steps"].astype(np.float32)).T
    return rounded @ np.float64(weight), np.abs(rounded) @ np.abs(weight)


@pytest.mark.parametrize(("n_in", "n_out"), [(32, 1), (64, 70), (384, 129)])
def test_products_by_hand(n_in: int, n_out: int) -> None:
    constants = linear4_constants(n_in, n_out)
    one, two = (
        session(linear4_graph(LINEARS4.plain, n_in, n_out), kernels=True, threads=threads)
        for threads in (1, 2)
    )
    for n_rows in (*range(1, 14), 97):
        x = some_rows((2, n_rows, n_in), n_rows)
        found = run(one, x=x)
        np.testing.assert_array_equal(found, run(two, x=x))
        expected, size = by_hand(x, constants)
        assert (np.abs(found - expected - constants["bias"]) <= 1e-6 * (size + 1)).all()


@linears
@pytest.mark.parametrize(("n_in", "n_out"), [(64, 70), (384, 512)])
def test_products(operator: Operator, n_in: int, n_out: int) -> None:
    """Equal to ONNX Runtime's but for last bits, and integers that a last bit rounds otherwise."""
    model = linear4_graph(operator, n_in, n_out)
    plain, native = (session(model, kernels=kernels) for kernels in (False, True))
    for n_rows in (1, 2, 5, 8, 97):
        given = feeds(operator, some_rows((1, n_rows, n_in), n_rows), n_out)
        found, expected = run(native, **given), run(plain, **given)
        far = np.linalg.norm(found - expected, axis=2) / np.linalg.norm(expected, axis=2)
        assert np.median(far) < 1e-6 + OTHER_ROUNDING
        assert far.max() < 1e-2 + OTHER_ROUNDING


@linears
@pytest.mark.parametrize("threads", [1, 2])
def test_rows_do_not_depend_on_the_batch(operator: Operator, threads: int) -> None:
    runner = session(linear4_graph(operator, 128, 70), kernels=True, threads=threads)
    given = feeds(operator, some_rows((1, 103, 128), 5), 70)
    together = run(runner, **given)
    for n in (1, 2, 5, 6, 7, 8, 13):  # a tile has up to six rows
        for first in range(0, 103 - n, 17):
            part = {name: value[:, first : first + n] for name, value in given.items()}
            np.testing.assert_array_equal(run(runner, **part), together[:, first : first + n])


@linears
@pytest.mark.parametrize("fault", [np.nan, -np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_kept(operator: Operator, fault: float) -> None:
    """A row with NaN or infinity gives no finite row; other rows do not change."""
    runner = session(linear4_graph(operator, 128, 70), kernels=True)
    rows = np.random.default_rng(3).standard_normal((1, 9, 128)).astype(np.float32)
    unchanged = run(runner, **feeds(operator, rows, 70))
    rows[0, 4, 77] = fault
    found = run(runner, **feeds(operator, rows, 70))
    if not (operator is LINEARS4.gelu_add and fault == -np.inf):  # whose GELU is 0, or NaN
        assert not np.isfinite(found[0, 4]).any()
    others = [i for i in range(9) if i != 4]
    np.testing.assert_array_equal(found[0, others], unchanged[0, others])


@linears
@pytest.mark.parametrize("name", extreme(8))
def test_extreme_rows(operator: Operator, name: str) -> None:
    row = extreme(128)[name] / np.float32(8)  # the weights are larger than one
    if operator is LINEARS4.norm:  # the sum of a row overflows at the largest there is
        row = np.clip(row, -1e30, 1e30)
    model = linear4_graph(operator, 128, 70)
    given = feeds(operator, row[None, None], 70)
    expected = run(session(model, kernels=False), **given)
    found = run(session(model, kernels=True), **given)
    assert np.isfinite(found).all()
    if np.isfinite(expected).all():
        assert difference(found, expected) < 1e-5 + OTHER_ROUNDING  # a constant row cancels out


def test_the_largest_sums_of_a_block() -> None:
    """All weights are 15 before the zero point is subtracted, all inputs 127 steps."""
    n_in = 4 * BLOCK
    changed: dict[str, NDArray] = {
        "weight": np.full((70, 4, BLOCK // 2), 255, np.uint8),
        "steps": np.ones((70, 4), np.float16),
        "bias": np.zeros(70, np.float32),
    }
    runner = session(linear4_graph(LINEARS4.plain, n_in, 70, changed=changed), kernels=True)
    for sign in (1, -1):
        found = run(runner, x=np.full((1, 7, n_in), 127 * sign, np.float32))
        np.testing.assert_array_equal(found, np.float32(sign * 127 * 7 * n_in))


# --- the output head ------------------------------------------------------------------------------


@pytest.mark.parametrize(("n_words", "n_special"), [(1, 1), (70, 33), (1000, 600)])
@pytest.mark.parametrize("n_in", [64, 384])
def test_scores(n_in: int, n_words: int, n_special: int) -> None:
    constants = head4_constants(n_in, n_words, n_special)
    model = head4_graph(n_in, n_words, n_special)
    plain = session(model, kernels=False)
    one, two = (session(model, kernels=True, threads=threads) for threads in (1, 2))
    for n_rows in (1, 2, 3, 5, 6, 7, 50):
        hidden = some_rows((n_rows, 1, n_in), n_rows)
        found = run(one, hidden=hidden)
        np.testing.assert_array_equal(found, run(two, hidden=hidden))
        words, size = by_hand(hidden * constants["shrink"], constants)
        special = constants["special"].astype(np.float64).T
        mean = constants["mean"].astype(np.float64)[:, None]
        expected = np.concatenate([words + hidden @ mean, hidden @ special], axis=2)
        size = np.concatenate(
            [size + np.abs(hidden) @ np.abs(mean), np.abs(hidden) @ np.abs(special)], axis=2
        )
        assert (np.abs(found - expected) <= 1e-6 * size).all()
        assert difference(found, run(plain, hidden=hidden)) < 2e-3 + OTHER_ROUNDING


def test_special_tokens_of_any_size() -> None:
    """Every finite float16 number is read, the smallest too."""
    finite = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    special = finite[np.isfinite(finite)].reshape(-1, 32)
    model = head4_graph(32, 16, len(special), changed={"special": special})
    hidden = np.eye(32, dtype=np.float32)[None]
    found = run(session(model, kernels=True), hidden=hidden)
    np.testing.assert_array_equal(found[0, :, 16:], special.astype(np.float32).T)


def test_scores_do_not_depend_on_the_batch() -> None:
    runner = session(head4_graph(128, 70, 33), kernels=True, threads=2)
    hidden = some_rows((1, 60, 128), 0)
    together = run(runner, hidden=hidden)
    for n in (1, 2, 3, 5, 8):
        part = hidden[:, 7 : 7 + n]
        np.testing.assert_array_equal(run(runner, hidden=part), together[:, 7 : 7 + n])


def test_embedding() -> None:
    """The same bits as its definition, for words and special tokens."""
    model = embedding4_graph(64, 70, 33)
    for tokens in (np.arange(103)[None], np.array([[0], [69], [70], [102]])):
        found, expected = (
            run(session(model, kernels=kernels), tokens=tokens) for kernels in (True, False)
        )
        np.testing.assert_array_equal(found, expected)


# --- what is refused ------------------------------------------------------------------------------


def test_no_rows_are_no_error() -> None:
    runner = session(linear4_graph(LINEARS4.plain, 64, 70), kernels=True)
    assert run(runner, x=np.zeros((2, 0, 64), np.float32)).shape == (2, 0, 70)
    runner = session(head4_graph(64, 70, 9), kernels=True)
    assert run(runner, hidden=np.zeros((0, 1, 64), np.float32)).shape == (0, 1, 79)


def test_scales_of_another_shape() -> None:
    changed: dict[str, NDArray] = {"steps": np.ones((70, 3), np.float16)}
    said = refused(linear4_graph(LINEARS4.plain, 64, 70, changed=changed))
    assert "the shape of the weight does not match its scales" in said


@pytest.mark.parametrize("name", ["bias", "gain", "shift"])
def test_vectors_of_another_length(name: str) -> None:
    changed: dict[str, NDArray] = {name: np.ones(63, np.float32)}
    said = refused(linear4_graph(LINEARS4.norm, 64, 70, changed=changed))
    assert "a vector does not match its weights" in said


def test_a_residual_of_another_shape() -> None:
    model = linear4_graph(LINEARS4.add, 64, 70)
    given = {"x": np.zeros((1, 2, 64), np.float32), "residual": np.zeros((1, 1, 70), np.float32)}
    assert "residual does not have the shape" in refused(model, given)


@pytest.mark.parametrize("token", [-1, 103])
def test_tokens_out_of_range(token: int) -> None:
    runner = session(embedding4_graph(64, 70, 33), kernels=True)
    with pytest.raises(Exception, match="a token is out of range"):
        run(runner, tokens=np.array([[1, token]]))


@pytest.mark.parametrize(
    ("special", "said"),
    [
        (np.ones((9, 32), np.float16), "the weights of special tokens do not match the others"),
        (np.full((9, 64), np.inf, np.float16), "weights must be finite"),
    ],
)
def test_weights_of_special_tokens(special: NDArray, said: str) -> None:
    assert said in refused(head4_graph(64, 70, 9, changed={"special": special}))
