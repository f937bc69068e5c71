"""An update as a window: the committed text first, then new words."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest

from tests.support.models import random_dims, tokenizer_json
from whisper_opt import LiveOptions, TranscribeOptions
from whisper_opt.text.vocabulary import Vocab
from whisper_opt.transcription.alignment import CrossAttention
from whisper_opt.transcription.fallback import WindowResult
from whisper_opt.transcription.live.options import update_options
from whisper_opt.transcription.live.window import Hypothesis, Update, UpdateCursor

DIMS = random_dims(n_vocab=51_865, n_text_ctx=448)
VOCAB = Vocab(tokenizer_json(DIMS), DIMS)
OPTIONS = update_options(TranscribeOptions(), LiveOptions(update_beam_size=1))


def update(**changed: object) -> Update:
    given = Update(
        samples=np.zeros(32_000, np.float32),
        start=10.0,
        end=192_000,
        prompt=(),
        prefix=(),
        language="en",
        options=OPTIONS,
    )
    return dataclasses.replace(given, **changed)  # type: ignore[arg-type]


def diagonal(text: Sequence[int]) -> CrossAttention:
    """Each token belongs to audio a tenth of a second (5 positions) after the one before."""
    scores = np.zeros((1, len(text) + 4, 1500), np.float32)
    for row in range(scores.shape[1]):
        scores[0, row, 5 * row : 5 * row + 5] = 20
    return CrossAttention(scores, np.full(len(text), 0.5, np.float32))


def decoded(given: Update, tokens: Sequence[int]) -> Hypothesis:
    found: list[Hypothesis] = []
    cursor = UpdateCursor(given, 200, VOCAB, DIMS, found.append)
    window = cursor.next_window()
    assert window is not None
    result = WindowResult((*given.prefix, *tokens), -0.3, 0.1, 1.2, 0.0)
    assert cursor.accept(window, result, diagonal) == []
    assert cursor.next_window() is None
    return found[0]


def test_the_window_begins_with_the_committed_text() -> None:
    prompt, prefix = tuple(VOCAB.encode(" before")), tuple(VOCAB.encode(" so far"))
    cursor = UpdateCursor(
        update(prompt=prompt, prefix=prefix), 200, VOCAB, DIMS, lambda found: None
    )
    window = cursor.next_window()
    assert window is not None
    start = VOCAB.start("en", "transcribe", timestamps=False)
    assert window.prompt == (VOCAB.sot_prev, *prompt, *start)
    assert window.prompt[window.sot_index] == VOCAB.sot
    assert window.begin == prefix
    assert (window.seek, window.size) == (0, 200)
    assert window.optimal
    assert window.begin_counts


def test_the_rest_of_the_last_result_is_proposed() -> None:
    draft = tuple(VOCAB.encode(" and so on."))
    window = UpdateCursor(update(draft=draft), 200, VOCAB, DIMS, lambda found: None).next_window()
    assert window is not None
    assert window.drafter is not None
    assert window.drafter().propose(draft[:1], 10) == draft[1:]


def test_nothing_is_proposed_without_a_last_result() -> None:
    window = UpdateCursor(update(), 200, VOCAB, DIMS, lambda found: None).next_window()
    assert window is not None
    assert window.drafter is None


def test_words_after_the_committed_ones() -> None:
    prefix = tuple(VOCAB.encode(" so far"))
    found = decoded(update(prefix=prefix), VOCAB.encode(" and on."))
    assert [word.text for word in found.words] == [" and", " on."]
    assert all(word.start >= 10.0 for word in found.words)
    assert [word.tokens for word in found.words] == [
        tuple(VOCAB.encode(" and")),
        tuple(VOCAB.encode(" on.")),
    ]
    margins = [word.margin for word in found.words]
    assert margins == sorted(margins, reverse=True)
    assert margins[0] < 100


def test_punctuation_after_a_committed_word_is_a_word_of_its_own() -> None:
    found = decoded(update(prefix=tuple(VOCAB.encode(" Hey"))), VOCAB.encode(", you"))
    assert [word.text for word in found.words] == [",", " you"]


@pytest.mark.parametrize("n_bytes", [1, 2])
def test_half_a_character_is_held_back(n_bytes: int) -> None:
    bytes_of = [VOCAB.encode(" a")[0], *byte_tokens("語".encode()[:n_bytes])]
    found = decoded(update(language="ja"), bytes_of)
    assert [word.text for word in found.words] == [" a"]
    whole = decoded(update(language="ja"), [VOCAB.encode(" a")[0], *byte_tokens("語".encode())])
    assert "".join(word.text for word in whole.words) == " a語"


def byte_tokens(data: bytes) -> list[int]:
    """Tokens of single bytes."""
    ids = {VOCAB.spelling([i]): i for i in range(256)}
    return [ids[bytes([byte])] for byte in data]


def test_no_new_words() -> None:
    assert decoded(update(), []).words == ()
    assert decoded(update(prefix=tuple(VOCAB.encode(" so"))), []).words == ()


def test_the_language_is_chosen_by_the_session() -> None:
    found: list[Hypothesis] = []
    given = update(language=None, choose_language=lambda probs: list(probs)[1])
    cursor = UpdateCursor(given, 200, VOCAB, DIMS, found.append)
    cursor.heard({"en": 0.6, "de": 0.4})
    window = cursor.next_window()
    assert window is not None
    assert VOCAB.languages["de"] in window.prompt
    cursor.accept(window, WindowResult((), -0.3, 0.1, 1.2, 0.0), diagonal)
    assert (cursor.language, found[0].languages) == ("de", {"en": 0.6, "de": 0.4})


@pytest.mark.parametrize(("size", "beams"), [(1, None), (4, 4)])
def test_the_beams_of_an_update_are_not_those_of_the_transcript(
    size: int, beams: int | None
) -> None:
    """1 is greedy decoding, for which drafts are verified."""
    found = update_options(TranscribeOptions(beam_size=7), LiveOptions(update_beam_size=size))
    assert (found.beam_size, found.temperatures) == (beams, (0.0,))


def test_marks_are_no_words() -> None:
    assert {VOCAB.encode(mark)[0] for mark in ".,?!-"} <= VOCAB.marks
    assert not {VOCAB.encode(word)[0] for word in (" a", "b", "1", " ")} & VOCAB.marks
