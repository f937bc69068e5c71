"""Recordings against a plain restatement of openai-whisper's windowing, on scripted answers."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Sequence
from typing import Any, Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.decode.reference_rules import Reference, reference_log_softmax
from tests.models import random_dims, tokenizer_json
from whisper_opt.arrays import F32
from whisper_opt.backends.fake import FakeBackend, FakeEncoded, FakeSession
from whisper_opt.errors import OptionError
from whisper_opt.features import LogMel
from whisper_opt.options import TranscribeOptions
from whisper_opt.protocol import Encoded
from whisper_opt.results import Segment
from whisper_opt.tokens import Vocab
from whisper_opt.transcribe import (
    Sequential,
    Suppression,
    Window,
    WindowResult,
    compression_ratio,
    detect_language,
    transcribe,
)

DIMS = random_dims(n_vocab=2000, n_text_ctx=32)
"""English-only, 1,500 positions a window, prompts of at most 15 tokens."""
VOCAB = Vocab(tokenizer_json(DIMS), DIMS)
BEGIN = VOCAB.timestamp_begin
SUPPRESSION = Suppression((1, 2, 7), (220, VOCAB.eot))

Answer = Callable[[int, int, tuple[int, ...]], WindowResult]
"""(seek, size, prompt) -> what the model says."""


def time(seconds: float) -> int:
    return BEGIN + round(seconds / 0.02)


def word(letters: str) -> int:
    (token,) = VOCAB.encode(" " + letters)
    return token


A, B, C = word("a"), word("b"), word("c")


def said(*tokens: int, **fields: float) -> WindowResult:
    values = {"avg_logprob": -0.3, "no_speech_prob": 0.1, "temperature": 0.0, **fields}
    return WindowResult(tokens=tokens, compression_ratio=1.5, **values)


# --- the reference ------------------------------------------------------------------------------


@dataclasses.dataclass
class Heard:
    """Windows decoded (seek, size, prompt) and segments made."""

    windows: list[tuple[int, int, tuple[int, ...]]]
    segments: list[Segment]


def reference_pieces(tokens: Sequence[int]) -> tuple[list[list[int]], list[int]]:
    """Tokens split between neighbouring times; the last piece apart."""
    pieces: list[list[int]] = []
    current: list[int] = []
    for token in tokens:
        if current and token >= BEGIN and current[-1] >= BEGIN:
            pieces.append(current)
            current = []
        current.append(token)
    return pieces, current


def reference_cut(
    tokens: Sequence[int], seek: int, size: int
) -> tuple[list[tuple[float, float, list[int]]], int]:
    """(start, end, tokens) of a window's segments, and the next seek."""
    offset = float(seek * 160 / 16000)
    pieces, tail = reference_pieces(tokens)
    if not pieces:
        duration = size * 160 / 16000
        times = [token for token in tokens if token >= BEGIN]
        if times and times[-1] != BEGIN:
            duration = (times[-1] - BEGIN) * 0.02
        return [(offset, offset + duration, list(tokens))], seek + size
    if len(tail) > 1 and tail[-1] >= BEGIN:  # one time at the end: silence follows
        pieces.append(tail)
        following = seek + size
    else:
        following = seek + 2 * (pieces[-1][-1] - BEGIN)
    spans = [
        (offset + (piece[0] - BEGIN) * 0.02, offset + (piece[-1] - BEGIN) * 0.02, piece)
        for piece in pieces
    ]
    return spans, following


def reference_prompt(
    options: TranscribeOptions, initial: list[int], history: list[int], reset: int
) -> tuple[int, ...]:
    room = DIMS.n_text_ctx // 2 - 1
    if options.carry_initial_prompt:
        since = max(len(initial), reset)
        previous = initial + history[since:][-(room - len(initial)) :]
    else:
        previous = history[reset:]
    prompt = [VOCAB.sot_prev, *previous[-room:]] if previous else []
    prompt.append(VOCAB.sot)
    if options.without_timestamps:
        prompt.append(VOCAB.no_timestamps)
    if options.prefix:
        prompt += VOCAB.encode(" " + options.prefix.strip())
    return tuple(prompt)


