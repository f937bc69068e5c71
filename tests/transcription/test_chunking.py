"""Transcription jobs: how recordings are read and divided into chunks."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from tests.audio.test_vad import made_up
from tests.support.reference_windows import VOCAB
from tests.support.watched_backend import (
    BATCHED,
    PLAIN,
    WatchedBackend,
    engine,
    many,
    noise,
    quiet_model,
    same,
    spoken,
)
from tests.transcription.test_transcribe_whole import SUPPRESSION
from whisper_opt import AudioError, OptionError, TranscribeOptions, Whisper
from whisper_opt.audio import decode as audio
from whisper_opt.audio.vad import SpeechDetector, merge, pack
from whisper_opt.core.arrays import F32
from whisper_opt.core.dims import N_SAMPLES
from whisper_opt.core.options import VadOptions
from whisper_opt.transcription.chunking import JobFactory
from whisper_opt.transcription.job import Chunk, TranscriptionJob

SPEECH = (2, 9, 15, 40, 41.5, 58, 80, 104, 150, 162, 170, 199)


def recording(sound: Any, **options: Any) -> TranscriptionJob:
    factory = JobFactory(WatchedBackend(), VOCAB, SUPPRESSION)
    return factory.job(sound, None, TranscribeOptions(**options))


def chunks(made: TranscriptionJob) -> Iterator[Chunk]:
    while (chunk := made.next_chunk()) is not None:
        yield chunk


def seconds(sound: F32, **options: float) -> list[tuple[float, float]]:
    """The chunks of speech of at most 30 s, in seconds."""
    spans = SpeechDetector(VadOptions(**options)).spans(sound)
    return [span.seconds for span in pack(spans, N_SAMPLES)]


# --- sequential ----------------------------------------------------------------------------------


def test_the_sequential_strategy_has_one_chunk() -> None:
    made = recording(noise(70.0), **PLAIN)
    (chunk,) = chunks(made)
    assert (chunk.start, chunk.mel.n_frames) == (0.0, 7000)
    assert (made.duration, made.language, made.language_probability) == (70.0, "en", None)
    assert not made.finished
    assert chunk.next_window() is not None


def test_nothing_is_read_before_it_is_opened() -> None:
    for strategy in ({}, {"strategy": "batched"}):
        made = recording("no such file.wav", **strategy)
        with pytest.raises(AudioError, match="no such file"):
            made.open()


@made_up()
@pytest.mark.parametrize("options", [{}, {"vad_min_silence_duration": 3.0}])
def test_sequential_cut_leaves_long_silences_out(options: dict[str, Any]) -> None:
    """Like clips around the speech; silences of less than two seconds stay in."""
    sound = spoken(SPEECH, 210.0, 4)
    names = {name[len("vad_") :]: value for name, value in options.items()}
    spans = list(merge(SpeechDetector(VadOptions(**names)).spans(sound), 2 * 16000))
    points = [second for span in spans for second in span.seconds]
    assert len(spans) == 5
    plain = {**PLAIN, "vad": "off"}
    expected = quiet_model().transcribe(sound, clip_timestamps=points, **plain)
    watched = WatchedBackend()
    plain["vad"] = "cut"
    found = Whisper(engine(), watched).transcribe(sound, **plain, **options)
    assert dataclasses.replace(found, dropped=()) == expected
    assert {segment.seek for segment in found} >= {round(span.seconds[0] * 100) for span in spans}
    assert found.duration == 210.0


@made_up()
def test_sequential_cut_without_speech() -> None:
    watched = WatchedBackend()
    found = Whisper(engine(), watched).transcribe(spoken([], 70.0), **{**PLAIN, "vad": "cut"})
    assert (len(found), found.text, found.duration) == (0, "", 70.0)
    assert watched.diary == []


def plateaus(points: Sequence[float], total: float, seed: int = 0) -> F32:
    """Sound that is speech (``made_up``) at every sample within start, end, start, end, ..."""
    times = np.arange(round(total * 16000)) / 16000
    level = np.full(len(times), 0.02, np.float32)
    for start, end in zip(points[::2], points[1::2]):
        level[(start <= times) & (times < end)] = 0.9
    return level + np.clip(noise(total, seed), -0.02, 0.02)


@made_up()
@pytest.mark.parametrize("strategy", ["sequential", "batched"])
def test_text_without_speech_is_dropped(strategy: str) -> None:
    """It is not in the prompt of the next window either."""
    sound = plateaus((10, 28, 92, 110), 120.0)
    clips: dict[str, Any] = {"clip_timestamps": (0, 40, 45, 120), "strategy": strategy}
    plain = {name: value for name, value in PLAIN.items() if name != "vad"}
    watched = WatchedBackend()
    model = Whisper(engine(), watched)
    found = model.transcribe(sound, **plain, **clips)
    prompts = [prompt for _, prompt in watched.prompts]
    assert len(found) > 0
    for segment in found:
        if segment.text:
            near = (segment.start < 28.6 and segment.end > 9.4) or segment.end > 91.4
            assert near, segment
    said = {token for segment in found for token in segment.tokens}
    for prompt in prompts:
        before = prompt[: prompt.index(VOCAB.sot)]
        assert set(before) <= said | {VOCAB.sot_prev}


@pytest.mark.parametrize("options", [{}, {"strategy": "batched"}, {"clip_timestamps": (0, 1)}])
def test_every_strategy_keeps_the_limits_on_recordings(options: dict[str, Any]) -> None:
    made = recording(np.zeros(40_000, np.float32), max_duration=2, **options)
    with pytest.raises(AudioError, match=r"max_duration \(2 s\)"):
        made.open()


# --- batched -------------------------------------------------------------------------------------


@made_up()
def test_batched_chunks_are_the_packed_speech() -> None:
    sound = spoken(SPEECH, 210.0, 4)
    made = recording(sound, **BATCHED, vad_max_speech_duration=25.0)
    found = list(chunks(made))
    expected = seconds(sound, max_speech_duration=25.0)
    assert [chunk.start for chunk in found] == [start for start, _ in expected]
    for chunk, (start, end) in zip(found, expected):
        assert chunk.mel.n_frames == round((end - start) * 16000) // 160
        assert chunk.mel.n_frames <= 3000
    assert made.duration == 210.0


class Reading:
    """Counts the seconds read from a stream."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds = 0.0

        def open_audio(*args: Any, **kwargs: Any) -> Any:
            stream = audio.open_audio(*args, **kwargs)

            def counted() -> Any:
                for block in stream:
                    self.seconds += len(block) / 16000
                    yield block

            return audio.AudioStream(counted(), None)

        monkeypatch.setattr("whisper_opt.transcription.chunking.open_audio", open_audio)


