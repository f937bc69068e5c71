"""Recordings that are decoded while they arrive have the samples of whole ones."""

from __future__ import annotations

import io
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile

from whisper_opt.audio.arriving import Arriving
from whisper_opt.audio.decode import decoded_on_arrival, load_audio, open_audio, reopenable
from whisper_opt.core.arrays import F32

SPEECH = load_audio(Path(__file__).parents[2] / "examples" / "jfk.flac")
RATE = 16_000
WAIT = 120.0


def encoded(form: str, subtype: str | None = None, rate: int = RATE) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.tile(SPEECH, 3)[: 30 * RATE], rate, format=form, subtype=subtype)
    return file.getvalue()


FILES = {
    "wav": encoded("WAV"),
    "wav float": encoded("WAV", "FLOAT"),
    "wav with a tag at its end": encoded("WAV") + b"LIST\x04\0\0\0INFO",
    "flac": encoded("FLAC"),
    "mp3": encoded("MP3", rate=44_100),
    "mp3 with a tag": encoded("MP3", rate=44_100) + b"TAG" + bytes(125),
    "ogg": encoded("OGG"),
}


def decoded_in_steps(data: bytes) -> F32:
    """The samples of a file that arrives in ten parts."""
    source = Arriving(len(data), lambda start, n: data[start : start + n])
    found: list[F32] = []
    thread = threading.Thread(target=lambda: found.append(load_audio(source)))
    thread.start()
    for share in range(1, 11):
        source.arrived(len(data) * share // 10)
    thread.join(WAIT)
    return found[0]


@pytest.mark.parametrize("name", FILES)
def test_samples_are_those_of_the_whole_file(name: str) -> None:
    data = FILES[name]
    assert np.array_equal(decoded_in_steps(data), load_audio(data))


@pytest.mark.parametrize("name", ["wav", "wav float", "flac", "mp3", "mp3 with a tag"])
def test_samples_come_before_the_end(name: str) -> None:
    data = FILES[name]
    assert decoded_on_arrival(data[:12])
    source = Arriving(len(data), lambda start, n: data[start : start + n])
    source.arrived(len(data) * 3 // 4)
    with open_audio(source) as stream:
        first = next(stream)  # without the end
        assert np.array_equal(first, load_audio(data)[: len(first)])
        source.arrived(len(data))


def test_other_formats_are_read_from_their_end() -> None:
    assert not decoded_on_arrival(FILES["ogg"][:12])
    assert not decoded_on_arrival(b"\0\0\0\x20ftypM4A ")
    assert not decoded_on_arrival(b"RIFF\0\0\0\0AVI ")


def test_a_recording_that_breaks_off_ends_there() -> None:
    data = FILES["wav"]
    source = Arriving(len(data), lambda start, n: data[start : start + n])
    source.arrived(len(data) // 2)
    source.break_off()
    found = load_audio(source)
    assert 0 < len(found) < 16 * RATE


def test_a_file_that_waits_does_not_delay_others() -> None:
    """libsndfile reads the tag at the end of a wav before it opens the file."""
    data = FILES["wav with a tag at its end"]
    source = Arriving(len(data), lambda start, n: data[start : start + n])
    source.arrived(len(data) // 2)
    found: list[F32] = []
    thread = threading.Thread(target=lambda: found.append(load_audio(source)))
    thread.start()
    other = []
    second = threading.Thread(target=lambda: other.append(load_audio(FILES["flac"])))
    second.start()
    second.join(WAIT)
    assert len(other) == 1
    source.arrived(len(data))
    thread.join(WAIT)
    assert np.array_equal(found[0], load_audio(data))


def test_one_that_arrives_can_be_opened_several_times() -> None:
    data = FILES["wav"]
    source = Arriving(len(data), lambda start, n: data[start : start + n])
    again = reopenable(source)
    source.arrived(len(data))
    for _ in range(2):
        assert np.array_equal(load_audio(again), load_audio(data))
