"""Recordings that were submitted to an engine, and the queue of those that wait."""

from __future__ import annotations

import dataclasses
import heapq
from typing import Callable, Union

from whisper_opt.core.options import TranscribeOptions
from whisper_opt.serving.handle import Handle
from whisper_opt.serving.readers import ReadAhead
from whisper_opt.text.results import Segment
from whisper_opt.transcription.admission import Terms
from whisper_opt.transcription.job import TranscriptionJob

__all__ = ["Request", "RequestQueue"]

_HELD_AHEAD = 300.0
"""Seconds of a recording that the batched strategy holds in memory at most, about."""


@dataclasses.dataclass(eq=False)
class Request:
    """One recording, from its submission to its answer.

    Attributes:
        handle: what the caller has.
        job: its transcription.
        reading: its audio, which is read in other threads.
        terms: what it is entitled to.
        on_segment: called with every segment.
        on_progress: called with (seconds done, total seconds).
        counted: seconds of audio in the statistics.
        is_update: whether it is an update of a live session, which is no recording.
        work: seconds of work of the engine for it, about.
        announced: whether its first chunk was read.
    """

    handle: Handle
    job: TranscriptionJob
    reading: ReadAhead
    terms: Terms
    on_segment: Union[Callable[[Segment], None], None] = None
    on_progress: Union[Callable[[float, float], None], None] = None
    counted: float = 0.0
    is_update: bool = False
    work: float = 0.0
    announced: bool = False

    @property
    def has_callbacks(self) -> bool:
        """Whether the caller wants to be told while it runs."""
        return self.on_segment is not None or self.on_progress is not None

    @property
    def is_announced_now(self) -> bool:
        """Whether its first chunk is there, and nobody was told so yet."""
        return not self.announced and self.reading.ready

    @property
    def held(self) -> float:
        """Seconds of audio that it keeps in memory."""
        options: TranscribeOptions = self.job.fallback.options
        whole = options.strategy == "sequential" or options.clip_timestamps
        seconds = self.job.duration if whole else min(self.job.duration, _HELD_AHEAD)
        return seconds * self.job.n_channels


class RequestQueue:
    """Requests that wait to be read: by rank, then by deadline, then in order of arrival."""

    def __init__(self) -> None:
        """An empty queue."""
        self._heap: list[tuple[tuple[bool, int, float, int], Request]] = []
        self._n_added = 0

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, request: Request) -> None:
        """Add a request."""
        terms, self._n_added = request.terms, self._n_added + 1
        place = (not terms.live, -terms.priority, terms.deadline, self._n_added)
        heapq.heappush(self._heap, (place, request))

    def remove(self, request: Request) -> bool:
        """Remove a request; False if it is not in the queue."""
        kept = [item for item in self._heap if item[1] is not request]
        found = len(kept) < len(self._heap)
        if found:
            self._heap = kept
            heapq.heapify(self._heap)
        return found

    @property
    def first(self) -> Request | None:
        """The request that is next."""
        return self._heap[0][1] if self._heap else None

    def pop(self) -> Request:
        """Take the request that is next."""
        return heapq.heappop(self._heap)[1]

    def take_all(self) -> list[Request]:
        """Take all requests."""
        found, self._heap = [request for _, request in self._heap], []
        return found
