"""Windows and segments compared with a plain implementation of openai-whisper's windowing."""

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
from whisper_opt.core.errors import OptionError
from whisper_opt.core.options import TranscribeOptions
from whisper_opt.transcription.fallback import Window, WindowResult
from whisper_opt.transcription.windows import WindowCursor


def time(seconds: float) -> int:
    return BEGIN + round(seconds / 0.02)


def word(letters: str) -> int:
    (token,) = VOCAB.encode(" " + letters)
    return token


A, B, C = word("a"), word("b"), word("c")


def result_of(*tokens: int, **fields: Any) -> WindowResult:
    values: dict[str, Any] = {"avg_logprob": -0.3, "no_speech_prob": 0.1, "temperature": 0.0}
    return WindowResult(tokens=tokens, compression_ratio=1.5, **{**values, **fields})


def ours(n_frames: int, options: TranscribeOptions, decode: DecodeWindow) -> Decoded:
    cursor = WindowCursor(n_frames, VOCAB, DIMS, options, "en")
    decoded = Decoded([], [])
    while (window := cursor.next_window()) is not None:
        assert window.prompt[window.sot_index] == VOCAB.sot
        assert VOCAB.sot not in window.prompt[: window.sot_index]
        decoded.windows.append((window.seek, window.size, window.prompt))
        result = decode(window.seek, window.size, window.prompt)
        decoded.segments.extend(cursor.accept(window, result))
    return decoded


def same(ours: Decoded, theirs: Decoded) -> None:
    assert ours.windows == theirs.windows
    assert len(ours.segments) == len(theirs.segments)
    for mine, other in zip(ours.segments, theirs.segments):
        assert dataclasses.replace(mine, start=other.start, end=other.end) == other
        assert mine.start == pytest.approx(other.start, abs=1e-9)
        assert mine.end == pytest.approx(other.end, abs=1e-9)


def script(*results: WindowResult) -> Callable[[], DecodeWindow]:
    """The results in turn, then from the first again."""

    def start() -> DecodeWindow:
        calls = iter(range(10_000))
        return lambda seek, size, prompt: results[next(calls) % len(results)]

    return start


def moves_on(tokens: Sequence[int]) -> bool:
    """Whether the reference moves on by at least half a second with this result."""
    return reference_cut(tokens, 0, 3000)[1] >= 50


window_results = st.builds(
    lambda tokens, **fields: result_of(*tokens, **fields),
    st.lists(
        st.sampled_from([time(s) for s in (0, 0, 0.02, 1, 2.5, 7, 12, 29.98, 30)])
        | st.sampled_from([A, B, C, 220, 0x80, VOCAB.sot_lm]),
        max_size=14,
    ).filter(moves_on),
    avg_logprob=st.sampled_from([-0.3, -1.0, -2.0]),
    no_speech_prob=st.sampled_from([0.1, 0.6, 0.61, 1.0]),
    temperature=st.sampled_from([0.0, 0.5, 0.6]),
)
"""Arbitrary tokens: paired and single times, decreasing times, spaces, invalid UTF-8."""

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
@given(st.integers(7000, 9500), option_sets(), st.lists(window_results, min_size=1, max_size=6))
def test_equals_the_reference(
    n_frames: int, options: TranscribeOptions, results: list[WindowResult]
) -> None:
    start = script(*results)
    same(ours(n_frames, options, start()), reference(n_frames, options, start()))


@settings(derandomize=True, deadline=None, max_examples=100)
@given(st.integers(0, 7000), st.lists(window_results, min_size=1, max_size=4))
def test_equals_the_reference_at_any_length(n_frames: int, results: list[WindowResult]) -> None:
    start, options = script(*results), TranscribeOptions()
    same(ours(n_frames, options, start()), reference(n_frames, options, start()))


def decoded_by(*results: WindowResult, n_frames: int = 4000, **options: Any) -> Decoded:
    return ours(n_frames, TranscribeOptions(**options), script(*results)())


def spans(decoded: Decoded) -> list[tuple[int, float, float, tuple[int, ...]]]:
    return [(s.seek, round(s.start, 6), round(s.end, 6), s.tokens) for s in decoded.segments]