@made_up()
def test_batched_reads_as_it_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A recording is read as a stream; without a length in its header, the end gives it."""
    reading = Reading(monkeypatch)
    sound = spoken([*itertools.chain.from_iterable((t, t + 20) for t in range(1, 590, 30))], 600.0)
    made = recording(sound, **BATCHED)
    made.open()
    read = [reading.seconds]
    for chunk in chunks(made):
        assert made.duration >= chunk.start + chunk.mel.n_frames / 100
        read.append(reading.seconds)
    assert len(read) == 21
    assert read[1] < 100
    assert read == sorted(read)
    assert reading.seconds == made.duration == 600.0


@made_up()
def test_a_batch_reads_no_further_than_it_decodes(monkeypatch: pytest.MonkeyPatch) -> None:
    reading = Reading(monkeypatch)
    sound = spoken([*itertools.chain.from_iterable((t, t + 20) for t in range(1, 590, 30))], 600.0)
    stream = quiet_model().stream(sound, batch_size=2, **BATCHED)
    ahead = [reading.seconds - segment.end for segment in stream]
    assert max(ahead[: len(ahead) // 2]) < 200
    assert reading.seconds == 600.0


@made_up()
def test_batched_and_sequential_process_the_same_audio_if_all_is_speech() -> None:
    """Speech without a pause is cut at 30 s; nothing between the parts is lost or doubled."""
    sound = spoken((0, 100), 100.0)
    made = recording(sound, **BATCHED)
    covered = 0.0
    for chunk in chunks(made):
        assert chunk.start == pytest.approx(covered, abs=0.011)
        covered = chunk.start + chunk.mel.n_frames / 100
    assert covered == pytest.approx(100.0, abs=0.2)


@made_up()
def test_a_chunk_of_several_windows_loses_nothing() -> None:
    """A window that ends early is followed by another of the same chunk."""
    watched = WatchedBackend()
    model = Whisper(engine(), watched)
    sound = spoken((1, 28, 31, 59), 60.0)
    found = model.transcribe(sound, **BATCHED)
    spans = seconds(sound)
    assert len(spans) == 2
    assert len(watched.prompts) > 2
    firsts = [round(start * 100) for start, _ in spans]
    for first, following, (_, end) in zip(firsts, [*firsts[1:], 10**6], spans):
        seeks = sorted({s.seek for s in found if first <= s.seek < following})
        assert seeks[0] == first
        # every window begins where the one before stopped, up to the end
        for seek, later in zip(seeks, seeks[1:]):
            last = max(s.end for s in found if s.seek == seek)
            assert later / 100 == pytest.approx(last, abs=0.02)
        assert seeks[-1] < end * 100


def test_clips_are_read_from_the_recording() -> None:
    made = recording(
        noise(50.0), strategy="batched", clip_timestamps=(1, 2, 40, 45.5, 49, 80, 90, 95), **PLAIN
    )
    found = [(chunk.start, chunk.mel.n_frames) for chunk in chunks(made)]
    assert found == [(1.0, 100), (40.0, 550), (49.0, 100)]
    assert made.duration == 50.0


@pytest.mark.parametrize(
    "options",
    [
        {"strategy": "batched", "condition_on_previous_text": True},
        {"strategy": "batched", "vad": "off"},
        {"strategy": "batched", "vad": "check"},
        {"strategy": "batched", "vad": "cut", "clip_timestamps": (1, 2)},
        {"vad": "cut", "clip_timestamps": (1, 2)},
        {"vad": "off", "vad_threshold": 0.9},
    ],
)
def test_unsupported_options_of_a_strategy_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        recording(noise(1.0), **options)


# --- jobs ----------------------------------------------------------------------------------------


def test_an_opened_job_starts_at_its_first_chunk() -> None:
    made = recording(noise(50.0), strategy="batched", clip_timestamps=(1, 2, 40, 45), **PLAIN)
    made.open()
    assert made.language == "en"
    assert [chunk.start for chunk in chunks(made)] == [1.0, 40.0]
    assert made.next_chunk() is None
    assert not made.finished  # its first chunk is not decoded yet
    made.close()
    assert made.take() == []
    again = made.finished
    assert again


def test_a_failed_recording_is_finished() -> None:
    made = recording(noise(50.0), strategy="batched", clip_timestamps=(1, 2, 40, 45), **PLAIN)
    made.open()
    assert made.next_chunk() is not None
    error = AudioError("damage")
    made.fail(error)
    assert made.finished
    assert made.error is error
    assert made.next_chunk() is None


@made_up()
def test_words_of_a_chunk_have_times_of_the_recording() -> None:
    sound = spoken((40, 60), 70.0)
    found = quiet_model().transcribe(sound, word_timestamps=True, **BATCHED)
    words = [word for segment in found for word in segment.words or ()]
    assert words  # how many depends on the processor: the model is random
    for word in words:
        assert 39.5 <= word.start <= word.end
    assert {segment.seek for segment in found} == {s.seek for s in found if s.seek >= 3950}


@made_up()
def test_a_batch_of_strategies_equals_each_alone() -> None:
    audios = [spoken(SPEECH, 210.0, 4), plateaus((3, 20), 64.0), noise(40.0)]
    options = [
        TranscribeOptions(**BATCHED),
        TranscribeOptions(**{**PLAIN, "vad": "cut"}),
        TranscribeOptions(**{**PLAIN, "vad": "check"}),
    ]
    found = many(quiet_model(), audios, options=options, batch_size=4)
    for i, (sound, chosen) in enumerate(zip(audios, options)):
        alone = quiet_model().transcribe(sound, options=chosen)
        assert found[i] == alone
        same(found[i].segments, alone.segments)
