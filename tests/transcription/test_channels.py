"""Channels that are transcribed by themselves."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import soundfile

from tests.support.watched_backend import PLAIN, WatchedBackend, engine, noise
from whisper_opt import OptionError, Segment, Transcript, Whisper
from whisper_opt.core.arrays import F32
from whisper_opt.core.options import TranscribeOptions
from whisper_opt.serving import Engine
from whisper_opt.transcription.channels import Channel, ChannelSplit
from whisper_opt.transcription.job import Chunk, TranscriptionJob

SOUND: F32 = np.stack([noise(70.0, 1), noise(70.0, 2), noise(70.0, 3)], axis=1)
CLIPS = (0.0, 7.0, 9.5, 44.0, 50.0, 62.0)


@pytest.fixture
def backend() -> WatchedBackend:
    return WatchedBackend()


@pytest.fixture
def model(backend: WatchedBackend) -> Whisper:
    return Whisper(engine(), backend)


def of_channel(found: Transcript, channel: int) -> list[Segment]:
    return [each for each in found if each.channel == channel]


def words_of(segments: list[Segment]) -> list[tuple[float, float, str]]:
    return [
        (word.start, word.end, word.word) for segment in segments for word in segment.words or ()
    ]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"strategy": "batched", "clip_timestamps": CLIPS},
        {"clip_timestamps": CLIPS},
        {"beam_size": 2},
        {"condition_on_previous_text": False, "without_timestamps": True},
    ],
    ids=str,
)
def test_each_channel_is_transcribed_by_itself(
    model: Whisper, backend: WatchedBackend, options: dict[str, Any]
) -> None:
    given = {**PLAIN, "language": "en", "word_timestamps": True, **options}
    found = model.transcribe(SOUND, channels="split", **given)
    together = backend.most
    dropped = {part.text for part in found.dropped if part.reason == "cross-talk"}
    for channel in range(3):
        alone = model.transcribe(SOUND[:, channel], **given)
        expected = words_of([each for each in alone if each.text])
        mine = words_of(of_channel(found, channel))
        missing = "".join(word for *_, word in expected if word not in {w for *_, w in mine})
        assert mine, "nothing was transcribed"
        assert set(mine) <= set(expected)
        assert len(mine) == len(expected) or dropped, missing
    assert together >= 3
    assert [each.id for each in found] == list(range(len(found)))
    assert [each.start for each in found] == sorted(each.start for each in found)
    assert {each.speaker for each in found} == {"channel 0", "channel 1", "channel 2"}
    assert all(word.speaker == each.speaker for each in found for word in each.words or ())
    assert found.duration == 70.0


def test_words_are_left_out_unless_they_are_asked_for(model: Whisper) -> None:
    given = {**PLAIN, "language": "en", "channels": "split"}
    with_words = model.transcribe(SOUND, word_timestamps=True, **given)
    without = model.transcribe(SOUND, **given)
    assert all(each.words is None for each in without)
    stripped = [dataclasses.replace(each, words=None) for each in with_words]
    assert list(without) == stripped


def test_one_channel_is_channel_0(model: Whisper) -> None:
    found = model.transcribe(SOUND[:, 0], channels="split", **PLAIN)
    assert {each.channel for each in found} == {0}


def stereo(path: Path) -> bytes:
    soundfile.write(path, SOUND[: 16000 * 20, :2], 16000, subtype="FLOAT")
    return path.read_bytes()


def test_every_source_and_way_gives_the_same(model: Whisper, tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    data = stereo(path)
    given: dict[str, Any] = {**PLAIN, "channels": "split"}
    expected = model.transcribe(SOUND[: 16000 * 20, :2], **given)
    assert {each.channel for each in expected} == {0, 1}
    for source in (str(path), data, io.BytesIO(data), bytearray(data)):
        assert model.transcribe(source, **given) == expected
    for batch_size in (1, 2):
        many = model.transcribe_many([str(path), data], batch_size=batch_size, **given)
        assert [found for _, found in sorted(many, key=lambda pair: pair[0])] == [expected] * 2
    stream = model.stream(str(path), **given)
    assert tuple(stream) == expected.segments
    assert stream.transcript() == expected
    with Engine(model) as server:
        handles = [server.submit(io.BytesIO(data), TranscribeOptions(**given)) for _ in range(2)]
        assert [handle.result() for handle in handles] == [expected] * 2


def languages(*codes: str) -> tuple[TranscriptionJob, list[Segment]]:
    """A job whose channels have these languages, and its segments."""
    split = ChannelSplit(TranscribeOptions(channels="split"), {}, None)

    def chunks(channel: Channel, source: Any, reading: dict[str, Any]) -> Iterator[Chunk]:
        channel.language = codes[reading["channel"]]
        channel.language_probability = 0.5 + 0.1 * reading["channel"]
        return iter(())

    job = TranscriptionJob(None, lambda job: iter(()))
    job._fallback = Mock()
    sound = np.zeros((160, len(codes)), np.float32)
    assert list(split.chunks(job, sound, chunks)) == []
    segments = [
        Segment(0, i, i + 1, " a", (), 0, 0, 1, 0, 0, (), language=code, channel=i)
        for i, code in enumerate(codes)
    ]
    return job, split.complete(job, lambda text: (), segments)


def test_segments_have_languages_if_those_of_the_channels_differ() -> None:
    job, found = languages("en", "de")
    assert [each.language for each in found] == ["en", "de"]
    assert (job.language, job.language_probability) == ("de", 0.6)
    job, found = languages("fr", "fr")
    assert [each.language for each in found] == [None, None]
    assert job.language == "fr"


def test_what_cannot_be_split_is_refused(model: Whisper) -> None:
    with pytest.raises(OptionError, match="every channel has a beginning of its own"):
        model.transcribe(SOUND, channels="split", transcript_prefix="So")
    with pytest.raises(OptionError, match="channels is 'left'; expected one of mix, split"):
        model.transcribe(SOUND, channels="left")
    model.transcribe(SOUND[:16000], channels="split", batch_size=3, **PLAIN)
    with pytest.raises(OptionError, match="batch_size is 3"):
        model.transcribe(SOUND[:16000], batch_size=3, **PLAIN)