def reference_skips(options: TranscribeOptions, result: WindowResult) -> bool:
    threshold, likely = options.no_speech_threshold, options.logprob_threshold
    if threshold is None:
        return False
    skip = result.no_speech_prob > threshold
    if likely is not None and result.avg_logprob > likely:
        skip = False
    return skip


def reference(n_frames: int, options: TranscribeOptions, answer: Answer) -> Heard:
    """What whisper/transcribe.py does without fallback and word times."""
    heard = Heard([], [])
    initial: list[int] = []
    if options.initial_prompt is not None:
        initial = VOCAB.encode(" " + options.initial_prompt.strip())
    history, reset = list(initial), 0
    points = [round(second * 100) for second in options.clip_timestamps] or [0]
    if len(points) % 2 == 1:
        points.append(n_frames)
    for clip in range(0, len(points), 2):
        seek, end = points[clip : clip + 2]
        while seek < end:
            size = min(3000, n_frames - seek, end - seek)
            prompt = reference_prompt(options, initial, history, reset)
            heard.windows.append((seek, size, prompt))
            result = answer(seek, size, prompt)
            if reference_skips(options, result):
                seek += size
                continue
            spans, following = reference_cut(result.tokens, seek, size)
            for start, stop, tokens in spans:
                text = VOCAB.decode([token for token in tokens if token < VOCAB.eot])
                if start == stop or text.strip() == "":
                    text, tokens = "", []
                values = dataclasses.asdict(result)
                values.update(tokens=tuple(tokens), id=len(heard.segments), seek=seek)
                heard.segments.append(Segment(start=start, end=stop, text=text, **values))
                history += tokens
            if not options.condition_on_previous_text or result.temperature > 0.5:
                reset = len(history)
            seek = following
    return heard


def ours(n_frames: int, options: TranscribeOptions, answer: Answer) -> Heard:
    state = Sequential(n_frames, VOCAB, DIMS, options, "en")
    heard = Heard([], [])
    while (window := state.next_window()) is not None:
        assert window.prompt[window.sot_index] == VOCAB.sot
        assert VOCAB.sot not in window.prompt[: window.sot_index]
        heard.windows.append((window.seek, window.size, window.prompt))
        result = answer(window.seek, window.size, window.prompt)
        heard.segments.extend(state.accept(window, result))
    return heard


def same(ours: Heard, theirs: Heard) -> None:
    assert ours.windows == theirs.windows
    assert len(ours.segments) == len(theirs.segments)
    for mine, other in zip(ours.segments, theirs.segments):
        assert dataclasses.replace(mine, start=other.start, end=other.end) == other
        assert mine.start == pytest.approx(other.start, abs=1e-9)
        assert mine.end == pytest.approx(other.end, abs=1e-9)


def script(*results: WindowResult) -> Callable[[], Answer]:
    """Answers one after another, from the first again when they run out."""

    def start() -> Answer:
        calls = iter(range(10_000))
        return lambda seek, size, prompt: results[next(calls) % len(results)]

    return start


# --- windows and segments -----------------------------------------------------------------------


def moves_on(tokens: Sequence[int]) -> bool:
    """Whether the reference gets at least half a second further with this answer."""
    return reference_cut(tokens, 0, 3000)[1] >= 50


