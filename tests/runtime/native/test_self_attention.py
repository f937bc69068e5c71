"""The decoder's self-attention: against numpy and its definition; the same bits in any call.

Run on the oldest supported Python and ONNX Runtime too, by test_pythons.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.support.one_node import difference, self_attention_graph, session
from whisper_opt.core.arrays import F32, Int, NDArray

pytestmark = pytest.mark.usefixtures("kernels")

HEADS = 2
STATE = 64 * HEADS


class Cache:
    """Rows with a cache that is updated in place, as a session of the decoder has it."""

    def __init__(self, n_seq: int, capacity: int = 64, threads: int = 1) -> None:
        self._runner = session(self_attention_graph(HEADS), kernels=True, threads=threads)
        self.keys = np.full((n_seq, HEADS, capacity, 64), np.nan, np.float32)  # never read
        self.values = self.keys.copy()
        self.length: Int = np.zeros(n_seq, np.int64)

    def extend(self, qkv: F32) -> F32:
        """Attention [n_seq, n_new, n_state] of the next tokens of every row."""
        io = self._runner.io_binding()
        for name, array in (("qkv", qkv), ("start", self.length)):
            io.bind_cpu_input(name, array)
        mixed = np.zeros((*qkv.shape[:2], STATE), np.float32)
        places = {"key": self.keys, "value": self.values, "key_out": self.keys}
        for name, array in {**places, "value_out": self.values, "y": mixed}.items():
            bind = io.bind_output if name == "y" or name.endswith("_out") else io.bind_input
            bind(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)
        self._runner.run_with_iobinding(io)
        self.length = self.length + qkv.shape[1]
        return mixed


def tokens(n_seq: int, n: int, seed: int = 0) -> F32:
    """Queries, keys and values; those of later heads are larger."""
    rng = np.random.default_rng([seed, n_seq, n])
    sizes = np.tile(np.repeat([1.0, 3.0], 64), 3)
    found: F32 = (rng.standard_normal((n_seq, n, 3 * STATE)) * sizes).astype(np.float32)
    return found


def expected(qkv: F32) -> NDArray:
    """In float64."""
    n_seq, n, _ = qkv.shape
    query, key, value = (
        part.reshape(n_seq, n, HEADS, 64).transpose(0, 2, 1, 3).astype(np.float64)
        for part in np.split(qkv, 3, axis=-1)
    )
    scores = query @ key.transpose(0, 1, 3, 2) / 8
    scores[..., np.triu(np.ones((n, n), np.bool_), 1)] = -np.inf
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    mixed: NDArray = (weights @ value).transpose(0, 2, 1, 3).reshape(n_seq, n, STATE)
    return mixed


def steps(qkv: F32, sizes: list[int], **options: Any) -> F32:
    """The same in calls of so many tokens."""
    cache = Cache(len(qkv), **options)
    ends = np.cumsum(sizes)
    return np.concatenate(
        [cache.extend(np.ascontiguousarray(part)) for part in np.split(qkv, ends, axis=1)], axis=1
    )


@pytest.mark.parametrize("n", [1, 2, 15, 16, 17, 33, 64])
def test_against_numpy(n: int) -> None:
    qkv = tokens(3, n)
    assert difference(Cache(3).extend(qkv), expected(qkv)) < 3e-7


@pytest.mark.parametrize("n", [1, 7, 40])
def test_against_its_definition(n: int) -> None:
    """Without a past, which the definition needs ONNX Runtime 1.20 for."""
    qkv, start = tokens(2, n), np.zeros(2, np.int64)
    past = np.zeros((2, HEADS, 64, 64), np.float32)
    given = {"qkv": qkv, "key": past, "value": past, "start": start}
    plain, own = (session(self_attention_graph(HEADS), kernels=k) for k in (False, True))
    for found, wanted in zip(own.run(None, given), plain.run(None, given)):
        np.testing.assert_allclose(found[:, :, :n], wanted[:, :, :n], rtol=1e-5, atol=1e-5)
    assert not past.any()  # the kernel writes to a copy


def test_however_tokens_are_fed_the_bits_are_the_same() -> None:
    qkv = tokens(2, 60)
    whole = steps(qkv, [])
    for sizes in ([1] * 59, [4, 1, 1, 20, 33], [59]):
        np.testing.assert_array_equal(steps(qkv, sizes), whole)
    np.testing.assert_array_equal(steps(qkv, [], capacity=448), whole)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_rows_do_not_affect_each_other(threads: int) -> None:
    """Alone, or beside 19 others, which starts threads."""
    qkv = tokens(20, 60)
    qkv[3] *= 1e18
    together = steps(qkv, [50, 1, 1], threads=threads)
    for row in (0, 7, 19):
        np.testing.assert_array_equal(steps(qkv[row : row + 1], [50, 1, 1])[0], together[row])


def test_rows_are_at_different_positions() -> None:
    qkv = tokens(2, 30)
    cache = Cache(2)
    cache.extend(np.ascontiguousarray(qkv[:, :20]))
    cache.length = np.array([20, 5], np.int64)  # the second row forgets 15 tokens
    shifted = np.stack([qkv[0, 20:25], qkv[1, 5:10]])
    found = cache.extend(shifted)
    whole = steps(qkv, [])
    np.testing.assert_array_equal(found[0], whole[0, 20:25])
    np.testing.assert_array_equal(found[1], whole[1, 5:10])


def test_tokens_beyond_the_capacity_are_padding() -> None:
    qkv = tokens(1, 9)
    cache = Cache(1, capacity=8)
    found = cache.extend(qkv)
    np.testing.assert_array_equal(found[:, :8], steps(qkv, [])[:, :8])
    np.testing.assert_array_equal(cache.keys[0, 1, 7], qkv[0, 7, STATE + 64 : STATE + 128])


@pytest.mark.parametrize("fault", [np.nan, np.inf])
def test_numbers_that_are_not_finite_stay_visible(fault: float) -> None:
    qkv = tokens(1, 20)
    for channel in (3, STATE + 3, 2 * STATE + 3):  # of the first head: in a query, key and value
        given = qkv.copy()
        given[0, 10, channel] = fault
        seen = ~np.isfinite(Cache(1).extend(given)[0])
        rows = np.zeros(20, np.bool_)
        rows[10 : 11 if channel < STATE else 20] = True
        channels = np.arange(STATE) == 3 if channel > 2 * STATE else np.arange(STATE) < 64
        if channel > STATE and fault == np.inf and channel < 2 * STATE:
            continue  # a score of minus infinity is a weight of 0
        np.testing.assert_array_equal(seen, rows[:, None] & channels[None])


def test_wrong_shapes_are_refused() -> None:
    qkv, past, start = tokens(2, 3), np.zeros((2, HEADS, 8, 64), np.float32), np.zeros(2, np.int64)
    good = {"qkv": qkv, "key": past, "value": past, "start": start}
    runner = session(self_attention_graph(HEADS), kernels=True)
    runner.run(None, good)
    for bad in (
        {"qkv": qkv[:, :, :-1].copy()},
        {"key": past[:, :1].copy()},
        {"value": past[:, :, :4].copy()},
        {"start": start[:1]},
        {"start": start + 8},
        {"start": start - 1},
    ):
        with pytest.raises(Exception, match=r"do not match|not in the cache"):
            runner.run(None, {**good, **bad})
