"""The specification of top-k: order, ties, bans, times against text, normalisation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.reference_rules import reference_log_softmax
from whisper_opt.core.arrays import F32, Bool
from whisper_opt.core.backend import TokenMask, Top
from whisper_opt.core.logits import HostLogits, log_softmax, penalized, sample, top_k

N = 12


def ban_of(*tokens: int) -> Bool:
    ban = np.zeros(N, np.bool_)
    ban[list(tokens)] = True
    return ban


def top(scores: list[float], k: int, ban: Bool | None = None, begin: int = N) -> Top:
    row = np.array([scores], np.float32)
    ban = np.zeros(len(scores), np.bool_) if ban is None else ban
    return top_k(row, k, TokenMask(ban[None], np.array([begin], np.int64)))


def test_best_first() -> None:
    found = top([0, 3, 1, 5, 2, 4, 0, 0, 0, 0, 0, 0], 4)
    assert found.tokens.tolist() == [[3, 5, 1, 4]]
    assert found.tokens.dtype == np.int64
    assert found.logprobs.dtype == np.float32
    assert found.logprobs.shape == (1, 4)


@pytest.mark.parametrize("k", [1, 2, 3, 5, N])
def test_ties_go_to_the_lowest_ids(k: int) -> None:
    scores: list[float] = [1, 2, 2, 0, 2, 1, 0, 2, 1, 1, 0, 0]
    assert top(scores, k).tokens.tolist() == [[1, 2, 4, 7, 0, 5, 8, 9, 3, 6, 10, 11][:k]]


@pytest.mark.parametrize("k", [1, 2])
def test_ties_go_to_the_lowest_ids_among_times(k: int) -> None:
    assert top([0.0] * N, k, begin=8).tokens.tolist() == [[8, 9][:k]]


def test_banned_tokens_are_never_chosen_and_weigh_nothing() -> None:
    scores: list[float] = [0, 9, 1, 9, 2, 9, 0, 9, 0, 9, 0, 9]
    found = top(scores, 2, ban_of(1, 3, 5, 7, 9, 11))
    assert found.tokens.tolist() == [[4, 2]]
    left = np.array([0, 1, 2, 0, 0, 0], np.float32)
    expected = reference_log_softmax(left)[[2, 1]]
    np.testing.assert_allclose(found.logprobs[0], expected, atol=1e-6)


def test_minus_infinity_where_fewer_are_allowed() -> None:
    found = top([0.0] * N, 4, ban_of(*range(2, N)))
    assert found.tokens[0, :2].tolist() == [0, 1]
    np.testing.assert_allclose(found.logprobs[0, :2], np.log(0.5), atol=1e-6)
    assert found.logprobs[0, 2:].tolist() == [-np.inf, -np.inf]


@pytest.mark.parametrize("begin", [8, N])
@pytest.mark.parametrize("k", [1, 3])
def test_everything_banned(begin: int, k: int) -> None:
    found = top([1.0] * N, k, ban_of(*range(N)), begin)
    assert found.logprobs.tolist() == [[-np.inf] * k]


def test_scores_of_minus_infinity_count_as_banned() -> None:
    found = top([-np.inf, 0.0, *[-np.inf] * (N - 2)], 2)
    assert found.tokens[0, 0] == 1
    assert found.logprobs.tolist() == [[0.0, -np.inf]]


@pytest.mark.parametrize(
    ("peak", "chosen"),
    # four timestamps at 0 have log 4 = 1.386 together
    [(1.38, 8), (1.39, 3), (0.0, 8), (9.0, 3)],
)
def test_times_together_against_the_best_text(peak: float, chosen: int) -> None:
    scores = [-9.0] * 8 + [0.0] * 4
    scores[3] = peak
    assert top(scores, 1, begin=8).tokens.tolist() == [[chosen]]
    assert top(scores, 1).tokens.tolist() == [[3]]


def test_one_time_as_likely_as_the_best_text_does_not_win() -> None:
    scores = [-1.0] * 8 + [2.0] * 4
    scores[3] = 2.0
    assert top(scores, 1, ban_of(9, 10, 11), begin=8).tokens.tolist() == [[3]]
    assert top(scores, 1, ban_of(3, 9, 10, 11), begin=8).tokens.tolist() == [[8]]


def test_text_leaves_the_sum_when_times_win() -> None:
    found = top([0.0] * 8 + [0.0] * 4, 1, begin=8)
    assert found.logprobs[0, 0] == pytest.approx(np.log(1 / 4), abs=1e-6)
    found = top([2.0] * 8 + [0.0] * 4, 1, begin=8)
    assert found.logprobs[0, 0] == pytest.approx(2 - np.log(8 * np.exp(2) + 4), abs=1e-6)


def test_all_text_banned_leaves_times_and_the_other_way_round() -> None:
    scores = [5.0] * 8 + [0.0] * 4
    found = top(scores, 2, ban_of(*range(8)), begin=8)
    assert found.tokens.tolist() == [[8, 9]]
    np.testing.assert_allclose(found.logprobs, np.log(1 / 4), atol=1e-6)
    found = top([0.0] * 8 + [5.0] * 4, 2, ban_of(*range(8, N)), begin=8)
    assert found.tokens.tolist() == [[0, 1]]
    np.testing.assert_allclose(found.logprobs, np.log(1 / 8), atol=1e-6)


rows = st.lists(
    st.tuples(
        st.lists(st.integers(-20, 20), min_size=N, max_size=N),
        st.lists(st.booleans(), min_size=N, max_size=N),
        st.sampled_from([8, N]),
    ),
    min_size=1,
    max_size=4,
)


@settings(derandomize=True, deadline=None, max_examples=200)
@given(rows, st.integers(1, 4))
def test_rows_do_not_see_one_another(
    batch: list[tuple[list[int], list[bool], int]], k: int
) -> None:
    scores = np.array([row for row, _, _ in batch], np.float32)
    ban = np.array([row for _, row, _ in batch], np.bool_)
    begin = np.array([row for _, _, row in batch], np.int64)
    together = top_k(scores, k, TokenMask(ban, begin))
    for i in range(len(batch)):
        alone = top_k(scores[i : i + 1], k, TokenMask(ban[i : i + 1], begin[i : i + 1]))
        assert together.tokens[i].tolist() == alone.tokens[0].tolist()
        assert together.logprobs[i].tolist() == alone.logprobs[0].tolist()


@settings(derandomize=True, deadline=None, max_examples=200)
@given(
    st.lists(st.floats(-50, 50, width=32), min_size=N, max_size=N),
    st.lists(st.booleans(), min_size=N, max_size=N).filter(lambda ban: not all(ban)),
)
def test_probabilities_of_all_allowed_add_to_one(scores: list[float], ban: list[bool]) -> None:
    found = top(scores, N, np.array(ban, np.bool_))
    assert np.exp(found.logprobs.astype(np.float64)).sum() == pytest.approx(1.0, abs=1e-5)
    assert (np.diff(found.logprobs[0][np.isfinite(found.logprobs[0])]) <= 0).all()
    assert sorted(found.tokens[0].tolist()) == list(range(N))
    assert np.isfinite(found.logprobs).sum() == N - sum(ban)


@settings(derandomize=True, deadline=None, max_examples=100)
@given(
    st.lists(st.integers(-3, 3), min_size=N, max_size=N),
    st.sampled_from([8, N]),
    st.integers(2, 4),
)
def test_the_first_of_k_is_the_best_one(scores: list[int], begin: int, k: int) -> None:
    values = [float(score) for score in scores]
    assert top(values, k, begin=begin).tokens[0, 0] == top(values, 1, begin=begin).tokens[0, 0]


def test_arguments_are_left_alone() -> None:
    scores = np.arange(N, dtype=np.float32)[None]
    mask = TokenMask(ban_of(3)[None], np.array([8], np.int64))
    kept, banned = scores.copy(), mask.ban.copy()
    top_k(scores, 3, mask)
    assert (scores == kept).all()
    assert (mask.ban == banned).all()


def test_host_logits_choose_after_the_last_token() -> None:
    scores: F32 = np.zeros((2, 3, N), np.float32)
    scores[0, 2, 4] = scores[1, 2, 6] = 1
    scores[:, :2, 9] = 5
    logits = HostLogits(scores)
    mask = TokenMask(np.zeros((2, N), np.bool_), np.full(2, N, np.int64))
    assert logits.top(1, mask).tokens.tolist() == [[4], [6]]
    assert logits.numpy() is scores


def test_log_softmax() -> None:
    scores = np.array([[0, 1, 2, -np.inf], [900, 900, -900, 900]], np.float32)
    found = log_softmax(scores)
    assert found.dtype == np.float32
    expected = [reference_log_softmax(row) for row in scores]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert found[0, 3] == -np.inf
    assert found[1, 0] == pytest.approx(np.log(1 / 3), abs=1e-6)


# --- the repetition penalty and draws ------------------------------------------------------------


def test_the_penalty_by_hand() -> None:
    scores = np.array([[4.0, -4.0, 0.0, 4.0, -4.0, 1.0]], np.float32)
    seen = np.array([[True, True, True, False, False, False]])
    mask = TokenMask(np.zeros((1, 6), np.bool_), np.array([6]), seen, np.array([2], np.float32))
    assert penalized(scores, mask).tolist() == [[2.0, -8.0, 0.0, 4.0, -4.0, 1.0]]
    assert scores[0, 0] == 4.0
    assert top_k(scores, 2, mask).tokens.tolist() == [[3, 0]]
    half = TokenMask(mask.ban, mask.timestamp_begin, seen, np.array([0.5], np.float32))
    assert penalized(scores, half).tolist() == [[8.0, -2.0, 0.0, 4.0, -4.0, 1.0]]


def test_without_a_penalty_scores_pass_through() -> None:
    scores = np.arange(N, dtype=np.float32)[None]
    assert penalized(scores, TokenMask(ban_of()[None], np.array([N]))) is scores


@settings(derandomize=True, deadline=None, max_examples=200)
@given(rows, st.integers(0, 2**32 - 1), st.integers(1, 4))
def test_each_row_has_a_penalty_of_its_own(
    batch: list[tuple[list[int], list[bool], int]], seed: int, k: int
) -> None:
    """Top-k of penalized scores is top-k of scores changed one by one; no row sees another's."""
    rng = np.random.default_rng(seed)
    scores = np.array([row for row, _, _ in batch], np.float32)
    ban = np.array([row for _, row, _ in batch], np.bool_)
    begin = np.array([row for _, _, row in batch], np.int64)
    seen = rng.random(ban.shape) < 0.4
    penalty = rng.choice([0.5, 1.0, 1.3, 2.0], len(batch)).astype(np.float32)
    changed = scores.copy()
    for row, token in zip(*np.nonzero(seen)):
        score = scores[row, token]
        changed[row, token] = score / penalty[row] if score > 0 else score * penalty[row]
    mask = TokenMask(ban, begin, seen, penalty)
    np.testing.assert_array_equal(penalized(scores, mask), changed)
    found, expected = top_k(scores, k, mask), top_k(changed, k, TokenMask(ban, begin))
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_array_equal(found.logprobs, expected.logprobs)


