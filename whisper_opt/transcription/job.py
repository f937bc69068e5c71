"""One recording on its way through the model: chunks decoded independently, segments in order.

The sequential strategy has a single chunk, the whole recording. The batched one has many, which
begin and end where nobody speaks; each is decoded by the very same windowing, so that nothing is
lost when a window ends before its chunk does.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator
from typing import Callable

from whisper_opt.audio.features import LogMel
from whisper_opt.core.dims import FRAMES_PER_SECOND
from whisper_opt.core.errors import WhisperOptError
from whisper_opt.text.results import Dropped, Segment
from whisper_opt.transcription.alignment import Aligner
from whisper_opt.transcription.fallback import FallbackDecoder, Window, WindowResult
from whisper_opt.transcription.windows import WindowCursor

__all__ = ["Chunk", "TranscriptionJob"]


class Chunk:
    """Sound that is decoded window after window, whatever happens elsewhere."""

    def __init__(self, mel: LogMel, state: WindowCursor, start: float = 0.0) -> None:
        """``start``: where it begins in the recording, in seconds."""
        self.mel = mel
        self.state = state
        self.start = start
        self.finished = False
        self.segments: list[Segment] = []
        """Segments not yet handed out, timed from the beginning of the chunk."""

    def next_window(self) -> Window | None:
        """The next window; None, and the chunk is finished, at its end."""
        window = self.state.next_window()
        if window is None:
            self.finished = True
            return None
        return dataclasses.replace(window, origin=round(self.start * FRAMES_PER_SECOND))

    def accept(self, window: Window, result: WindowResult, aligner: Aligner | None) -> None:
        """Take the answer to ``window``."""
        self.segments.extend(self.state.accept(window, result, aligner))

    @property
    def done(self) -> float:
        """Seconds of the recording up to which this chunk is decoded."""
        return self.start + self.state.seek / FRAMES_PER_SECOND

    def take(self, first_id: int) -> list[Segment]:
        """Hand out what is there, timed from the beginning of the recording."""
        found, self.segments = self.segments, []
        return [self._placed(segment, i) for i, segment in enumerate(found, first_id)]

    def take_dropped(self) -> list[Dropped]:
        """Hand out what was left out since the last call, timed likewise."""
        found, self.state.dropped = self.state.dropped, []
        return [
            dataclasses.replace(
                part,
                start=round(part.start + self.start, 3),
                end=round(part.end + self.start, 3),
            )
            for part in found
        ]

    def _placed(self, segment: Segment, i: int) -> Segment:
        if not self.start:
            return dataclasses.replace(segment, id=i)
        words = segment.words and tuple(
            dataclasses.replace(
                word, start=round(word.start + self.start, 2), end=round(word.end + self.start, 2)
            )
            for word in segment.words
        )
        return dataclasses.replace(
            segment,
            id=i,
            start=round(segment.start + self.start, 3),
            end=round(segment.end + self.start, 3),
            seek=segment.seek + round(self.start * FRAMES_PER_SECOND),
            words=words,
        )


class TranscriptionJob:
    """Chunks of one recording, made when they are needed, and the segments they gave.

    Attributes:
        language: code of the language, once known.
        language_probability: its probability, when it was detected.
        duration: length in seconds as far as known.
        done: seconds up to which everything is decoded.
        dropped: what was left out so far, not in order.
        error: why it failed, if it did.
    """

    def __init__(
        self,
        answers: FallbackDecoder | None,
        chunks: Callable[[TranscriptionJob], Iterator[Chunk]],
    ) -> None:
        """``chunks`` opens the recording and yields its chunks in order of time."""
        self._answers = answers
        self.language: str | None = None
        self.language_probability: float | None = None
        self.duration = 0.0
        self.done = 0.0
        self.dropped: list[Dropped] = []
        self.error: WhisperOptError | None = None
        self._chunks = chunks(self)
        self._exhausted = False
        self._open: collections.deque[Chunk] = collections.deque()
        self._ahead: collections.deque[Chunk] = collections.deque()
        self._n_segments = 0

    @classmethod
    def failed(cls, error: WhisperOptError) -> TranscriptionJob:
        """A recording that gives this error as soon as it is opened."""

        def refuse(error: WhisperOptError) -> Chunk:
            raise error

        return cls(None, lambda _: map(refuse, [error]))

    @property
    def answers(self) -> FallbackDecoder:
        """How its windows are decoded."""
        assert self._answers is not None, "a recording that failed has no windows"
        return self._answers

    def open(self) -> None:
        """Read as much as it takes to know the language and to begin.

        Raises:
            AudioError: it cannot be read.
        """
        chunk = next(self._chunks, None)
        if chunk is None:
            self._exhausted = True
        else:
            self._ahead.append(chunk)

    def next_chunk(self) -> Chunk | None:
        """One more chunk to decode, or None when there are no more."""
        chunk = self._ahead.popleft() if self._ahead else None
        if chunk is None and not self._exhausted:
            chunk = next(self._chunks, None)
        if chunk is None:
            self._exhausted = True
        else:
            self._open.append(chunk)
        return chunk

    def take(self) -> list[Segment]:
        """Segments that are ready and have not been handed out, in order of time."""
        ready: list[Segment] = []
        while self._open:
            first = self._open[0]
            ready.extend(first.take(self._n_segments + len(ready)))
            self.dropped.extend(first.take_dropped())
            self.done = max(self.done, first.done)
            if not first.finished:
                break
            self._open.popleft()
        self._n_segments += len(ready)
        if self.finished and self.error is None:
            self.done = self.duration
        return ready

    def fail(self, error: WhisperOptError) -> None:
        """Give up; what was handed out stays."""
        self.error = error
        self.close()

    def close(self) -> None:
        """Forget what is not decoded, and close the source."""
        self._exhausted = True
        self._open.clear()
        self._ahead.clear()
        if isinstance(self._chunks, collections.abc.Generator):
            self._chunks.close()

    @property
    def finished(self) -> bool:
        """Whether nothing more will come."""
        return self._exhausted and not self._open and not self._ahead
