"""Encoded recordings, on disk or in memory, and the decoders that turn them into blocks of sound.

Each decoder is a generator of :class:`Piece`. It raises :class:`DeclinedError` before its first
piece, never later, when another decoder may do better, and :class:`AudioError` when the recording
itself is at fault.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import stat
import struct
from collections.abc import Generator, Iterator
from typing import Any, BinaryIO, NamedTuple, Union

import numpy as np

from whisper_opt.core.arrays import F32, NDArray
from whisper_opt.core.errors import AudioError
from whisper_opt.core.remedies import install_hint

__all__ = [
    "BLOCK",
    "DECODERS",
    "Blocks",
    "DeclinedError",
    "Media",
    "Piece",
    "as_float",
    "open_media",
]


class Piece(NamedTuple):
    """Consecutive sound as a decoder gives it."""

    rate: int
    """Samples a second."""
    block: F32
    """F32 [n, n_channels], memory of its own."""
    seconds: Union[float, None] = None
    """Length of the whole recording as its header states or implies it; None where it does not."""


Blocks = Generator[Piece, None, None]
"""Pieces of sound in order."""

BLOCK = 1 << 16
"""Sample frames decoded at a time."""
_MP3_SLACK = 2 * 1152
"""Samples an mp3 may fall short of its header: encoders count the header's own frame or do not."""
_TAIL_SLACK = 4096
"""Bytes libsndfile may leave unread at the end of an mp3 or ogg: tags."""
_PROBE = 8192
"""Sample frames read at the stated end of an mp3 or ogg, to see whether it is the real one."""


class DeclinedError(Exception):
    """This decoder is not the one for this recording; the next may be."""


@dataclasses.dataclass(frozen=True)
class Media:
    """An encoded recording: a file on disk, or its bytes in memory."""

    name: str
    path: str | None
    data: bytes = b""

    def open(self) -> BinaryIO:
        """A new file object at the first byte."""
        if self.path is None:
            return io.BytesIO(self.data)
        return _open(self.path)

    @contextlib.contextmanager
    def on_disk(self) -> Iterator[str]:
        """Path of a file with these bytes; a temporary one if need be."""
        if self.path is not None:
            yield os.path.abspath(self.path)
            return
        import tempfile

        with tempfile.TemporaryDirectory(prefix="whisper-opt-") as folder:
            path = os.path.join(folder, "recording")
            with open(path, "wb") as file:
                file.write(self.data)
            yield path


def open_media(source: Any) -> Media:
    """Find a recording and check that it is there, can be read and is not empty.

    Args:
        source: a path, bytes, bytearray, memoryview or binary file object.

    Raises:
        AudioError: it is not.
    """
    if isinstance(source, (str, os.PathLike)):
        return _path_media(os.fspath(source))
    if isinstance(source, (bytes, bytearray, memoryview)):
        data, hint = bytes(source), ""
        name = f"audio data of {len(data)} bytes"
    elif hasattr(source, "read"):
        data, hint = _read(source), "; if it stands at its end, rewind it with seek(0)"
        name = f"file object {getattr(source, 'name', source)!r}"
    else:
        raise AudioError(
            f"audio source is {type(source).__name__}; expected a path, bytes, a binary file object"
            " or a numpy array"
        )
    if not data:
        raise AudioError(f"{name} is empty; expected an audio file{hint}")
    return Media(name, None, data)


def _path_media(path: Any) -> Media:
    name = repr(path)
    if not isinstance(path, str):
        raise AudioError(f"audio path is {type(path).__name__} {name}; expected str")
    try:
        info = os.stat(path)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        raise AudioError(f"cannot open audio file {name}: {_reason(error)}") from error
    if stat.S_ISDIR(info.st_mode):
        raise AudioError(f"{name} is a directory; expected an audio file")
    if stat.S_ISFIFO(info.st_mode):
        with _open(path) as file:
            return open_media(_read(file))
    if not stat.S_ISREG(info.st_mode):
        raise AudioError(f"{name} is a device or socket; expected an audio file")
    if info.st_size == 0:
        raise AudioError(f"{name} is empty (0 bytes); expected an audio file")
    with _open(path):  # a file that may not be read is no fault of any decoder
        return Media(name, path)


def _open(path: str) -> BinaryIO:
    try:
        return open(path, "rb")
    except OSError as error:
        raise AudioError(f"cannot open audio file {path!r}: {_reason(error)}") from error


