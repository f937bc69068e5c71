"""Windows with word times compared with openai-whisper's; hotwords and languages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from tests.support.align_cases import DIMS, VOCAB, attention, golden
from tests.support.models import random_dims, tokenizer_json
from whisper_opt.core.options import TranscribeOptions
from whisper_opt.text.results import Segment
from whisper_opt.text.vocabulary import Vocab
from whisper_opt.transcription.alignment import CrossAttention
from whisper_opt.transcription.fallback import Window, WindowResult
from whisper_opt.transcription.windows import WindowCursor

BEGIN = VOCAB.timestamp_begin
ROOM = DIMS.n_text_ctx // 2 - 1


class Run:
    """A recording in a ``WindowCursor`` with scripted results and seeded attention."""

    def __init__(
        self, n_frames: int, results: Sequence[WindowResult], seed: int, **options: Any
    ) -> None:
        self.seed = seed
        self.windows: list[Window] = []
        self.segments: list[Segment] = []
        self.aligned: list[list[int]] = []
        options = {"word_timestamps": True, **options}
        state = WindowCursor(n_frames, VOCAB, DIMS, TranscribeOptions(**options), "en")
        while (window := state.next_window()) is not None:
            assert state.next_window() == window
            result = results[len(self.windows) % len(results)]
            self.windows.append(window)
            assert len(self.windows) < 200
            self.segments.extend(state.accept(window, result, self.align))

    def align(self, text: Sequence[int]) -> CrossAttention:
        self.aligned.append(list(text))
        return attention(self.seed + len(self.windows), len(text), self.windows[-1].size)


def run_case(case: dict[str, Any]) -> Run:
    results = [WindowResult(**{**r, "tokens": tuple(r["tokens"])}) for r in case["results"]]
    return Run(case["n_frames"], results, case["seed"], **case["options"])


@pytest.mark.parametrize("case", golden()["windows"], ids=lambda c: str(c["seed"]))
def test_windows_equal_the_reference(case: dict[str, Any]) -> None:
    run = run_case(case)
    windows = [(w.seek, w.size, w.prompt[: w.sot_index]) for w in run.windows]
    assert windows == [
        (seek, size, (VOCAB.sot_prev, *prompt[-ROOM:]) if prompt else ())
        for seek, size, prompt in case["windows"]
    ]
    assert len(run.segments) == len(case["segments"])
    for mine, theirs in zip(run.segments, case["segments"]):
        found = (mine.id, mine.seek, mine.text, list(mine.tokens))
        assert found == (theirs["id"], theirs["seek"], theirs["text"], theirs["tokens"])
        assert mine.start == pytest.approx(theirs["start"], abs=1e-9)
        assert mine.end == pytest.approx(theirs["end"], abs=1e-9)
        assert mine.words is not None
        for word, (text, start, end, probability) in zip(mine.words, theirs["words"]):
            assert word.word == text
            assert (word.start, word.end) == pytest.approx((start, end), abs=1e-9)
            assert word.probability == pytest.approx(probability, abs=1e-5)
        assert len(mine.words) == len(theirs["words"])


def test_the_goldens_reach_every_rule() -> None:
    """Guards the goldens themselves: with and without a threshold the windows differ."""
    moved = dropped = plain = 0
    for case in golden()["windows"]:
        options = {**case["options"], "hallucination_silence_threshold": None}
        without = run_case({**case, "options": options})
        seeks = [window.seek for window in without.windows]
        moved += seeks != [seek for seek, _, _ in case["windows"]]
        dropped += len(without.segments) > len(case["segments"])
        plain += case["options"]["hallucination_silence_threshold"] is None
    assert moved > 20
    assert dropped > 5
    assert plain > 5


def result_of(*tokens: int, temperature: float = 0.0) -> WindowResult:
    return WindowResult(tokens, -0.3, 0.1, 1.5, temperature)


def time(seconds: float) -> int:
    return BEGIN + round(seconds / 0.02)


SO = VOCAB.encode(" so")


def test_the_aligner_is_called_once_per_window_and_only_for_text() -> None:
    result = result_of(time(0), *SO, time(2), time(2), *SO, *SO, time(9))
    run = Run(6000, [result, result_of(time(0), time(3)), result_of(*SO)], seed=1)
    assert run.aligned[0] == [*SO, *SO, *SO]
    assert len(run.windows) == len(run.aligned) + 1
    assert run.segments[2].words == ()


def test_without_word_times_no_aligner_is_needed() -> None:
    run = Run(3000, [result_of(time(0), *SO, time(2))], seed=1, word_timestamps=False)
    assert run.aligned == []
    assert run.segments[0].words is None
    assert "words" not in run.segments[0].to_dict()


def test_word_times_need_an_aligner() -> None:
    state = WindowCursor(3000, VOCAB, DIMS, TranscribeOptions(word_timestamps=True), "en")
    window = state.next_window()
    assert window is not None
    with pytest.raises(ValueError, match="accept was given no aligner"):
        state.accept(window, result_of(*SO))


def test_a_silent_window_has_no_words() -> None:
    silent = WindowResult(tuple(SO), -2.0, 0.9, 1.5, 0.0)
    run = Run(3000, [silent], seed=1)
    assert (run.segments, run.aligned) == ([], [])


@pytest.mark.parametrize("threshold", [None, 0.0, 2.0])
@pytest.mark.parametrize(
    "tokens",
    [
        (time(0), time(0)),
        (time(0), *SO, time(0), time(0)),
        (*SO, time(5), time(5), *SO, time(0), time(0)),
        (*SO,),
        (),
        (time(0), *SO, time(0.02), time(0.02), *SO),
    ],
)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_every_window_moves_on(tokens: tuple[int, ...], threshold: float | None, seed: int) -> None:
    """The reference would decode some of these endlessly."""
    run = Run(9000, [result_of(*tokens)], seed, hallucination_silence_threshold=threshold)
    places = [window.seek for window in run.windows]
    assert places == sorted(set(places))


def test_instantaneous_segments_are_aligned_before_they_are_emptied() -> None:
    """As in the reference: words may give a segment the length that its timestamps lack."""
    result = result_of(time(3), *SO, time(3), time(3), *SO, time(9))
    run = Run(3000, [result], seed=6)
    assert run.aligned[0] == [*SO, *SO]
    for segment in run.segments:
        assert (segment.text == "") == (segment.start == segment.end)
        assert (segment.words == ()) == (segment.text == "")


# --- hotwords and languages -----------------------------------------------------------------------


def previous(run: Run) -> list[tuple[int, ...]]:
    found = []
    for window in run.windows:
        before = window.prompt[: window.sot_index]
        assert before[:1] in ((), (VOCAB.sot_prev,))
        found.append(before[1:])
    return found


def prompts(results: Sequence[WindowResult], **options: Any) -> list[tuple[int, ...]]:
    return previous(Run(9000, results, seed=0, word_timestamps=False, **options))


def test_hotwords_come_first_in_every_window() -> None:
    one, two = (time(0), *SO, time(9)), (time(0), *SO, *SO, time(9))
    results, hot = [result_of(*one), result_of(*two)], tuple(VOCAB.encode(" a be"))
    given: dict[str, Any] = {"hotwords": "  a be "}
    assert prompts(results, **given) == [hot, (*hot, *one), (*hot, *one, *two)]
    assert prompts(results, condition_on_previous_text=False, **given) == [hot] * 3
    initial = tuple(VOCAB.encode(" it is"))
    given["initial_prompt"] = "it is"
    assert prompts(results, **given)[:2] == [(*hot, *initial), (*hot, *initial, *one)]
    given.update(carry_initial_prompt=True, condition_on_previous_text=False)
    assert prompts(results, **given) == [(*hot, *initial)] * 3


@pytest.mark.parametrize("empty", [None, "", "   "])
def test_no_hotwords(empty: str | None) -> None:
    assert prompts([result_of(*SO)], hotwords=empty) == prompts([result_of(*SO)])


def letters(n: int) -> tuple[str, tuple[int, ...]]:
    text = " ".join("abcdefghijklmnopqrstuvwxyz"[:n])
    tokens = tuple(VOCAB.encode(" " + text))
    assert len(tokens) == n
    return text, tokens


@pytest.mark.parametrize("n_hot", [1, 6, 14, 15, 16, 26])
def test_hotwords_leave_the_rest_of_the_room_to_the_newest_text(n_hot: int) -> None:
    text, hot = letters(n_hot)
    long = tuple(VOCAB.encode(" so" * 20))
    hot, left = hot[:ROOM], ROOM - min(n_hot, ROOM)
    newest = long[len(long) - left :]
    assert prompts([result_of(*long)], hotwords=text)[1] == (*hot, *newest)
    carried, initial = letters(4)
    kept = initial[len(initial) - min(left, 4) :]
    newest = long[len(long) - (left - len(kept)) :]
    given: dict[str, Any] = {"initial_prompt": carried, "carry_initial_prompt": True}
    assert prompts([result_of(*long)], hotwords=text, **given)[1] == (*hot, *kept, *newest)


def test_the_language_may_change_from_window_to_window() -> None:
    dims = random_dims()
    vocab = Vocab(tokenizer_json(dims), dims)
    options = TranscribeOptions(multilingual=True, word_timestamps=True)
    state = WindowCursor(9000, vocab, dims, options, "en")
    found = []
    for code in ("en", "ja", "de"):
        assert state.next_window() is not None
        state.language = code
        window = state.next_window()
        assert window is not None
        start = window.prompt[window.sot_index :]
        assert start == (vocab.sot, vocab.languages[code], vocab.transcribe)
        text = vocab.encode(" so it")
        begin = vocab.timestamp_begin
        result = WindowResult((begin, *text, begin + 400), -0.3, 0.1, 1.5, 0.0)
        found += state.accept(window, result, lambda text: attention(1, len(text), 3000, 3))
    assert [segment.language for segment in found] == ["en", "ja", "de"]
    assert [segment.to_dict()["language"] for segment in found] == ["en", "ja", "de"]
    # Japanese has no spaces between words: every token is a word
    assert [len(segment.words or ()) for segment in found] == [2, 4, 2]


def test_segments_have_no_language_unless_it_may_change() -> None:
    (segment,) = Run(3000, [result_of(time(0), *SO, time(2))], seed=1).segments
    assert segment.language is None
    assert "language" not in segment.to_dict()


def test_attention_is_not_changed() -> None:
    text = VOCAB.encode(" so it")
    given = attention(1, len(text), 3000)
    before = given.scores.copy()
    state = WindowCursor(3000, VOCAB, DIMS, TranscribeOptions(word_timestamps=True), "en")
    window = state.next_window()
    assert window is not None
    state.accept(window, result_of(*text), lambda text: given)
    np.testing.assert_array_equal(given.scores, before)
