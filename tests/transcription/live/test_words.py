"""Comparison of the words of live results."""

from __future__ import annotations

import pytest

from tests.support.live_words import words
from whisper_opt.transcription.live.words import agreed, cut_loop, text_of, units


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" Hey,", ("hey",)),
        (" HEY", ("hey",)),
        (" it's", ("its",)),
        (" Straße", ("strasse",)),
        (" ＡＢＣ１", ("abc1",)),  # noqa: RUF001 - full width is meant
        (" --", ()),
        ("你好。", ("你", "好")),
        ("ｶﾀｶﾅ", ("カ", "タ", "カ", "ナ")),
        (" สวัสดี", tuple("สวัสดี")),
        (" 안녕하세요", ("안녕하세요",)),
        (" café", ("café",)),
    ],
)
def test_units(text: str, expected: tuple[str, ...]) -> None:
    assert units(text) == expected


@pytest.mark.parametrize(
    ("before", "newest", "expected"),
    [
        ("Hey", "Hey, you", 1),  # the comma came later
        ("hey, you are", "Hey you were", 2),
        ("one two", "two one", 0),
        ("one two", "one", 1),
        ("one", "", 0),
        ("one - two", "one two", 2),
        ("one two", "one two -", 2),  # a dash alone is not agreed on
        ("one two three", "one - two four", 3),
    ],
)
def test_agreed(before: str, newest: str, expected: int) -> None:
    assert agreed([words(before), words(newest)]) == expected


def test_all_results_must_agree() -> None:
    results = [words("a b x"), words("a b c d"), words("a b c e")]
    assert agreed(results) == 2
    assert agreed(results[1:]) == 3


def test_scripts_without_spaces_agree_by_character() -> None:
    """However the characters are grouped; a group counts when all its characters agree."""
    assert agreed([words("你|好吗"), words("你好|吗|我")]) == 2
    assert agreed([words("你|好"), words("你好吗")]) == 0


def test_a_loop_is_cut_to_its_first_round() -> None:
    found = cut_loop(words("we go on and on and on and on"))
    assert text_of(found) == " we go on and"
    assert text_of(cut_loop(words("so no, no. No no"))) == " so no,"


def test_what_does_not_repeat_to_its_end_is_no_loop() -> None:
    for text in ("", "one", "la la la land", "on and on and"):
        assert text_of(cut_loop(words(text))) == text_of(words(text))