def seeks(decoded: Decoded) -> list[tuple[int, int]]:
    return [(seek, size) for seek, size, _ in decoded.windows]


def test_a_pair_of_times_ends_a_segment_and_the_unfinished_one_is_decoded_again() -> None:
    first = (time(0), A, time(2), time(2.5), B, time(9), time(9), C)
    decoded = decoded_by(result_of(*first), result_of(time(0), C, time(31 - 9)))
    assert seeks(decoded) == [(0, 3000), (900, 3000), (3900, 100)]
    assert spans(decoded)[:3] == [
        (0, 0.0, 2.0, first[:3]),
        (0, 2.5, 9.0, first[3:6]),
        (900, 9.0, 31.0, (time(0), C, time(22))),
    ]
    assert [segment.id for segment in decoded.segments] == list(range(len(decoded.segments)))
    assert decoded.segments[0].text == " a"


def test_one_time_at_the_end_finishes_the_window() -> None:
    tokens = (time(0), A, time(2), time(2), B, time(9))
    decoded = decoded_by(result_of(*tokens))
    assert seeks(decoded) == [(0, 3000), (3000, 1000)]
    assert spans(decoded)[:2] == [(0, 0.0, 2.0, tokens[:3]), (0, 2.0, 9.0, tokens[3:])]


@pytest.mark.parametrize(
    ("tokens", "end"),
    [((time(1), A), 1.0), ((A, B), 30.0), ((time(0), A), 30.0), ((time(1), A, time(4)), 4.0)],
)
def test_without_a_pair_the_window_is_one_segment(tokens: tuple[int, ...], end: float) -> None:
    decoded = decoded_by(result_of(*tokens), n_frames=3000)
    assert spans(decoded) == [(0, 0.0, end, tokens)]


def test_segments_without_text_are_kept_empty_and_not_passed_on() -> None:
    tokens = (time(1), A, time(1), time(1), 220, time(3), time(3), B, time(5))
    decoded = decoded_by(result_of(*tokens), result_of())
    assert spans(decoded)[:3] == [(0, 1.0, 1.0, ()), (0, 1.0, 3.0, ()), (0, 3.0, 5.0, tokens[6:])]
    assert [segment.text for segment in decoded.segments[:3]] == ["", "", " b"]
    assert decoded.windows[1][2] == (VOCAB.sot_prev, *tokens[6:], VOCAB.sot)
    assert spans(decoded)[3:] == [(3000, 30.0, 40.0, ())]


def test_a_silent_window_leaves_no_segment() -> None:
    silent = result_of(A, no_speech_prob=0.61, avg_logprob=-1.1)
    assert decoded_by(silent).segments == []
    assert seeks(decoded_by(silent)) == [(0, 3000), (3000, 1000)]
    assert len(decoded_by(dataclasses.replace(silent, avg_logprob=-0.9)).segments) == 2
    assert len(decoded_by(dataclasses.replace(silent, no_speech_prob=0.6)).segments) == 2
    assert len(decoded_by(silent, no_speech_threshold=None).segments) == 2
    assert len(decoded_by(silent, no_speech_threshold=0.7).segments) == 2
    assert len(decoded_by(silent, logprob_threshold=-1.2).segments) == 2
    assert decoded_by(result_of(A, no_speech_prob=0.61), logprob_threshold=None).segments == []


def previous(decoded: Decoded) -> list[tuple[int, ...]]:
    """Tokens between startofprev and startoftranscript, per window."""
    found = []
    for _, _, prompt in decoded.windows:
        before = prompt[: prompt.index(VOCAB.sot)]
        assert before[:1] in ((), (VOCAB.sot_prev,))
        found.append(before[1:])
    return found


def test_text_is_passed_on_or_not() -> None:
    one, two = (time(0), A, time(9)), (time(0), B, time(9))
    windows: dict[str, Any] = {"n_frames": 9000}
    decoded = decoded_by(result_of(*one), result_of(*two), **windows)
    assert previous(decoded) == [(), one, (*one, *two)]
    decoded = decoded_by(
        result_of(*one), result_of(*two), condition_on_previous_text=False, **windows
    )
    assert previous(decoded) == [(), (), ()]
    decoded = decoded_by(result_of(*one, temperature=0.6), result_of(*two), **windows)
    assert previous(decoded) == [(), (), two]


