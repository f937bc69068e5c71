"""Spoken repetition and repetition loops; which of several results is kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest

from tests.support.reference_windows import BEGIN, DIMS, VOCAB
from tests.transcription.test_transcribe_whole import SUPPRESSION
from whisper_opt.core.options import TranscribeOptions, VadOptions
from whisper_opt.text.results import Dropped
from whisper_opt.transcription.fallback import (
    FallbackDecoder,
    Window,
    WindowResult,
    compression_ratio,
)
from whisper_opt.transcription.hallucinations import LoudGaps, SpeechCheck
from whisper_opt.transcription.windows import WindowCursor

LINE = " ask what you can do for your country"
PHRASES = [(i * 3.3 + 0.2, i * 3.3 + 2.7) for i in range(8)]
"""Eight times 2.5 s of speech."""
OPTIONS = TranscribeOptions()


class Known(SpeechCheck):
    """Speech at given times; every segment counts as spoken."""

    def __init__(self, times: Sequence[tuple[float, float]]) -> None:
        super().__init__(np.zeros(30 * 16_000, np.float32), VadOptions())
        self.times = list(times)

    def __call__(self, segment: object) -> bool:
        return True

    def speech(self, start: float, end: float) -> list[tuple[float, float]]:
        return self.times

    phrases = speech


def window_result(
    *lines: tuple[float, float, str], logprob: float = -0.2, temperature: float = 0.0
) -> WindowResult:
    tokens: list[int] = []
    for start, end, text in lines:
        times = (BEGIN + round(start / 0.02), BEGIN + round(end / 0.02))
        tokens += [times[0], *VOCAB.encode(text), times[1]]
    ratio = compression_ratio("".join(text for _, _, text in lines))
    return WindowResult(tuple(tokens), logprob, 0.1, ratio, temperature)


def repeated(n: int = 8, logprob: float = -0.2) -> WindowResult:
    """The line ``n`` times, with times as coarse as those of a model."""
    times = [round(i * 26 / n) for i in range(n + 1)]
    return window_result(*((a, b, LINE) for a, b in zip(times, times[1:])), logprob=logprob)


ONE_LINE = window_result((0, 26, LINE), logprob=-0.5, temperature=0.2)
VARIED = window_result(
    (0, 13, " and so my fellow americans ask not what your country can do for you but think"),
    (13, 26, " of all the other things that a day may bring to those who wake up early enough"),
    logprob=-0.6,
    temperature=0.2,
)
UNLIKELY = dataclasses.replace(ONE_LINE, avg_logprob=-1.5)


def choose(
    *attempts: WindowResult,
    times: Sequence[tuple[float, float]] | None = PHRASES,
    check: bool = True,
    options: TranscribeOptions = OPTIONS,
) -> WindowResult | None:
    sound = None if times is None else Known(times)
    is_spoken = sound if check else None
    state = WindowCursor(2640, VOCAB, DIMS, options, "en", is_spoken, sound)
    window = state.next_window()
    assert window is not None
    fallback = FallbackDecoder(DIMS, VOCAB, options, SUPPRESSION)
    return state.choose(window, attempts, fallback)


def test_the_line_repeated_fails_the_threshold() -> None:
    assert repeated().compression_ratio > 2.4 > VARIED.compression_ratio


def test_a_spoken_repetition_is_kept_at_once() -> None:
    assert choose(repeated()) == repeated()


@pytest.mark.parametrize(
    ("result", "times"),
    [
        (repeated(logprob=-0.4), PHRASES),  # not probable enough
        (repeated(), [(0.2, 25.8)]),  # one phrase cannot be eight
        (repeated(), [*PHRASES[:7], (23.3, 23.8)]),  # the last is much shorter
        (dataclasses.replace(repeated(), truncated=True), PHRASES),
        (window_result((0, 26, LINE * 8)), PHRASES),  # times are unknown
        # too much text for the speech
        (window_result(*((i * 3.25, i * 3.25 + 3.25, LINE * 4) for i in range(8))), PHRASES),
    ],
)
def test_other_repetitions_are_decoded_again(
    result: WindowResult, times: list[tuple[float, float]]
) -> None:
    assert choose(result, times=times) is None


def test_without_voice_activity_detection_the_thresholds_decide() -> None:
    assert choose(repeated(), times=None) is None
    assert choose(repeated(), ONE_LINE, times=None) == ONE_LINE


def test_the_first_result_that_passes_and_covers_the_speech_is_kept() -> None:
    assert choose(repeated(logprob=-0.4), VARIED) == VARIED


def test_a_result_that_leaves_most_speech_without_text_is_not_kept() -> None:
    first = repeated(logprob=-0.4)
    assert choose(first, ONE_LINE) is None
    assert choose(first, *[ONE_LINE] * 5) == first  # the most probable one that covers the speech


def test_a_loop_is_never_kept() -> None:
    """It has far more text than there is speech, or no speech at its times."""
    assert choose(repeated(logprob=-0.4), *[ONE_LINE] * 5, times=[(0.0, 3.0)]) == ONE_LINE
    late = [(20.0, 26.0)]
    short = window_result((20, 26, LINE), logprob=-0.5)
    assert choose(repeated(logprob=-0.4), short, times=late) == short


def test_a_window_without_speech_is_not_decoded_again() -> None:
    for first in (repeated(), UNLIKELY):
        kept = choose(first, times=[])
        assert kept == dataclasses.replace(first, has_speech=False)
        # after vad=cut, speech is not checked again
        assert choose(first, times=[], check=False) is None


def test_an_improbable_result_is_decoded_again() -> None:
    assert choose(UNLIKELY) is None
    assert choose(UNLIKELY, ONE_LINE) == ONE_LINE


def test_dropped_text_is_reported() -> None:
    state = WindowCursor(6000, VOCAB, DIMS, OPTIONS, "en")
    window = state.next_window()
    assert window is not None
    assert state.accept(window, dataclasses.replace(ONE_LINE, has_speech=False)) == []
    assert state.seek == 3000
    following = state.next_window()
    assert following is not None
    silent = dataclasses.replace(UNLIKELY, no_speech_prob=0.9)
    assert state.accept(following, silent) == []
    assert state.dropped == [
        Dropped(0.0, 26.0, "no speech", LINE),
        Dropped(30.0, 56.0, "no-speech probability", LINE),
    ]


def test_a_result_that_ends_at_the_limit_is_marked() -> None:
    window = Window(0, 2640, (VOCAB.sot,), 0)
    cut_off = WindowResult((BEGIN, *VOCAB.encode(LINE)), -0.2, 0.1, 1.0, 0.0, truncated=True)
    for result, expected in (
        (cut_off, True),
        (dataclasses.replace(cut_off, truncated=False), False),
    ):
        state = WindowCursor(2640, VOCAB, DIMS, OPTIONS, "en")
        (segment,) = state.accept(window, result)
        assert segment.truncated is expected
        assert ("truncated" in segment.to_dict()) is expected


def test_text_before_the_last_time_is_not_marked() -> None:
    """The text after it is decoded again in the next window."""
    tokens = (*window_result((0, 3, LINE)).tokens, BEGIN + 150, *VOCAB.encode(LINE))
    result = WindowResult(tokens, -0.2, 0.1, 1.0, 0.0, truncated=True)
    state = WindowCursor(2640, VOCAB, DIMS, OPTIONS, "en")
    (segment,) = state.accept(Window(0, 2640, (VOCAB.sot,), 0), result)
    assert (segment.truncated, state.seek) == (False, 300)


def test_loud_sound_that_is_not_transcribed_is_reported() -> None:
    rng = np.random.default_rng(0)
    sound = (rng.standard_normal(60 * 16_000) * 1e-3).astype(np.float32)
    for start, end in ((2, 10), (20, 30), (40, 43)):
        sound[start * 16_000 : end * 16_000] *= 100
    for spoken, expected in (
        ([(20.0, 30.0)], [(2.0, 10.0)]),  # 40-43 is too short
        ([], [(2.0, 10.0), (20.0, 30.0)]),
        ([(0.0, 60.0)], []),
    ):
        gaps = LoudGaps()
        for block in np.array_split(sound, 7):
            gaps.feed(block)
        for part in spoken:
            gaps.transcribed(*part)
        assert gaps.finish() == [Dropped(a, b, "loud sound") for a, b in expected]
