"""Constraints and top-k together choose the tokens that openai-whisper's filters choose."""

from __future__ import annotations

import collections
from typing import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.reference_rules import Reference
from whisper_opt.core.arrays import F32, Bool
from whisper_opt.core.backend import TokenMask
from whisper_opt.core.logits import top_k
from whisper_opt.decoding.constraints import (
    NoRepeatNGram,
    SuppressAtBegin,
    SuppressBeforeWord,
    SuppressTokens,
    TimestampRules,
    TokenConstraint,
    banned_tokens,
)

EOT, NO_TIMESTAMPS, BEGIN, N_VOCAB = 30, 38, 39, 70
"""A vocabulary like Whisper's: text, end of text, seven that only prompts hold, times."""


def constraints_of(reference: Reference) -> list[TokenConstraint]:
    constraints: list[TokenConstraint] = []
    if reference.blank is not None:
        constraints.append(SuppressAtBegin(np.array(reference.blank, np.int64)))
    if reference.suppress is not None:
        constraints.append(SuppressTokens(np.array(reference.suppress, np.int64)))
    if reference.timestamps:
        constraints.append(
            TimestampRules(
                reference.timestamp_begin,
                reference.eot,
                reference.no_timestamps,
                reference.max_initial,
            )
        )
    return constraints


def banned(reference: Reference, sampled: list[int], n_vocab: int = N_VOCAB) -> Bool:
    return banned_tokens(constraints_of(reference), sampled).array(n_vocab)


def bans(constraint: TokenConstraint, sampled: list[int]) -> Bool:
    return banned_tokens([constraint], sampled).array(N_VOCAB)


def plain(timestamps: bool = True, max_initial: int | None = None) -> Reference:
    return Reference(EOT, NO_TIMESTAMPS, BEGIN, (7, EOT), (1, 2, 31), timestamps, max_initial)


def texts(rng: np.random.Generator, n: int) -> list[int]:
    return [int(token) for token in rng.integers(0, EOT, n)]


def lone_time_first(rng: np.random.Generator) -> list[int]:
    return [int(rng.integers(BEGIN, N_VOCAB)), *texts(rng, int(rng.integers(0, 4)))]


def one_time_last(rng: np.random.Generator) -> list[int]:
    start = int(rng.integers(BEGIN, N_VOCAB))
    return [start, *texts(rng, int(rng.integers(1, 4))), int(rng.integers(start, N_VOCAB))]


def pair_last(rng: np.random.Generator) -> list[int]:
    before = one_time_last(rng)
    return [*before, int(rng.integers(before[-1], N_VOCAB))]


def text_after_pair(rng: np.random.Generator) -> list[int]:
    return [*pair_last(rng), *texts(rng, int(rng.integers(1, 4)))]


def times_going_back(rng: np.random.Generator) -> list[int]:
    later, sooner = sorted((int(t) for t in rng.integers(BEGIN, N_VOCAB, 2)), reverse=True)
    return [BEGIN, *texts(rng, 1), later, sooner, *texts(rng, int(rng.integers(0, 2)))]


def anything(rng: np.random.Generator) -> list[int]:
    return [int(token) for token in rng.integers(0, N_VOCAB, int(rng.integers(0, 8)))]


HISTORIES: dict[str, Callable[[np.random.Generator], list[int]]] = {
    "nothing": lambda rng: [],
    "text only": lambda rng: texts(rng, int(rng.integers(1, 5))),
    "lone time first": lone_time_first,
    "one time last": one_time_last,
    "pair last": pair_last,
    "text after pair": text_after_pair,
    "times going back": times_going_back,
    "anything": anything,
}


def random_reference(rng: np.random.Generator) -> Reference:
    suppress = tuple(int(token) for token in rng.choice(BEGIN, int(rng.integers(0, 6)), False))
    return Reference(
        EOT,
        NO_TIMESTAMPS,
        BEGIN,
        blank=(7, EOT) if rng.random() < 0.7 else None,
        suppress=suppress if rng.random() < 0.7 else None,
        timestamps=bool(rng.random() < 0.75),
        max_initial=int(rng.integers(0, 30)) if rng.random() < 0.5 else None,
    )


def random_scores(rng: np.random.Generator) -> F32:
    drawn = rng.standard_normal(N_VOCAB) * rng.choice([0.5, 2, 8])
    scores: F32 = drawn.astype(np.float32)
    if rng.random() < 0.3:  # ties
        scores = np.round(scores)
    return scores


