"""Compiled kernels against their definition: the functions in graphs, run by ONNX Runtime.

Run on the oldest supported Python and ONNX Runtime too, by test_pythons.py.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import onnxruntime
import pytest

from tests.support.one_node import (
    attention_graph,
    difference,
    graph,
    layer_norm_constants,
    layer_norm_graph,
    linear_graph,
    pack_graph,
    run,
    session,
)
from whisper_opt.core.arrays import F32, NDArray
from whisper_opt.export.graphs.operators import LINEARS, Operator, encoder_attention_at

pytestmark = pytest.mark.usefixtures("kernels")

ROWS = (*range(1, 14), 95, 96, 97, 200)
KEYS = (1, 5, 127, 128, 129, 300)
linears = pytest.mark.parametrize("operator", LINEARS, ids=lambda operator: operator.name)


def feeds(operator: Operator, x: NDArray, n_out: int, seed: int = 0) -> dict[str, NDArray]:
    """Inputs of a product of ``x`` [a, m, n_in]."""
    rng = np.random.default_rng(seed)
    residual = rng.standard_normal((*x.shape[:2], n_out)).astype(np.float32)
    found: dict[str, NDArray] = {"x": x.astype(np.float32), "residual": residual}
    return {name: value for name, value in found.items() if name in operator.inputs}


def some_rows(shape: tuple[int, ...], seed: int) -> F32:
    """Random rows, some of which are ten times as large as others."""
    rng = np.random.default_rng(seed)
    scale = np.exp(rng.standard_normal((*shape[:-1], 1)))
    return (rng.standard_normal(shape) * scale).astype(np.float32)


@linears
@pytest.mark.parametrize("n_out", [1, 64, 70, 200])
@pytest.mark.parametrize("four_fit", [False, True])
def test_weights_of_engines_before_format_5(operator: Operator, n_out: int, four_fit: bool) -> None:
    given = feeds(operator, some_rows((2, 7, 80), n_out), n_out)
    models = (
        linear_graph(operator, 80, n_out, packed=packed, four_fit=four_fit)
        for packed in (False, True)
    )
    found, expected = (run(session(model, kernels=True), **given) for model in models)
    np.testing.assert_array_equal(found, expected)


# --- products -------------------------------------------------------------------------------------


@linears
@pytest.mark.parametrize("n_in", [64, 128, 512])
@pytest.mark.parametrize("n_out", [64, 70, 512])
def test_products(operator: Operator, n_in: int, n_out: int) -> None:
    """Equal except for the last bits, and integers that a last bit rounds to the next one.

    Measured with 3,474 rows of each kind: a relative error of 1e-7, and in up to twelve rows one
    other integer, which is an error of 3e-3 in a row of 64 numbers.
    """
    model = linear_graph(operator, n_in, n_out)
    plain = session(model, kernels=False)
    one, two = (session(model, kernels=True, threads=threads) for threads in (1, 2))
    shares = []
    for n_rows, n_audio in itertools.product(ROWS, (1, 2, 3)):
        given = feeds(operator, some_rows((n_audio, n_rows, n_in), n_rows + n_audio), n_out)
        expected, found = run(plain, **given), run(one, **given)
        np.testing.assert_array_equal(found, run(two, **given))
        far = np.linalg.norm(found - expected, axis=2) / np.linalg.norm(expected, axis=2)
        shares.append(far.ravel())
    each = np.concatenate(shares)
    assert np.median(each) < 3e-7
    assert (each > 2e-6).mean() < 0.01
    assert each.max() < 1e-2
    assert np.sqrt(np.square(each).mean()) < 2e-4


@linears
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("four_fit", [False, True])
def test_rows_do_not_depend_on_the_batch(operator: Operator, threads: int, four_fit: bool) -> None:
    runner = session(
        linear_graph(operator, 128, 70, four_fit=four_fit), kernels=True, threads=threads
    )
    given = feeds(operator, some_rows((1, 103, 128), 5), 70)
    together = run(runner, **given)
    for n in (1, 2, 5, 6, 7, 8, 9):  # a tile has six rows, and up to eight are rounded at once
        for first in range(0, 103 - n, 11):
            part = {name: value[:, first : first + n] for name, value in given.items()}
            np.testing.assert_array_equal(run(runner, **part), together[:, first : first + n])


@pytest.mark.parametrize("seed", range(20))
def test_products_of_any_shape(seed: int) -> None:
    rng = np.random.default_rng(seed)
    operator, n_in = LINEARS[seed % len(LINEARS)], 16 * int(rng.integers(1, 41))
    n_out, n_rows, n_audio = (int(rng.integers(1, limit)) for limit in (300, 120, 4))
    model = linear_graph(operator, n_in, n_out, seed)
    given = feeds(operator, some_rows((n_audio, n_rows, n_in), seed), n_out)
    found, expected = (
        run(session(model, kernels=kernels, threads=2), **given) for kernels in (True, False)
    )
    far = np.linalg.norm(found - expected, axis=2) / np.linalg.norm(expected, axis=2)
    assert np.median(far) < 1e-6
    assert far.max() < 0.05  # an integer of a row of 16
    assert (far > 2e-5).mean() < 0.02


# --- layer normalization --------------------------------------------------------------------------


def normalized(x: F32) -> NDArray:
    """In float64."""
    wide = x.astype(np.float64)
    even = wide - wide.mean(axis=-1, keepdims=True)
    even /= np.sqrt(np.square(even).mean(axis=-1, keepdims=True) + 1e-5)
    weights = layer_norm_constants(x.shape[-1])
    found: NDArray = even * weights["gain"] + weights["shift"]
    return found


@pytest.mark.parametrize("n", [16, 64, 384, 1280])
def test_layer_normalization(n: int) -> None:
    model = layer_norm_graph(n)
    plain = session(model, kernels=False)
    one, two = (session(model, kernels=True, threads=threads) for threads in (1, 2))
    for n_rows in (1, 31, 32, 33, 200):
        x = some_rows((2, n_rows, n), n_rows) + np.float32(0.5)
        found = run(one, x=x)
        np.testing.assert_allclose(found, run(plain, x=x), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(found, normalized(x), rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(found, run(two, x=x))
        np.testing.assert_array_equal(found[1:, -1:], run(one, x=x[1:, -1:].copy()))


def test_layer_normalization_of_no_rows() -> None:
    runner = session(layer_norm_graph(64), kernels=True)
    assert run(runner, x=np.zeros((2, 0, 64), np.float32)).shape == (2, 0, 64)


def test_layer_normalization_of_extreme_rows() -> None:
    """Each beside others, which it must not change."""
    x = np.stack(list(extreme(64).values()))[None]
    found, expected = run(session(layer_norm_graph(64), kernels=True), x=x)[0], normalized(x)[0]
    for name, mine, wanted, row in zip(extreme(64), found, expected, x[0]):
        with np.errstate(over="ignore"):
            fits = np.isfinite(np.square(row - row.mean()).sum())  # in float32
        if fits:
            np.testing.assert_allclose(mine, wanted, rtol=1e-4, atol=1e-4, err_msg=name)


def test_layer_normalization_of_wrong_shapes() -> None:
    short = np.ones(48, np.float32)
    for model, n, message in (
        (layer_norm_graph(64), 48, "x, gain and shift do not match"),
        (layer_norm_graph(64, gain=short), 64, "x, gain and shift do not match"),
        (layer_norm_graph(64, shift=short), 64, "x, gain and shift do not match"),
        (layer_norm_graph(24), 24, "multiple of 16"),
        (layer_norm_graph(0), 0, "multiple of 16"),
    ):
        with pytest.raises(Exception, match=message):
            run(session(model, kernels=True), x=np.ones((1, 2, n), np.float32))


# --- extreme inputs -------------------------------------------------------------------------------


def extreme(n: int) -> dict[str, F32]:
    """Rows [n] that are difficult to quantize."""
    plain = np.random.default_rng(1).standard_normal(n).astype(np.float32)
    huge, hugely_negative = plain.copy(), plain.copy()
    huge[3], hugely_negative[n - 1] = 1e30, -1e30
    rows = {
        "zeros": np.zeros(n),
        "one huge value": huge,
        "one hugely negative value": hugely_negative,
        "all huge": np.sign(plain) * 1e30,
        "near the largest float": np.sign(plain) * 1e37,
        "denormals": plain * 1e-40,
        "tiny": plain * 1e-25,
        "constant": np.full(n, 3.0),
        "constant and large": np.full(n, 1e4),
        "constant, the minimum of GELU": np.full(n, -0.75),
    }
    return {name: row.astype(np.float32) for name, row in rows.items()}


@linears
@pytest.mark.parametrize("fault", [np.nan, -np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_kept(operator: Operator, fault: float) -> None:
    """A row with NaN or infinity gives no finite row; other rows do not change."""
    model = linear_graph(operator, 128, 70)
    rows = np.random.default_rng(3).standard_normal((1, 9, 128)).astype(np.float32)
    unchanged = run(session(model, kernels=True), **feeds(operator, rows, 70))
    rows[0, 4, 77] = fault
    found = run(session(model, kernels=True), **feeds(operator, rows, 70))
    if not (operator is LINEARS.gelu_add and fault == -np.inf):  # whose GELU is 0, or NaN
        assert not np.isfinite(found[0, 4]).all()
    others = [i for i in range(9) if i != 4]
    np.testing.assert_array_equal(found[0, others], unchanged[0, others])


@linears
@pytest.mark.parametrize("name", extreme(8))
def test_extreme_rows(operator: Operator, name: str) -> None:
    row = extreme(128)[name]
    if operator is LINEARS.norm:  # the sum of a row overflows at the largest there is
        row = np.clip(row, -1e30, 1e30)
    model = linear_graph(operator, 128, 70)
    given = feeds(operator, row[None, None], 70)
    expected = run(session(model, kernels=False), **given)
    found = run(session(model, kernels=True), **given)
    assert np.isfinite(found).all()
    if np.isfinite(expected).all() or operator is not LINEARS.norm:
        # ONNX Runtime 1.19 has a variance that is lost in the square of the mean
        assert difference(found, expected) < 1e-6


# --- attention ------------------------------------------------------------------------------------


def qkv(n_audio: int, n: int, n_head: int, sharp: float = 1, seed: int = 0) -> F32:
    """Queries, keys and values [n_audio, n, 3 * 64 * n_head]; scores deviate by ``sharp``."""
    rng = np.random.default_rng([seed, n_audio, n, n_head])
    value = rng.standard_normal((n_audio, n, 3, 64 * n_head))
    value[:, :, :2] *= sharp**0.5
    value[:, :, 1:] += 1  # the mean of keys and values is not zero
    return value.reshape(n_audio, n, -1).astype(np.float32)


def counts(n: int) -> F32:
    """Added scores of keys that count up to nine times."""
    often = np.random.default_rng(n).integers(1, 10, n)
    return np.log(often).astype(np.float32)


@pytest.mark.parametrize("n_head", [1, 2, 3])
@pytest.mark.parametrize("n", KEYS)
def test_attention(n: int, n_head: int) -> None:
    """Eight bits of queries, keys, weights and values against float32.

    Measured: relative errors of 0.002 with flat attention (standard deviation of scores 1), 0.0035
    with 5 keys, up to 0.012 with peaked attention (4).
    """
    model = attention_graph(n_head)
    plain = session(model, kernels=False)
    one, two = (session(model, kernels=True, threads=threads) for threads in (1, 2))
    for n_audio, (sharp, limit), by_parts in itertools.product(
        (1, 2, 3), ((1, 0.005), (4, 0.02)), (False, True)
    ):
        given: dict[str, NDArray] = {
            "qkv": qkv(n_audio, n, n_head, sharp),
            "added": counts(n) if by_parts else np.zeros(n, np.float32),
            "by_parts": np.array(by_parts),
        }
        expected, found = run(plain, **given), run(one, **given)
        np.testing.assert_array_equal(found, run(two, **given))
        assert difference(found, expected) < limit
        if n > 1:
            assert difference(found, expected) > 1e-5  # it is the kernel


def test_added_scores() -> None:
    """A key that counts three times equals three keys."""
    value = qkv(1, 90, 2)
    often = np.ones(90, np.int64)
    often[10:20] = 3
    added = np.log(often).astype(np.float32)
    runner = session(attention_graph(2), kernels=True)
    found = run(runner, qkv=value, added=added, by_parts=np.array(True))
    longer = np.repeat(value, often, axis=1)
    nothing = np.zeros(longer.shape[1], np.float32)
    expected = run(runner, qkv=longer, added=nothing, by_parts=np.array(False))
    first = np.cumsum(often) - often
    assert difference(found, expected[:, first]) < 0.005


@pytest.mark.parametrize("n_head", [1, 2, 3])
@pytest.mark.parametrize("n", KEYS)
def test_attention_of_some_positions(n: int, n_head: int) -> None:
    """The result has the same bits as these positions of the full result."""
    value = qkv(2, n, n_head)
    everywhere: dict[str, NDArray] = {
        "added": np.zeros(n, np.float32),
        "by_parts": np.array(False),
    }
    whole = run(session(attention_graph(n_head), kernels=True), qkv=value, **everywhere)
    model = attention_graph(n_head, at=True)
    plain, runner = (session(model, kernels=kernels, threads=2) for kernels in (False, True))
    for positions in ([0], [n - 1, 0], list(range(0, n, 3)), list(range(n))):
        at = np.array(positions, np.int64)
        found = run(runner, qkv=value, positions=at)
        np.testing.assert_array_equal(found, whole[:, at])
        assert difference(found, run(plain, qkv=value, positions=at)) < 0.005


def test_audios_and_heads_are_independent() -> None:
    """Each result has the same bits as alone."""
    nothing: dict[str, NDArray] = {
        "added": np.zeros(130, np.float32),
        "by_parts": np.array(False),
    }
    value = qkv(3, 130, 2)
    runner = session(attention_graph(2), kernels=True, threads=2)
    together = run(runner, qkv=value, **nothing)
    for i in range(3):
        alone = run(runner, qkv=value[i : i + 1], **nothing)
        np.testing.assert_array_equal(alone[0], together[i])
    single = session(attention_graph(1), kernels=True)
    for head in range(2):
        part = value.reshape(3, 130, 3, 2, 64)[:, :, :, head].reshape(3, 130, -1)
        alone = run(single, qkv=np.ascontiguousarray(part), **nothing)
        np.testing.assert_array_equal(alone, together[..., 64 * head : 64 * head + 64])


@pytest.mark.parametrize("score", [4, 5, 6, 7, 8, 10])
@pytest.mark.parametrize("n", [128, 300, 1500])
def test_one_large_weight_among_many_small_ones(n: int, score: int) -> None:
    """Weights of a block have steps of 1/255 of the largest, so small ones may become zero.

    The worst case: all others of the block are just below half a step. Measured: a relative error
    of 0.12 for 128 keys (score 6), 0.11 for 300, 0.04 for 1500.
    """
    rng = np.random.default_rng([n, score])
    query = rng.standard_normal(64)
    query *= 8 / np.linalg.norm(query)
    value = np.zeros((1, n, 192))
    value[..., :64] = query
    value[..., 64:128] = rng.standard_normal((n, 64)) / 10
    value[..., 128:] = rng.standard_normal((n, 64)) + 1
    value[0, n // 3, 64:128] += query * score / 8
    value[0, n // 3, 128:] = 5 * rng.standard_normal(64)
    given: dict[str, NDArray] = {
        "qkv": value.astype(np.float32),
        "added": np.zeros(n, np.float32),
        "by_parts": np.array(False),
    }
    found, expected = (
        run(session(attention_graph(1), kernels=kernels), **given) for kernels in (True, False)
    )
    assert difference(found, expected) < SMALL_WEIGHTS


SMALL_WEIGHTS = 0.15
"""Error limit for many keys with weights below 1/510 of the largest of their block."""


def test_scores_of_any_size() -> None:
    """Softmax neither overflows nor divides by zero."""
    nothing: dict[str, NDArray] = {
        "added": np.zeros(130, np.float32),
        "by_parts": np.array(False),
    }
    plain, runner = (session(attention_graph(1), kernels=kernels) for kernels in (False, True))
    for scale in (0, 1e-30, 1e-3, 1e3, 1e12):
        value = qkv(1, 130, 1)
        value[..., :128] *= np.float32(scale)
        found = run(runner, qkv=value, **nothing)
        assert np.isfinite(found).all()
        if scale <= 1e-3:  # above, another key may have the largest weight after rounding
            assert difference(found, run(plain, qkv=value, **nothing)) < 0.005


FAULTS = (np.nan, -np.nan, np.inf, -np.inf)


@pytest.mark.parametrize("fault", FAULTS)
def test_attention_keeps_nan_and_infinity(fault: float) -> None:
    """A query affects its row, a key all rows, a value its channel; other bits do not change."""
    runner = session(attention_graph(2), kernels=True)
    plain: dict[str, NDArray] = {"added": np.zeros(9, np.float32), "by_parts": np.array(False)}
    given = qkv(1, 9, 2)
    unchanged = run(runner, qkv=given, **plain).reshape(9, 2, 64)
    for channel in range(64):
        for kind in range(3):
            faulty = given.reshape(9, 3, 2, 64).copy()
            faulty[4, kind, 1, channel] = fault
            found = run(runner, qkv=faulty.reshape(1, 9, -1), **plain).reshape(9, 2, 64)
            spoilt = np.zeros((9, 2, 64), bool)
            spoilt[(np.s_[4, 1], np.s_[:, 1], np.s_[:, 1, channel])[kind]] = True
            assert not np.isfinite(found[spoilt]).any(), (channel, kind)
            np.testing.assert_array_equal(found[~spoilt], unchanged[~spoilt])


@pytest.mark.parametrize("fault", [np.nan, np.inf])
def test_attention_keeps_nan_and_infinity_in_added(fault: float) -> None:
    runner = session(attention_graph(1), kernels=True)
    given = qkv(1, 130, 1)
    for key in range(130):
        added = np.zeros(130, np.float32)
        added[key] = fault
        found = run(runner, qkv=given, added=added, by_parts=np.array(False))
        assert not np.isfinite(found).any(), key


# --- what is refused ------------------------------------------------------------------------------


def constants(n_in: int, n_out: int) -> dict[str, NDArray]:
    return {
        "weight": np.ones((n_in, n_out), np.int8),
        "scale": np.ones(n_out, np.float32),
        "bias": np.zeros(n_out, np.float32),
        "gain": np.ones(n_in, np.float32),
        "shift": np.zeros(n_in, np.float32),
    }


def refused(model: bytes, given: dict[str, Any] | None = None) -> str:
    """The error of ONNX Runtime, on loading or on running."""
    with pytest.raises(Exception, match=r"must |not match|does not have|is not") as caught:
        session(model, kernels=True).run(None, given)
    assert type(caught.value).__module__.startswith(onnxruntime.__name__)
    return str(caught.value)


@pytest.mark.parametrize(
    "operator", [LINEARS.plain, LINEARS.norm], ids=lambda operator: operator.name
)
def test_weights_of_another_shape(operator: Operator) -> None:
    shapes = {"x": ["a", "m", 40]}
    said = refused(graph(operator, constants(40, 64), shapes, ["a", "m", 64]))
    assert "weights must have a multiple of 16 rows" in said


def test_rows_of_another_length() -> None:
    shapes = {"x": ["a", "m", "n"]}
    model = graph(LINEARS.plain, constants(64, 64), shapes, ["a", "m", 64])
    said = refused(model, {"x": np.zeros((1, 2, 80), np.float32)})
    assert "x is not [.., n_in]" in said


def test_weights_that_are_not_constant() -> None:
    held = constants(64, 64)
    del held["weight"]
    shapes: dict[str, list[Any]] = {"x": ["a", "m", 64], "weight": [1, 16, 64, 4]}
    said = refused(graph(LINEARS.plain, held, shapes, ["a", "m", 64]))
    assert "weights must be constant" in said


def test_panels_of_another_number() -> None:
    held = constants(64, 64)
    held["scale"] = np.ones(65, np.float32)
    said = refused(graph(LINEARS.plain, held, {"x": ["a", "m", 64]}, ["a", "m", 64]))
    assert "the shape of the weight does not match its scales" in said


@pytest.mark.parametrize("name", ["scale", "bias", "gain", "shift"])
def test_vectors_of_another_length(name: str) -> None:
    held = constants(64, 64)
    held[name] = held[name][:63]
    said = refused(graph(LINEARS.norm, held, {"x": ["a", "m", 64]}, ["a", "m", 64]))
    assert "a vector does not match its weights" in said


@pytest.mark.parametrize("shape", [(1, 1, 70), (2, 1, 70), (1, 2, 70, 1)])
def test_a_residual_that_needs_broadcasting(shape: tuple[int, ...]) -> None:
    given = feeds(LINEARS.add, np.zeros((1, 2, 64), np.float32), 70)
    given["residual"] = np.zeros(shape, np.float32)
    said = refused(linear_graph(LINEARS.add, 64, 70, rank=len(shape)), given)
    assert "residual does not have the shape" in said


@pytest.mark.parametrize("position", [-1, 5])
def test_positions_out_of_range(position: int) -> None:
    shapes: dict[str, list[Any]] = {"qkv": ["a", "n", "w"], "positions": ["m"]}
    model = graph(encoder_attention_at(1), {}, shapes, ["a", "m", 64], num_heads=1)
    given = {"qkv": np.zeros((1, 5, 192), np.float32), "positions": np.array([position])}
    with pytest.raises(Exception, match="a position is out of range"):
        session(model, kernels=True).run(None, given)


def test_added_of_another_length() -> None:
    given = {
        "qkv": np.zeros((1, 5, 192), np.float32),
        "added": np.zeros(4, np.float32),
        "by_parts": np.array(False),
    }
    assert "added is not [n]" in refused(attention_graph(1), given)


def test_positions_of_another_rank() -> None:
    shapes: dict[str, list[Any]] = {"qkv": ["a", "n", "w"], "positions": ["m", "k"]}
    model = graph(encoder_attention_at(1), {}, shapes, ["a", "m", 64], num_heads=1)
    given = {"qkv": np.zeros((1, 5, 192), np.float32), "positions": np.zeros((1, 2), np.int64)}
    assert "positions is not [n]" in refused(model, given)


def test_more_than_the_stack_holds() -> None:
    """Scores and a row of inputs are on the stack, so sizes are limited."""
    given = {
        "qkv": np.zeros((1, 4097, 192), np.float32),
        "added": np.zeros(4097, np.float32),
        "by_parts": np.array(False),
    }
    assert "more than 4096 positions" in refused(attention_graph(1), given)
    model = pack_graph(1, "k")
    assert "more than 4096 positions" in refused(model, {"x": np.zeros((1, 4097, 64), np.float32)})
    shapes = {"x": ["a", "m", 16400]}
    said = refused(graph(LINEARS.plain, constants(16400, 1), shapes, ["a", "m", 1]))
    assert "weights must have at most 16384 rows" in said


def test_too_many_heads() -> None:
    shapes: dict[str, list[Any]] = {"qkv": ["a", "n", "w"], "positions": ["m"]}
    operator = encoder_attention_at(1)
    for n_head in (0, -1, 1025, 1 << 62):
        model = graph(operator, {}, shapes, ["a", "m", 64], num_heads=n_head)
        assert "num_heads must be from 1 to 1024" in refused(model)


def test_heads_of_another_number() -> None:
    shapes: dict[str, list[Any]] = {"qkv": ["a", "n", "w"], "positions": ["m"]}
    model = graph(encoder_attention_at(2), {}, shapes, ["a", "m", 128], num_heads=2)
    given = {"qkv": np.zeros((1, 5, 192), np.float32), "positions": np.zeros(1, np.int64)}
    said = refused(model, given)
    assert "qkv is not [n_audio, n, 3 * num_heads * 64]" in said


def test_empty_inputs() -> None:
    """Without rows and without audios."""
    runner = session(linear_graph(LINEARS.plain, 64, 70), kernels=True)
    assert run(runner, x=np.zeros((0, 5, 64), np.float32)).shape == (0, 5, 70)
    assert run(runner, x=np.zeros((2, 0, 64), np.float32)).shape == (2, 0, 70)
    attending = session(attention_graph(1, at=True), kernels=True)
    none = np.zeros(0, np.int64)
    assert run(attending, qkv=qkv(1, 9, 1), positions=none).shape == (1, 0, 64)
