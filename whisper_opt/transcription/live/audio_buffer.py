"""The samples of a live session that may still be needed."""

from __future__ import annotations

import numpy as np

from whisper_opt.core.arrays import F32

__all__ = ["AudioBuffer"]


class AudioBuffer:
    """A stream of samples whose beginning is forgotten; positions count from its start.

    Attributes:
        start: the first sample that is kept.
        end: the number of samples added.
    """

    def __init__(self) -> None:
        """No samples."""
        self.start = self.end = 0
        self._data = np.empty(1 << 16, np.float32)
        self._first = 0  # position of data[0]

    def add(self, samples: F32) -> None:
        """Add F32 [n]."""
        needed = self.end + len(samples) - self._first
        if needed > len(self._data):
            held = self.end - self.start
            size = 1 << max(16, (2 * (held + len(samples)) - 1).bit_length())
            data = np.empty(size, np.float32)
            data[:held] = self._data[self.start - self._first : self.end - self._first]
            self._data, self._first = data, self.start
        at = self.end - self._first
        self._data[at : at + len(samples)] = samples
        self.end += len(samples)

    def take(self, start: int, end: int) -> F32:
        """A copy of the samples from ``start`` up to ``end``; those that are kept."""
        start, end = max(start, self.start), min(end, self.end)
        found: F32 = self._data[start - self._first : max(end, start) - self._first].copy()
        return found

    def forget(self, before: int) -> None:
        """Keep no samples before this one."""
        self.start = min(max(self.start, before), self.end)