def test_a_penalty_of_one_changes_no_bit() -> None:
    """Rows without a penalty share the mask of rows that have one."""
    rng = np.random.default_rng(1)
    scores = (rng.standard_normal((3, 5000)) * 9).astype(np.float32)
    seen = rng.random(scores.shape) < 0.5
    mask = TokenMask(
        np.zeros(scores.shape, np.bool_), np.full(3, 5000), seen, np.array([1, 1.5, 1], np.float32)
    )
    np.testing.assert_array_equal(penalized(scores, mask)[[0, 2]], scores[[0, 2]])


@settings(derandomize=True, deadline=None, max_examples=200)
@given(
    st.lists(st.integers(-20, 20), min_size=N, max_size=N),
    st.lists(st.booleans(), min_size=N, max_size=N).filter(lambda ban: not all(ban)),
    st.sampled_from([8, N]),
    st.sampled_from([0.1, 1.0, 4.0]),
    st.integers(0, 1000),
)
def test_draws_come_from_what_top_k_allows(
    scores: list[int], ban: list[bool], begin: int, temperature: float, seed: int
) -> None:
    row, banned = np.array(scores, np.float32), np.array(ban, np.bool_)
    tokens, logprobs = sample(row, banned, begin, 20, temperature, np.random.default_rng(seed))
    assert tokens.shape == logprobs.shape == (20,)
    every = top_k(row[None], 4, TokenMask(banned[None], np.array([begin])))
    known = dict(zip(every.tokens[0].tolist(), every.logprobs[0].tolist()))
    allowed = np.where(banned, -np.inf, row.astype(np.float64))
    times = float(np.logaddexp.reduce(allowed[begin:], initial=-np.inf))
    if times > allowed[:begin].max(initial=-np.inf) + 1e-4:
        assert (tokens >= begin).all()
    for token, logprob in zip(tokens.tolist(), logprobs.tolist()):
        assert not banned[token]
        assert logprob == pytest.approx(known.get(token, logprob), abs=1e-5)
    again, _ = sample(row, banned, begin, 20, temperature, np.random.default_rng(seed))
    assert tokens.tolist() == again.tolist()


def test_draws_from_nothing_but_bans() -> None:
    """If all tokens are banned, one is drawn nevertheless, with log-probability -inf."""
    rng = np.random.default_rng(0)
    tokens, logprobs = sample(np.zeros(N, np.float32), ban_of(*range(N)), N, 5, 1.0, rng)
    assert tokens.shape == (5,)
    assert (logprobs == -np.inf).all()


def test_a_low_temperature_takes_the_best() -> None:
    scores = np.array([0, 3, 1, 5, 2, 4, 0, 0, 0, 0, 0, 0], np.float32)
    rng = np.random.default_rng(0)
    tokens, _ = sample(scores, ban_of(3), N, 50, 0.01, rng)
    assert set(tokens.tolist()) == {5}
