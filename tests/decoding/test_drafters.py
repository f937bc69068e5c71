"""Where proposals come from: tokens in, the tokens that probably follow out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from whisper_opt.decoding.drafters import FirstOf, KnownText, LookupDrafter, TextDrafter

TIMES = range(1000, 1100)


def words(start: int, n: int) -> list[int]:
    return list(range(start, start + n))


def n_steps(drafter: TextDrafter, result: Sequence[int]) -> int:
    """Calls of a model with this result, which verifies proposals after its first token."""
    sampled, n = [result[0]], 0
    while len(sampled) < len(result):
        n += 1
        proposed = drafter.propose(sampled, 1000)
        for token, true in zip([*proposed, None], result[len(sampled) :]):
            sampled.append(true)
            if token != true:
                break
    return n


def test_the_right_text_is_proposed_in_blocks_that_double() -> None:
    text = words(0, 300)
    drafter = TextDrafter(KnownText(text))
    sizes, sampled = [], text[:1]
    while proposed := drafter.propose(sampled, 1000):
        assert list(proposed) == text[len(sampled) : len(sampled) + len(proposed)]
        sizes.append(len(proposed))
        sampled = text[: len(sampled) + len(proposed) + 1]
    assert sizes == [32, 64, 128, 72]


def test_no_more_is_proposed_than_there_is_room_for() -> None:
    drafter = TextDrafter(KnownText(words(0, 100)))
    assert drafter.propose([0], 3) == (1, 2, 3)


@pytest.mark.parametrize(
    ("draft", "at_most"),
    [
        (words(0, 200), 4),
        ([*words(0, 50), 900, *words(51, 149)], 9),  # another word
        ([*words(0, 50), *words(51, 149)], 9),  # a word is missing
        ([*words(0, 50), 900, *words(50, 150)], 9),  # a word too many
        ([*words(0, 50), *words(500, 5), *words(55, 145)], 14),  # five other words
        ([*words(0, 50), *words(500, 60), *words(50, 150)], 11),  # a sentence too many
        ([*words(0, 50), *words(110, 90)], 75),  # a sentence is missing
        (words(500, 200), 199),  # all other words
    ],
)
def test_a_difference_does_not_lose_the_rest(draft: list[int], at_most: int) -> None:
    assert n_steps(TextDrafter(KnownText(draft)), words(0, 200)) <= at_most


def test_random_edits_are_followed() -> None:
    """One word in twenty is wrong, missing or new: at least half the steps are saved."""
    rng = np.random.default_rng(0)
    text = rng.integers(0, 900, 400).tolist()
    draft: list[int] = []
    for token in text:
        draft += {0: [], 1: [903], 2: [token, 904]}.get(int(rng.integers(60)), [token])
    assert n_steps(TextDrafter(KnownText(draft)), text) < 150


def test_timestamps_that_the_text_does_not_have() -> None:
    """A new segment begins where the last one has ended."""
    result = [1000, *words(0, 40), 1020, 1020, *words(40, 40), 1050, 1050, *words(80, 40), 1090]
    drafter = TextDrafter(KnownText(words(0, 120), TIMES))
    assert drafter.propose(result[:1], 100)[:40] == tuple(words(0, 32))
    assert drafter.propose(result[:42], 100)[:3] == (1020, 40, 41)
    assert n_steps(TextDrafter(KnownText(words(0, 120), TIMES)), result) < 20


def test_timestamps_that_are_a_little_different() -> None:
    draft = [1000, *words(0, 20), 1020, 1022, *words(20, 20), 1050]
    drafter = TextDrafter(KnownText(draft, TIMES))
    assert drafter.propose([1000], 100) == (*words(0, 20), 1020, 1022, *words(20, 10))
    sampled = [1000, *words(0, 20), 1021]
    assert drafter.propose(sampled, 100)[:3] == (1022, 20, 21)
    assert drafter.propose([*sampled, 1021], 100)[:2] == (20, 21)
    later = TextDrafter(KnownText(draft, TIMES))
    assert later.propose([1000, *words(0, 20), 1030], 100)[:3] == (1030, 20, 21)


def test_a_place_that_is_not_known_is_found() -> None:
    text = KnownText([*words(0, 100), 7, 8, 9, 500, 501])
    drafter = TextDrafter(text, None, near=90)
    assert drafter.propose([7], 10) == ()
    assert drafter.propose([7, 8, 9], 10) == (500, 501)  # the nearest of two
    assert TextDrafter(text, None, near=0).propose([7, 8, 9], 3) == (10, 11, 12)


def test_look_up_proposes_what_followed_before() -> None:
    drafter = LookupDrafter([1001, 3, 4, 5, 6, 7, 8], range(900), 4)
    assert drafter.propose([1000], 10) == ()
    assert drafter.propose([1000, 4], 10) == ()
    assert drafter.propose([1000, 4, 5], 10) == (6, 7, 8, 4)
    assert drafter.propose([1000, 4, 5], 2) == (6, 7)
    assert drafter.propose([1000, 4, 5, 1010], 10) == ()
    assert drafter.propose([1000, 4, 5, 1010, 9, 4, 5], 10) == (9, 4, 5)  # the latest


def test_the_first_drafter_that_knows_something_is_asked() -> None:
    text = TextDrafter(KnownText([1, 2, 3]))
    both = FirstOf(text, LookupDrafter([5, 6, 7, 8], range(900), 2))
    assert both.propose([1], 10) == (2, 3)
    assert both.propose([1, 5, 6], 10) == (7, 8)
    assert text.place is None  # it has followed the tokens meanwhile


def test_only_the_first_that_knows_something_is_asked() -> None:
    class Never:
        def propose(self, sampled: Sequence[int], most: int) -> Sequence[int]:
            raise AssertionError("it costs a run of a model")

    both = FirstOf(TextDrafter(KnownText(words(0, 9))), Never())
    assert both.propose([0], 3) == (1, 2, 3)


def test_proposals_that_were_not_verified_do_not_count() -> None:
    """Sessions that would feed all tokens again verify few proposals."""
    drafter = TextDrafter(KnownText(words(0, 300)))
    sizes = [len(drafter.propose(words(0, n), 1000)) for n in range(1, 40)]
    assert sizes == [32] * 39
    assert len(drafter.propose([*words(0, 39), 0, 1, 2], 1000)) == 6
