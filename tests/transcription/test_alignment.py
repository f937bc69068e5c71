"""Word timings compared with openai-whisper's; their parts compared with plain implementations."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tests.support.align_cases import VOCAB, attention, golden, matrix
from whisper_opt.core.arrays import F32, NDArray
from whisper_opt.transcription.alignment import (
    CrossAttention,
    WordTiming,
    align_words,
    dtw,
    median_filter,
)

# --- median filter --------------------------------------------------------------------------------


@pytest.mark.parametrize("case", golden()["median"], ids=lambda c: f"{c['shape']}-{c['width']}")
def test_median_filter_equals_the_reference(case: dict[str, Any]) -> None:
    result = median_filter(matrix(case["seed"], tuple(case["shape"])), case["width"])
    assert result.dtype == np.float32
    assert result.tolist() == case["result"]


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    arrays.arrays(
        np.float32,
        arrays.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=40),
        elements=st.integers(-3, 3),
    ),
    st.sampled_from([1, 3, 5, 7, 11, 13]),
)
def test_median_filter_is_numpys_median_of_every_window(x: F32, width: int) -> None:
    reach = width // 2
    expected = x
    if x.shape[-1] > reach:
        padded = np.pad(x, [(0, 0)] * (x.ndim - 1) + [(reach, reach)], mode="reflect")
        chunks = [padded[..., i : i + x.shape[-1]] for i in range(width)]
        expected = np.median(chunks, axis=0)
    np.testing.assert_array_equal(median_filter(x, width), expected)


def test_median_filter_in_blocks() -> None:
    """More values than are filtered at once."""
    x = matrix(5, (3, 40, 1500))
    result = median_filter(x, 7)
    for head, row in [(0, 0), (1, 3), (1, 4), (2, 39)]:
        np.testing.assert_array_equal(result[head, row], median_filter(x[head, row], 7))


@pytest.mark.parametrize("width", [0, -1, 4])
def test_median_filter_needs_an_odd_width(width: int) -> None:
    with pytest.raises(ValueError, match="expected a positive odd number"):
        median_filter(matrix(0, (9,)), width)


# --- dynamic time warping -------------------------------------------------------------------------


def plain_dtw(cost: NDArray) -> list[tuple[int, int]]:
    """Cell by cell."""
    n, m = cost.shape
    total = {(0, 0): 0.0}
    came: dict[tuple[int, int], tuple[int, int]] = {}
    for i in range(1, n + 1):
        for j in range(1, m + 1):
            diagonal, down, right = (i - 1, j - 1), (i - 1, j), (i, j - 1)
            c0, c1, c2 = (total.get(cell, np.inf) for cell in (diagonal, down, right))
            best = right
            if c0 < c1 and c0 < c2:
                best = diagonal
            elif c1 < c0 and c1 < c2:
                best = down
            came[i, j] = best
            total[i, j] = float(cost[i - 1, j - 1]) + total.get(best, np.inf)
    cell, path = (n, m), []
    while cell in came:
        path.append((cell[0] - 1, cell[1] - 1))
        cell = came[cell]
    return path[::-1]


costs = arrays.arrays(
    np.float32,
    arrays.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=14),
    elements=st.integers(-2, 2) | st.floats(-4, 4, width=32),
)


@settings(derandomize=True, deadline=None, max_examples=300)
@given(costs)
def test_dtw_equals_a_plain_one(cost: F32) -> None:
    rows, columns = dtw(cost)
    assert list(zip(rows.tolist(), columns.tolist())) == plain_dtw(cost)


@pytest.mark.parametrize("case", golden()["dtw"], ids=lambda c: f"{c['shape']}-{c['levels']}")
def test_dtw_equals_the_reference(case: dict[str, Any]) -> None:
    rows, columns = dtw(matrix(case["seed"], tuple(case["shape"]), case["levels"]))
    assert rows.dtype == columns.dtype == np.int64
    assert [rows.tolist(), columns.tolist()] == case["path"]


def test_a_tie_goes_right_even_if_that_costs_more() -> None:
    """The reference's order of comparison: the last cell could be reached at 0, 0 or 5."""
    rows, columns = dtw(np.array([[0, 0], [5, 1]], np.float32))
    assert list(zip(rows.tolist(), columns.tolist())) == [(0, 0), (1, 0), (1, 1)]


