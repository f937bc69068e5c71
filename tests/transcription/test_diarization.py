"""Speakers of words and segments, in every way to transcribe."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from tests.support.speaker_networks import ToneNetworks, tones, write_wheel
from tests.support.watched_backend import PLAIN, WatchedBackend, engine, noise
from whisper_opt import AudioError, LoadOptions, OptionError, Segment, Turn, Whisper, Word
from whisper_opt.core.arrays import F32
from whisper_opt.core.errors import EngineError
from whisper_opt.core.options import TranscribeOptions
from whisper_opt.export.speakers import export_speakers
from whisper_opt.serving import Engine
from whisper_opt.transcription.diarization import attributed

SPOKEN = [(0.5, 8.0, 0), (8.5, 15.0, 1), (15.5, 24.0, 0), (20.0, 30.0, 2)]
GIVEN: dict[str, Any] = {**PLAIN, "language": "en", "diarize": True}


def sound() -> F32:
    """Tones that the networks know, and noise that makes the text differ."""
    mixed: F32 = tones(SPOKEN, 31.0) + noise(31.0, 4) * np.float32(1e-3)
    return mixed


@pytest.fixture
def model() -> Whisper:
    return Whisper(engine(), WatchedBackend(), speakers=ToneNetworks.networks())


# words and turns


def words(*times: tuple[float, float]) -> Segment:
    spoken = tuple(Word(start, end, f" {i}", 0.9) for i, (start, end) in enumerate(times))
    text = "".join(word.word for word in spoken)
    return Segment(0, times[0][0], times[-1][1], text, (), -0.1, 0, 1, 0, 0, spoken)


def said(segment: Segment, *turns: tuple[float, float, str]) -> list[tuple[str | None, str]]:
    found = attributed([segment], [Turn(*turn) for turn in turns], lambda text: ())
    assert all(word.speaker == part.speaker for part in found for word in part.words or ())
    return [(part.speaker, part.text) for part in found]


def test_segments_are_divided_where_the_speaker_changes() -> None:
    segment = words((0, 1), (1, 2), (2, 3), (3, 4))
    assert said(segment, (0, 2, "A"), (2, 4, "B")) == [("A", " 0 1"), ("B", " 2 3")]
    assert said(segment, (0, 2.4, "A"), (2.4, 4, "B")) == [("A", " 0 1"), ("B", " 2 3")]
    assert said(segment, (0, 5, "A")) == [("A", " 0 1 2 3")]


def test_words_outside_all_turns_belong_to_the_nearest() -> None:
    segment = words((0, 1), (4, 5), (9, 10))
    assert said(segment, (1.5, 2, "A"), (6.5, 8, "B")) == [("A", " 0"), ("B", " 1 2")]
    assert said(segment) == [(None, " 0 1 2")]


def test_a_word_without_duration_has_the_speaker_of_its_time() -> None:
    assert said(words((1, 1), (3, 3)), (0, 2, "A"), (2, 4, "B")) == [("A", " 0"), ("B", " 1")]


def test_where_two_speak_the_one_before_goes_on() -> None:
    segment = words((0, 1), (1, 2), (2, 3), (3, 4))
    turns = [Turn(0, 3, "A"), Turn(1, 4, "B")]
    found = attributed([segment], turns, lambda text: ())
    assert [(part.speaker, part.text) for part in found] == [("A", " 0 1 2"), ("B", " 3")]
    overlaps = [word.overlap for part in found for word in part.words or ()]
    assert overlaps == [False, True, True, False]


def test_segments_without_words_have_a_speaker_too() -> None:
    bare = dataclasses.replace(words((0, 4)), words=())
    assert said(bare, (0, 1, "A"), (1, 4, "B")) == [("B", " 0")]


# transcribing


def test_segments_have_the_speakers_of_their_words(model: Whisper) -> None:
    found = model.transcribe(sound(), word_timestamps=True, **GIVEN)
    assert [turn.speaker for turn in found.turns] == ["A", "B", "A", "C"]
    plain = {**GIVEN, "diarize": False}
    before = model.transcribe(sound(), word_timestamps=True, **plain)
    parts = attributed(before.segments, found.turns, lambda text: ())
    expected = [(part.speaker, part.words) for part in parts if part.text.strip()]
    assert [(segment.speaker, segment.words) for segment in found] == expected
    assert all(speaker in ("A", "B", "C") for speaker, _ in expected)
    assert [segment.id for segment in found] == list(range(len(found)))
    assert all(segment.words is None for segment in model.transcribe(sound(), **GIVEN))


def test_the_number_of_speakers_may_be_limited(model: Whisper) -> None:
    for given in ({"num_speakers": 1}, {"max_speakers": 1}):
        found = model.transcribe(sound(), **{**GIVEN, **given})
        assert {turn.speaker for turn in found.turns} == {"A"}
    found = model.transcribe(sound(), min_speakers=2, max_speakers=2, **GIVEN)
    assert {turn.speaker for turn in found.turns} == {"A", "B"}


def test_known_speakers_are_named(model: Whisper, tmp_path: Path) -> None:
    clip = tmp_path / "ann.wav"
    soundfile.write(clip, tones([(0.0, 3.0, 1)], 3.0), 16000)
    for known in ({"Ann": str(clip)}, {"Ann": clip.read_bytes()}, {"Ann": tones([(0, 3, 1)], 3)}):
        found = model.transcribe(sound(), known_speakers=known, **GIVEN)
        assert [turn.speaker for turn in found.turns] == ["A", "Ann", "A", "B"]
    with pytest.raises(AudioError, match="reference clip of Bob cannot be used: cannot open"):
        model.transcribe(sound(), known_speakers={"Bob": str(tmp_path / "no.wav")}, **GIVEN)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"strategy": "batched", "clip_timestamps": (0.0, 10.0, 12.0, 31.0)},
        {"clip_timestamps": (2.0, 20.0)},
    ],
    ids=str,
)
def test_every_way_gives_the_same(model: Whisper, options: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, sound(), 16000, subtype="FLOAT")
    given = {**GIVEN, **options}
    expected = model.transcribe(str(path), **given)
    assert expected.turns
    other = sound()[::-1].copy()
    many = dict(model.transcribe_many([other, str(path)], **given))
    assert many == {0: model.transcribe(other, **given), 1: expected}
    stream = model.stream(io.BytesIO(path.read_bytes()), **given)
    assert tuple(stream) == expected.segments
    assert stream.transcript() == expected
    with Engine(model) as server:
        handle = server.submit(str(path), TranscribeOptions(**given))
        assert list(handle.segments()) == list(expected)
        assert handle.result() == expected


def test_without_the_networks_it_is_refused() -> None:
    model = Whisper(engine(), WatchedBackend())
    with pytest.raises(OptionError, match="diarize is on, but the model was loaded without"):
        model.transcribe(sound(), **GIVEN)
    with Engine(model) as server, pytest.raises(OptionError, match="export-speakers"):
        server.submit(sound(), TranscribeOptions(**GIVEN))


def test_load_opens_the_networks(tmp_path: Path) -> None:
    made = export_speakers(write_wheel(tmp_path / "source"), tmp_path / "speakers")
    with Whisper.load(engine().path, speakers=str(made), threads=1) as model:
        found = model.transcribe(sound()[: 16000 * 4], **GIVEN)
    assert found.duration == 4.0
    with pytest.raises(EngineError, match="holds no speaker networks"):
        Whisper.load(engine().path, options=LoadOptions(speakers=str(tmp_path)))