@pytest.mark.parametrize("history", HISTORIES)
def test_choose_as_the_reference_does(history: str) -> None:
    rng = np.random.default_rng(len(history))
    seen: collections.Counter[str] = collections.Counter()
    for _ in range(100):  # batches of mixed rows
        references = [random_reference(rng) for _ in range(5)]
        histories = [HISTORIES[history](rng) for _ in range(5)]
        scores = np.stack([random_scores(rng) for _ in range(5)])
        mask = TokenMask(
            np.stack([banned(each, sampled) for each, sampled in zip(references, histories)]),
            np.array([BEGIN if each.timestamps else N_VOCAB for each in references], np.int64),
        )
        top = top_k(scores, 1, mask)
        for row, (each, sampled) in enumerate(zip(references, histories)):
            token, logprob = each.best(scores[row], sampled)
            assert int(top.tokens[row, 0]) == token, (each, sampled)
            assert float(top.logprobs[row, 0]) == pytest.approx(logprob, abs=2e-6)
            outweighed = (each.apply(scores[row], sampled)[:BEGIN] == -np.inf).all()
            weighed = each.timestamps and not banned(each, sampled)[:BEGIN].all()
            seen["times outweigh text" if weighed and outweighed else "other"] += 1
            seen["text" if token < EOT else "time" if token >= BEGIN else "special"] += 1
    assert sum(seen.values()) == 1000
    if history in ("lone time first", "text after pair", "anything"):
        assert seen["times outweigh text"] > 20
        assert seen["text"] > 50
        assert seen["time"] > 50


@settings(derandomize=True, deadline=None, max_examples=300)
@given(
    sampled=st.lists(st.integers(0, N_VOCAB - 1), max_size=8),
    scores=st.lists(st.integers(-3, 3), min_size=N_VOCAB, max_size=N_VOCAB),
    suppress=st.none() | st.lists(st.integers(0, BEGIN - 1), max_size=6),
    blank=st.booleans(),
    timestamps=st.booleans(),
    max_initial=st.none() | st.integers(0, 40),
    k=st.integers(1, 5),
)
def test_rank_as_the_reference_does(
    sampled: list[int],
    scores: list[int],
    suppress: list[int] | None,
    blank: bool,
    timestamps: bool,
    max_initial: int | None,
    k: int,
) -> None:
    reference = Reference(
        EOT,
        NO_TIMESTAMPS,
        BEGIN,
        (7, EOT) if blank else None,
        None if suppress is None else tuple(suppress),
        timestamps,
        max_initial,
    )
    row = np.array(scores, np.float32)
    begin = BEGIN if timestamps else N_VOCAB
    mask = TokenMask(banned(reference, sampled)[None], np.array([begin], np.int64))
    top = top_k(row[None], k, mask)
    wanted = reference.order(row, sampled, k)
    allowed = [token for token, logprob in wanted if logprob > -np.inf]
    assert top.tokens[0, : len(allowed)].tolist() == allowed
    np.testing.assert_allclose(top.logprobs[0], [logprob for _, logprob in wanted], atol=2e-6)


def test_whole_answers_equal_the_reference() -> None:
    """Histories made by sampling, with a vocabulary of Whisper's size and layout."""
    n_vocab, begin, eot = 51865, 50364, 50257
    reference = Reference(
        eot, 50363, begin, (220, eot), (1, 2, 7, 50258, 50358, 50359, 50360, 50361, 50362), True, 50
    )
    rng = np.random.default_rng(1)
    pairs = 0
    for _ in range(8):
        sampled: list[int] = []
        while len(sampled) < 12 and (not sampled or sampled[-1] != eot):
            scores = rng.standard_normal(n_vocab).astype(np.float32) * np.float32(3)
            scores[begin:] += np.float32(2.9)
            scores[eot] += np.float32(11)
            mask = TokenMask(banned(reference, sampled, n_vocab)[None], np.array([begin], np.int64))
            top = top_k(scores[None], 1, mask)
            token, logprob = reference.best(scores, sampled)
            assert int(top.tokens[0, 0]) == token
            assert float(top.logprobs[0, 0]) == pytest.approx(logprob, abs=1e-5)
            sampled.append(token)
        times = [token for token in sampled if token >= begin]
        assert sampled[0] in range(begin, begin + 51)
        assert times == sorted(times)
        pairs += sum(a >= begin and b >= begin for a, b in zip(sampled, sampled[1:]))
    assert pairs > 4


def test_first_token() -> None:
    ban = banned(plain(max_initial=3), [])
    assert np.flatnonzero(~ban).tolist() == [BEGIN, BEGIN + 1, BEGIN + 2, BEGIN + 3]
    assert np.flatnonzero(~banned(plain(), [])).tolist() == list(range(BEGIN, N_VOCAB))
    assert np.flatnonzero(banned(plain(timestamps=False), [])).tolist() == [1, 2, 7, EOT, 31]


