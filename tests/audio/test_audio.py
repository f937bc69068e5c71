"""Reading recordings: formats, arrays, resampling, damage."""

from __future__ import annotations

import builtins
import io
import os
import pathlib
import stat
import sys
import threading
import tracemalloc
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr

from whisper_opt.audio.decode import STREAM_BLOCK, load_audio, open_audio
from whisper_opt.core.arrays import F32, NDArray
from whisper_opt.core.errors import AudioError

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="POSIX permissions and pipes")


def sound(seconds: float = 1.0, rate: int = 16_000, n_channels: int = 1) -> F32:
    """A sweep from 100 to 3,000 Hz, [n] or [n, n_channels]; channel c is c+1 times quieter."""
    time = np.arange(round(seconds * rate)) / rate
    sweep = 0.5 * np.sin(2 * np.pi * (100 * time + 1450 * time**2 / max(seconds, 1e-9)))
    channels = np.stack([sweep / (c + 1) for c in range(n_channels)], axis=1).astype(np.float32)
    return channels[:, 0] if n_channels == 1 else channels


def encode(samples: NDArray, rate: int, format: str, subtype: str | None = None, **k: Any) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=format, subtype=subtype, **k)
    return file.getvalue()


def encode_av(
    target: Any, samples: F32, rate: int, format: str, codec: str, options: dict[str, str]
) -> None:
    import av

    with av.open(target, "w", format=format, options=options) as container:
        stream = container.add_stream(codec, rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
        frame.sample_rate = rate
        resampler = av.AudioResampler(stream.format, "mono", rate, frame_size=stream.frame_size)
        for piece in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(stream.encode(piece))
        container.mux(stream.encode(None))


def wav(samples: NDArray | None = None, rate: int = 16_000, subtype: str = "FLOAT") -> bytes:
    return encode(sound() if samples is None else samples, rate, "WAV", subtype)


@pytest.fixture
def only_soundfile(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    """Neither PyAV nor an ffmpeg program."""
    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))


# Sources


def test_every_kind_of_source_gives_the_same_samples(tmp_path: pathlib.Path) -> None:
    data, expected = wav(), sound()
    path = tmp_path / "ünï code.wav"
    path.write_bytes(data)
    sources: list[Any] = [path, str(path), data, bytearray(data), memoryview(data)]
    sources += [io.BytesIO(data), expected]
    with open(path, "rb") as file:
        for source in [*sources, file]:
            samples = load_audio(source)
            assert samples.dtype == np.float32
            assert samples.flags.c_contiguous
            np.testing.assert_array_equal(samples, expected)


def test_a_file_object_is_read_from_its_position() -> None:
    file = io.BytesIO(b"prefix" + wav())
    file.seek(6)
    np.testing.assert_array_equal(load_audio(file), sound())
    with pytest.raises(AudioError, match=r"empty.*seek\(0\)"):
        load_audio(file)


@posix_only
def test_a_pipe_is_read(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_bytes, args=(wav(),))
    writer.start()
    samples = load_audio(path)
    writer.join()
    np.testing.assert_array_equal(samples, sound())


def test_a_wav_may_be_named_raw(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "sound.raw"
    path.write_bytes(wav())
    np.testing.assert_allclose(load_audio(path), sound(), atol=1e-6)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (b"", "empty"),
        (io.BytesIO(), "empty"),
        (io.StringIO("text"), "binary mode"),
        (3, "source is int"),
        (None, "source is NoneType"),
        ([0.0, 0.1], "source is list"),
        ("zero\0byte", "cannot open.*null"),
    ],
)
def test_sources_that_cannot_be_read(source: Any, message: str) -> None:
    with pytest.raises(AudioError, match=message):
        load_audio(source)


def test_a_closed_file(tmp_path: pathlib.Path) -> None:
    file = io.BytesIO(wav())
    file.close()
    with pytest.raises(AudioError, match="closed"):
        load_audio(file)


def test_paths_that_cannot_be_read(tmp_path: pathlib.Path) -> None:
    (tmp_path / "empty.wav").touch()
    for path, message in [
        (tmp_path / "missing.wav", "missing.wav.*No such file"),
        (tmp_path, "is a directory"),
        (tmp_path / "empty.wav", r"is empty \(0 bytes\)"),
    ]:
        with pytest.raises(AudioError, match=message):
            load_audio(path)


