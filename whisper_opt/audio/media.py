"""Encoded recordings, on disk or in memory, and what their decoders have in common.

Each decoder is a generator of :class:`Piece`. It raises :class:`DeclinedError` before its first
piece, never later, when another decoder may do better; :class:`BrokenOffError` when it cannot go on
and another may; and :class:`AudioError` when the recording itself is at fault.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
import os
import stat
from collections.abc import Generator, Iterator
from typing import Any, BinaryIO, NamedTuple, Union

import numpy as np

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
"""Channels a recording may have."""
MAX_DURATION = 86_400.0
"""Seconds of sound a recording may hold unless the caller says otherwise: a day."""
MAX_BYTES = 2 << 30
"""Bytes of one recording held in memory unless the caller says otherwise: 9 hours at 16 kHz."""


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
_READ = 1 << 20
"""Bytes read at a time from a pipe or file object."""
_NEAR = 0.5
"""Damaged parts less than this apart, in seconds, are reported as one."""
_SPANS_SAID = 5


class DeclinedError(Exception):
    """This decoder is not the one for this recording; the next may be."""


class BrokenOffError(Exception):
    """This decoder cannot go on behind the pieces it gave; another one may."""


class Damage:
    """What of a recording could not be decoded. It is logged as one warning when decoding ends.

    Attributes:
        spans: start and end of each part, in seconds, in order.
        strict: damage is an error.
    """

    def __init__(self, name: str, strict: bool) -> None:
        """``name`` of the recording, for messages."""
        self.name = name
        self.strict = strict
        self.spans: list[tuple[float, float]] = []
        self._notes: list[str] = []

    def lost(self, start: float, end: float, why: str) -> None:
        """A part cannot be decoded; silence stands for it.

        Raises:
            AudioError: ``strict``.
        """
        if self.strict:
            raise AudioError(
                f"{self.name} is damaged: {_span(start, end)} cannot be decoded ({why}); fetch or"
                " convert it again, or turn strict_audio off to transcribe the rest"
            )
        if self.spans and start - self.spans[-1][1] < _NEAR:
            start = self.spans.pop()[0]
        self.spans.append((start, end))

    def cut(self, end: float, stated: float | None, why: str = "") -> None:
        """Nothing can be decoded from ``end`` on, in seconds; the header states ``stated``.

        Raises:
            AudioError: ``strict``.
        """
        states = f" and its header says {stated:.2f} s" if stated else ""
        because = f" ({why})" if why else ""
        found = f"is damaged or cut off: it holds {end:.2f} s{states}{because}"
        if self.strict:
            raise AudioError(f"{self.name} {found}; fetch the file again, or turn strict_audio off")
        self._notes.append(found)

    def note(self, found: str) -> None:
        """Something is wrong at a place that is not known.

        Raises:
            AudioError: ``strict``.
        """
        if self.strict:
            raise AudioError(f"{self.name} {found}; fetch or convert it again")
        self._notes.append(found)

    @property
    def found(self) -> bool:
        """Whether there is any."""
        return bool(self.spans or self._notes)

    def report(self) -> None:
        """Log what was found, once."""
        if self.spans:
            said = ", ".join(_span(*span) for span in self.spans[:_SPANS_SAID])
            more = len(self.spans) - _SPANS_SAID
            rest = f" and {more} more parts" if more > 0 else ""
            _log.warning("%s: %s%s could not be decoded", self.name, said, rest)
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


def open_media(source: Any, max_bytes: int = MAX_BYTES) -> Media:
    """Find a recording and check that it is there, can be read and is not empty.

    Args:
        source: a path, bytes, bytearray, memoryview or binary file object.
        max_bytes: how much to read from a pipe or file object at most.

    Raises:
        AudioError: it is not.
    """
    if isinstance(source, (str, os.PathLike)):
        return _path_media(os.fspath(source), max_bytes)
    if isinstance(source, (bytes, bytearray, memoryview)):
        data, hint = bytes(source), ""
        name = f"audio data of {len(data)} bytes"
    elif hasattr(source, "read"):
        data, hint = _read(source, max_bytes), "; if it stands at its end, rewind it with seek(0)"
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
    with _open(path):  # a file that may not be read is no fault of any decoder
        return Media(name, path)


def _open(path: str) -> BinaryIO:
    try:
        return open(path, "rb")
    except OSError as error:
        raise AudioError(f"cannot open audio file {path!r}: {reason(error)}") from error


def _read(file: Any, max_bytes: int) -> bytes:
    joined = bytearray()
    while True:
        try:
            data = file.read(_READ)
        except (OSError, ValueError) as error:  # ValueError: closed, or text that is not UTF-8
            raise AudioError(f"cannot read file object {file!r}: {reason(error)}") from error
        if not isinstance(data, bytes):
            raise AudioError(
                f"file object {file!r} gave {type(data).__name__}; open it in binary mode ('rb')"
            )
        if not data:
            return bytes(joined)
        joined += data
        if len(joined) > max_bytes:
            raise AudioError(
                f"file object {file!r} holds more than {max_bytes} bytes; expected at most"
                " max_audio_bytes: give a path, or raise that limit"
            )


def reason(error: BaseException) -> str:
    """Why something failed, in a few words."""
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
