"""Padding compression: the encoder of an 8-bit engine processes merged positions of the padding.

Most windows end in padding, and encoding all of it is most of the work for a short clip. The
padding cannot be left out: 30 to 65 % of the cross-attention of base falls on it, always on the
same positions. So the padding is divided into parts. One position represents each part, and its
weight in attention is the length of the part. The export chooses the parts; they are short where
the attention is high (:mod:`whisper_opt.export.quantization.padding_parts`).

Method: keys that represent several positions are the proportional attention of token merging (Bolya
et al. 2022, arXiv:2210.09461). The choice of positions, and the first layer that processes all of
them, come from measurements of Whisper (docs/quantization.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from whisper_opt.core.arrays import F32, Int, NDArray
from whisper_opt.core.dims import HEAD_DIM
from whisper_opt.core.errors import EngineError

__all__ = [
    "BLOCK",
    "MASKED",
    "EncoderInput",
    "PaddingCompression",
    "expand_scores",
    "pad_positions",
]

BLOCK = 128
"""Number of packed keys in a block."""
MASKED = -1e30
"""Added to the attention score of a packed key that represents no position."""

MARGIN = 16
"""Positions of padding directly after the audio (20 ms each) that are not merged."""
_MASKED_KEY = -1e4
"""Added to the score of a plain masked key, times 8: its exponential is zero."""
SPLITS = (3, 2, 1)
"""Numbers into which each part may be split, tried in this order."""
MAX_SPLIT_SHARE = 0.4
"""Parts are split in three or two if at most this share of the positions is encoded then. A clip of
one or two seconds has more padding, and the extra positions cost little."""
MAX_COMPRESSED_SHARE = 0.9
"""Share of the positions up to which compression saves more time than it costs."""


class EncoderInput(NamedTuple):
    """Input of the encoder.

    Attributes:
        mel: float32 [n_audio, n_mels, n_frames], without the frames that are only merged padding.
        counts: int64 [n_positions], number of window positions that each encoded position
            represents; 1 except in padding.
    """

    mel: F32
    counts: Int

    @property
    def positions(self) -> Int:
        """int64 [n_positions], ascending: window position of each, the middle of its part."""
        positions: Int = np.cumsum(self.counts) - self.counts + self.counts // 2
        return positions

    @classmethod
    def uncompressed(cls, mel: F32, frames_per_position: int) -> EncoderInput:
        """Input with all positions of a window."""
        return cls(mel, np.ones(-(-mel.shape[2] // frames_per_position), np.int64))

    def feeds(self) -> dict[str, NDArray]:
        """Inputs of the encoder graph by name."""
        counts = self.counts.astype(np.float32)
        return {"mel": self.mel, "positions": self.positions, "counts": counts}


class PaddingCompression:
    """Padding compression of one model."""

    def __init__(
        self, parts: Sequence[int], frames_per_position: int, *, disabled: bool = False
    ) -> None:
        """Prepare the splits of the parts.

        Args:
            parts: lengths of the parts of a window, in positions and in order.
            frames_per_position: log-mel frames per encoder position.
            disabled: encode all positions of the padding.
        """
        self._disabled = disabled
        self._n_ctx = sum(parts)
        self._ends = {n: _ends(parts, n) for n in SPLITS}
        self._frames = frames_per_position

    def compress(self, mel: F32) -> EncoderInput:
        """Merge the padding of log-mel windows [n_audio, n_mels, n_frames] padded with zeros.

        All windows of one call use the positions of the longest one.
        """
        n_ctx = -(-mel.shape[2] // self._frames)
        if n_ctx == self._n_ctx and not self._disabled:
            used = np.flatnonzero(mel.any(axis=(0, 1)))
            n_frames = int(used[-1]) + 1 if len(used) else 0
            exact = -(-n_frames // self._frames) + MARGIN
            counts = self._counts(exact)
            if len(counts) <= MAX_COMPRESSED_SHARE * n_ctx:
                return EncoderInput(np.ascontiguousarray(mel[:, :, : exact * self._frames]), counts)
        return EncoderInput.uncompressed(mel, self._frames)

    def _counts(self, exact: int) -> Int:
        """A count of 1 for the first ``exact`` positions, then the lengths of the parts."""
        exact = min(exact, self._n_ctx)
        for n in SPLITS:
            ends = self._ends[n][self._ends[n] > exact]
            if exact + len(ends) <= MAX_SPLIT_SHARE * self._n_ctx:
                break
        parts = np.diff(ends, prepend=exact)
        return np.concatenate([np.ones(exact, np.int64), parts])


def _ends(parts: Sequence[int], n: int) -> Int:
    """Ends of the parts after each is split into ``n``, or into single positions."""
    ends, start = [], 0
    for part in parts:
        n_split = min(n, part)
        ends += [start + part * (i + 1) // n_split for i in range(n_split)]
        start += part
    return np.array(ends, np.int64)


def expand_scores(scores: F32, counts: Int) -> F32:
    """Expand attention scores [..., n_positions] before the softmax to all window positions.

    Every merged position gets the score of the one that represents it, without the logarithm of
    the count that was added.
    """
    single = scores - np.log(counts).astype(np.float32)
    return np.repeat(single, counts, axis=-1)


def pad_positions(cross: Sequence[NDArray], n_ctx: int) -> list[NDArray]:
    """Pad cross-attention keys and values to ``n_ctx`` positions; the new ones are masked.

    Raises:
        EngineError: these keys have no row of counts, so positions cannot be masked.
    """
    missing = n_ctx - cross[1].shape[2]
    if not missing:
        return list(cross)
    if cross[0].shape[2] == HEAD_DIM:
        raise EngineError("windows of different lengths cannot share a session of this engine")
    keys = [np.pad(array, ((0, 0), (0, 0), (0, 0), (0, missing))) for array in cross[::2]]
    for array in keys:
        array[:, :, HEAD_DIM, -missing:] = _MASKED_KEY
    values = [np.pad(array, ((0, 0), (0, 0), (0, missing), (0, 0))) for array in cross[1::2]]
    return [array for pair in zip(keys, values) for array in pair]