def test_blank_is_banned_first_only() -> None:
    constraint = SuppressAtBegin(np.array([7, EOT], np.int64))
    for sampled, expected in (([], [7, EOT]), ([5], []), ([BEGIN, 5], [])):
        assert np.flatnonzero(bans(constraint, sampled)).tolist() == expected


def test_the_end_is_banned_until_there_is_a_word_after_what_is_given() -> None:
    constraint = SuppressBeforeWord(np.array([EOT], np.int64), after=2, marks={8, 9})
    for sampled, expected in (
        *(([5], []), ([5, 6], [EOT]), ([5, 6, 7], [])),
        *(([5, 6, 8], [EOT]), ([5, 6, 8, 9], [EOT]), ([5, 6, 8, 7], [])),
    ):
        assert np.flatnonzero(bans(constraint, sampled)).tolist() == expected


@pytest.mark.parametrize(
    ("sampled", "text", "special", "times"),
    [
        # (history, may text follow, may the end of text follow, the times that may)
        ([BEGIN + 2], True, True, []),
        ([BEGIN + 2, 5], True, True, [BEGIN + 3, N_VOCAB]),
        ([BEGIN + 2, 5, BEGIN + 9], False, True, [BEGIN + 9, N_VOCAB]),
        ([BEGIN + 2, 5, BEGIN + 9, BEGIN + 9], True, True, []),
        ([BEGIN + 2, 5, BEGIN + 9, BEGIN + 12, 5], True, True, [BEGIN + 13, N_VOCAB]),
        ([5], True, True, [BEGIN, N_VOCAB]),
        ([5, N_VOCAB - 1], False, True, [N_VOCAB - 1, N_VOCAB]),
        ([BEGIN, 5], True, True, [BEGIN + 1, N_VOCAB]),
    ],
)
def test_times_come_in_pairs_and_grow(
    sampled: list[int], text: bool, special: bool, times: list[int]
) -> None:
    ban = banned(plain(), sampled)
    assert ban[5] != text
    assert ban[EOT] != special
    assert ban[NO_TIMESTAMPS]
    expected = list(range(*times)) if times else []
    assert (np.flatnonzero(~ban[BEGIN:]) + BEGIN).tolist() == expected


def test_constraints_are_independent() -> None:
    """Each adds its own bans, whatever is banned already, and leaves the history as it is."""
    reference = plain(max_initial=5)
    rng = np.random.default_rng(2)
    for make in HISTORIES.values():
        sampled = make(rng)
        kept = list(sampled)
        each = [bans(constraint, sampled) for constraint in constraints_of(reference)]
        assert sampled == kept
        assert (banned(reference, sampled) == np.any(each, axis=0)).all()


@settings(derandomize=True, deadline=None, max_examples=300)
@given(
    st.lists(st.sampled_from([3, 4, 5, EOT - 1, EOT + 1, BEGIN, BEGIN + 4]), max_size=14),
    st.integers(1, 4),
)
def test_no_ngram_is_repeated(sampled: list[int], n: int) -> None:
    """Compared with every continuation; tokens that are not text are ignored and never banned."""
    ban = bans(NoRepeatNGram(n, range(EOT)), sampled)
    text = [token for token in sampled if token < EOT]
    known = {tuple(text[i : i + n]) for i in range(len(text) - n + 1)}
    expected = [
        token for token in range(EOT) if len(text) >= n - 1 and tuple([*text, token][-n:]) in known
    ]
    assert np.flatnonzero(ban).tolist() == expected


@pytest.mark.parametrize(
    ("n", "sampled", "expected"),
    [
        (1, [], []),
        (1, [4, BEGIN, 6], [4, 6]),
        (2, [4], []),
        (2, [4, 4], [4]),
        (2, [4, 5, 6, 4], [5]),
        (2, [4, 5, 4, 6, 4], [5, 6]),
        (3, [4, 5, 6, 4, 5], [6]),
        (3, [4, 5, BEGIN + 1, BEGIN + 1, 6, 4, BEGIN + 3, 5], [6]),
        (3, [4, 5, 6, 5], []),
    ],
)
def test_tokens_that_would_repeat_an_ngram(n: int, sampled: list[int], expected: list[int]) -> None:
    ban = bans(NoRepeatNGram(n, range(EOT)), sampled)
    assert np.flatnonzero(ban).tolist() == sorted(expected)