answers = st.builds(
    said,
).flatmap(
    lambda _: st.builds(
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


def heard_of(*results: WindowResult, n_frames: int = 4000, **options: Any) -> Heard:
    return ours(n_frames, TranscribeOptions(**options), script(*results)())


def spans(heard: Heard) -> list[tuple[int, float, float, tuple[int, ...]]]:
    return [(s.seek, round(s.start, 6), round(s.end, 6), s.tokens) for s in heard.segments]


def seeks(heard: Heard) -> list[tuple[int, int]]:
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


def previous(heard: Heard) -> list[tuple[int, ...]]:
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
    state = Sequential(1000, VOCAB, DIMS, TranscribeOptions(), "en")
    assert state.seek == 0
    window = state.next_window()
    assert window == Window(0, 1000, (VOCAB.sot,), 0)
    assert window == state.next_window()
    state.accept(window, said(A, time(20), time(20)))
    assert state.seek == 1000
    assert state.next_window() is None


# --- the whole, on a fake model -----------------------------------------------------------------


def talkative(seed: int, tokens: Sequence[int]) -> F32:
    """Random scores with times likely enough for pairs, and answers that end."""
    state = zlib.crc32(np.array(tokens, np.int64).tobytes(), seed)
    scores: F32 = np.random.default_rng(state).standard_normal(DIMS.n_vocab, np.float32)
    scores *= np.float32(4)
    scores[BEGIN:] -= np.float32(3)
    scores[VOCAB.eot] += np.float32(4)
    scores[VOCAB.no_speech] += np.float32(14)
    return scores


class SpyBackend(FakeBackend):
    """Keeps the windows it encoded and counts sessions that are open."""

    def __init__(self) -> None:
        super().__init__(DIMS, talkative)
        self.mels: list[F32] = []
        self.open_sessions = 0

    def encode(self, mel: F32) -> FakeEncoded:
        assert mel.dtype == np.float32
        assert mel.shape[1:] == (DIMS.n_mels, 3000)
        self.mels.extend(mel)
        return super().encode(mel)

    def open(self, audio: Encoded) -> FakeSession:
        backend = self
        backend.open_sessions += 1

        class Session(FakeSession):
            def close(self) -> None:
                backend.open_sessions -= 1
                super().close()

        assert isinstance(audio, FakeEncoded)
        return Session(self, audio)


def log_mel_of(n_frames: int, seed: int = 0) -> LogMel:
    rng = np.random.default_rng(seed)
    frames = rng.standard_normal((DIMS.n_mels, n_frames + 2), np.float32)
    return LogMel(frames, n_frames, -1.0)


def run(
    mel: LogMel, options: TranscribeOptions, backend: FakeBackend | None = None, **more: Any
) -> list[Segment]:
    return list(
        transcribe(
            backend or SpyBackend(),
            VOCAB,
            mel,
            options=options,
            language="en",
            suppression=SUPPRESSION,
            **more,
        )
    )


def window_of(mel: LogMel, seek: int, size: int) -> F32:
    """A cut of the spectrogram in a window of zeros."""
    window = np.zeros((DIMS.n_mels, 3000), np.float32)
    window[:, :size] = mel.frames[:, seek : seek + size]
    return window


def naive_answer(mel: LogMel, options: TranscribeOptions) -> Answer:
    """Greedy decoding of one window by the reference's filters, one sequence, no cache."""
    suppress = None
    if options.suppress_tokens:
        listed = set(options.suppress_tokens) | set(VOCAB.never_sampled())
        suppress = (*(listed - {-1}), *(SUPPRESSION.non_speech if -1 in listed else ()))
    filters = Reference(
        VOCAB.eot,
        VOCAB.no_timestamps,
        BEGIN,
        SUPPRESSION.begin if options.suppress_blank else None,
        suppress,
        not options.without_timestamps,
        round(options.max_initial_timestamp / 0.02) if options.max_initial_timestamp else None,
    )

    def answer(seek: int, size: int, prompt: tuple[int, ...]) -> WindowResult:
        seed = zlib.crc32(window_of(mel, seek, size).tobytes())
        tokens: list[int] = []
        total = 0.0
        for _ in range(options.max_new_tokens or DIMS.n_text_ctx // 2):
            token, logprob = filters.best(talkative(seed, [*prompt, *tokens]), tokens)
            total += logprob
            if token == VOCAB.eot:
                break
            tokens.append(token)
            if len(prompt) + len(tokens) > DIMS.n_text_ctx:
                break
        start = talkative(seed, prompt[: prompt.index(VOCAB.sot) + 1])
        silence = float(np.exp(reference_log_softmax(start)[VOCAB.no_speech]))
        text = VOCAB.decode(tokens, specials=True).strip().encode()
        ratio = len(text) / len(zlib.compress(text))
        return WindowResult(tuple(tokens), total / (len(tokens) + 1), silence, ratio, 0.0)

    return answer


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"without_timestamps": True},
        {"condition_on_previous_text": False, "max_initial_timestamp": 0.0},
        {"max_initial_timestamp": None, "no_speech_threshold": None, "max_new_tokens": 5},
        {"max_initial_timestamp": 0.1, "suppress_blank": False, "max_new_tokens": 1000},
        {"suppress_tokens": None, "without_timestamps": True, "suppress_blank": False},
        {"suppress_tokens": (300, 301), "prefix": "so far so good", "initial_prompt": "n" * 40},
        {"clip_timestamps": (3, 20, 31.5), "initial_prompt": "Ann", "carry_initial_prompt": True},
        {"no_speech_threshold": 0.0, "logprob_threshold": None},
    ],
    ids=lambda options: " ".join(options) or "defaults",
)
def test_whole_recordings_equal_the_reference(options: dict[str, Any]) -> None:
    chosen = TranscribeOptions(**options)
    for n_frames in (3151, 7411) if chosen.clip_timestamps else (8, 2999, 7411):
        mel = log_mel_of(n_frames)
        backend = SpyBackend()
        found = run(mel, chosen, backend)
        theirs = reference(n_frames, chosen, naive_answer(mel, chosen))
        assert len(found) == len(theirs.segments)
        for mine, other in zip(found, theirs.segments):
            assert (mine.id, mine.seek, mine.text, mine.tokens) == (
                other.id,
                other.seek,
                other.text,
                other.tokens,
            )
            for name in ("start", "end", "avg_logprob", "no_speech_prob", "compression_ratio"):
                assert getattr(mine, name) == pytest.approx(getattr(other, name), abs=1e-4)
        assert len(backend.mels) == len(theirs.windows)
        for heard, (seek, size, _) in zip(backend.mels, theirs.windows):
            np.testing.assert_array_equal(heard, window_of(mel, seek, size))
        assert backend.open_sessions == 0