@pytest.mark.parametrize("shape", [(0, 0), (0, 4), (4, 0)])
def test_dtw_of_nothing(shape: tuple[int, int]) -> None:
    rows, columns = dtw(np.zeros(shape, np.float32))
    assert rows.tolist() == columns.tolist() == []


# --- words ----------------------------------------------------------------------------------------


def aligned(given: CrossAttention, tokens: list[int], n_frames: int) -> list[WordTiming]:
    return align_words(given, *VOCAB.split_words(tokens, "en"), n_frames)


@pytest.mark.parametrize(
    "case", golden()["alignment"], ids=lambda c: f"{c['n_frames']}-{c['seed']}"
)
def test_words_equal_the_reference(case: dict[str, Any]) -> None:
    tokens = case["tokens"]
    given = attention(case["seed"], len(tokens), case["n_frames"])
    before = given.scores.copy()
    found = aligned(given, tokens, case["n_frames"])
    assert len(found) == len(case["words"])
    for mine, (word, part, start, end, probability) in zip(found, case["words"]):
        assert (mine.word, list(mine.tokens)) == (word, part)
        assert (mine.start, mine.end) == (start, end)
        assert mine.probability == pytest.approx(probability, abs=1e-5)
    np.testing.assert_array_equal(given.scores, before)


def test_the_goldens_hold_times_of_every_kind() -> None:
    """Guards the goldens themselves: long words, instantaneous ones, several tokens in one."""
    words = [word for case in golden()["alignment"] for word in case["words"]]
    assert len(words) > 60
    assert sum(end - start > 1 for _, _, start, end, _ in words) > 10
    assert sum(end == start for _, _, start, end, _ in words) > 3
    assert sum(len(tokens) > 1 for _, tokens, *_ in words) > 10


def test_no_words() -> None:
    assert aligned(attention(0, 0, 3000), [], 3000) == []


@pytest.mark.parametrize("n_frames", [1, 2, 3])
def test_a_window_of_one_position(n_frames: int) -> None:
    """The reference finds times before the window here (-0.02 s), or divides 0 by 0."""
    tokens = VOCAB.encode(" be it")
    found = aligned(attention(3, len(tokens), n_frames), tokens, n_frames)
    assert [(word.word, word.start, word.end) for word in found] == [
        (" be", 0.0, 0.0),
        (" it", 0.0, 0.0),
    ]


def test_positions_without_attention_are_ignored() -> None:
    """The reference divides 0 by 0 there, and all words get the same time."""
    tokens = VOCAB.encode(" be it so")
    given = attention(1, len(tokens), 3000)
    scores = np.full_like(given.scores, -1000)
    scores[:, :, :900] = given.scores[:, :, :900]
    expected = aligned(given, tokens, 1800)
    found = aligned(dataclasses.replace(given, scores=scores), tokens, 3000)
    assert [word.start for word in found] == [word.start for word in expected]
    assert len({word.start for word in found}) > 1


def test_attention_too_weak_for_a_float32_square_counts() -> None:
    """Positions are standardised independently: strong attention at one does not hide others."""
    tokens = VOCAB.encode(" be it so")
    given = attention(1, len(tokens), 3000)
    found = []
    for attraction in (30, 60):
        scores = given.scores.copy()
        scores[:, :, -1] = attraction
        found.append(aligned(dataclasses.replace(given, scores=scores), tokens, 3000))
    assert found[0] == found[1]
    assert len({word.start for word in found[1]}) > 1


@pytest.mark.parametrize(
    ("scores", "probs"), [((2, 3, 1500), (2,)), ((3, 1500), (1,)), ((2, 6, 1500), (2, 1))]
)
def test_shapes_that_do_not_fit(scores: tuple[int, ...], probs: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected \[n_heads, n_start \+ 1 \+ n_text \+ 1"):
        CrossAttention(np.zeros(scores, np.float32), np.zeros(probs, np.float32))
