"""Padding of a window, heard by parts: what an encoder of 8 bits is given of it.

Most windows end in padding, and hearing all of it is most of the work for a short sound. It cannot
be left out either: Whisper rests its attention there (base 30 to 65 % of it in cross-attention),
always on the same positions. So one position stands for a whole part of the padding, and counts as
often as the part is long; the parts come from the export, short where much attention rests
(:mod:`whisper_opt.export.quantization.padding_parts`).

Method: keys that stand for several are what token merging calls proportional attention (Bolya et
al. 2022, arXiv:2210.09461); which positions to keep, and that the first layer hears all of them,
come from measurements of Whisper (docs/quantization.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from whisper_opt.core.arrays import F32, Int, NDArray
from whisper_opt.core.dims import HEAD_DIM
from whisper_opt.core.errors import EngineError

__all__ = ["BLOCK", "MASKED", "Heard", "Padding", "spread", "widened"]

BLOCK = 128
"""Packed keys come in so many."""
MASKED = -1e30
"""What is added to the score of a packed key that nobody stands behind."""

MARGIN = 16
"""Positions of padding right behind the sound (20 ms each) that are all heard."""
_MUTE = -1e4
"""What a key that does not count adds to a score, times 8: no exponential of it is left."""
SPLITS = (3, 2, 1)
ROOM = 0.4
"""Share of the positions up to which parts are split, in three or in two: a sound of a second or
two leaves more to padding, and costs little."""
WORTH_IT = 0.9
"""Share of the positions at which hearing by parts saves more than it costs."""


class Heard(NamedTuple):
    """What an encoder is given.

    Attributes:
        mel: float32 [n_audio, n_mels, n_frames], cut where nothing but padding follows.
        counts: int64 [n_heard], for how many positions of the window each stands that is heard; all
            ones but in padding.
    """

    mel: F32
    counts: Int

    @property
    def positions(self) -> Int:
        """int64 [n_heard], ascending: those heard, each in the middle of what it stands for."""
        positions: Int = np.cumsum(self.counts) - self.counts + self.counts // 2
        return positions

    @classmethod
    def whole(cls, mel: F32, frames_per_position: int) -> Heard:
        """All positions of a window."""
        return cls(mel, np.ones(-(-mel.shape[2] // frames_per_position), np.int64))

    def feeds(self) -> dict[str, NDArray]:
        """The encoder's inputs."""
        counts = self.counts.astype(np.float32)
        return {"mel": self.mel, "positions": self.positions, "counts": counts}


class Padding:
    """How one model hears padding."""

    def __init__(
        self, parts: Sequence[int], frames_per_position: int, *, whole: bool = False
    ) -> None:
        """``parts``: lengths of the parts of a window, in positions and in order.

        ``whole``: hear all padding nevertheless.
        """
        self._whole = whole
        self._n_ctx = sum(parts)
        self._ends = {n: _ends(parts, n) for n in SPLITS}
        self._frames = frames_per_position

    def heard(self, mel: F32) -> Heard:
        """Windows of log-mel [n_audio, n_mels, n_frames], padded with zeros, as they are heard.

        Windows given together are all heard as the longest of them is.
        """
        n_ctx = -(-mel.shape[2] // self._frames)
        if n_ctx == self._n_ctx and not self._whole:
            sound = np.flatnonzero(mel.any(axis=(0, 1)))
            n_frames = int(sound[-1]) + 1 if len(sound) else 0
            exact = -(-n_frames // self._frames) + MARGIN
            counts = self._counts(exact)
            if len(counts) <= WORTH_IT * n_ctx:
                return Heard(np.ascontiguousarray(mel[:, :, : exact * self._frames]), counts)
        return Heard.whole(mel, self._frames)

    def _counts(self, exact: int) -> Int:
        """The first ``exact`` positions by themselves, and the parts that follow."""
        exact = min(exact, self._n_ctx)
        for n in SPLITS:
            ends = self._ends[n][self._ends[n] > exact]
            if exact + len(ends) <= ROOM * self._n_ctx:
                break
        parts = np.diff(ends, prepend=exact)
        return np.concatenate([np.ones(exact, np.int64), parts])


def _ends(parts: Sequence[int], n: int) -> Int:
    """Where parts end that are split into ``n``, or into single positions."""
    ends, start = [], 0
    for part in parts:
        pieces = min(n, part)
        ends += [start + part * (i + 1) // pieces for i in range(pieces)]
        start += part
    return np.array(ends, np.int64)


def spread(scores: F32, counts: Int) -> F32:
    """Attention scores [..., n_heard] before the softmax as those of all positions.

    What a position stands for has the scores it has, without what its count adds to them.
    """
    own = scores - np.log(counts).astype(np.float32)
    return np.repeat(own, counts, axis=-1)


def widened(cross: Sequence[NDArray], n_ctx: int) -> list[NDArray]:
    """Cross-attention keys and values as those of ``n_ctx`` positions, of which new ones are mute.

    Raises:
        EngineError: these keys have no row that says how often they count, so none can be mute.
    """
    missing = n_ctx - cross[1].shape[2]
    if not missing:
        return list(cross)
    if cross[0].shape[2] == HEAD_DIM:
        raise EngineError("windows of different lengths cannot share a session of this engine")
    keys = [np.pad(array, ((0, 0), (0, 0), (0, 0), (0, missing))) for array in cross[::2]]
    for array in keys:
        array[:, :, HEAD_DIM, -missing:] = _MUTE
    values = [np.pad(array, ((0, 0), (0, 0), (0, missing), (0, 0))) for array in cross[1::2]]
    return [array for pair in zip(keys, values) for array in pair]
