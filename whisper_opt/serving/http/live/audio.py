"""Audio of messages to samples: 16-bit PCM and G.711."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from whisper_opt.core.arrays import NDArray

__all__ = ["ENCODINGS", "SampleReader"]


def _mu_law() -> NDArray:
    """Samples of the 256 codes of mu-law (ITU-T G.711, table 2)."""
    codes = ~np.arange(256, dtype=np.int32) & 0xFF
    exponents, mantissas = (codes >> 4) & 7, codes & 15
    magnitudes = (((mantissas << 3) + 0x84) << exponents) - 0x84
    return np.where(codes & 0x80, -magnitudes, magnitudes).astype(np.int16)


def _a_law() -> NDArray:
    """Samples of the 256 codes of A-law (ITU-T G.711, table 1)."""
    codes = np.arange(256, dtype=np.int32) ^ 0x55
    exponents, mantissas = (codes >> 4) & 7, codes & 15
    linear = (mantissas << 4) + 8
    curved = (linear + 0x100) << np.maximum(exponents - 1, 0)
    magnitudes = np.where(exponents == 0, linear, curved)
    return np.where(codes & 0x80, magnitudes, -magnitudes).astype(np.int16)


ENCODINGS: Mapping[str, tuple[str, Any]] = {
    "linear16": ("<i2", None),
    "linear32": ("<f4", None),
    "mulaw": ("u1", _mu_law()),
    "alaw": ("u1", _a_law()),
}
"""Type of a sample on the wire, and the table that makes it linear, by name of the encoding."""


class SampleReader:
    """Turns the bytes of messages into samples; a message may end within one."""

    def __init__(self, encoding: str, n_channels: int = 1) -> None:
        """``encoding``: one of :data:`ENCODINGS`."""
        dtype, self._table = ENCODINGS[encoding]
        self._dtype = np.dtype(dtype)
        self._n_channels = n_channels
        self._rest = b""

    def read(self, data: bytes) -> NDArray:
        """Samples [n, channels], int16 or float32, that are whole with these bytes."""
        data = self._rest + data
        frame = self._dtype.itemsize * self._n_channels
        n_whole = len(data) - len(data) % frame
        self._rest = data[n_whole:]
        samples = np.frombuffer(data[:n_whole], self._dtype)
        linear = samples if self._table is None else self._table[samples]
        if linear.dtype.kind == "f":  # a client may send anything
            linear = np.nan_to_num(linear, nan=0.0, posinf=1.0, neginf=-1.0)
        return linear.reshape(-1, self._n_channels)

    def clear(self) -> None:
        """Forget the beginning of a sample."""
        self._rest = b""
