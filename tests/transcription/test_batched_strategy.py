"""The batched strategy: clips and spans of speech in one batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from tests.audio.test_vad import made_up
from tests.support.watched_backend import (
    BATCHED,
    PLAIN,
    OpenStreams,
    WatchedBackend,
    many,
    noise,
    quiet_model,
    same,
    spoken,
)
from whisper_opt import TranscribeOptions, Transcript, Whisper
from whisper_opt.audio.vad import SpeechDetector, pack
from whisper_opt.core.arrays import F32
from whisper_opt.core.dims import N_SAMPLES
from whisper_opt.core.options import VadOptions
from whisper_opt.text.results import Dropped, Segment


def moved(segment: Segment, by: float, i: int) -> Segment:
    words = segment.words and tuple(
        dataclasses.replace(word, start=word.start + by, end=word.end + by)
        for word in segment.words
    )
    return dataclasses.replace(
        segment,
        id=i,
        start=segment.start + by,
        end=segment.end + by,
        seek=segment.seek + round(by * 100),
        words=words,
    )


def piece_by_piece(
    sound: F32, spans: Sequence[tuple[float, float]], **options: Any
) -> list[Segment]:
    """Every span as its own recording, with its segments at their times."""
    found: list[Segment] = []
    for start, end in spans:
        piece = sound[round(start * 16000) : round(end * 16000)]
        alone = quiet_model().transcribe(piece, vad="off", **options)
        found += [moved(segment, start, len(found) + i) for i, segment in enumerate(alone)]
    return found


@pytest.mark.parametrize("batch_size", [1, 2, 8])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"without_timestamps": True},
        {"beam_size": 3},
        {"word_timestamps": True},
        {"initial_prompt": "Ann", "prefix": "so"},
        {"hotwords": "Bob"},
        {"condition_on_previous_text": False},
    ],
    ids=lambda options: " ".join(options) or "defaults",
)
def test_clips_in_one_batch_equal_single_clips(
    model: Whisper, watched: WatchedBackend, options: dict[str, Any], batch_size: int
) -> None:
    sound = noise(150.0, 2)
    spans = [(0.0, 7.0), (9.5, 81.25), (82.0, 82.3), (90.0, 125.0), (126.0, 150.0)]
    points = [second for span in spans for second in span]
    given = {**PLAIN, **options}
    expected = piece_by_piece(sound, spans, **_without_vad(given))
    found = model.transcribe(
        sound, strategy="batched", clip_timestamps=points, batch_size=batch_size, **given
    )
    same(found.segments, expected)
    assert found.duration == 150.0
    assert [s.seek for s in found] == sorted(s.seek for s in found)
    assert watched.most == min(batch_size, 5)
    # the long clips took several windows
    assert len({s.seek for s in found if 950 <= s.seek < 8200}) >= 3
    assert watched.sessions == []


def _without_vad(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name != "vad"}


@pytest.mark.parametrize(
    ("points", "spans"),
    [
        ((70.0,), [(70.0, 80.0)]),  # to the end
        ((10, 20, 70), [(10.0, 20.0), (70.0, 80.0)]),
        ((70, 500), [(70.0, 80.0)]),
        ((5, 6, 90, 95), [(5.0, 6.0)]),  # after the end there is nothing
        ((5, 6, 90), [(5.0, 6.0)]),
    ],
)
def test_where_clips_end(
    model: Whisper, points: Sequence[float], spans: list[tuple[float, float]]
) -> None:
    sound = noise(80.0, 3)
    found = model.transcribe(sound, strategy="batched", clip_timestamps=points, **PLAIN)
    same(found.segments, piece_by_piece(sound, spans, **_without_vad(PLAIN)))


@pytest.mark.parametrize("options", [{}, {"without_timestamps": True}, {"beam_size": 3}])
def test_only_the_first_chunk_begins_with_the_transcript_prefix(
    model: Whisper, options: dict[str, Any]
) -> None:
    sound, points = noise(80.0, 2), (5.0, 40.0, 50.0, 80.0)
    given: dict[str, Any] = {**PLAIN, **options, "no_speech_threshold": None}
    found = model.transcribe(
        sound, strategy="batched", clip_timestamps=points, transcript_prefix="so it is", **given
    )
    given = _without_vad(given)
    first = piece_by_piece(sound, [(5.0, 40.0)], transcript_prefix="so it is", **given)
    second = piece_by_piece(sound, [(50.0, 80.0)], **given)
    assert first[0].text.startswith(" so it is")
    assert [segment.tokens for segment in found] == [s.tokens for s in (*first, *second)]


@made_up()
@pytest.mark.parametrize("batch_size", [1, 3])
def test_spans_of_speech_in_one_batch(
    model: Whisper, watched: WatchedBackend, batch_size: int
) -> None:
    sound = spoken([2, 9, 15, 40, 41.5, 58, 80, 104, 150, 162, 170, 199], 200.0, 6)
    longest: dict[str, Any] = {"vad_max_speech_duration": 25.0}
    spans = [
        span.seconds
        for span in pack(
            SpeechDetector(VadOptions(max_speech_duration=25.0)).spans(sound), N_SAMPLES
        )
    ]
    assert len(spans) >= 5
    expected = piece_by_piece(sound, spans, **_without_vad(PLAIN))
    found = model.transcribe(sound, batch_size=batch_size, **BATCHED, **longest)
    same(found.segments, expected)
    assert found.duration == 200.0
    assert watched.most == batch_size
    starts = [segment.start for segment in found]
    assert starts == sorted(starts)


@made_up()
def test_a_recording_without_speech(
    model: Whisper, watched: WatchedBackend, open_streams: OpenStreams
) -> None:
    found = model.transcribe(spoken([], 90.0), **BATCHED)
    noise_only = Dropped(3.0, 90.0, "loud sound")
    assert found == Transcript((), "en", 90.0, "", dropped=(noise_only,))
    assert watched.diary == []
    assert open_streams.n_open == 0


@made_up()
def test_segments_of_a_batched_stream_come_in_order_as_they_are_ready(
    model: Whisper, watched: WatchedBackend
) -> None:
    sound = spoken([2, 28, 34, 60, 66, 92, 98, 124, 130, 156], 160.0)
    steps: list[tuple[float, float]] = []
    stream = model.stream(
        sound, batch_size=2, on_progress=lambda *step: steps.append(step), **BATCHED
    )
    found: list[Segment] = []
    encoded: list[int] = []
    for segment in stream:
        found.append(segment)
        encoded.append(len(watched.windows))
    assert encoded[0] < encoded[-1]
    assert [segment.id for segment in found] == list(range(len(found)))
    assert [segment.start for segment in found] == sorted(segment.start for segment in found)
    done = [seconds for seconds, _ in steps]
    assert done == sorted(set(done))
    assert all(seconds <= total for seconds, total in steps)
    assert steps[-1] == (160.0, 160.0)


@made_up()
def test_strategies_mix(model: Whisper, watched: WatchedBackend) -> None:
    audios = [
        spoken([2, 9, 15, 40, 80, 104], 120.0, 1),
        spoken([3, 20], 64.0, 2),
        spoken([1, 29, 31, 58], 70.0, 3),
    ]
    options = [
        TranscribeOptions(**BATCHED),
        TranscribeOptions(**PLAIN, beam_size=2),
        TranscribeOptions(**BATCHED, max_new_tokens=3, word_timestamps=True),
    ]
    found = many(model, audios, options=options, batch_size=4)
    for i, (sound, chosen) in enumerate(zip(audios, options)):
        assert found[i] == quiet_model().transcribe(sound, options=chosen)
    assert watched.most == 4
    assert watched.sessions == []


def test_draws_of_two_chunks_are_independent() -> None:
    """The same audio twice in one recording gets different draws."""
    sound = noise(10.0, 6)
    twice = np.concatenate([sound, sound])
    options = {**PLAIN, "temperature": 1.0, "without_timestamps": True}
    found = quiet_model().transcribe(
        twice, strategy="batched", clip_timestamps=(0, 10, 10, 20), **options
    )
    first, second = ([s.tokens for s in found if (s.seek < 1000) == b] for b in (True, False))
    assert first
    assert second
    assert first != second