def test_an_initial_prompt_comes_first_and_is_carried_when_asked() -> None:
    one, two = (time(0), A, time(9)), (time(0), B, time(9))
    initial = tuple(VOCAB.encode(" c c"))
    windows: dict[str, Any] = {"n_frames": 9000, "initial_prompt": " c c "}
    decoded = decoded_by(result_of(*one), result_of(*two), **windows)
    assert previous(decoded) == [initial, (*initial, *one), (*initial, *one, *two)]
    decoded = decoded_by(
        result_of(*one), result_of(*two), condition_on_previous_text=False, **windows
    )
    assert previous(decoded) == [initial, (), ()]
    carried = {**windows, "carry_initial_prompt": True}
    decoded = decoded_by(
        result_of(*one), result_of(*two), condition_on_previous_text=False, **carried
    )
    assert previous(decoded) == [initial] * 3
    long = (time(0), *[A] * 12, time(9))
    decoded = decoded_by(result_of(*long), **carried)
    assert previous(decoded) == [initial, (*initial, *long[1:]), (*initial, *long[1:])]


@pytest.mark.parametrize("n", [14, 15, 16, 40])
def test_a_prompt_keeps_its_newest_tokens(n: int) -> None:
    tokens = tuple(A + i for i in range(n))
    decoded = decoded_by(result_of(*tokens))
    assert previous(decoded)[1] == tokens[-15:]
    letters = " ".join("abcdefghijklmnopqrstuvwxyz"[i % 26] for i in range(n))
    decoded = decoded_by(result_of(A), initial_prompt=letters)
    assert previous(decoded)[0] == tuple(VOCAB.encode(" " + letters))[-15:]


def test_a_carried_prompt_that_fills_the_room_leaves_none_for_the_text() -> None:
    """Fault of the reference: it takes ``[-0:]``, all of the text, and loses the prompt."""
    letters = "a b c d e f g h i j k l m n o"
    decoded = decoded_by(result_of(A, B), initial_prompt=letters, carry_initial_prompt=True)
    assert previous(decoded) == [tuple(VOCAB.encode(" " + letters))] * 2


def test_a_prefix_ends_the_prompt_of_every_window() -> None:
    decoded = decoded_by(result_of(time(0), A, time(9)), prefix=" c b ")
    assert [prompt[-3:] for _, _, prompt in decoded.windows] == [(VOCAB.sot, C, B)] * 2
    decoded = decoded_by(result_of(A), prefix="c", without_timestamps=True)
    assert decoded.windows[0][2] == (VOCAB.sot, VOCAB.no_timestamps, C)


def test_a_prefix_is_cut_to_the_room_that_new_tokens_leave() -> None:
    """Its newest tokens that fit in half the context, 16 here; all without a limit."""
    text = "a b c a b"
    ids = tuple(VOCAB.encode(" " + text))
    for limit, kept in ((12, ids[-4:]), (15, ids[-1:]), (16, ids), (20, ids), (None, ids)):
        decoded = decoded_by(result_of(A), prefix=text, max_new_tokens=limit)
        assert decoded.windows[0][2] == (VOCAB.sot, *kept), limit


def beginnings(options: TranscribeOptions) -> list[tuple[int, ...]]:
    """What the results of three windows of 10 s must begin with."""
    cursor = WindowCursor(3000, VOCAB, DIMS, options, "en")
    found = []
    while (window := cursor.next_window()) is not None:
        assert cursor.next_window() == window  # as when its language is detected
        found.append(window.begin)
        cursor.accept(window, result_of(*window.begin, time(0), A, time(10), time(10)))
    return found