def test_the_fake_model_gives_varied_answers() -> None:
    """What keeps the comparison above from passing on answers of one kind."""
    found = [
        segment
        for seed in range(4)
        for segment in run(log_mel_of(9000, seed), TranscribeOptions(no_speech_threshold=None))
    ]
    windows = {(segment.seek, segment.avg_logprob) for segment in found}
    assert len(found) > len(windows) > 12
    assert len({segment.tokens for segment in found}) > 15
    assert any(segment.seek % 3000 for segment in found)
    assert len({segment.no_speech_prob > 0.6 for segment in found}) == 2


def test_progress() -> None:
    steps: list[tuple[float, float]] = []
    found = run(log_mel_of(7411), TranscribeOptions(), on_progress=lambda *step: steps.append(step))
    assert {segment.seek for segment in found} <= {0, *(round(done * 100) for done, _ in steps)}
    assert [done for done, _ in steps] == sorted({done for done, _ in steps})
    assert steps[-1] == (74.11, 74.11)
    assert {total for _, total in steps} == {74.11}


def test_segments_come_before_the_next_window_is_decoded() -> None:
    backend = SpyBackend()
    segments = transcribe(
        backend,
        VOCAB,
        log_mel_of(9000),
        options=TranscribeOptions(no_speech_threshold=None),
        language="en",
        suppression=SUPPRESSION,
    )
    assert backend.mels == []
    next(segments)
    assert len(backend.mels) == 1
    assert backend.open_sessions == 0


