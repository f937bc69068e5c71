"""Cross-attention with packed 8-bit keys and values: kernels against their definition.

Run on the oldest supported Python and ONNX Runtime too, by test_pythons.py.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any

import numpy as np
import onnxruntime
import pytest

from tests.support.one_node import cross_graph, difference, graph, pack_graph, run, session
from whisper_opt.core.arrays import F32, Int, NDArray
from whisper_opt.export.graphs.operators import cross_scores
from whisper_opt.runtime.padding import BLOCK, MASKED

pytestmark = pytest.mark.usefixtures("kernels")

LENGTHS = (1, 63, 64, 65, 127, 128, 129, 300, 1500)
QUERIES = (1, 2, 5, 6, 7, 13, 61, 224)
HEADS = 2


# --- packing --------------------------------------------------------------------------------------


def encoded(n_audio: int, n: int, n_head: int, seed: int = 0) -> F32:
    """Projected keys or values; some channels are much larger than others, and one is zero."""
    rng = np.random.default_rng([seed, n_audio, n, n_head])
    channels = np.exp(rng.standard_normal(64 * n_head))
    channels[7] = 0
    value = rng.standard_normal((n_audio, n, 64 * n_head)) + rng.standard_normal(64 * n_head)
    return (value * channels).astype(np.float32)


def by_position(packed: NDArray, kind: str) -> NDArray:
    """Integers [A, H, T', 64] of packed keys or values."""
    if kind == "k":
        n_audio, n_head, panels = packed.shape[:3]
        order = packed.transpose(0, 1, 2, 4, 3, 5).reshape(n_audio, n_head, panels * 64, 64)
        unsigned: NDArray = order.astype(np.int64)
        return unsigned - 128
    n_audio, n_head, quads = packed.shape[:3]
    order = packed.transpose(0, 1, 2, 4, 3).reshape(n_audio, n_head, quads * 4, 64)
    signed: NDArray = order.astype(np.int64)
    return signed


@pytest.mark.parametrize("kind", ["k", "v"])
@pytest.mark.parametrize("n", LENGTHS)
def test_packing(kind: str, n: int) -> None:
    """Integers and steps equal those of the definition and of numpy."""
    plain, one = (session(pack_graph(HEADS, kind), kernels=kernels) for kernels in (False, True))
    two = session(pack_graph(HEADS, kind), kernels=True, threads=2)
    for n_audio in (1, 3):
        x = encoded(n_audio, n, HEADS)
        (expected, step), (found, steps) = plain.run(None, {"x": x}), one.run(None, {"x": x})
        for mine, other in zip((found, steps), two.run(None, {"x": x})):
            np.testing.assert_array_equal(mine, other)
        assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
        np.testing.assert_allclose(steps, step, rtol=1e-6)
        whole, wanted = by_position(found, kind), by_position(expected, kind)
        assert whole.shape[2] == -(-n // BLOCK) * BLOCK
        far = np.abs(whole[:, :, :n] - wanted[:, :, :n])
        assert far.max() <= 1  # ties, where a step differs in its last bit
        assert (far > 0).mean() < 1e-3
        heads = x.reshape(n_audio, n, HEADS, 64).transpose(0, 2, 1, 3)
        error = np.abs(whole[:, :, :n] * steps[:, :, None] - heads)
        assert (error <= 0.5001 * steps[:, :, None]).all()


@pytest.mark.parametrize("kind", ["k", "v"])
def test_audios_are_packed_independently(kind: str) -> None:
    runner = session(pack_graph(HEADS, kind), kernels=True, threads=2)
    x = encoded(3, 150, HEADS)
    together = runner.run(None, {"x": x})
    for i in range(3):
        for mine, other in zip(runner.run(None, {"x": x[i : i + 1]}), together):
            np.testing.assert_array_equal(mine[0], other[i])


@pytest.mark.parametrize("kind", ["k", "v"])
def test_nothing_to_pack_is_no_error(kind: str) -> None:
    runner = session(pack_graph(1, kind), kernels=True)
    packed, step = runner.run(None, {"x": np.zeros((0, 5, 64), np.float32)})
    assert (packed.shape[:2], step.shape) == ((0, 1), (0, 1, 64))
    silent = np.zeros((1, 5, 64), np.float32)
    packed, step = runner.run(None, {"x": silent})
    assert not by_position(packed, kind)[:, :, :5].any()
    assert (step > 0).all()


# --- attention ------------------------------------------------------------------------------------


def feeds(
    n_audio: int,
    n_queries: int,
    lengths: tuple[int, ...],
    *,
    sharp: float = 1,
    n_layer: int = 3,
    seed: int = 0,
) -> dict[str, NDArray]:
    """Inputs of an attention; audio i has ``lengths[i]`` keys, followed by arbitrary values.

    Scores have a standard deviation of 1.3 * ``sharp``; the steps of the layers differ.
    """
    rng = np.random.default_rng([seed, n_audio, n_queries, *lengths])
    n_keys = -(-max(lengths) // BLOCK) * BLOCK
    added = np.full((n_audio, n_keys), MASKED, np.float32)
    for row, n in zip(added, lengths):
        row[:n] = np.log(rng.integers(1, 10, n))
    keys = np.clip(np.rint(rng.normal(128, 40, (n_audio, HEADS, n_keys // 64, 16, 64, 4))), 1, 255)
    values = np.clip(np.rint(rng.normal(20, 35, (n_audio, HEADS, n_keys // 4, 64, 4))), -127, 127)
    steps = np.exp(rng.standard_normal((n_audio, n_layer, 2, HEADS, 64)) / 2) / 40
    queries = rng.standard_normal((n_audio, n_queries, HEADS * 64)) * sharp
    return {
        "queries": queries.astype(np.float32),
        "keys": keys.astype(np.uint8),
        "values": values.astype(np.int8),
        "steps": steps.astype(np.float32),
        "added": added,
    }


@functools.cache
def attending(layer: int, kernels: bool, threads: int = 1, scores: bool = False) -> Any:
    """A session of the operator."""
    model = cross_graph(HEADS, layer, scores=scores)
    return session(model, kernels=kernels, threads=threads)


def of_audio(given: dict[str, NDArray], i: int) -> dict[str, NDArray]:
    """The inputs of one audio."""
    return {
        name: value if name in ("heads", "rows") else value[i : i + 1]
        for name, value in given.items()
    }


@pytest.mark.parametrize("n_queries", QUERIES)
@pytest.mark.parametrize("lengths", [(5,), (128, 300), (1500, 129, 700)])
def test_attention(n_queries: int, lengths: tuple[int, ...]) -> None:
    """Eight bits of queries and weights against float32; blocks behind an audio's end are masked.

    Measured: relative errors of 0.003 to 0.007 with flat attention (standard deviation of scores
    1.3), 0.01 to 0.033 with peaked attention (5).
    """
    for layer, (sharp, limit) in itertools.product((0, 2), ((1, 0.01), (4, 0.05))):
        given = feeds(len(lengths), n_queries, lengths, sharp=sharp)
        found = run(attending(layer, True), **given)
        np.testing.assert_array_equal(found, run(attending(layer, True, 2), **given))
        expected = run(attending(layer, False), **given)
        assert 1e-6 < difference(found, expected) < limit


def test_layers_have_separate_steps() -> None:
    given = feeds(2, 3, (200, 90))
    one, other = (run(attending(layer, True), **given) for layer in (0, 1))
    assert difference(one, other) > 0.1


def test_padding_keys_have_no_effect() -> None:
    """With any values and whole blocks of padding, the result has the same bits as without."""
    given = feeds(3, 13, (1500, 129, 60))
    together = run(attending(1, True, 2), **given)
    for i, n in enumerate((1500, 129, 60)):
        n_keys = -(-n // BLOCK) * BLOCK
        alone = of_audio(given, i)
        alone["keys"] = alone["keys"][:, :, : n_keys // 64].copy()
        alone["values"] = alone["values"][:, :, : n_keys // 4].copy()
        alone["added"] = np.ascontiguousarray(alone["added"][:, :n_keys])
        found = run(attending(1, True), **alone)
        np.testing.assert_array_equal(found[0], together[i])
        for nothing in (0, 128, 255):
            keys = alone["keys"].transpose(0, 1, 2, 4, 3, 5).reshape(1, HEADS, n_keys, 16, 4).copy()
            keys[:, :, n:] = nothing
            keys = keys.reshape(1, HEADS, n_keys // 64, 64, 16, 4).transpose(0, 1, 2, 4, 3, 5)
            values = alone["values"].transpose(0, 1, 2, 4, 3).reshape(1, HEADS, n_keys, 64).copy()
            values[:, :, n:] = nothing - 128
            values = values.reshape(1, HEADS, n_keys // 4, 4, 64).transpose(0, 1, 2, 4, 3)
            other = {**alone, "keys": np.ascontiguousarray(keys)}
            other["values"] = np.ascontiguousarray(values)
            np.testing.assert_array_equal(run(attending(1, True), **other), found)


@pytest.mark.parametrize("threads", [1, 2])
def test_queries_do_not_depend_on_the_batch(threads: int) -> None:
    given = feeds(2, 61, (300, 200))
    together = run(attending(0, True, threads), **given)
    for n in (1, 2, 5, 6, 7):
        for first in range(0, 61 - n, 9):
            part = {**given, "queries": given["queries"][:, first : first + n]}
            found = run(attending(0, True, threads), **part)
            np.testing.assert_array_equal(found, together[:, first : first + n])
    for i in range(2):
        alone = run(attending(0, True, threads), **of_audio(given, i))
        np.testing.assert_array_equal(alone[0], together[i])


@pytest.mark.parametrize("scale", [0, 1e-30, 1e-3, 1e3, 1e12])
def test_scores_of_any_size(scale: float) -> None:
    """Softmax neither overflows nor divides by zero."""
    given = feeds(2, 7, (300, 100))
    given["queries"] = given["queries"] * np.float32(scale)
    found = run(attending(0, True), **given)
    assert np.isfinite(found).all()
    if scale <= 1e-3:
        assert difference(found, run(attending(0, False), **given)) < 0.005


# --- scores ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("heads", [[], [1], [1, 0], [0, 0]])
@pytest.mark.parametrize("rows", [[], [0], [12, 3], list(range(13))])
def test_scores(heads: list[int], rows: list[int]) -> None:
    """8-bit queries against float32, of some heads and queries. Relative error: 0.005."""
    given = feeds(2, 13, (300, 129))
    del given["values"]
    given.update(heads=np.array(heads, np.int64), rows=np.array(rows, np.int64))
    for layer in (0, 2):
        expected = run(attending(layer, False, scores=True), **given)
        for threads in (1, 2):
            found = run(attending(layer, True, threads, scores=True), **given)
            assert found.shape == expected.shape == (2, len(heads), len(rows), 384)
            if not found.size:
                continue
            for i, n in enumerate((300, 129)):
                assert difference(found[i, ..., :n], expected[i, ..., :n]) < 0.01
                assert (found[i, ..., n:] < MASKED / 2).all()


def test_softmax_of_scores_gives_attention() -> None:
    given = feeds(1, 3, (100,))
    of_scores: dict[str, NDArray] = {k: v for k, v in given.items() if k != "values"}
    of_scores.update(heads=np.arange(HEADS), rows=np.arange(3))
    found = run(attending(1, True, scores=True), **of_scores).astype(np.float64)
    weights = np.exp(found - found.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    values = by_position(given["values"], "v") * given["steps"][:, 1, 1, :, None]
    mixed = (weights @ values).transpose(0, 2, 1, 3).reshape(1, 3, -1)
    assert difference(run(attending(1, True), **given), mixed.astype(np.float32)) < 0.006


# --- alignment of inputs --------------------------------------------------------------------------


def shifted(array: NDArray, n_bytes: int) -> NDArray:
    """The same values, at an offset of ``n_bytes`` from a cache line."""
    raw = np.zeros(array.nbytes + 128, np.uint8)
    start = -raw.ctypes.data % 64 + n_bytes
    found: NDArray = raw[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    found[...] = array
    return found


def bound(runner: Any, given: dict[str, NDArray], result: NDArray) -> NDArray:
    """Run with memory of the caller, as sessions of the library do."""
    io = runner.io_binding()
    for name, array in given.items():
        io.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
    io.bind_output("y", "cpu", 0, np.float32, result.shape, result.ctypes.data)
    runner.run_with_iobinding(io)
    return result


@pytest.mark.parametrize("n_bytes", [4, 20, 60])
@pytest.mark.parametrize("scores", [False, True])
def test_inputs_need_not_begin_at_a_cache_line(n_bytes: int, scores: bool) -> None:
    given = feeds(2, 7, (300, 129))
    if scores:
        del given["values"]
        given.update(heads=np.array([1, 0]), rows=np.array([0, 6, 2]))
    runner = attending(0, True, scores=scores)
    expected = run(runner, **given)
    moved = {
        name: shifted(array, 8 if array.dtype == np.int64 else n_bytes + (array.itemsize == 1))
        for name, array in given.items()
    }
    assert any(array.ctypes.data % 64 for array in moved.values())
    found = bound(runner, moved, shifted(np.zeros_like(expected), n_bytes))
    np.testing.assert_array_equal(found, expected)


# --- NaN and infinity in inputs -------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["k", "v"])
@pytest.mark.parametrize("fault", [np.nan, -np.nan, np.inf, -np.inf])
def test_packing_keeps_nan_and_infinity_in_the_step(kind: str, fault: float) -> None:
    runner = session(pack_graph(1, kind), kernels=True)
    x = encoded(1, 130, 1)
    _, unchanged = runner.run(None, {"x": x})
    for channel, position in itertools.product(range(0, 64, 3), (0, 77, 129)):
        faulty = x.copy()
        faulty[0, position, channel] = fault
        _, step = runner.run(None, {"x": faulty})
        assert not np.isfinite(step[0, 0, channel])
        others = np.arange(64) != channel
        np.testing.assert_array_equal(step[..., others], unchanged[..., others])


@pytest.mark.parametrize("fault", [np.nan, np.inf])
def test_attention_keeps_nan_and_infinity(fault: float) -> None:
    """A query affects its row, an added score its audio, a step its head or channel."""
    runner, given = attending(0, True), feeds(2, 3, (300, 129))
    unchanged = run(runner, **given).reshape(2, 3, HEADS, 64)
    for place in range(64):
        places: dict[str, tuple[Any, Any]] = {
            "queries": ((1, 2, 64 + place), np.s_[1, 2, 1]),
            "added": ((1, 64 + place), np.s_[1]),
            "keys": ((1, 0, 0, 1, place), np.s_[1, :, 1]),
            "values": ((1, 0, 1, 1, place), np.s_[1, :, 1, place]),
        }
        for name, (place, where) in places.items():
            changed = "steps" if name in ("keys", "values") else name
            faulty = {**given, changed: given[changed].copy()}
            faulty[changed][place] = fault
            found = run(runner, **faulty).reshape(2, 3, HEADS, 64)
            spoilt = np.zeros(found.shape, bool)
            spoilt[where] = True
            assert not np.isfinite(found[spoilt]).any(), (name, place)
            np.testing.assert_array_equal(found[~spoilt], unchanged[~spoilt])


def test_scores_keep_nan() -> None:
    given = feeds(1, 3, (300,))
    del given["values"]
    given.update(heads=np.array([1]), rows=np.array([0, 2]))
    given["queries"][0, 2, 100] = np.nan
    found = run(attending(0, True, scores=True), **given)
    assert np.isfinite(found[0, 0, 0]).all()
    assert np.isnan(found[0, 0, 1]).all()


# --- what is refused ------------------------------------------------------------------------------


def refused(runner: Any, given: dict[str, NDArray]) -> str:
    with pytest.raises(Exception, match="ONNXRuntimeError") as caught:
        runner.run(None, given)
    assert type(caught.value).__module__.startswith(onnxruntime.__name__)
    return str(caught.value)


def cut(array: NDArray, axis: int) -> NDArray:
    return np.ascontiguousarray(np.take(array, range(array.shape[axis] - 1), axis))


# (input, axis) of which one fewer there is
TOO_SMALL = [
    ("queries", 0),
    ("queries", 2),
    ("keys", 0),
    ("keys", 1),
    ("keys", 2),
    ("values", 0),
    ("values", 2),
    ("steps", 0),
    ("steps", 3),
    ("added", 0),
    ("added", 1),
    ("keys", 3),
    ("keys", 4),
    ("keys", 5),
    ("values", 1),
    ("values", 3),
    ("values", 4),
    ("steps", 2),
    ("steps", 4),
]


@pytest.mark.parametrize(
    ("name", "axis", "scores"),
    [(*each, scores) for each in TOO_SMALL for scores in (False, True) if each[0] != "values"]
    + [(*each, False) for each in TOO_SMALL if each[0] == "values"],
)
def test_shapes_that_do_not_fit(name: str, axis: int, scores: bool) -> None:
    given = feeds(2, 3, (300, 129))
    if scores:
        del given["values"]
        given.update(heads=np.array([1]), rows=np.array([0]))
    given[name] = cut(given[name], axis)
    said = refused(attending(0, True, scores=scores), given)
    assert "do not match" in said


@pytest.mark.parametrize(
    "layer",
    [
        3,
        100,
        -1,
    ],
)
def test_a_missing_layer(layer: int) -> None:
    assert "do not match" in refused(attending(layer, True), feeds(1, 3, (30,)))


@pytest.mark.parametrize(("heads", "rows"), [([2], [0]), ([-1], [0]), ([0], [3]), ([0], [-1])])
def test_missing_heads_and_queries(heads: list[int], rows: list[int]) -> None:
    given = feeds(1, 3, (30,))
    del given["values"]
    chosen: dict[str, Int] = {"heads": np.array(heads), "rows": np.array(rows)}
    assert "is out of range" in refused(attending(0, True, scores=True), {**given, **chosen})


@pytest.mark.parametrize("name", ["heads", "rows"])
@pytest.mark.parametrize("rank", [0, 2])
def test_heads_and_queries_of_another_rank(name: str, rank: int) -> None:
    given = feeds(1, 3, (30,))
    del given["values"]
    shapes: dict[str, list[Any]] = {
        each: [f"{each}{i}" for i in range(value.ndim)] for each, value in given.items()
    }
    for each in ("heads", "rows"):
        given[each] = np.zeros((1,) * (rank if each == name else 1), np.int64)
        shapes[each] = [f"{each}{i}" for i in range(given[each].ndim)]
    model = graph(cross_scores(HEADS), {}, shapes, list("ahmt"), num_heads=HEADS, layer=0)
    assert "heads or rows is not [n]" in refused(session(model, kernels=True), given)


def test_more_keys_than_the_stack_holds() -> None:
    given = feeds(1, 3, (4097,))
    assert "more than 4096 positions" in refused(attending(0, True), given)


def test_a_width_that_does_not_match_the_heads() -> None:
    for kind in ("k", "v"):
        runner = session(pack_graph(2, kind), kernels=True)
        said = refused(runner, {"x": np.zeros((1, 5, 64), np.float32)})
        assert "x is not [n_audio, n, num_heads * 64]" in said


def test_no_queries_and_no_audios_are_no_error() -> None:
    given = feeds(2, 3, (30, 20))
    given["queries"] = given["queries"][:, :0]
    assert run(attending(0, True), **given).shape == (2, 0, 128)
    none = {name: value[:0] for name, value in feeds(2, 3, (30, 20)).items()}
    assert run(attending(0, True), **none).shape == (0, 3, 128)
