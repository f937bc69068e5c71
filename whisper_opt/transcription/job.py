"""Transcription of one recording: chunks that are decoded independently, and their segments.

The sequential strategy has one chunk, the whole recording. The batched strategy has many, cut in
silences. Every chunk is decoded window by window in the same way, so no audio is lost if a window
ends before its chunk does.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Callable, Protocol

from whisper_opt.audio.features import LogMel
from whisper_opt.core.arrays import F32
from whisper_opt.core.dims import FRAMES_PER_SECOND
from whisper_opt.core.errors import WhisperOptError
from whisper_opt.decoding import Drafter
from whisper_opt.text.results import Dropped, Segment, Turn, moved
from whisper_opt.transcription.alignment import Aligner
from whisper_opt.transcription.fallback import FallbackDecoder, Window, WindowResult

__all__ = ["Chunk", "ChunkSource", "ChunksOnDemand", "Cursor", "TranscriptionJob"]


class Cursor(Protocol):
    """What the windows of a chunk are, and what becomes of their results.

    Implemented by :class:`~whisper_opt.transcription.windows.WindowCursor`, which describes the
    methods, and by that of live updates.
    """

    language: str
    dropped: list[Dropped]

    @property
    def seek(self) -> int:
        """The mel frame up to which the chunk is decoded."""

    def next_window(self) -> Window | None:
        """The next window; None at the end."""

    def heard(self, languages: Mapping[str, float]) -> None:
        """Take the probability of each language in the window, the most probable first."""

    def choose(
        self, window: Window, attempts: Sequence[WindowResult], fallback: FallbackDecoder
    ) -> WindowResult | None:
        """The result to keep; None to try the next temperature."""

    def takes_long(
        self, window: Window, attempts: Sequence[WindowResult], fallback: FallbackDecoder
    ) -> bool:
        """Whether the other two methods take as long as a decode step or more."""

    def accept(
        self, window: Window, result: WindowResult, aligner: Aligner | None = None
    ) -> list[Segment]:
        """Process the result, and move on."""


class Chunk:
    """A part of the recording that is decoded window by window, independently of other chunks."""

    def __init__(
        self,
        mel: LogMel,
        cursor: Cursor,
        start: float = 0.0,
        assist: Callable[[Window, LogMel], Callable[[], Drafter]] | None = None,
    ) -> None:
        """Begin a chunk.

        Args:
            mel: its spectrogram.
            cursor: its windows.
            start: its start in seconds from the start of the recording.
            assist: proposals of a draft model for a window.
        """
        self._assist = assist
        self.mel = mel
        self.cursor = cursor
        self.start = start
        self.channel: int | None = None
        """The channel that it is part of, if channels are transcribed by themselves."""
        self.finished = False
        self.busy = False
        """Whether another thread processes the result of a window; nothing may be taken then."""
        self.segments: list[Segment] = []
        """Segments not yet taken, with times from the start of the chunk."""

    def next_window(self) -> Window | None:
        """The next window; None at the end of the chunk, which is then finished."""
        window = self.cursor.next_window()
        if window is None:
            self.finished = True
            return None
        drafter = window.drafter if self._assist is None else self._assist(window, self.mel)
        origin = round(self.start * FRAMES_PER_SECOND)
        return dataclasses.replace(window, origin=origin, drafter=drafter)

    def accept(self, window: Window, result: WindowResult, aligner: Aligner | None) -> None:
        """Process the result of ``window``."""
        self.segments.extend(self.cursor.accept(window, result, aligner))

    @property
    def done(self) -> float:
        """Time up to which this chunk is decoded, in seconds from the start of the recording."""
        return self.start + self.cursor.seek / FRAMES_PER_SECOND

    def take(self, first_id: int) -> list[Segment]:
        """Take the segments decoded so far, with times from the start of the recording."""
        found, self.segments = self.segments, []
        return [self._placed(segment, i) for i, segment in enumerate(found, first_id)]

    def take_dropped(self) -> list[Dropped]:
        """Take what was dropped since the last call, with times from the start of the recording."""
        found, self.cursor.dropped = self.cursor.dropped, []
        return [
            dataclasses.replace(
                part,
                start=round(part.start + self.start, 3),
                end=round(part.end + self.start, 3),
            )
            for part in found
        ]

    def _placed(self, segment: Segment, i: int) -> Segment:
        if self.channel is not None:
            language = segment.language or self.cursor.language
            segment = dataclasses.replace(segment, channel=self.channel, language=language)
        return moved(dataclasses.replace(segment, id=i), self.start)


class ChunkSource(Protocol):
    """The chunks of one recording, in order of time."""

    @property
    def polled(self) -> bool:
        """Whether :meth:`take` never waits: it returns None if no chunk is ready yet."""

    @property
    def ended(self) -> bool:
        """Whether there are no more chunks; may be known only after :meth:`take` returned None."""

    def take(self) -> Chunk | None:
        """The next chunk; None at the end, and if ``polled`` also if none is ready yet.

        Raises:
            Exception: the error of the reader, once.
        """

    def close(self) -> None:
        """Drop the chunks that are left, and close the recording."""


class ChunksOnDemand:
    """Chunks of an iterator; the recording is read by :meth:`take`, in the thread that calls it."""

    polled = False

    def __init__(self, chunks: Iterator[Chunk]) -> None:
        """``chunks`` is closed by :meth:`close` if it is a generator."""
        self.ended = False
        self._chunks = chunks

    def take(self) -> Chunk | None:
        """See :class:`ChunkSource`."""
        chunk = None if self.ended else next(self._chunks, None)
        self.ended = chunk is None
        return chunk

    def close(self) -> None:
        """See :class:`ChunkSource`."""
        self.ended = True
        if isinstance(self._chunks, Generator):
            self._chunks.close()


class TranscriptionJob:
    """Transcription of one recording: its chunks, created when needed, and their segments.

    Attributes:
        language: language code; None until it is known.
        language_probability: probability of the language if it was detected.
        duration: length in seconds as far as it is known.
        done: time in seconds up to which everything is decoded.
        dropped: parts dropped so far, not in order.
        error: the error if the job has failed.
        turns: who speaks when, if that is found out; known when the job is finished.
        n_channels: channels that are transcribed by themselves.
        hear: called with the samples of the recording in order, F32 [n] at 16 kHz, any n.
        complete: called with all segments when the last one is known, if they are known only then;
            returns those to be taken.
    """

    def __init__(
        self,
        fallback: FallbackDecoder | None,
        chunks: Callable[[TranscriptionJob], Iterator[Chunk]],
        read: Callable[[Iterator[Chunk]], ChunkSource] = ChunksOnDemand,
    ) -> None:
        """Nothing is read yet.

        Args:
            fallback: decodes the windows.
            chunks: opens the recording and yields its chunks in order of time.
            read: how they are read: when they are needed, or ahead in another thread.
        """
        self._fallback = fallback
        self.language: str | None = None
        self.language_probability: float | None = None
        self.duration = 0.0
        self.done = 0.0
        self.dropped: list[Dropped] = []
        self.error: WhisperOptError | None = None
        self.turns: tuple[Turn, ...] = ()
        self.n_channels = 1
        self.hear: Callable[[F32], None] = _ignored
        self.complete: Callable[[list[Segment]], list[Segment]] | None = None
        self._held: list[Segment] = []
        self._source = read(chunks(self))
        self._open: collections.deque[Chunk] = collections.deque()
        self._ahead: collections.deque[Chunk] = collections.deque()
        self._n_segments = 0

    @classmethod
    def failed(cls, error: WhisperOptError) -> TranscriptionJob:
        """A job that raises this error when it is opened."""

        def fail(error: WhisperOptError) -> Chunk:
            raise error

        return cls(None, lambda _: map(fail, [error]))

    @property
    def fallback(self) -> FallbackDecoder:
        """Decodes the windows."""
        assert self._fallback is not None, "a job that failed has no windows"
        return self._fallback

    def open(self) -> None:
        """Read the recording as far as needed for the language and the first chunk.

        Raises:
            AudioError: the recording cannot be read.
        """
        chunk = self._source.take()
        if chunk is not None:
            self._ahead.append(chunk)

    @property
    def polled(self) -> bool:
        """Whether :meth:`next_chunk` never waits for the recording."""
        return self._source.polled

    def next_chunk(self) -> Chunk | None:
        """The next chunk to decode; None if there are no more, or none that is ready yet."""
        chunk = self._ahead.popleft() if self._ahead else self._source.take()
        if chunk is not None:
            self._open.append(chunk)
        return chunk

    def take(self) -> list[Segment]:
        """Segments that are ready and have not been taken, in order of time."""
        ready: list[Segment] = []
        while self._open:
            first = self._open[0]
            if first.busy:
                break
            ready.extend(first.take(self._n_segments + len(ready)))
            self.dropped.extend(first.take_dropped())
            open_chunks = self._open if first.channel is not None else (first,)
            self.done = max(self.done, min(chunk.done for chunk in open_chunks))
            if not first.finished:
                break
            self._open.popleft()
        self._n_segments += len(ready)
        if self.finished and self.error is None:
            self.done = max(self.done, self.duration)
        return ready if self.complete is None else self._completed(ready)

    def _completed(self, ready: list[Segment]) -> list[Segment]:
        """All segments if ``ready`` are the last ones, else none."""
        self._held += ready
        if not self.finished or self.error is not None or self.complete is None:
            return []
        complete, self.complete = self.complete, None
        return complete(self._held)

    def fail(self, error: WhisperOptError) -> None:
        """Fail with ``error``; segments already taken stay valid."""
        self.error = error
        self.close()

    def close(self) -> None:
        """Drop everything that is not decoded, and close the audio source."""
        self._open.clear()
        self._ahead.clear()
        self._source.close()

    @property
    def finished(self) -> bool:
        """Whether there will be no more segments."""
        return self._source.ended and not self._open and not self._ahead


def _ignored(samples: F32) -> None:
    pass
