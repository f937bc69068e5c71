"""Counters of an engine, and what follows from them."""

from __future__ import annotations

import dataclasses

__all__ = ["Counters", "EngineStats"]

_RECENT = 60.0
"""Seconds of work; older work counts half as much, and so on."""


@dataclasses.dataclass(frozen=True)
class EngineStats:
    """What an engine is doing, and what it has done.

    Attributes:
        queued: recordings that wait to be read.
        running: recordings that are read or decoded.
        rows: windows that are being decoded.
        max_batch: maximum of ``rows``.
        windows: windows encoded so far, those of language detection included.
        steps: decode steps so far.
        audio_seconds: seconds of audio transcribed so far.
        completed: recordings transcribed so far.
        rejected: recordings that were refused because the queue was full.
        cancelled: recordings that were cancelled.
        failed: recordings that failed, or whose callback failed.
        real_time_factor: seconds of work per second of audio, mostly of the last minute; 0 before
            anything was transcribed.
        estimated_wait: seconds until a recording submitted now would be started, about; 0 before
            anything was transcribed.
    """

    queued: int = 0
    running: int = 0
    rows: int = 0
    max_batch: int = 0
    windows: int = 0
    steps: int = 0
    audio_seconds: float = 0.0
    completed: int = 0
    rejected: int = 0
    cancelled: int = 0
    failed: int = 0
    real_time_factor: float = 0.0
    estimated_wait: float = 0.0


@dataclasses.dataclass
class Counters:
    """Counters that the engine adds to; fields as in :class:`EngineStats`."""

    audio_seconds: float = 0.0
    completed: int = 0
    rejected: int = 0
    cancelled: int = 0
    failed: int = 0
    detection_windows: int = 0
    _recent_audio: float = 0.0
    _recent_work: float = 0.0
    _completed_audio: float = 0.0

    def worked(self, seconds: float) -> None:
        """Add time of work."""
        self._recent_work += seconds
        if self._recent_work > _RECENT:
            self._recent_work /= 2
            self._recent_audio /= 2

    def transcribed(self, seconds: float) -> None:
        """Add audio that was transcribed."""
        self.audio_seconds += seconds
        self._recent_audio += seconds

    def finished(self, duration: float) -> None:
        """Count a recording of so many seconds as completed."""
        self.completed += 1
        self._completed_audio += duration

    @property
    def real_time_factor(self) -> float:
        """See :class:`EngineStats`."""
        return self._recent_work / self._recent_audio if self._recent_audio else 0.0

    def wait(self, n_queued: int) -> float:
        """Seconds until so many recordings of the usual length are transcribed."""
        if not self.completed:
            return 0.0
        return n_queued * self._completed_audio / self.completed * self.real_time_factor
