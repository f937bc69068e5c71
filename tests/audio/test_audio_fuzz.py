"""Damaged recordings of every format give an AudioError or samples, and open no other file.

They never crash or hang. WHISPER_OPT_FUZZ sets how many are tried in all, WHISPER_OPT_FUZZ_SEED the
random seed.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile

from tests.support.fuzzing import fuzz, mutations, n_inputs
from whisper_opt.audio.decode import load_audio
from whisper_opt.core.errors import AudioError

BAIT = "bait.flac"
"""A pipe that playlists in the corpus refer to; opening it for reading blocks for ever."""
PLAYLISTS = {
    "concat": f"ffconcat version 1.0\nfile {BAIT}\n",
    "hls": f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{BAIT}\n#EXT-X-ENDLIST\n",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 9 RTP/AVP 0\n",
}


def load(data: bytes) -> None:
    """Decode within small limits."""
    logging.disable(logging.WARNING)
    os.environ["PATH"] = ""
    if not Path(BAIT).exists():
        os.mkfifo(BAIT)
    samples = load_audio(data, max_duration=600, max_audio_bytes=1 << 26)
    assert samples.dtype == np.float32
    assert 0 < len(samples) <= 600 * 16_000
    assert np.isfinite(samples).all()


def load_by_libav(data: bytes) -> None:
    """Decode without libsndfile."""
    modules: dict[str, Any] = sys.modules
    modules["soundfile"] = None
    load(data)


def _by_soundfile(samples: Any, format: str, subtype: str | None = None) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, 16_000, format=format, subtype=subtype)
    return file.getvalue()


def _by_av(samples: Any, format: str, codec: str) -> bytes:
    import av

    file = io.BytesIO()
    rate = 48_000 if codec == "libopus" else 16_000
    with av.open(file, "w", format=format) as container:
        stream = container.add_stream(codec, rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
        frame.sample_rate = rate
        resampler = av.AudioResampler(stream.format, "mono", rate, frame_size=stream.frame_size)
        for piece in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(stream.encode(piece))
        container.mux(stream.encode(None))
    return file.getvalue()


def corpus() -> dict[str, bytes]:
    """0.2 s of audio in every container format, and playlists."""
    samples = np.sin(np.arange(3200) ** 1.3 / 40).astype(np.float32) / 2
    stereo = np.stack([samples, -samples], axis=1)
    found = {name: text.encode() for name, text in PLAYLISTS.items()}
    for format in ("WAV", "FLAC", "MP3", "AU", "AIFF", "W64", "CAF"):
        found[format] = _by_soundfile(samples, format)
    found["float wav"] = _by_soundfile(stereo, "WAV", "FLOAT")
    found["adpcm wav"] = _by_soundfile(samples, "WAV", "IMA_ADPCM")
    found["vorbis"] = _by_soundfile(samples, "OGG", "VORBIS")
    found["opus"] = _by_soundfile(stereo, "OGG", "OPUS")
    for format, codec in (
        ("ipod", "aac"),
        ("adts", "aac"),
        ("mpegts", "aac"),
        ("webm", "libopus"),
        ("matroska", "pcm_s16le"),
        ("avi", "pcm_s16le"),
        ("ipod", "alac"),
        ("tta", "tta"),
        ("wv", "wavpack"),
        ("flv", "aac"),
        ("asf", "mp2"),
        ("mpeg", "mp2"),
        ("mov", "pcm_s16be"),
    ):
        found[f"{format} {codec}"] = _by_av(samples, format, codec)
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="limits on time and memory")
@pytest.mark.fuzz
@pytest.mark.parametrize(("target", "share"), [("load", 0.7), ("load_by_libav", 0.3)])
def test_damaged_recordings_are_harmless(target: str, share: float) -> None:
    seed = int(os.environ.get("WHISPER_OPT_FUZZ_SEED", 1))
    n = round(share * n_inputs(10_000))
    failures = fuzz(f"{__name__}:{target}", corpus(), n, seed=seed)
    assert not failures, "\n\n".join(map(str, failures))


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX pipes")
@pytest.mark.parametrize("name", list(PLAYLISTS))
@pytest.mark.parametrize("as_file", [False, True], ids=["bytes", "file"])
def test_playlists_are_refused(
    name: str, as_file: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(Path(__file__).parents[1] / "data/speech/formats/jfk-48k-mono-s24.flac", BAIT)
    path = tmp_path / "recording.m4a"
    path.write_text(PLAYLISTS[name])
    with pytest.raises(AudioError, match="cannot be decoded as audio"):
        load_audio(path if as_file else path.read_bytes())


class Container:
    """One track of packets with 160 samples each, or errors of reading or decoding."""

    duration = start_time = None
    format = SimpleNamespace(name="adts")

    def __init__(self, packets: list[Any]) -> None:
        track = SimpleNamespace(duration=None, start_time=None, time_base=None)
        self.streams = SimpleNamespace(audio=[track])
        self._packets = iter(packets)

    def __enter__(self) -> Container:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def demux(self, _: Any) -> Any:
        for packet in self._packets:
            if isinstance(packet, Exception):
                raise packet
            yield packet


def packet(n_channels: int = 1, error: Exception | None = None) -> Any:
    def read() -> Any:
        assert n_channels <= 8, "PyAV would crash"
        return np.ones((n_channels, 160), np.float32)

    def decode() -> Any:
        if error is not None:
            raise error
        return [frame]

    frame = SimpleNamespace(
        samples=160, sample_rate=16_000, pts=None, time_base=None, to_ndarray=read
    )
    frame.layout = SimpleNamespace(nb_channels=n_channels)
    frame.format = SimpleNamespace(is_planar=True)
    return SimpleNamespace(size=100, duration=160, time_base=1 / 16_000, decode=decode)


@pytest.mark.parametrize(
    "damaged",
    [packet(45), packet(error=IndexError("list index out of range")), packet(error=EOFError())],
    ids=["45 planes", "index", "end"],
)
def test_a_packet_that_pyav_cannot_handle_is_silence(
    damaged: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    container = Container([packet(), damaged, packet(), packet()])
    monkeypatch.setattr("av.open", lambda *_, **__: container)
    samples = load_audio(b"????" * 100)
    assert samples.reshape(-1, 160).mean(axis=1).tolist() == [1, 0, 1, 1]


def test_single_read_errors_are_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    container = Container([packet(), IndexError("list index out of range"), packet()])
    monkeypatch.setattr("av.open", lambda *_, **__: container)
    assert len(load_audio(b"????" * 100)) == 320


def test_permanent_read_errors_end_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    container = Container([packet()])

    def demux(_: Any) -> Any:
        yield from container._packets
        raise OSError(5, "Input/output error")

    container.demux = demux  # type: ignore[method-assign]
    monkeypatch.setattr("av.open", lambda *_, **__: container)
    assert len(load_audio(b"????" * 100)) == 160


def test_offsets_before_the_file_print_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    """libsndfile seeks to offsets from damaged headers; soundfile would print a traceback."""
    kinds = [data for name, data in corpus().items() if name in ("AIFF", "CAF", "W64", "WAV")]
    for data in mutations(5, kinds, 400):
        with contextlib.suppress(AudioError):
            load_audio(data, max_duration=600, max_audio_bytes=1 << 26)
    assert capfd.readouterr().err == ""