def _read(file: Any) -> bytes:
    try:
        data = file.read()
    except (OSError, ValueError) as error:  # ValueError: closed, or text that is not UTF-8
        raise AudioError(f"cannot read file object {file!r}: {_reason(error)}") from error
    if not isinstance(data, bytes):
        raise AudioError(
            f"file object {file!r} gave {type(data).__name__}; open it in binary mode ('rb')"
        )
    return data


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def as_float(block: NDArray) -> F32:
    """Samples as float32: integers over half their range, unsigned ones centred first."""
    if block.dtype.kind == "f":
        with np.errstate(over="ignore"):  # out of range becomes infinity, which is refused later
            return block.astype(np.float32)
    half = 2.0 ** (8 * block.dtype.itemsize - 1)
    if block.dtype.kind == "u":
        return ((block.astype(np.float64) - half) / half).astype(np.float32)
    result: F32 = block.astype(np.float32)
    result *= np.float32(1 / half)
    return result


def _soundfile_blocks(media: Media) -> Blocks:
    try:
        import soundfile
    except (ImportError, OSError) as error:  # OSError: no libsndfile where the wheel carries none
        raise DeclinedError("not installed (pip install soundfile)") from error
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(media.open())
        try:
            sound = stack.enter_context(soundfile.SoundFile(file))
        except (RuntimeError, TypeError) as error:  # TypeError: a name that ends in .raw
            raise DeclinedError(_reason(error).rpartition(": ")[2].rstrip(".")) from error
        if sound.frames > 1 << 50:
            raise DeclinedError("the file does not state its length")
        n_unread = _unread(media, soundfile) if _may_stop_early(sound) else 0
        if n_unread > _TAIL_SLACK:
            raise DeclinedError(f"stops {n_unread} bytes before the end of the file")
        seconds = sound.frames / sound.samplerate if sound.frames > 0 else None
        n_read = 0
        while True:
            # A buffer of its own for each block: read() without one stops at the stated length.
            buffer = np.empty((BLOCK, sound.channels), np.float32)
            try:
                block = sound.read(out=buffer)
            except RuntimeError as error:
                raise AudioError(
                    f"{media.name} is damaged or cut off after {n_read / sound.samplerate:.2f} s of"
                    f" {sound.frames / sound.samplerate:.2f} s: {_reason(error)}"
                ) from error
            if not len(block):
                break
            n_read += len(block)
            yield Piece(sound.samplerate, block, seconds)
        _check_whole(media, file, sound, n_read)


def _is_mp3(sound: Any) -> bool:
    return bool(sound.format == "MP3" or sound.subtype.startswith("MPEG"))


def _may_stop_early(sound: Any) -> bool:
    """Whether libsndfile may end before the file does.

    It guesses the length of an mp3 without one from its first frames and stops there, and it reads
    only the first of several recordings joined in one mp3 or ogg.
    """
    return _is_mp3(sound) or sound.format == "OGG"


def _unread(media: Media, soundfile: Any) -> int:
    """Bytes libsndfile leaves at the end of the file; found by a jump, without decoding it all."""
    with media.open() as file:
        try:
            with soundfile.SoundFile(file) as sound:
                sound.seek(max(0, sound.frames - _PROBE))
                while len(sound.read(out=np.empty((BLOCK, sound.channels), np.float32))):
                    pass
        except RuntimeError:  # damaged or cut off: decoding from the start will say where
            return 0
        return _bytes_left(file)


def _bytes_left(file: BinaryIO) -> int:
    position = file.tell()
    return file.seek(0, io.SEEK_END) - position


def _check_whole(media: Media, file: BinaryIO, sound: Any, n_read: int) -> None:
    """Compare what libsndfile decoded with what the file holds."""
    is_mp3 = _is_mp3(sound)
    n_unread = _bytes_left(file)
    if not n_read and n_unread > _TAIL_SLACK:
        raise DeclinedError(f"stops {n_unread} bytes before the end of the file")
    if _may_stop_early(sound) and n_unread > _TAIL_SLACK:
        raise AudioError(
            f"{media.name} is damaged: reading stops {n_unread} bytes before the end of the file,"
            f" after {n_read / sound.samplerate:.2f} s; convert it to flac or wav first"
        )
    if is_mp3:
        short = sound.frames - n_read > _MP3_SLACK and _states_length(file)
    else:
        short = n_read < sound.frames
    if short:
        raise AudioError(
            f"{media.name} is cut off: it holds {n_read / sound.samplerate:.2f} s and its header"
            f" says {sound.frames / sound.samplerate:.2f} s; fetch the file again"
        )


