"""Recordings whose bytes are still arriving, read by decoders meanwhile."""

from __future__ import annotations

import io
import threading
from typing import Any, BinaryIO, Callable, cast

__all__ = ["Arriving", "ArrivingFile", "Forward"]

_BUFFER = 1 << 16
"""Bytes per read."""


class Arriving:
    """A recording of known size that arrives in one thread and is read in others.

    A read waits until there are some bytes. After :meth:`break_off` the recording ends with what
    has arrived.
    """

    def __init__(self, size: int, read: Callable[[int, int], bytes]) -> None:
        """Nothing has arrived.

        Args:
            size: bytes of the whole recording.
            read: called with (first byte, number of bytes) that have arrived; returns them. Called
                in the threads of readers.
        """
        self.size = size
        self._read = read
        self._arrived = 0
        self._broken = False
        self._changed = threading.Condition()

    def arrived(self, n_bytes: int) -> None:
        """So many bytes are there."""
        with self._changed:
            self._arrived = n_bytes
            self._changed.notify_all()

    def break_off(self) -> None:
        """No more will arrive."""
        with self._changed:
            self._broken = True
            self._changed.notify_all()

    def wait_for(self, position: int) -> None:
        """Wait until the bytes before ``position`` are there, or no more arrive."""
        with self._changed:
            self._changed.wait_for(lambda: self._arrived >= position or self._broken)

    def lacks(self, position: int) -> bool:
        """Whether bytes before ``position`` are still to come."""
        with self._changed:
            return position > self._arrived and not self._broken

    def read_at(self, start: int, n_bytes: int) -> bytes:
        """Some bytes from ``start`` on, at least one; none at the end only."""
        if start >= self.size:
            return b""
        self.wait_for(start + 1)
        with self._changed:
            stop = min(start + n_bytes, self.size, self._arrived)
        return self._read(start, stop - start) if stop > start else b""

    def open(self) -> BinaryIO:
        """A new file object at the first byte; seeking waits for nothing."""
        return cast("BinaryIO", io.BufferedReader(ArrivingFile(self), _BUFFER))


class ArrivingFile(io.RawIOBase):
    """A raw file object of a recording that is arriving.

    Attributes:
        source: the recording.
        patient: whether reads wait; if not, they find the end of the file.
        wanted: bytes from the start that an impatient read lacked; 0 if none did.
    """

    def __init__(self, source: Arriving, *, patient: bool = True) -> None:
        """At the first byte."""
        self.source = source
        self.patient = patient
        self.wanted = 0
        self._at = 0

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """As of other raw file objects."""
        missing = self._at < self.source.size and self.source.lacks(self._at + 1)
        if missing and not self.patient:
            self.wanted = self._at + 1
            return 0
        data = self.source.read_at(self._at, len(buffer))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """As of other file objects; waits for nothing."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.source.size}[whence]
        if start + offset < 0:
            raise ValueError("a position before the first byte")
        self._at = start + offset
        return self._at


class Forward:
    """The file object of a recording for a decoder that looks for tags at its end first.

    What is read after a jump beyond what has arrived is zeros: the decoder finds no tags.
    """

    def __init__(self, source: Arriving) -> None:
        """At the first byte."""
        self._source = source
        self._file = cast(io.BufferedReader, source.open())
        self._jumped = False

    def read(self, n_bytes: int) -> bytes:
        """Some of the next bytes; none at the end only."""
        if not self._jumped:
            return self._file.read1(n_bytes)
        return bytes(min(n_bytes, self._source.size - self._file.tell()))

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """As a file object."""
        found = self._file.seek(offset, whence)
        self._jumped = self._source.lacks(found)
        return found

    def tell(self) -> int:
        """As a file object."""
        return self._file.tell()
