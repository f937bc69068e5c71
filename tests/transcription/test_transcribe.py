"""Windows and segments against a plain restatement of openai-whisper's, on scripted answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.reference_windows import (
    BEGIN,
    DIMS,
    VOCAB,
    Decoded,
    DecodeWindow,
    reference,
    reference_cut,
)
from whisper_opt.core.options import TranscribeOptions
from whisper_opt.transcription.fallback import Window, WindowResult
from whisper_opt.transcription.windows import WindowCursor


def time(seconds: float) -> int:
    return BEGIN + round(seconds / 0.02)


def word(letters: str) -> int:
    (token,) = VOCAB.encode(" " + letters)
    return token


A, B, C = word("a"), word("b"), word("c")


def said(*tokens: int, **fields: Any) -> WindowResult:
    values: dict[str, Any] = {"avg_logprob": -0.3, "no_speech_prob": 0.1, "temperature": 0.0}
    return WindowResult(tokens=tokens, compression_ratio=1.5, **{**values, **fields})


def ours(n_frames: int, options: TranscribeOptions, answer: DecodeWindow) -> Decoded:
    state = WindowCursor(n_frames, VOCAB, DIMS, options, "en")
    heard = Decoded([], [])
    while (window := state.next_window()) is not None:
        assert window.prompt[window.sot_index] == VOCAB.sot
        assert VOCAB.sot not in window.prompt[: window.sot_index]
        heard.windows.append((window.seek, window.size, window.prompt))
        result = answer(window.seek, window.size, window.prompt)
        heard.segments.extend(state.accept(window, result))
    return heard


def same(ours: Decoded, theirs: Decoded) -> None:
    assert ours.windows == theirs.windows
    assert len(ours.segments) == len(theirs.segments)
    for mine, other in zip(ours.segments, theirs.segments):
        assert dataclasses.replace(mine, start=other.start, end=other.end) == other
        assert mine.start == pytest.approx(other.start, abs=1e-9)
        assert mine.end == pytest.approx(other.end, abs=1e-9)


def script(*results: WindowResult) -> Callable[[], DecodeWindow]:
    """Answers one after another, from the first again when they run out."""

    def start() -> DecodeWindow:
        calls = iter(range(10_000))
        return lambda seek, size, prompt: results[next(calls) % len(results)]

    return start


def moves_on(tokens: Sequence[int]) -> bool:
    """Whether the reference gets at least half a second further with this answer."""
    return reference_cut(tokens, 0, 3000)[1] >= 50


answers = st.builds(
    lambda tokens, **fields: said(*tokens, **fields),
    st.lists(
        st.sampled_from([time(s) for s in (0, 0, 0.02, 1, 2.5, 7, 12, 29.98, 30)])
        | st.sampled_from([A, B, C, 220, 0x80, VOCAB.sot_lm]),
        max_size=14,
    ).filter(moves_on),
    avg_logprob=st.sampled_from([-0.3, -1.0, -2.0]),
    no_speech_prob=st.sampled_from([0.1, 0.6, 0.61, 1.0]),
    temperature=st.sampled_from([0.0, 0.5, 0.6]),
)
"""Any tokens at all: paired times, lone ones, times that go back, spaces, broken UTF-8."""

prompts = st.sampled_from([None, "", "a", " Names: Ann, Bob ", "a b c d e f g h i j k l m n o p"])


@st.composite
def option_sets(draw: st.DrawFn) -> TranscribeOptions:
    initial = draw(prompts)
    room = DIMS.n_text_ctx // 2 - 1
    short = initial is not None and len(VOCAB.encode(" " + initial.strip())) < room
    points = draw(st.lists(st.integers(0, 70), max_size=5, unique=True).map(sorted))
    return TranscribeOptions(
        without_timestamps=draw(st.booleans()),
        condition_on_previous_text=draw(st.booleans()),
        initial_prompt=initial,
        carry_initial_prompt=draw(st.booleans()) if short else False,
        prefix=draw(st.sampled_from([None, "", "so", " we "])),
        no_speech_threshold=draw(st.sampled_from([None, 0.6])),
        logprob_threshold=draw(st.sampled_from([None, -1.0])),
        clip_timestamps=[float(point) for point in points],
    )


@settings(derandomize=True, deadline=None, max_examples=300)
@given(st.integers(7000, 9500), option_sets(), st.lists(answers, min_size=1, max_size=6))
def test_equals_the_reference(
    n_frames: int, options: TranscribeOptions, results: list[WindowResult]
) -> None:
    start = script(*results)
    same(ours(n_frames, options, start()), reference(n_frames, options, start()))


@settings(derandomize=True, deadline=None, max_examples=100)
@given(st.integers(0, 7000), st.lists(answers, min_size=1, max_size=4))
def test_equals_the_reference_at_any_length(n_frames: int, results: list[WindowResult]) -> None:
    start, options = script(*results), TranscribeOptions()
    same(ours(n_frames, options, start()), reference(n_frames, options, start()))


def heard_of(*results: WindowResult, n_frames: int = 4000, **options: Any) -> Decoded:
    return ours(n_frames, TranscribeOptions(**options), script(*results)())


def spans(heard: Decoded) -> list[tuple[int, float, float, tuple[int, ...]]]:
    return [(s.seek, round(s.start, 6), round(s.end, 6), s.tokens) for s in heard.segments]


def seeks(heard: Decoded) -> list[tuple[int, int]]:
    return [(seek, size) for seek, size, _ in heard.windows]


def test_a_pair_of_times_ends_a_segment_and_the_unfinished_one_is_heard_again() -> None:
    first = (time(0), A, time(2), time(2.5), B, time(9), time(9), C)
    heard = heard_of(said(*first), said(time(0), C, time(31 - 9)))
    assert seeks(heard) == [(0, 3000), (900, 3000), (3900, 100)]
    assert spans(heard)[:3] == [
        (0, 0.0, 2.0, first[:3]),
        (0, 2.5, 9.0, first[3:6]),
        (900, 9.0, 31.0, (time(0), C, time(22))),
    ]
    assert [segment.id for segment in heard.segments] == list(range(len(heard.segments)))
    assert heard.segments[0].text == " a"


def test_one_time_at_the_end_finishes_the_window() -> None:
    tokens = (time(0), A, time(2), time(2), B, time(9))
    heard = heard_of(said(*tokens))
    assert seeks(heard) == [(0, 3000), (3000, 1000)]
    assert spans(heard)[:2] == [(0, 0.0, 2.0, tokens[:3]), (0, 2.0, 9.0, tokens[3:])]


@pytest.mark.parametrize(
    ("tokens", "end"),
    [((time(1), A), 1.0), ((A, B), 30.0), ((time(0), A), 30.0), ((time(1), A, time(4)), 4.0)],
)
def test_without_a_pair_the_window_is_one_segment(tokens: tuple[int, ...], end: float) -> None:
    heard = heard_of(said(*tokens), n_frames=3000)
    assert spans(heard) == [(0, 0.0, end, tokens)]


def test_segments_that_say_nothing_are_kept_empty_and_not_passed_on() -> None:
    tokens = (time(1), A, time(1), time(1), 220, time(3), time(3), B, time(5))
    heard = heard_of(said(*tokens), said())
    assert spans(heard)[:3] == [(0, 1.0, 1.0, ()), (0, 1.0, 3.0, ()), (0, 3.0, 5.0, tokens[6:])]
    assert [segment.text for segment in heard.segments[:3]] == ["", "", " b"]
    assert heard.windows[1][2] == (VOCAB.sot_prev, *tokens[6:], VOCAB.sot)
    assert spans(heard)[3:] == [(3000, 30.0, 40.0, ())]


def test_a_silent_window_leaves_no_segment() -> None:
    silent = said(A, no_speech_prob=0.61, avg_logprob=-1.1)
    assert heard_of(silent).segments == []
    assert seeks(heard_of(silent)) == [(0, 3000), (3000, 1000)]
    assert len(heard_of(dataclasses.replace(silent, avg_logprob=-0.9)).segments) == 2
    assert len(heard_of(dataclasses.replace(silent, no_speech_prob=0.6)).segments) == 2
    assert len(heard_of(silent, no_speech_threshold=None).segments) == 2
    assert len(heard_of(silent, no_speech_threshold=0.7).segments) == 2
    assert len(heard_of(silent, logprob_threshold=-1.2).segments) == 2
    assert heard_of(said(A, no_speech_prob=0.61), logprob_threshold=None).segments == []


def previous(heard: Decoded) -> list[tuple[int, ...]]:
    """What stands between startofprev and startoftranscript, window by window."""
    found = []
    for _, _, prompt in heard.windows:
        before = prompt[: prompt.index(VOCAB.sot)]
        assert before[:1] in ((), (VOCAB.sot_prev,))
        found.append(before[1:])
    return found


def test_text_is_passed_on_or_not() -> None:
    one, two = (time(0), A, time(9)), (time(0), B, time(9))
    windows: dict[str, Any] = {"n_frames": 9000}
    heard = heard_of(said(*one), said(*two), **windows)
    assert previous(heard) == [(), one, (*one, *two)]
    heard = heard_of(said(*one), said(*two), condition_on_previous_text=False, **windows)
    assert previous(heard) == [(), (), ()]
    heard = heard_of(said(*one, temperature=0.6), said(*two), **windows)
    assert previous(heard) == [(), (), two]


def test_an_initial_prompt_comes_first_and_is_carried_when_asked() -> None:
    one, two = (time(0), A, time(9)), (time(0), B, time(9))
    initial = tuple(VOCAB.encode(" c c"))
    windows: dict[str, Any] = {"n_frames": 9000, "initial_prompt": " c c "}
    heard = heard_of(said(*one), said(*two), **windows)
    assert previous(heard) == [initial, (*initial, *one), (*initial, *one, *two)]
    heard = heard_of(said(*one), said(*two), condition_on_previous_text=False, **windows)
    assert previous(heard) == [initial, (), ()]
    carried = {**windows, "carry_initial_prompt": True}
    heard = heard_of(said(*one), said(*two), condition_on_previous_text=False, **carried)
    assert previous(heard) == [initial] * 3
    long = (time(0), *[A] * 12, time(9))
    heard = heard_of(said(*long), **carried)
    assert previous(heard) == [initial, (*initial, *long[1:]), (*initial, *long[1:])]


@pytest.mark.parametrize("n", [14, 15, 16, 40])
def test_a_prompt_keeps_its_newest_tokens(n: int) -> None:
    tokens = tuple(A + i for i in range(n))
    heard = heard_of(said(*tokens))
    assert previous(heard)[1] == tokens[-15:]
    letters = " ".join("abcdefghijklmnopqrstuvwxyz"[i % 26] for i in range(n))
    heard = heard_of(said(A), initial_prompt=letters)
    assert previous(heard)[0] == tuple(VOCAB.encode(" " + letters))[-15:]


def test_a_carried_prompt_that_fills_the_room_leaves_none_for_the_text() -> None:
    """The reference slips here: it takes ``[-0:]``, all of the text, and loses the prompt."""
    letters = "a b c d e f g h i j k l m n o"
    heard = heard_of(said(A, B), initial_prompt=letters, carry_initial_prompt=True)
    assert previous(heard) == [tuple(VOCAB.encode(" " + letters))] * 2


def test_a_prefix_ends_the_prompt_of_every_window() -> None:
    heard = heard_of(said(time(0), A, time(9)), prefix=" c b ")
    assert [prompt[-3:] for _, _, prompt in heard.windows] == [(VOCAB.sot, C, B)] * 2
    heard = heard_of(said(A), prefix="c", without_timestamps=True)
    assert heard.windows[0][2] == (VOCAB.sot, VOCAB.no_timestamps, C)


@pytest.mark.parametrize(
    ("clips", "expected"),
    [
        ([], [(0, 3000), (3000, 1000)]),
        ([5.0], [(500, 3000), (3500, 500)]),
        ([5.0, 7.5], [(500, 250)]),
        ([1.0, 2.0, 35.0], [(100, 100), (3500, 500)]),
        ([1.004, 2.006], [(100, 101)]),
        ([20.0, 25.0, 3.0, 4.0], [(2000, 500), (300, 100)]),
        ([0.0, 35.0, 20.0, 38.0], [(0, 3000), (3000, 500), (2000, 1800)]),
        # the reference would decode windows of nothing here, without end
        ([30.0, 99.0], [(3000, 1000)]),
        ([50.0], []),
        ([50.0, 60.0, 39.0, 40.0], [(3900, 100)]),
    ],
)
def test_clips(clips: list[float], expected: list[tuple[int, int]]) -> None:
    heard = heard_of(said(A), clip_timestamps=clips)
    assert seeks(heard) == expected


def test_a_time_past_the_sound_ends_its_clip_only() -> None:
    heard = heard_of(said(time(0), A, time(20), time(20)), clip_timestamps=[1.0, 5.0, 30.0])
    assert seeks(heard) == [(100, 400), (3000, 1000)]
    assert spans(heard)[0][:3] == (100, 1.0, 21.0)


def test_no_sound_no_windows() -> None:
    assert heard_of(said(A), n_frames=0).windows == []
    assert heard_of(said(A), n_frames=0, clip_timestamps=[1.0, 2.0]).windows == []


@pytest.mark.parametrize("conditioned", [True, False])
@pytest.mark.parametrize(
    "tokens",
    [
        (time(0), time(0)),
        (time(0), A, time(0), time(0)),
        (A, time(5), time(5), B, time(0), time(0)),
        (time(0), time(0), A),
    ],
)
def test_an_answer_that_finishes_nothing_does_not_hold_the_recording_up(
    tokens: tuple[int, ...], conditioned: bool
) -> None:
    """The reference would seek to where it is and decode the same window for ever."""
    spans, following = reference_cut(tokens, 100, 3000)
    assert following == 100
    heard = heard_of(
        said(*tokens), n_frames=7000, condition_on_previous_text=conditioned, clip_timestamps=[1.0]
    )
    assert seeks(heard) == [(100, 3000), (3100, 3000), (6100, 900)]
    assert len(heard.segments) == 3 * len(spans)


@settings(derandomize=True, deadline=None, max_examples=100)
@given(
    st.lists(
        st.lists(st.integers(0, DIMS.n_vocab - 1) | st.integers(BEGIN, BEGIN + 3), max_size=9),
        min_size=1,
        max_size=4,
    )
)
def test_every_window_moves_on(results: list[list[int]]) -> None:
    start = script(*(said(*tokens) for tokens in results))
    heard = ours(3100, TranscribeOptions(without_timestamps=True), start())
    places = [seek for seek, _, _ in heard.windows]
    assert places == sorted(set(places))
    assert all(size > 0 for _, size, _ in heard.windows)


def test_progress_stops_at_the_end_of_the_recording() -> None:
    state = WindowCursor(1000, VOCAB, DIMS, TranscribeOptions(), "en")
    assert state.seek == 0
    window = state.next_window()
    assert window == Window(0, 1000, (VOCAB.sot,), 0)
    assert window == state.next_window()
    state.accept(window, said(A, time(20), time(20)))
    assert state.seek == 1000
    assert state.next_window() is None