def _states_length(mp3: BinaryIO) -> bool:
    """Whether the first frame after an ID3v2 tag is a Xing, Info or VBRI header."""
    mp3.seek(0)
    head = mp3.read(10)
    start = 0
    if head[:3] == b"ID3":  # the size has seven bits a byte
        start = 10 + sum(byte << shift for byte, shift in zip(head[6:], (21, 14, 7, 0)))
    mp3.seek(start)
    frame = mp3.read(2048)
    return any(tag in frame for tag in (b"Xing", b"Info", b"VBRI"))


def _pyav_blocks(media: Media) -> Blocks:
    try:
        import av
    except ImportError as error:
        raise DeclinedError(f"not installed ({install_hint('audio')})") from error
    seconds = 0.0
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(media.open())
        try:
            container = stack.enter_context(av.open(file, mode="r"))
        except av.error.FFmpegError as error:
            raise DeclinedError(_reason(error)) from error
        if not container.streams.audio:
            raise AudioError(f"{media.name} has no audio track; expected one")
        length = _av_seconds(container)
        try:
            for frame in container.decode(audio=0):
                if not frame.samples:
                    continue
                block = frame.to_ndarray()  # [n_channels, n] if planar, else [1, n * n_channels]
                if frame.format.is_planar:
                    block = block.T
                seconds += frame.samples / frame.sample_rate
                block = as_float(block.reshape(frame.samples, -1))
                yield Piece(frame.sample_rate, block, length)
        except (av.error.FFmpegError, ValueError) as error:
            raise AudioError(
                f"{media.name} is damaged or cut off after {seconds:.2f} s: {_reason(error)}"
            ) from error


def _av_seconds(container: Any) -> float | None:
    stream = container.streams.audio[0]
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    return container.duration / 1_000_000 if container.duration else None  # in microseconds


def _ffmpeg_blocks(media: Media) -> Blocks:
    import shutil
    import subprocess
    import tempfile

    program = shutil.which("ffmpeg")
    if program is None:
        raise DeclinedError("not on the PATH")
    with contextlib.ExitStack() as stack:
        path = stack.enter_context(media.on_disk())
        log = stack.enter_context(tempfile.TemporaryFile())
        # "file:" keeps a name such as "concat:a|b" from being anything but a name. The au format
        # has a header that can be read from a pipe, and states rate and channels.
        command = [program, "-nostdin", "-v", "error", "-protocol_whitelist", "file"]
        command += [
            "-i",
            f"file:{path}",
            "-map",
            "0:a:0",
            "-c:a",
            "pcm_f32be",
            "-f",
            "au",
            "pipe:1",
        ]
        process = stack.enter_context(
            subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log)
        )
        stack.callback(process.kill)
        assert process.stdout is not None  # it was asked for
        n_read = 0
        for piece in _au_blocks(process.stdout):
            n_read += len(piece.block)
            yield piece
        if process.wait():
            log.seek(0)
            lines = log.read().decode("utf-8", "replace").strip().splitlines()
            reason = lines[-1] if lines else f"exit status {process.returncode}"
            if not n_read:
                raise DeclinedError(reason)
            raise AudioError(f"{media.name} is damaged or cut off: ffmpeg says {reason}")


def _au_blocks(pipe: Any) -> Blocks:
    """Parse 32-bit float Sun/NeXT audio; yields nothing unless there is a whole header."""
    header = pipe.read(24)
    if len(header) < 24 or header[:4] != b".snd":
        return
    offset, _, _, rate, n_channels = struct.unpack(">5I", header[4:])
    pipe.read(offset - 24)
    while True:
        data = pipe.read(4 * n_channels * BLOCK)
        n_samples = len(data) // (4 * n_channels)
        if not n_samples:
            return
        block = np.frombuffer(data, ">f4", n_samples * n_channels)
        yield Piece(rate, as_float(block.reshape(n_samples, n_channels)))


DECODERS = (
    ("soundfile", _soundfile_blocks),
    ("PyAV", _pyav_blocks),
    ("ffmpeg", _ffmpeg_blocks),
)
"""Name and decoder, in the order they are tried."""
