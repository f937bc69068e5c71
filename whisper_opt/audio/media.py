"""Encoded recordings, on disk or in memory, and the common parts of their decoders.

A decoder is a generator of :class:`Piece`. Before its first piece it raises :class:`DeclinedError`
if another decoder should be tried; later it raises :class:`BrokenOffError` if it cannot continue
but another decoder might. It raises :class:`AudioError` if the recording itself is at fault.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
import os
import shutil
import stat
from collections.abc import Generator, Iterator
from typing import Any, BinaryIO, NamedTuple, Union

import numpy as np

from whisper_opt.audio.arriving import Arriving
from whisper_opt.core.arrays import F32, NDArray
from whisper_opt.core.errors import AudioError

__all__ = [
    "BLOCK",
    "MAX_BYTES",
    "MAX_CHANNELS",
    "MAX_DURATION",
    "Blocks",
    "BrokenOffError",
    "Damage",
    "DeclinedError",
    "Media",
    "Piece",
    "as_float",
    "open_media",
    "reason",
    "silence",
]

_log = logging.getLogger(__name__)

MAX_CHANNELS = 64
"""Maximum channels of a recording."""
MAX_DURATION = 86_400.0
"""Default of the option ``max_duration`` in seconds: a day."""
MAX_BYTES = 2 << 30
"""Default of the option ``max_audio_bytes``: 9 hours at 16 kHz."""


class Piece(NamedTuple):
    """Consecutive samples from a decoder."""

    rate: int
    """Sample rate in Hz."""
    block: F32
    """F32 [n, n_channels], not shared with other arrays."""
    seconds: Union[float, None] = None
    """Duration of the whole recording according to its header; None if unknown."""


Blocks = Generator[Piece, None, None]
"""Pieces in order."""

BLOCK = 1 << 16
"""Sample frames decoded at a time."""
_READ = 1 << 20
"""Bytes per read from a pipe or file object."""
_NEAR = 0.5
"""Damaged parts less than this apart, in seconds, are reported as one."""
_MAX_REPORTED = 5


class DeclinedError(Exception):
    """A decoder cannot read a recording; the next one may."""


class BrokenOffError(Exception):
    """A decoder cannot continue after the pieces it yielded; another one may."""


class Damage:
    """Parts of a recording that could not be decoded; logged when decoding ends.

    Attributes:
        spans: start and end of each part, in seconds, in order.
        strict: whether damage is an error.
    """

    def __init__(self, name: str, strict: bool) -> None:
        """``name`` of the recording, for messages."""
        self.name = name
        self.strict = strict
        self.spans: list[tuple[float, float]] = []
        self._notes: list[str] = []

    def lost(self, start: float, end: float, why: str) -> None:
        """Record a part that cannot be decoded and is replaced by silence.

        Raises:
            AudioError: ``strict``.
        """
        if self.strict:
            raise AudioError(
                f"{self.name} is damaged: {_span(start, end)} cannot be decoded ({why});"
                " download or convert it again, or turn strict_audio off to transcribe the rest"
            )
        if self.spans and start - self.spans[-1][1] < _NEAR:
            start = self.spans.pop()[0]
        self.spans.append((start, end))

    def cut(self, end: float, stated: float | None, why: str = "") -> None:
        """Record that decoding ends at ``end`` but the header states ``stated``, in seconds.

        Raises:
            AudioError: ``strict``.
        """
        states = f" and its header says {stated:.2f} s" if stated else ""
        because = f" ({why})" if why else ""
        found = f"is damaged or cut off: it holds {end:.2f} s{states}{because}"
        if self.strict:
            raise AudioError(f"{self.name} {found}; download it again, or turn strict_audio off")
        self._notes.append(found)

    def note(self, found: str) -> None:
        """Record damage at an unknown place.

        Raises:
            AudioError: ``strict``.
        """
        if self.strict:
            raise AudioError(f"{self.name} {found}; download or convert it again")
        self._notes.append(found)

    @property
    def found(self) -> bool:
        """Whether any damage was recorded."""
        return bool(self.spans or self._notes)

    def report(self) -> None:
        """Log what was recorded, once."""
        if self.spans:
            parts = ", ".join(_span(*span) for span in self.spans[:_MAX_REPORTED])
            more = len(self.spans) - _MAX_REPORTED
            rest = f" and {more} more parts" if more > 0 else ""
            _log.warning("%s: %s%s could not be decoded", self.name, parts, rest)
        for note in self._notes:
            _log.warning("%s %s", self.name, note)
        self.spans, self._notes = [], []


def _span(start: float, end: float) -> str:
    return f"{start:.2f}-{end:.2f} s" if end - start >= 0.01 else f"about {start:.2f} s"


def silence(rate: int, n_samples: int) -> Blocks:
    """``n_samples`` of silence, one channel."""
    while n_samples > 0:
        n = min(n_samples, BLOCK)
        yield Piece(rate, np.zeros((n, 1), np.float32))
        n_samples -= n


@dataclasses.dataclass(frozen=True)
class Media:
    """An encoded recording: a file on disk, its bytes in memory, or bytes that still arrive."""

    name: str
    path: str | None
    data: bytes = b""
    arriving: Arriving | None = None

    def open(self) -> BinaryIO:
        """A new file object at the first byte."""
        if self.arriving is not None:
            return self.arriving.open()
        if self.path is None:
            return io.BytesIO(self.data)
        return _open(self.path)

    @contextlib.contextmanager
    def on_disk(self) -> Iterator[str]:
        """Path of a file with these bytes, a temporary one if they are in memory."""
        if self.path is not None:
            yield os.path.abspath(self.path)
            return
        import tempfile

        with tempfile.TemporaryDirectory(prefix="whisper-opt-") as folder:
            path = os.path.join(folder, "recording")
            with open(path, "wb") as file, self.open() as given:
                shutil.copyfileobj(given, file)
            yield path


def open_media(source: Any, max_bytes: int = MAX_BYTES) -> Media:
    """Check that a recording exists, can be read and is not empty.

    Args:
        source: a path, bytes, bytearray, memoryview, binary file object, or bytes that arrive.
        max_bytes: maximum bytes to read from a pipe or file object.

    Raises:
        AudioError: it does not exist, cannot be read, is empty or too large.
    """
    if isinstance(source, (str, os.PathLike)):
        return _path_media(os.fspath(source), max_bytes)
    if isinstance(source, Arriving):
        return Media("the upload", None, arriving=source)
    if isinstance(source, (bytes, bytearray, memoryview)):
        data, hint = bytes(source), ""
        name = f"audio data of {len(data)} bytes"
    elif hasattr(source, "read"):
        hint = "; if it was read before, rewind it with seek(0)" if _position(source) else ""
        data = _read(source, max_bytes)
        name = f"file object {getattr(source, 'name', source)!r}"
    else:
        raise AudioError(
            f"audio source is {type(source).__name__}; expected a path, bytes, a binary file object"
            " or a numpy array"
        )
    if not data:
        raise AudioError(f"{name} is empty; expected an audio file{hint}")
    return Media(name, None, data)


def _path_media(path: Any, max_bytes: int) -> Media:
    name = repr(path)
    if not isinstance(path, str):
        raise AudioError(f"audio path is {type(path).__name__} {name}; expected str")
    try:
        info = os.stat(path)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        raise AudioError(f"cannot open audio file {name}: {reason(error)}") from error
    if stat.S_ISDIR(info.st_mode):
        raise AudioError(f"{name} is a directory; expected an audio file")
    if stat.S_ISFIFO(info.st_mode):
        with _open(path) as file:
            return open_media(_read(file, max_bytes))
    if not stat.S_ISREG(info.st_mode):
        raise AudioError(f"{name} is a device or socket; expected an audio file")
    if info.st_size == 0:
        raise AudioError(f"{name} is empty (0 bytes); expected an audio file")
    with _open(path):  # a missing permission is reported here, not by a decoder
        return Media(name, path)


def _open(path: str) -> BinaryIO:
    try:
        return open(path, "rb")
    except OSError as error:
        raise AudioError(f"cannot open audio file {path!r}: {reason(error)}") from error


def _position(file: Any) -> int:
    """Position of a file object; 0 if it has none."""
    try:
        return int(file.tell())
    except (AttributeError, OSError, TypeError, ValueError):
        return 0


def _read(file: Any, max_bytes: int) -> bytes:
    joined = bytearray()
    while True:
        try:
            data = file.read(_READ)
        except (OSError, ValueError) as error:  # ValueError: closed, or text that is not UTF-8
            raise AudioError(f"cannot read file object {file!r}: {reason(error)}") from error
        if not isinstance(data, bytes):
            raise AudioError(
                f"file object {file!r} returned {type(data).__name__}; open it in binary"
                " mode ('rb')"
            )
        if not data:
            return bytes(joined)
        joined += data
        if len(joined) > max_bytes:
            raise AudioError(
                f"file object {file!r} holds more than max_audio_bytes ({max_bytes}) bytes; give a"
                " path, or raise that limit"
            )


def reason(error: BaseException) -> str:
    """A short description of an error."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def as_float(block: NDArray) -> F32:
    """Samples as float32: integers over half their range, unsigned ones centred first."""
    if block.dtype.kind == "f":
        with np.errstate(over="ignore"):  # overflow to infinity is refused later
            return block.astype(np.float32)
    half = 2.0 ** (8 * block.dtype.itemsize - 1)
    if block.dtype.kind == "u":
        return ((block.astype(np.float64) - half) / half).astype(np.float32)
    result: F32 = block.astype(np.float32)
    result *= np.float32(1 / half)
    return result
