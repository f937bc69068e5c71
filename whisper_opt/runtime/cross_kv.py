"""Cross-attention keys and values of one engine: names, lengths and padding of the arrays.

They are plain or packed; :mod:`whisper_opt.export.graphs.cross` documents each array.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from whisper_opt.core.arrays import Int, NDArray
from whisper_opt.runtime.padding import MASKED, pad_positions

__all__ = ["CrossLayout"]


@dataclasses.dataclass(frozen=True)
class CrossLayout:
    """Layout of the cross-attention arrays of one engine; their first axis is the window.

    Attributes:
        n_layer: number of decoder layers.
        packed: whether the arrays are packed for the compiled kernels.
    """

    n_layer: int
    packed: bool

    @property
    def names(self) -> list[str]:
        """Names of the arrays in the graphs, in order."""
        pairs = [f"cross_{kind}_{i}" for i in range(self.n_layer) for kind in ("k", "v")]
        return [*pairs, "cross_steps", "cross_added"] if self.packed else pairs

    def n_keys(self, arrays: Sequence[NDArray]) -> int:
        """Number of positions that the arrays can store."""
        return int(arrays[-1].shape[1] if self.packed else arrays[1].shape[2])

    def pad_positions(self, arrays: Sequence[NDArray], n_keys: int) -> list[NDArray]:
        """The same arrays padded to ``n_keys`` positions; the new positions are masked.

        Raises:
            EngineError: these keys have no row of counts, so positions cannot be masked.
        """
        if not self.packed:
            return pad_positions(arrays, n_keys)
        have = self.n_keys(arrays)
        if have == n_keys:
            return list(arrays)
        *pairs, steps, added = arrays
        wider = [_lengthened(array, 2, array.shape[2] * n_keys // have) for array in pairs]
        return [*wider, steps, _lengthened(added, 1, n_keys, MASKED)]

    def put(self, arrays: Sequence[NDArray], windows: Int, given: Sequence[NDArray]) -> None:
        """Replace ``windows`` of ``arrays`` by arrays of at most as many positions.

        Positions beyond theirs are masked. The kernels read packed ones no more than that, so what
        they held before stays there.

        Raises:
            EngineError: as :meth:`pad_positions`.
        """
        if not self.packed:
            for array, value in zip(arrays, pad_positions(given, self.n_keys(arrays))):
                array[windows] = value
            return
        *pairs, steps, added = arrays
        *given_pairs, given_steps, given_added = given
        for array, value in zip(pairs, given_pairs):
            array[windows, :, : value.shape[2]] = value
        steps[windows] = given_steps
        added[windows] = MASKED
        added[windows, : given_added.shape[1]] = given_added


def _lengthened(array: NDArray, axis: int, size: int, value: float = 0) -> NDArray:
    sizes = [(0, 0)] * array.ndim
    sizes[axis] = (0, size - array.shape[axis])
    return np.pad(array, sizes, constant_values=value)
