"""Recordings that are late, have gaps, are damaged, too long, or whose channels cancel out."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest
import soundfile

from whisper_opt.audio.decode import load_audio, open_audio
from whisper_opt.audio.downmix import Downmix
from whisper_opt.audio.media import Damage
from whisper_opt.core.arrays import F32
from whisper_opt.core.errors import AudioError, OptionError
from whisper_opt.core.options import TranscribeOptions
from whisper_opt.core.remedies import install_hint

ROOT = Path(__file__).parents[2]


def noise(seconds: float, rate: int = 16_000) -> F32:
    """Noise of varying loudness, so that every moment can be identified."""
    draw = np.random.default_rng(1).standard_normal(round(seconds * rate))
    smooth = np.convolve(draw, np.ones(8) / 8, "same")
    return (0.2 * smooth * (1.5 + np.sin(np.arange(len(draw)) / rate * 3))).astype(np.float32)


def by_soundfile(samples: F32, format: str, subtype: str | None = None) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, 16_000, format=format, subtype=subtype)
    return file.getvalue()


def by_av(
    samples: F32,
    format: str,
    codec: str,
    at: Callable[[float], float] | None = None,
    options: dict[str, str] | None = None,
) -> bytes:
    """Encode; with ``at``, beside a picture at 0 s, and with packets at other times."""
    import av

    file = io.BytesIO()
    rate = 48_000 if codec == "libopus" else 16_000
    samples = np.repeat(samples, rate // 16_000)
    with av.open(file, "w", format=format, options=options or {}) as container:
        stream = container.add_stream(codec, rate=rate, layout="mono")
        if at is not None:
            picture = container.add_stream("mpeg4" if format == "mp4" else "libvpx", rate=5)
            picture.width = picture.height = 64
            picture.pix_fmt = "yuv420p"
            image = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
            container.mux(picture.encode(image))
            container.mux(picture.encode(None))
        frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
        frame.sample_rate = rate
        frame.pts = 0
        size = stream.frame_size or 320
        resampler = av.AudioResampler(stream.format, "mono", rate, frame_size=size)
        for piece in [*resampler.resample(frame), *resampler.resample(None), None]:
            for packet in stream.encode(piece):
                if at is not None:
                    moved = round(at(float(packet.pts * packet.time_base)) / packet.time_base)
                    packet.pts = packet.dts = moved
                container.mux(packet)
    return file.getvalue()


def envelope(samples: F32) -> F32:
    """Loudness in steps of 10 ms."""
    steps = samples[: len(samples) // 160 * 160].reshape(-1, 160)
    loudness: F32 = np.sqrt(np.square(steps).mean(axis=1))
    return loudness


def offset(samples: F32, expected: F32) -> float:
    """Seconds by which ``samples`` are later than ``expected``."""
    a, b = (envelope(each) - envelope(each).mean() for each in (samples, expected))
    n = 1 << (len(a) + len(b)).bit_length()
    found = np.fft.irfft(np.fft.rfft(a, n) * np.conj(np.fft.rfft(b, n)), n)
    return float((np.argmax(found) + n // 2) % n - n // 2) / 100


# Time


@pytest.mark.parametrize(
    ("format", "codec"), [("mp4", "aac"), ("webm", "libopus"), ("matroska", "pcm_s16le")]
)
class TestTime:
    def test_a_track_that_begins_late(self, format: str, codec: str) -> None:
        data = by_av(noise(3), format, codec, lambda t: t + 4)
        with open_audio(data) as stream:
            assert stream.duration == pytest.approx(7, abs=0.15)
        samples = load_audio(data)
        assert len(samples) / 16_000 == pytest.approx(7, abs=0.15)
        assert not samples[: 16_000 * 39 // 10].any()
        assert offset(samples, noise(3)) == pytest.approx(4, abs=0.08)

    def test_packets_that_are_missing(self, format: str, codec: str) -> None:
        samples = load_audio(by_av(noise(4), format, codec, lambda t: t + 10 * (t > 1.999)))
        assert len(samples) / 16_000 == pytest.approx(14, abs=0.15)
        assert not samples[16_000 * 22 // 10 : 16_000 * 118 // 10].any()
        assert offset(samples[:35_200], noise(4)[:32_000]) == pytest.approx(0, abs=0.08)
        assert offset(samples[188_000:], noise(4)[28_000:]) == pytest.approx(0, abs=0.08)

    def test_times_that_are_rounded_add_nothing(self, format: str, codec: str) -> None:
        plain = load_audio(by_av(noise(3), format, codec, lambda t: t))
        rounded = load_audio(by_av(noise(3), format, codec, lambda t: round(t * 25) / 25 + 0.04))
        if codec == "aac":  # of which the first frame may be left out
            assert abs(len(rounded) - len(plain)) <= 1024
            plain = plain[-40_000:]
        np.testing.assert_array_equal(rounded[-len(plain) :], plain)

    def test_the_silence_counts_for_limits(self, format: str, codec: str) -> None:
        data = by_av(noise(1), format, codec, lambda t: t + 4000)
        with pytest.raises(AudioError, match=r"max_duration \(100 s\)"):
            load_audio(data, max_duration=100)
        with pytest.raises(AudioError, match="max_audio_bytes"):
            load_audio(data, max_audio_bytes=1_000_000)


def test_times_that_restart_lose_nothing() -> None:
    data = by_av(noise(3), "mpegts", "aac")
    assert len(load_audio(data + data)) == pytest.approx(2 * len(load_audio(data)), abs=2048)


# Damage


DAMAGED = {
    "flac": lambda x: by_soundfile(x, "FLAC"),
    "vorbis": lambda x: by_soundfile(x, "OGG", "VORBIS"),
    "opus": lambda x: by_soundfile(x, "OGG", "OPUS"),
    "mp3": lambda x: by_soundfile(x, "MP3"),
    "aac": lambda x: by_av(x, "adts", "aac"),
    "ts": lambda x: by_av(x, "mpegts", "aac"),
    "m4a": lambda x: by_av(x, "ipod", "aac"),
    "alac": lambda x: by_av(x, "ipod", "alac"),
    "webm": lambda x: by_av(x, "webm", "libopus"),
}


@pytest.fixture(scope="module", params=list(DAMAGED))
def kind(request: pytest.FixtureRequest) -> tuple[str, bytes]:
    """Twelve seconds in one format."""
    return request.param, DAMAGED[request.param](noise(12))


@pytest.mark.parametrize("n_bytes", [8, 600])
def test_damage_is_skipped_and_times_stay(
    kind: tuple[str, bytes], n_bytes: int, caplog: pytest.LogCaptureFixture, capfd: Any
) -> None:
    name, data = kind
    expected = load_audio(data)
    middle = len(data) // 2
    changed = np.random.default_rng(n_bytes).integers(0, 256, n_bytes, np.uint8).tobytes()
    damaged = data[:middle] + changed + data[middle + n_bytes :]
    samples = load_audio(damaged)
    assert len(samples) / 16_000 == pytest.approx(12, abs=0.15), name
    np.testing.assert_allclose(samples[:60_000], expected[:60_000], atol=1e-5)
    assert offset(samples[-48_000:], expected[-48_000:]) == pytest.approx(0, abs=0.11)
    logged = caplog.text
    assert capfd.readouterr().err == ""  # no output of decoders
    if "could not be decoded" in logged:
        with pytest.raises(AudioError, match=r"is damaged: .* cannot be decoded"):
            load_audio(damaged, strict_audio=True)
    if name in ("flac", "aac") or (name == "alac" and n_bytes == 600):
        assert "could not be decoded" in logged
    assert "Operation not permitted" not in logged


@pytest.mark.parametrize("format", ["FLAC", "WAV", "MP3"])
def test_a_damaged_whole_is_an_error(format: str) -> None:
    data = by_soundfile(noise(3), format)
    chance = np.random.default_rng(2).integers(0, 256, len(data), np.uint8).tobytes()
    with pytest.raises(AudioError):
        load_audio(chance)


def test_what_is_mostly_damaged_is_an_error() -> None:
    data = bytearray(by_av(noise(6), "ipod", "alac"))
    start = data.index(b"mdat") + 4
    chance = np.random.default_rng(3).integers(0, 256, len(data), np.uint8).tobytes()
    size = int.from_bytes(data[start - 8 : start - 4], "big") - 8
    data[start + size // 5 : start + size] = chance[: size - size // 5]
    with pytest.raises(AudioError, match=r"damaged: \d+ of \d+ packets"):
        load_audio(bytes(data))


def test_flac_is_read_up_to_damage_without_pyav(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    monkeypatch.setenv("PATH", "")
    data = bytearray(by_soundfile(noise(12), "FLAC"))
    data[len(data) // 2 : len(data) // 2 + 600] = bytes(600)
    samples = load_audio(bytes(data))
    assert 5.5 < len(samples) / 16_000 < 6.1
    np.testing.assert_allclose(samples, noise(12)[: len(samples)], atol=2**-14)
    assert install_hint("audio") in caplog.text


def test_damage_that_is_near_is_one_part(caplog: pytest.LogCaptureFixture) -> None:
    damage = Damage("x.ts", strict=False)
    damage.lost(1.0, 1.02, "y")
    damage.lost(1.3, 1.32, "y")
    damage.lost(5.0, 5.0, "y")
    assert damage.found
    damage.report()
    damage.report()
    assert [record.getMessage() for record in caplog.records] == [
        "x.ts: 1.00-1.32 s, about 5.00 s could not be decoded"
    ]


def test_many_damaged_parts_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    damage = Damage("x.ts", strict=False)
    for start in range(0, 80, 10):
        damage.lost(start, start + 1, "y")
    damage.report()
    assert "40.00-41.00 s and 3 more parts could not be decoded" in caplog.text


# Limits


def endless() -> Any:
    """An endless file object."""

    class Endless(io.RawIOBase):
        def read(self, size: int = -1) -> bytes:
            return bytes(size if size > 0 else 1 << 16)

    return Endless()


@pytest.mark.parametrize("kind", ["array", "path", "bytes", "file object"])
def test_duration_is_limited_for_every_source(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "long.flac"
    path.write_bytes(by_soundfile(np.zeros(16_000 * 21, np.float32), "FLAC"))
    source: Any = {
        "array": np.zeros(16_000 * 21, np.float32),
        "path": path,
        "bytes": path.read_bytes(),
        "file object": io.BytesIO(path.read_bytes()),
    }[kind]
    with pytest.raises(AudioError, match=r"max_duration \(20 s\)"):
        load_audio(source, max_duration=20)
    if kind == "file object":
        source.seek(0)
    with open_audio(source, max_duration=20) as stream, pytest.raises(AudioError, match="20 s"):
        list(stream)


def test_exactly_the_longest_duration_is_read() -> None:
    assert len(load_audio(np.zeros(32_000, np.float32), max_duration=2)) == 32_000


def test_memory_is_limited() -> None:
    silent = by_soundfile(np.zeros(16_000 * 100, np.float32), "FLAC")
    assert len(silent) < 20_000
    with pytest.raises(AudioError, match=r"max_audio_bytes \(1000000\).*batched"):
        load_audio(silent, max_audio_bytes=1_000_000)
    with open_audio(silent, max_audio_bytes=1_000_000) as stream:  # a stream does not keep them all
        assert sum(map(len, stream)) == 1_600_000


def test_a_file_object_without_end_is_refused() -> None:
    with pytest.raises(AudioError, match=r"more than max_audio_bytes \(5000000\)"):
        load_audio(endless(), max_audio_bytes=5_000_000)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX pipes")
def test_a_pipe_without_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)

    def write() -> None:
        with open(path, "wb", buffering=0) as pipe:
            try:
                while True:
                    pipe.write(bytes(1 << 16))
            except BrokenPipeError:
                pass

    writer = threading.Thread(target=write)
    writer.start()
    with pytest.raises(AudioError, match="max_audio_bytes"):
        load_audio(path, max_audio_bytes=5_000_000)
    writer.join(10)
    assert not writer.is_alive()


def test_too_many_channels_are_refused() -> None:
    file = io.BytesIO()
    soundfile.write(file, np.zeros((10, 65), np.float32), 16_000, format="WAV")
    with pytest.raises(AudioError, match="65 channels"):
        load_audio(file.getvalue())


def test_limits_are_options() -> None:
    assert TranscribeOptions(max_duration=60, strict_audio=True).reading == {
        "max_duration": 60,
        "max_audio_bytes": 2 << 30,
        "strict_audio": True,
    }
    for bad in ({"max_duration": -1}, {"max_audio_bytes": 0}, {"strict_audio": None}):
        wrong: dict[str, Any] = bad
        with pytest.raises(OptionError, match=next(iter(bad))):
            TranscribeOptions(**wrong)


# Channels


def tone(seconds: float = 4.0) -> F32:
    return (0.3 * np.sin(np.arange(round(seconds * 16_000)) / 9)).astype(np.float32)


@pytest.mark.parametrize("factor", [-1.0, -0.98])
@pytest.mark.parametrize("encoded", [False, True])
def test_channels_in_opposite_phase(
    factor: float, encoded: bool, caplog: pytest.LogCaptureFixture
) -> None:
    stereo = np.stack([tone(), tone() * np.float32(factor)], axis=1)
    samples = load_audio(by_soundfile(stereo, "WAV", "FLOAT") if encoded else stereo)
    np.testing.assert_allclose(np.abs(samples), np.abs(tone()), atol=1e-6)
    (record,) = caplog.records
    assert "opposite phase" in record.getMessage()
    assert "of 2 is used there" in record.getMessage()


@pytest.mark.parametrize(
    "columns",
    [
        [tone(), tone()],
        [tone(), 0 * tone()],
        [tone(), -0.5 * tone()],
        [tone(), np.roll(tone(), 14)],
        [0 * tone()] * 5 + [tone()],
        [1e-5 * tone(), -1e-5 * tone()],  # silence
    ],
    ids=["same", "one", "half", "quarter turn", "one of six", "silence"],
)
def test_other_channels_are_averaged(columns: list[F32], caplog: pytest.LogCaptureFixture) -> None:
    block = np.stack(columns, axis=1).astype(np.float32)
    np.testing.assert_allclose(load_audio(block), block.mean(axis=1), atol=1e-7)
    assert not caplog.records


def test_mixing_changes_over_without_a_click(caplog: pytest.LogCaptureFixture) -> None:
    left = tone(12.0)
    right = left.copy()
    right[64_013:128_026] *= -1  # from one zero of the tone to another
    downmix = Downmix(16_000, "x")
    block = np.stack([left, right], axis=1)
    pieces = [downmix.feed(block[start : start + 1024]) for start in range(0, len(block), 1024)]
    samples = np.concatenate([*pieces, downmix.finish()])
    assert len(samples) == len(left)
    assert np.abs(np.diff(samples)).max() < 0.1  # the tone's own steps are 0.033
    loudness = envelope(samples)
    assert loudness[:400].min() > 0.15
    assert loudness[500:800].min() > 0.15  # decisions are made for a second at a time
    assert loudness[900:].min() > 0.15
    assert len(caplog.records) == 1


# Output of decoders


def test_an_mp3_writes_nothing_on_standard_error(tmp_path: Path) -> None:
    """libmpg123 prints messages about its tag, whose encoding is unknown, and the junk after it."""
    tag = b"ID3\3\0\0\0\0\0\x1aTIT2\0\0\0\x10\0\0\x09" + b"\xff" * 15
    path = tmp_path / "x.mp3"
    path.write_bytes(tag + by_soundfile(noise(2), "MP3") + bytes(400))
    code = f"from whisper_opt.audio.decode import load_audio; print(len(load_audio({str(path)!r})))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, cwd=ROOT, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("32000\n", "")