def test_a_file_without_permission(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "secret.wav"
    path.write_bytes(wav())

    def refuse(*_: Any, **__: Any) -> None:  # chmod would not stop a test that runs as root
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(builtins, "open", refuse)
    with pytest.raises(AudioError, match=r"secret.wav.*Permission denied"):
        load_audio(path)


@posix_only
def test_a_device_is_refused() -> None:
    with pytest.raises(AudioError, match="device"):
        load_audio("/dev/zero")


def test_a_rate_is_for_arrays_only() -> None:
    with pytest.raises(AudioError, match="arrays only"):
        load_audio(wav(), sample_rate=16_000)


# Formats


@pytest.mark.parametrize(
    ("format", "subtype", "tolerance"),
    [
        ("WAV", "PCM_U8", 2**-7),
        ("WAV", "PCM_16", 2**-15),
        ("WAV", "PCM_24", 2**-23),
        ("WAV", "PCM_32", 2**-24),
        ("WAV", "DOUBLE", 0),
        ("WAV", "ULAW", 0.02),
        ("RF64", "PCM_16", 2**-15),
        ("AIFF", "PCM_16", 2**-15),
        ("FLAC", "PCM_24", 2**-23),
        ("MP3", "MPEG_LAYER_III", 0.15),
        ("OGG", "VORBIS", 0.1),
        ("OGG", "OPUS", 0.1),
    ],
)
@pytest.mark.usefixtures("only_soundfile")
def test_soundfile_formats(format: str, subtype: str, tolerance: float) -> None:
    samples = load_audio(encode(sound(), 16_000, format, subtype))
    assert len(samples) == 16_000
    inside = slice(500, -500)  # lossy codecs smear the abrupt ends
    np.testing.assert_allclose(samples[inside], sound()[inside], atol=tolerance, rtol=0)


@pytest.mark.parametrize(
    ("format", "codec", "rate"),
    [("ipod", "aac", 44_100), ("webm", "libopus", 48_000), ("adts", "aac", 16_000)],
    ids=["m4a", "webm", "aac"],
)
def test_pyav_formats(format: str, codec: str, rate: int) -> None:
    file = io.BytesIO()
    encode_av(file, sound(2.0, rate), rate, format, codec, {})
    samples = load_audio(file.getvalue())
    expected = sound(2.0)
    n_shared = min(len(samples), len(expected))
    assert abs(len(samples) - len(expected)) < 3000  # a codec's delay and its last, padded frame
    # Delay differs from codec to codec: compare spectra, not samples.
    mine, truth = (np.abs(np.fft.rfft(each[:n_shared])) for each in (samples, expected))
    assert np.corrcoef(mine, truth)[0, 1] > 0.98


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
def test_pyav_scales_every_sample_format_as_soundfile_does(
    subtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = wav(sound(0.5, 44_100, 2), 44_100, subtype)
    expected = load_audio(data)
    monkeypatch.setitem(sys.modules, "soundfile", None)
    np.testing.assert_allclose(load_audio(data), expected, atol=1e-6, rtol=0)


@pytest.mark.usefixtures("only_soundfile")
def test_a_format_that_needs_pyav_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    data = b"\0\0\0\x20ftypM4A \0\0\2\0isomiso2mp41" + bytes(100)
    with pytest.raises(AudioError, match=r"pip install '\.\[audio\]'.*PATH"):
        load_audio(data)


@pytest.mark.usefixtures("only_soundfile")
@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("soundfile", r"soundfile: not installed \(pip install soundfile\)"),
        ("_cffi_backend", r"_cffi_backend is not installed \(pip install soundfile\)"),
    ],
)
def test_a_missing_package_is_named(
    missing: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of soundfile, or of what it needs."""
    for name in ("soundfile", "_soundfile"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(AudioError, match=said):
        load_audio(wav(sound(0.5, 16_000, 1), 16_000, "PCM_16"))


def test_text_named_wav(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "notes.wav"
    path.write_text("not audio at all\n" * 500)
    with pytest.raises(AudioError, match=r"notes.wav.* cannot be decoded as audio"):
        load_audio(path)


def test_a_video_without_audio() -> None:
    import av

    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        picture = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
        container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    with pytest.raises(AudioError, match="no audio track"):
        load_audio(file.getvalue())


# Mixing and resampling


def test_channels_are_averaged(tmp_path: pathlib.Path) -> None:
    for n_channels in (2, 3, 6):
        channels = sound(0.2, n_channels=n_channels)
        expected = channels.astype(np.float64).mean(axis=1)
        np.testing.assert_allclose(load_audio(channels), expected, atol=1e-7)
        np.testing.assert_allclose(load_audio(wav(channels)), expected, atol=1e-7)


@pytest.mark.parametrize("rate", [1_000, 8_000, 11_025, 22_050, 44_100, 48_000, 192_000, 768_000])
def test_the_stream_of_blocks_equals_one_resampling(rate: int) -> None:
    samples = sound(min(3.0, 300_000 / rate), rate)  # several blocks, except at the lowest rates
    expected = soxr.resample(samples, rate, 16_000, quality="HQ")
    np.testing.assert_allclose(load_audio(samples, sample_rate=rate), expected, atol=1e-6)
    np.testing.assert_allclose(load_audio(wav(samples, rate)), expected, atol=1e-6)


def test_resampling_keeps_the_signal() -> None:
    samples = load_audio(sound(3.0, 44_100), sample_rate=44_100)
    assert len(samples) == 48_000
    np.testing.assert_allclose(samples[200:-200], sound(3.0)[200:-200], atol=1e-3)


def test_memory_is_little_more_than_the_result(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "long.wav"
    soundfile.write(path, np.zeros((1_200_000, 2), np.int16), 8_000)  # 150 s
    load_audio(path)
    tracemalloc.start()
    try:
        samples = load_audio(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1.25 * samples.nbytes + 3_000_000


# Streams


@pytest.mark.parametrize("rate", [1_000, 8_000, 16_000, 44_100, 96_000])
@pytest.mark.parametrize("kind", ["array", "wav", "pyav"])
def test_a_stream_has_the_samples_of_the_whole_in_equal_blocks(
    rate: int, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = sound(9.5, rate, 2)
    given: Any = samples if kind == "array" else wav(samples, rate)
    if kind == "pyav":
        monkeypatch.setitem(sys.modules, "soundfile", None)
    at: dict[str, Any] = {"sample_rate": rate} if kind == "array" else {}
    expected = load_audio(given, **at)
    with open_audio(given, **at) as stream:
        assert stream.duration == pytest.approx(9.5)
        blocks = list(stream)
    assert [len(block) for block in blocks] == [STREAM_BLOCK, STREAM_BLOCK, len(expected) % 64_000]
    assert all(block.dtype == np.float32 for block in blocks)
    assert not any(np.shares_memory(block, samples) for block in blocks)
    np.testing.assert_array_equal(np.concatenate(blocks), expected)


def test_a_stream_of_less_than_a_block() -> None:
    (block,) = open_audio(sound(0.5))
    np.testing.assert_array_equal(block, sound(0.5))


@pytest.mark.parametrize(("format", "codec"), [("ipod", "aac"), ("webm", "libopus")])
def test_duration_by_the_header_of_a_container(format: str, codec: str) -> None:
    file = io.BytesIO()
    encode_av(file, sound(3.0, 48_000), 48_000, format, codec, {})
    with open_audio(file.getvalue()) as stream:
        assert stream.duration == pytest.approx(3.0, abs=0.1)


@pytest.mark.parametrize("format", ["FLAC", "MP3", "OGG"])
def test_duration_by_the_header_of_a_file(format: str) -> None:
    with open_audio(encode(sound(3.0), 16_000, format)) as stream:
        assert stream.duration == pytest.approx(3.0, abs=0.15)


def test_invalid_audio_is_refused_when_it_is_opened() -> None:
    refused: list[tuple[Any, str]] = [
        (np.zeros(0, np.float32), "no samples"),
        (wav(np.zeros(0, np.float32)), "no samples"),
        (np.zeros(10, np.complex64), "complex64"),
        (b"????" * 100, "cannot be decoded"),
    ]
    for source, message in refused:
        with pytest.raises(AudioError, match=message):
            open_audio(source)


def test_later_damage_raises_at_its_place() -> None:
    samples = sound(20.0)
    samples[200_000] = np.nan
    stream = open_audio(wav(samples))
    np.testing.assert_array_equal(next(stream), samples[:STREAM_BLOCK])
    with pytest.raises(AudioError, match="NaN"):
        for _ in stream:
            pass
    assert list(stream) == []


def test_closing_a_stream_closes_the_file(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "sound.wav"
    path.write_bytes(wav(sound(20.0)))
    folder = pathlib.Path("/proc/self/fd")
    if not folder.is_dir():
        pytest.skip("no list of open files here")

    def is_open() -> bool:
        return any(os.path.realpath(link) == str(path) for link in folder.iterdir())

    for leave in ("close", "with", "end"):
        stream = open_audio(path)
        assert is_open(), leave
        if leave == "close":
            stream.close()
            assert list(stream) == []
        elif leave == "with":
            with stream:
                next(stream)
        else:
            list(stream)
        assert not is_open(), leave


def test_a_stream_keeps_a_block_not_the_recording(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "long.flac"
    soundfile.write(path, np.zeros((3_200_000, 2), np.int16), 16_000)  # 200 s, 12.8 MB
    load_audio(path)
    tracemalloc.start()
    try:
        with open_audio(path) as stream:
            assert sum(map(len, stream)) == 3_200_000
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 3_000_000


@pytest.mark.parametrize("parts", [1, 2])
def test_another_decoder_takes_over_before_the_first_block_only(parts: int) -> None:
    """libsndfile would read only the first of two; no samples may be lost or repeated."""
    data = encode(sound(8.0), 16_000, "OGG") * parts
    with open_audio(data) as stream:
        blocks = list(stream)
    np.testing.assert_array_equal(np.concatenate(blocks), load_audio(data))
    assert sum(map(len, blocks)) == pytest.approx(parts * 8.0 * 16_000, abs=4_000)


# Arrays


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.array([0, 128, 255], np.uint8), [-1, 0, 127 / 128]),
        (np.array([0, 32768, 65535], np.uint16), [-1, 0, 32767 / 32768]),
        (np.array([0, 2**31, 2**32 - 1], np.uint32), [-1, 0, 1]),
        (np.array([-128, 0, 64], np.int8), [-1, 0, 0.5]),
        (np.array([-32768, 1, 16384], np.int16), [-1, 2**-15, 0.5]),
        (np.array([-(2**31), 0, 2**30], np.int32), [-1, 0, 0.5]),
        (np.array([-(2**63), 0, 2**62], np.int64), [-1, 0, 0.5]),
        (np.array([-32768, 1, 16384], ">i2"), [-1, 2**-15, 0.5]),
        (np.array([-(2**22), 0, 2**10], np.int32), [-(2**-9), 0, 2**-21]),  # 24 bits in 32
        (np.array([-256, 0, 256], np.int32), [-(2**-23), 0, 2**-23]),
        (np.zeros(3, np.int64), [0, 0, 0]),
        (np.array([-8, 0, 8], np.float32), [-8, 0, 8]),
        (np.array([-3.5, 0, 0.25], np.float16), [-3.5, 0, 0.25]),
        (np.array([-3.5, 0, 0.25], np.float64), [-3.5, 0, 0.25]),
    ],
    ids=lambda value: str(value.dtype) if isinstance(value, np.ndarray) else "",
)
def test_array_types(array: NDArray, expected: list[float]) -> None:
    samples = load_audio(array)
    assert samples.dtype == np.float32
    np.testing.assert_array_equal(samples, np.array(expected, np.float32))


def test_the_result_never_shares_memory_with_the_array() -> None:
    array = sound()
    assert not np.shares_memory(load_audio(array), array)
    array.flags.writeable = False
    assert load_audio(array[::-1]).flags.writeable


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros(10, np.complex64), "complex64"),
        (np.zeros(10, bool), "bool"),
        (np.zeros(10, object), "object"),
        (np.array(["a"]), "<U1"),
        (np.zeros((10, 2, 2), np.float32), r"\[10, 2, 2\]"),
        (np.zeros((), np.float32), r"shape \[\]"),
        (np.zeros((2, 100), np.float32), "transpose"),
        (np.zeros((1, 100), np.float32), "transpose"),
        (np.zeros((80, 3000), np.float32), "3000 channels"),
        (np.zeros(0, np.float32), "no samples"),
        (np.zeros((0, 2), np.float32), "no samples"),
        (np.zeros((10, 0), np.float32), "no samples"),
        (np.array([0.0, np.nan]), "NaN"),
        (np.array([0.0, np.inf]), "infinite"),
        (np.array([0.0, 1e300]), "infinite"),
        (np.array([0.0, 1e30]), "largest sample of 1e"),
        (np.full((4, 2), 3e38, np.float32), "infinite"),
        (np.array([0.0, -23500.0]), r"largest sample of 23,500; .*32768"),
        (np.array([0.0, 92.0], np.float32), "largest sample of 92"),
        (np.array([-300, 5], np.int32), r"from -300 to 5.*astype\(numpy.int16\)"),
        (np.array([-32768, 5]), r"astype\(numpy.int16\)"),
        (np.array([-32769, 5]), r"astype\(numpy.int32\)"),
        (np.array([65535, 32768], np.uint32), r"astype\(numpy.uint16\)"),
    ],
)
def test_arrays_that_are_not_audio(array: NDArray, message: str) -> None:
    with pytest.raises(AudioError, match=message):
        load_audio(array)


@pytest.mark.parametrize("rate", [0, -16_000, 999, 768_001, 16_000.0, "16000", True, float("nan")])
def test_impossible_rates(rate: Any) -> None:
    with pytest.raises(AudioError, match=r"sample.rate"):
        load_audio(sound(0.1), sample_rate=rate)


def test_numpy_integers_are_rates() -> None:
    rate: Any = np.int32(8_000)
    assert len(load_audio(sound(1.0, 8_000), sample_rate=rate)) == 16_000


# Damage


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_wav_with_samples_that_are_not_finite(value: float) -> None:
    samples = sound(10.0)
    samples[150_000] = value
    with pytest.raises(AudioError, match="NaN or infinite"):
        load_audio(wav(samples))


def test_a_wav_without_samples() -> None:
    with pytest.raises(AudioError, match="no samples"):
        load_audio(wav(np.zeros(0, np.float32)))


def test_too_short_for_one_sample() -> None:
    with pytest.raises(AudioError, match="no samples"):
        load_audio(wav(np.zeros(1, np.float32), 192_000))


@pytest.mark.parametrize("rate", [500, 2_000_000])
def test_a_wav_at_an_impossible_rate(rate: int) -> None:
    with pytest.raises(AudioError, match=f"sample rate of {rate} Hz"):
        load_audio(wav(sound(), rate))


@pytest.mark.parametrize("kept", [0.3, 0.6, 0.95])
@pytest.mark.parametrize("format", ["FLAC", "MP3"])
def test_cut_off(format: str, kept: float, caplog: pytest.LogCaptureFixture) -> None:
    data = encode(sound(20.0), 16_000, format)
    cut = data[: int(kept * len(data))]
    with pytest.raises(AudioError, match=r"cut off.*20.0\d s"):
        load_audio(cut, strict_audio=True)
    samples = load_audio(cut)
    assert len(samples) / 16_000 == pytest.approx(
        20 * kept, abs=5
    )  # the bit rate of a sweep varies
    np.testing.assert_allclose(samples[:16_000], load_audio(data)[:16_000], atol=1e-6)
    assert "cut off: it holds" in caplog.text


@pytest.mark.parametrize("format", ["FLAC", "MP3"])
@pytest.mark.usefixtures("only_soundfile")
def test_cut_off_without_pyav(format: str, caplog: pytest.LogCaptureFixture) -> None:
    data = encode(sound(20.0), 16_000, format)
    samples = load_audio(data[: len(data) // 2])
    assert len(samples) > 5 * 16_000
    np.testing.assert_allclose(samples[:-5000], load_audio(data)[: len(samples) - 5000], atol=1e-6)
    assert "cut off: it holds" in caplog.text
    with pytest.raises(AudioError, match="cut off"):
        load_audio(data[: len(data) // 2], strict_audio=True)


def test_cut_off_after_an_id3_tag() -> None:
    data = encode(sound(20.0), 16_000, "MP3")
    assert data[:3] != b"ID3"
    tag = b"ID3\4\0\0" + bytes([0, 0, 0x40, 0]) + bytes(0x40 << 7)
    assert len(load_audio(tag + data)) == 20 * 16_000
    with pytest.raises(AudioError, match="cut off"):
        load_audio(tag + data[: len(data) // 2], strict_audio=True)


@pytest.mark.parametrize("options", [{}, {"movflags": "faststart"}], ids=["index last", "first"])
def test_a_cut_m4a(options: dict[str, str], tmp_path: pathlib.Path) -> None:
    path = tmp_path / "sound.m4a"
    encode_av(str(path), sound(20.0, 44_100), 44_100, "ipod", "aac", options)
    whole = load_audio(path)
    data = path.read_bytes()[: path.stat().st_size // 2]
    with pytest.raises(AudioError):
        load_audio(data, strict_audio=True)
    if options:
        assert 8 < len(load_audio(data)) / 16_000 < 12
        np.testing.assert_array_equal(load_audio(data)[:100_000], whole[:100_000])
    else:  # the index of packets is missing
        with pytest.raises(AudioError):
            load_audio(data)


def test_undetectable_cuts_are_read_to_the_end() -> None:
    for format in ("WAV", "OGG"):
        data = encode(sound(20.0), 16_000, format)
        assert 5 < len(load_audio(data[: len(data) // 2])) / 16_000 < 15


def joined_mp3() -> bytes:
    """20 s at a high and 20 s at a low bit rate, without a header that states the length."""
    pieces: list[bytes] = []
    for level in (0.0, 0.99):
        data = encode(sound(20.0), 16_000, "MP3", bitrate_mode="CONSTANT", compression_level=level)
        rates = [0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160]  # kbit/s, MPEG-2
        first = 72 * rates[data[2] >> 4] * 1000 // 16_000 + (data[2] >> 1 & 1)
        pieces.append(data[first:] if b"Info" in data[:first] else data)
    return b"".join(pieces)


def test_an_mp3_with_a_wrong_length_estimate_is_read_whole() -> None:
    data = joined_mp3()
    with soundfile.SoundFile(io.BytesIO(data)) as file:
        assert file.frames < 30 * 16_000  # libsndfile would stop there
    assert len(load_audio(data)) == pytest.approx(40 * 16_000, abs=4 * 1152)


@pytest.mark.usefixtures("only_soundfile")
def test_an_mp3_that_cannot_be_read_to_its_end_is_an_error() -> None:
    with pytest.raises(AudioError, match=r"\[audio\].*before the end of the file"):
        load_audio(joined_mp3())


def test_ogg_recordings_joined_in_one_file_are_all_read() -> None:
    data = encode(sound(8.0), 16_000, "OGG")
    assert len(load_audio(data + data)) == pytest.approx(16 * 16_000, abs=4_000)


def test_a_flac_that_does_not_state_its_length() -> None:
    data = bytearray(encode(sound(3.0), 16_000, "FLAC", "PCM_16"))
    data[8 + 13] &= 0xF0  # the 36-bit number of samples in STREAMINFO
    data[8 + 14 : 8 + 18] = bytes(4)
    np.testing.assert_allclose(load_audio(bytes(data)), sound(3.0), atol=2**-14)


# The ffmpeg program, replaced by a script


def stub_ffmpeg(folder: pathlib.Path, body: str) -> None:
    """A script ``ffmpeg`` with ``arguments``, ``source`` (bytes of its input) and ``out``."""
    program = folder / "ffmpeg"
    program.write_text(
        f"#!{sys.executable} -S\n"
        "import struct, sys, time\n"
        "arguments = sys.argv[1:]\n"
        "name = arguments[arguments.index('-i') + 1]\n"
        "assert name.startswith('file:/'), name\n"
        "source = open(name[5:], 'rb').read()\n"
        "out = sys.stdout.buffer\n"
        "def header(rate, channels):\n"
        "    out.write(b'.snd' + struct.pack('>5I', 28, 2**32 - 1, 6, rate, channels) + b'note')\n"
        f"{body}\n"
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)


@posix_only
@pytest.mark.usefixtures("only_soundfile")
class TestFfmpeg:
    """The ffmpeg program: its arguments, and the parsing of its output."""

    @pytest.fixture
    def folder(self, tmp_path: pathlib.Path) -> pathlib.Path:
        return tmp_path / "empty"

    def test_audio(self, folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
        stub_ffmpeg(
            folder,
            "assert arguments[arguments.index('-f') + 1] == 'au'\n"
            "assert arguments[arguments.index('-c:a') + 1] == 'pcm_f32be'\n"
            "header(8000, 2)\n"
            "out.write(source[4:])",
        )
        stereo = sound(20.0, 8_000, 2)
        data = b"????" + stereo.astype(">f4").tobytes()
        path = tmp_path / "x|y.unknown"
        path.write_bytes(data)
        expected = load_audio(stereo, sample_rate=8_000)
        np.testing.assert_array_equal(load_audio(data), expected)
        np.testing.assert_array_equal(load_audio(path), expected)

    def test_refusal(self, folder: pathlib.Path) -> None:
        stub_ffmpeg(folder, "sys.exit('first line\\nInvalid data found')")
        with pytest.raises(AudioError, match=r"ffmpeg: Invalid data found"):
            load_audio(b"????" * 100)

    def test_failure_after_some_audio(
        self, folder: pathlib.Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        stub_ffmpeg(folder, "header(16000, 1); out.write(bytes(4000)); sys.exit('corrupt packet')")
        with pytest.raises(AudioError, match=r"cut off.*ffmpeg: corrupt packet"):
            load_audio(b"????" * 100, strict_audio=True)
        assert len(load_audio(b"????" * 100)) == 1000
        assert "ffmpeg: corrupt packet" in caplog.text

    def test_no_audio(self, folder: pathlib.Path) -> None:
        stub_ffmpeg(folder, "header(16000, 1)")
        with pytest.raises(AudioError, match="no samples"):
            load_audio(b"????" * 100)

    def test_more_messages_than_a_pipe_holds(self, folder: pathlib.Path) -> None:
        stub_ffmpeg(
            folder,
            "sys.stderr.write('complaint\\n' * 50000)\n"
            "header(16000, 1); out.write(struct.pack('>3f', 0, 0.5, -0.5))",
        )
        np.testing.assert_array_equal(
            load_audio(b"????" * 100), np.array([0, 0.5, -0.5], np.float32)
        )

    def test_it_may_open_no_other_file(self, folder: pathlib.Path) -> None:
        stub_ffmpeg(
            folder,
            "assert arguments[arguments.index('-protocol_whitelist') + 1] == 'file'\n"
            "formats = arguments[arguments.index('-format_whitelist') + 1].split(',')\n"
            "assert {'mov', 'matroska'} < set(formats)\n"
            "assert not {'concat', 'hls', 'dash', 'sdp', 'rtp', 'rtsp'} & set(formats)\n"
            "header(16000, 1); out.write(bytes(8))",
        )
        assert len(load_audio(b"????" * 100)) == 2

    def test_a_program_that_cannot_be_started(
        self, folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stub_ffmpeg(folder, "")

        def refuse(*_: Any, **__: Any) -> None:
            raise OSError(12, "Cannot allocate memory")

        monkeypatch.setattr("subprocess.Popen", refuse)
        with pytest.raises(AudioError, match="cannot be started: Cannot allocate memory"):
            load_audio(b"????" * 100)

    def test_no_room_for_a_temporary_file(
        self, folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stub_ffmpeg(folder, "")

        def refuse(*_: Any, **__: Any) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("tempfile.TemporaryDirectory", refuse)
        with pytest.raises(AudioError, match=r"ffmpeg: .*No space left on device"):
            load_audio(b"????" * 100)

    def test_damage_that_it_skips(
        self, folder: pathlib.Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        stub_ffmpeg(
            folder,
            "strict = '-xerror' in arguments\n"
            "header(16000, 1); out.write(bytes(4000))\n"
            "sys.stderr.write('[aac @ 0x55] Error: Operation not permitted\\n')\n"
            "sys.exit(strict)",
        )
        assert len(load_audio(b"????" * 100)) == 1000
        assert "ffmpeg: Error: invalid data" in caplog.text
        with pytest.raises(AudioError, match="invalid data"):
            load_audio(b"????" * 100, strict_audio=True)

    def test_endless_audio(self, folder: pathlib.Path) -> None:
        stub_ffmpeg(folder, "header(16000, 1)\nwhile True: out.write(bytes(65536))")
        with pytest.raises(AudioError, match="max_duration"):
            load_audio(b"????" * 100, max_duration=60)

    def test_it_is_killed_if_its_output_is_refused(self, folder: pathlib.Path) -> None:
        stub_ffmpeg(
            folder,
            "header(16000, 1); out.write(struct.pack('>f', float('nan')) * 65536)\n"
            "out.flush(); time.sleep(600)",
        )
        with pytest.raises(AudioError, match="NaN"):
            load_audio(b"????" * 100)
