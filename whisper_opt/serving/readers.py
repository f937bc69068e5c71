"""Threads that read recordings ahead: decoding of files, resampling, voice activity detection."""

from __future__ import annotations

import collections
import threading
import time
from collections.abc import Generator, Iterator
from typing import Callable

from whisper_opt.transcription.job import Chunk

__all__ = ["ReadAhead", "Readers"]

AHEAD = 4
"""Chunks of a recording that are kept ready."""
PATIENCE = 0.25
"""Seconds after which a reader no longer counts: it waits for an upload, or its file is long."""
_MOST = 64
"""Threads at most, however many recordings arrive slowly."""


class Readers:
    """Reads several recordings at once, a chunk of each in turn.

    At most a number of threads are in use. A thread that takes long for a chunk is not counted, so
    a recording that arrives slowly delays no other.
    """

    def __init__(
        self,
        n: int,
        wake: Callable[[], None],
        *,
        ahead: int = AHEAD,
        patience: float = PATIENCE,
    ) -> None:
        """Threads are started when they are needed.

        Args:
            n: number of threads.
            wake: called after every chunk, in a thread of the reader.
            ahead: chunks of a recording that are kept ready.
            patience: seconds after which a thread is not counted.
        """
        self.ahead = ahead
        self._n = n
        self._wake = wake
        self._patience = patience
        self._changed = threading.Condition()
        self._tasks: collections.deque[ReadAhead] = collections.deque()
        self._begun: dict[threading.Thread, float] = {}
        self._idle = 0
        self._closed = False

    def open(self, chunks: Iterator[Chunk]) -> ReadAhead:
        """A recording; its reading begins with :meth:`ReadAhead.begin`."""
        return ReadAhead(self, chunks)

    @property
    def lock(self) -> threading.Condition:
        """Held while the state of a recording is read or changed."""
        return self._changed

    @property
    def backlog(self) -> int:
        """Recordings that wait for a thread."""
        return len(self._tasks)

    @property
    def idle(self) -> bool:
        """Whether a thread would begin to read at once."""
        with self._changed:
            return len(self._tasks) + self._counted() < self._n

    def schedule(self, task: ReadAhead) -> None:
        """Read the next chunk of a recording when a thread is free; :attr:`lock` is held."""
        self._tasks.append(task)
        self._changed.notify()
        self._tend()

    def tend(self) -> None:
        """Start another thread if recordings wait and all threads have been busy for long."""
        if self._tasks:
            with self._changed:
                self._tend()

    def _tend(self) -> None:
        most = self._n - self._counted()
        needed = min(len(self._tasks), most, _MOST - len(self._begun))
        for _ in range(needed - self._idle):
            threading.Thread(target=self._work, name="whisper_opt reader", daemon=True).start()
            self._idle += 1

    def _counted(self) -> int:
        """Busy threads that count."""
        now = time.monotonic()
        return sum(now - begun < self._patience for begun in self._begun.values())

    def close(self) -> None:
        """End the threads when they have closed their recordings; waits for none."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _work(self) -> None:
        me = threading.current_thread()
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._tasks or self._closed)
                self._idle -= 1
                if not self._tasks:
                    return
                task = self._tasks.popleft()
                self._begun[me] = time.monotonic()
            task.advance()
            with self._changed:
                del self._begun[me]
                retires = self._idle + self._counted() >= self._n  # others have taken its place
                self._idle += not retires
                self._tend()
            self._wake()
            if retires:
                return


class ReadAhead:
    """The chunks of one recording, read ahead; implements ``ChunkSource``.

    Attributes:
        begun: whether its reading has begun.
    """

    polled = True

    def __init__(self, readers: Readers, chunks: Iterator[Chunk]) -> None:
        """Created by :meth:`Readers.open`."""
        self._readers = readers
        self._chunks = chunks
        self._ready: collections.deque[Chunk] = collections.deque()
        self._error: BaseException | None = None
        self._exhausted = False
        self._closed = False
        self._scheduled = False
        self.begun = False

    def begin(self) -> None:
        """Begin to read."""
        with self._readers.lock:
            self.begun = True
            self._continue()

    @property
    def ready(self) -> bool:
        """Whether there is a chunk that was not taken."""
        return bool(self._ready)

    @property
    def ended(self) -> bool:
        """See :class:`~whisper_opt.transcription.job.ChunkSource`."""
        with self._readers.lock:
            left = self._ready or self._error is not None or not self._exhausted
            return self._closed or not left

    def take(self) -> Chunk | None:
        """See :class:`~whisper_opt.transcription.job.ChunkSource`."""
        with self._readers.lock:
            if self._ready:
                chunk = self._ready.popleft()
                self._continue()
                return chunk
            error, self._error = self._error, None
        if error is not None:
            raise error
        return None

    def close(self) -> None:
        """See :class:`~whisper_opt.transcription.job.ChunkSource`."""
        with self._readers.lock:
            if self._closed:
                return
            self._closed = True
            self._ready.clear()
            self._error = None
            self._continue()  # a reader closes the recording

    def _continue(self) -> None:
        wanted = self._closed or len(self._ready) < self._readers.ahead
        if self.begun and wanted and not (self._scheduled or self._exhausted):
            self._scheduled = True
            self._readers.schedule(self)

    def advance(self) -> None:
        """Read one chunk; called in a thread of the readers."""
        chunk, error = None, None
        try:
            if not self._closed:
                chunk = next(self._chunks, None)
            elif isinstance(self._chunks, Generator):
                self._chunks.close()
        except BaseException as raised:  # raised again by take()
            error = raised
        with self._readers.lock:
            self._scheduled = False
            self._exhausted = chunk is None
            if chunk is not None and not self._closed:
                self._ready.append(chunk)
            elif not self._closed:
                self._error = error
            self._continue()