@pytest.mark.parametrize(
    ("options", "begin"),
    [
        ({"transcript_prefix": " c b "}, (BEGIN, C, B)),
        ({"transcript_prefix": "c", "without_timestamps": True}, (C,)),
        ({"transcript_prefix": "c", "clip_timestamps": (10.0, 20.0, 20.0)}, (BEGIN, C)),
        ({"transcript_prefix": " "}, ()),
        ({}, ()),
    ],
)
def test_a_transcript_prefix_begins_the_first_window(
    options: dict[str, Any], begin: tuple[int, ...]
) -> None:
    first, *later = beginnings(TranscribeOptions(**options))
    assert first == begin
    assert set(later) <= {()}


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
        # the reference would decode empty windows endlessly
        ([30.0, 99.0], [(3000, 1000)]),
        ([50.0], []),
        ([50.0, 60.0, 39.0, 40.0], [(3900, 100)]),
    ],
)
def test_clips(clips: list[float], expected: list[tuple[int, int]]) -> None:
    decoded = decoded_by(result_of(A), clip_timestamps=clips)
    assert seeks(decoded) == expected


def test_a_time_past_the_audio_ends_its_clip_only() -> None:
    decoded = decoded_by(
        result_of(time(0), A, time(20), time(20)), clip_timestamps=[1.0, 5.0, 30.0]
    )
    assert seeks(decoded) == [(100, 400), (3000, 1000)]
    assert spans(decoded)[0][:3] == (100, 1.0, 21.0)


def test_no_audio_no_windows() -> None:
    assert decoded_by(result_of(A), n_frames=0).windows == []
    assert decoded_by(result_of(A), n_frames=0, clip_timestamps=[1.0, 2.0]).windows == []


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
def test_a_result_that_finishes_nothing_does_not_stop_the_recording(
    tokens: tuple[int, ...], conditioned: bool
) -> None:
    """The reference would seek to the same position and decode the same window endlessly."""
    spans, following = reference_cut(tokens, 100, 3000)
    assert following == 100
    decoded = decoded_by(
        result_of(*tokens),
        n_frames=7000,
        condition_on_previous_text=conditioned,
        clip_timestamps=[1.0],
    )
    assert seeks(decoded) == [(100, 3000), (3100, 3000), (6100, 900)]
    assert len(decoded.segments) == 3 * len(spans)


@settings(derandomize=True, deadline=None, max_examples=100)
@given(
    st.lists(
        st.lists(st.integers(0, DIMS.n_vocab - 1) | st.integers(BEGIN, BEGIN + 3), max_size=9),
        min_size=1,
        max_size=4,
    )
)
def test_every_window_moves_on(results: list[list[int]]) -> None:
    start = script(*(result_of(*tokens) for tokens in results))
    decoded = ours(3100, TranscribeOptions(without_timestamps=True), start())
    places = [seek for seek, _, _ in decoded.windows]
    assert places == sorted(set(places))
    assert all(size > 0 for _, size, _ in decoded.windows)


def test_progress_stops_at_the_end_of_the_recording() -> None:
    cursor = WindowCursor(1000, VOCAB, DIMS, TranscribeOptions(), "en")
    assert cursor.seek == 0
    window = cursor.next_window()
    assert window == Window(0, 1000, (VOCAB.sot,), 0)
    assert window == cursor.next_window()
    cursor.accept(window, result_of(A, time(20), time(20)))
    assert cursor.seek == 1000
    assert cursor.next_window() is None


def test_segments_have_the_log_probabilities_of_their_tokens() -> None:
    tokens = (time(0), A, time(1), time(1), B, C, time(3), time(3), time(4), time(4), A)
    options = TranscribeOptions(token_logprobs=True, clip_timestamps=(0.0, 4.0))
    result = result_of(*tokens, token_logprobs=tuple(-float(i) for i in range(len(tokens))))
    first, second, *empty = ours(400, options, script(result)()).segments
    assert (first.tokens, first.token_logprobs) == (tokens[:3], (0.0, -1.0, -2.0))
    assert (second.tokens, second.token_logprobs) == (tokens[3:7], (-3.0, -4.0, -5.0, -6.0))
    assert {(each.tokens, each.token_logprobs) for each in empty} == {((), ())}
    assert first.to_dict()["token_logprobs"] == [0.0, -1.0, -2.0]
    plain = ours(400, options, script(result_of(*tokens))()).segments
    assert "token_logprobs" not in plain[0].to_dict()


def test_a_given_beginning_has_no_log_probabilities() -> None:
    with pytest.raises(OptionError, match="token_logprobs is on, but the tokens of transcript_pre"):
        TranscribeOptions(token_logprobs=True, transcript_prefix="So")
