"""Arrays with reusable capacity for the caches of a session."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from whisper_opt.core.arrays import Int, NDArray, aligned_zeros

__all__ = ["Buffers"]


class Buffers:
    """Arrays that share their first axis, of which the first ``n`` entries are in use.

    Entries move inside the buffers if possible: arrays that are bound to the decoder stay valid
    until the buffers have to grow.
    """

    def __init__(self, arrays: Sequence[NDArray], n: int) -> None:
        self.arrays = list(arrays)
        self.n = n

    def views(self) -> list[NDArray]:
        """The entries in use."""
        return [array[: self.n] for array in self.arrays]

    def resize(self, n: int, *, copy: bool = False) -> bool:
        """Use n entries; new ones hold any finite values. ``copy``: always allocate new arrays.

        Returns:
            Whether the arrays were reallocated.
        """
        capacity = len(self.arrays[0]) if self.arrays else n
        if n <= capacity and not copy:
            self.n = n
            return False
        capacity = n if n <= capacity else max(n, 2 * self.n)
        for i, old in enumerate(self.arrays):
            new = aligned_zeros((capacity, *old.shape[1:]), old.dtype)
            new[: self.n] = old[: self.n][:n]
            self.arrays[i] = new
        self.n = n
        return True

    def arrange(self, source: Int, parts: Sequence[tuple[Int, slice]] | None = None) -> bool:
        """Entry i becomes old entry ``source[i]``.

        Args:
            source: old entry of each entry.
            parts: entries and the positions (axis 2) in which they differ from their source;
                default: all positions of all entries that move.

        Returns:
            Whether the arrays were reallocated.
        """
        n, old_n = len(source), self.n
        grown = self.resize(max(n, old_n))
        every: tuple[Any, ...] = ()  # all axes of an entry
        places = [(moved, (slice(None), span)) for moved, span in parts or ()]
        if parts is None:
            places = [(np.flatnonzero(source != np.arange(n)), every)]
        for array in self.arrays:
            # read all before the first write, so that entries can swap places
            values = [array[(source[moved],) + axes] for moved, axes in places]  # noqa: RUF005
            for (moved, axes), value in zip(places, values):
                array[(moved,) + axes] = value  # noqa: RUF005
        self.n = n
        return grown
