"""Buffer, prompt, language: the small parts of a live session."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from whisper_opt.transcription.live.audio_buffer import AudioBuffer
from whisper_opt.transcription.live.languages import UtteranceLanguage
from whisper_opt.transcription.live.prompt import Prompt


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 50_000), st.integers(0, 60_000)), max_size=12))
def test_the_buffer_keeps_positions(steps: list[tuple[int, int]]) -> None:
    buffer, n, first = AudioBuffer(), 0, 0
    for size, kept in steps:
        buffer.add(np.arange(n, n + size, dtype=np.float32))
        n += size
        buffer.forget(n - kept)
        found = buffer.take(0, n + 5)
        first = max(first, n - kept)
        assert found.tolist() == list(range(first, n))


def test_the_buffer_does_not_grow() -> None:
    buffer = AudioBuffer()
    for i in range(400):
        buffer.add(np.full(1600, i, np.float32))
        buffer.forget(buffer.end - 16_000)
    assert buffer._data.size <= 1 << 17
    assert buffer.take(buffer.end - 1, buffer.end).tolist() == [399.0]


def test_the_prompt_keeps_the_newest_text_after_the_given() -> None:
    prompt = Prompt([1, 2], 5)
    prompt.add([10, 11])
    prompt.add([12, 13])
    assert list(prompt.tokens) == [1, 2, 11, 12, 13]
    prompt.forget()
    assert list(prompt.tokens) == [1, 2]


def test_the_prompt_is_forgotten_after_two_failures_in_a_row() -> None:
    prompt = Prompt([], 5)
    prompt.add([10])
    for good in (False, True, False):
        prompt.result(good=good)
    assert list(prompt.tokens) == [10]
    prompt.result(good=False)
    assert list(prompt.tokens) == []


def test_a_given_language_is_never_detected() -> None:
    language = UtteranceLanguage("de")
    language.begin()
    language.heard({"en": 1.0}, 9.0)
    assert (language.language, language.settled, language.end()) == ("de", True, False)


def test_the_first_utterance_settles_its_language() -> None:
    language = UtteranceLanguage(None)
    language.begin()
    language.heard({"en": 0.4, "de": 0.3}, 0.5)
    assert (language.language, language.settled) == ("en", False)
    language.heard({"de": 0.7, "en": 0.1}, 1.5)
    assert language.settled is False
    language.heard({"de": 0.85, "en": 0.1}, 1.5)
    assert (language.language, language.settled) == ("de", True)
    assert language.end() is False


def test_a_short_sound_does_not_change_the_language() -> None:
    language = _german()
    language.heard({"en": 0.95, "de": 0.01}, 0.8)
    assert language.settled is False
    assert language.end() is False
    assert language.language == "de"


def test_a_doubtful_language_is_that_of_the_utterance_before() -> None:
    language = _german()
    assert language.choose({"en": 0.6, "de": 0.3}, 4.0) == "de"
    language.heard({"en": 0.6, "de": 0.3}, 6.0)
    assert (language.language, language.settled) == ("de", True)


def test_a_sure_language_changes_it() -> None:
    language = _german()
    assert language.choose({"en": 0.9, "de": 0.05}, 1.9) == "de"
    language.heard({"en": 0.9, "de": 0.05}, 2.5)
    assert (language.language, language.settled) == ("en", True)
    assert language.end() is True


def _german() -> UtteranceLanguage:
    language = UtteranceLanguage(None)
    language.begin()
    language.heard({"de": 0.9, "en": 0.1}, 3.0)
    language.end()
    language.begin()
    return language