def test_a_prompt_that_does_not_fit_is_refused() -> None:
    options = TranscribeOptions(prefix=" ".join("a" * 40))
    with pytest.raises(OptionError, match=r"41 tokens; the model holds 32: shorten prefix"):
        run(log_mel_of(100), options)


def test_a_prompt_that_just_fits_leaves_one_token() -> None:
    options = TranscribeOptions(prefix=" ".join("a" * 31), no_speech_threshold=None)
    (segment,) = run(log_mel_of(100), options)
    assert len(segment.tokens) <= 1
    options = dataclasses.replace(options, prefix=" ".join("a" * 30), without_timestamps=True)
    assert len(run(log_mel_of(100), options)[0].tokens) <= 1


def test_suppressed_ids_must_exist() -> None:
    options = TranscribeOptions(suppress_tokens=(-1, 2000))
    with pytest.raises(OptionError, match=r"suppress_tokens holds 2000; .* end at 1999"):
        run(log_mel_of(100), options)


# --- compression ratio and language -------------------------------------------------------------


def test_compression_ratio() -> None:
    assert compression_ratio("") == 0.0
    assert compression_ratio("one of a kind") < 1.0
    assert compression_ratio("again and again and " * 20) > 2.4
    text = "naïve ♪ 日本"
    assert compression_ratio(text) == len(text.encode()) / len(zlib.compress(text.encode()))


@pytest.mark.parametrize(("n_vocab", "n_languages"), [(51865, 99), (51866, 100)])
def test_detect_language(n_vocab: int, n_languages: int) -> None:
    dims = random_dims(n_vocab=n_vocab)
    vocab = Vocab(tokenizer_json(dims), dims)
    asked: list[tuple[int, list[int]]] = []

    def scores(seed: int, tokens: Sequence[int]) -> F32:
        asked.append((seed, list(tokens)))
        return np.random.default_rng(seed).standard_normal(n_vocab, np.float32)

    mel = log_mel_of(200).head()
    found = detect_language(FakeBackend(dims, scores), vocab, mel)
    seed = zlib.crc32(mel.tobytes())
    assert asked == [(seed, [vocab.sot])]
    assert len(found) == n_languages
    assert list(found.values()) == sorted(found.values(), reverse=True)
    assert sum(found.values()) == pytest.approx(1.0, abs=1e-5)
    row = scores(seed, [])
    logits = {code: float(row[token]) for code, token in vocab.languages.items()}
    assert list(found) == sorted(logits, key=lambda code: -logits[code])
    total = sum(np.exp(list(logits.values())))
    for code, prob in found.items():
        assert prob == pytest.approx(np.exp(logits[code]) / total, rel=1e-4)


@pytest.mark.parametrize("others", [0.0, 60.0, 500.0])
def test_languages_are_weighed_among_themselves(others: float) -> None:
    dims = random_dims()
    vocab = Vocab(tokenizer_json(dims), dims)

    def scores(seed: int, tokens: Sequence[int]) -> F32:
        row = np.full(dims.n_vocab, others, np.float32)
        row[list(vocab.languages.values())] = 0
        row[vocab.languages["fr"]] = row[vocab.languages["de"]] = np.float32(np.log(97))
        return row

    found = detect_language(FakeBackend(dims, scores), vocab, log_mel_of(3000).head())
    assert list(found)[:3] == ["de", "fr", "en"]  # equal ones by id
    assert found["fr"] == pytest.approx(1 / 3, abs=1e-5)
    assert found["en"] == pytest.approx(1 / 291, rel=1e-4)


def test_an_english_model_detects_nothing() -> None:
    with pytest.raises(OptionError, match="English-only"):
        detect_language(SpyBackend(), VOCAB, log_mel_of(10).head())
