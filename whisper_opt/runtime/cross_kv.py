"""Keys and values of what was heard, as arrays of one engine: names, lengths, widening.

Plain or packed: :mod:`whisper_opt.export.graphs.cross` says what each array holds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from whisper_opt.core.arrays import NDArray
from whisper_opt.runtime.padding import MASKED, widened

__all__ = ["CrossLayout"]


@dataclasses.dataclass(frozen=True)
class CrossLayout:
    """How one engine's arrays lie; all of them have the audios first.

    Attributes:
        n_layer: decoder layers.
        packed: whether they are packed for kernels.
    """

    n_layer: int
    packed: bool

    @property
    def names(self) -> list[str]:
        """What the graphs call the arrays, in their order."""
        pairs = [f"cross_{kind}_{i}" for i in range(self.n_layer) for kind in ("k", "v")]
        return [*pairs, "cross_steps", "cross_added"] if self.packed else pairs

    def n_keys(self, arrays: Sequence[NDArray]) -> int:
        """For how many positions there is room."""
        return int(arrays[-1].shape[1] if self.packed else arrays[1].shape[2])

    def widened(self, arrays: Sequence[NDArray], n_keys: int) -> list[NDArray]:
        """The same with room for ``n_keys`` positions, of which new ones are mute.

        Raises:
            EngineError: these keys have no row that says how often they count, so none can be mute.
        """
        if not self.packed:
            return widened(arrays, n_keys)
        have = self.n_keys(arrays)
        if have == n_keys:
            return list(arrays)
        *pairs, steps, added = arrays
        wider = [_lengthened(array, 2, array.shape[2] * n_keys // have) for array in pairs]
        return [*wider, steps, _lengthened(added, 1, n_keys, MASKED)]


def _lengthened(array: NDArray, axis: int, size: int, value: float = 0) -> NDArray:
    sizes = [(0, 0)] * array.ndim
    sizes[axis] = (0, size - array.shape[axis])
    return np.pad(array, sizes, constant_values=value)
