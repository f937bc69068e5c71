"""Mixing of channels to mono.

The mix is the mean of all channels. If channels are in opposite phase, as when the wires of one
channel are swapped, they cancel: then the loudest channel is used alone, and a warning is logged.
"""

from __future__ import annotations

import logging

import numpy as np

from whisper_opt.core.arrays import F32
from whisper_opt.core.errors import AudioError

__all__ = ["Downmix", "OneChannel"]

_log = logging.getLogger(__name__)

_CANCELLED = 0.01
"""Channels cancel if their mean has less than this share of the energy of uncorrelated channels."""
_PARTS = 3
"""Parts of 0.1 s in which channels must cancel before one of them is used alone for a second."""
_AUDIBLE = 1e-7
"""Mean square below which a channel is silent: -70 dBFS."""
_FADE = 0.01
"""Seconds of cross-fade between two ways of mixing, which avoids clicks."""


class OneChannel:
    """Keeps one channel of the blocks of a recording."""

    def __init__(self, channel: int, name: str) -> None:
        """``channel`` from 0; ``name`` of the recording, for the error."""
        self._channel = channel
        self._name = name

    def feed(self, block: F32) -> F32:
        """Add F32 [n, n_channels]; returns F32 [n].

        Silence that stands for missing packets has one channel, and is that of every channel.

        Raises:
            AudioError: there is no such channel.
        """
        n_channels = block.shape[1]
        if n_channels == 1 and not block.any():
            return block[:, 0]
        if not 0 <= self._channel < n_channels:
            raise AudioError(
                f"channel is {self._channel}, but {self._name} has {n_channels} channel(s),"
                " numbered from 0"
            )
        return np.ascontiguousarray(block[:, self._channel])

    def finish(self) -> F32:
        """No more samples: none are held back."""
        return np.empty(0, np.float32)


class Downmix:
    """Mixes the blocks of a recording; decides for at least a second at a time how to."""

    def __init__(self, rate: int, name: str) -> None:
        """``rate`` in Hz; ``name`` of the recording, for the warning."""
        self._rate = rate
        self._name = name
        self._held: list[F32] = []
        self._n_held = 0
        self._n_done = 0
        self._channel: int | None = None  # used alone
        self._warned = False

    def feed(self, block: F32) -> F32:
        """Add F32 [n, n_channels], any n; returns F32 [m], with m = 0 until there is enough."""
        if block.shape[1] == 1 and not self._held:
            self._channel = None
            self._n_done += len(block)
            return np.ascontiguousarray(block[:, 0])
        done: list[F32] = []
        if self._held and block.shape[1] != self._held[0].shape[1]:
            done.append(self.finish())
            if block.shape[1] == 1:
                return np.concatenate([*done, self.feed(block)])
        self._held.append(block)
        self._n_held += len(block)
        if self._n_held >= self._rate:
            done.append(self.finish())
        return np.concatenate(done) if done else np.empty(0, np.float32)

    def finish(self) -> F32:
        """Mix the blocks held back."""
        if not self._held:
            return np.empty(0, np.float32)
        block = self._held[0] if len(self._held) == 1 else np.concatenate(self._held)
        self._held, self._n_held = [], 0
        with np.errstate(over="ignore", invalid="ignore"):
            mixed = self._mixed(block)
        self._n_done += len(block)
        return mixed

    def _mixed(self, block: F32) -> F32:
        mean = _mean(block)
        before, self._channel = self._channel, self._choose(block, mean)
        if self._channel is None and before is None:
            return mean
        before = self._channel if self._n_done == 0 else before
        after = mean if self._channel is None else block[:, self._channel].copy()
        if before != self._channel and (before is None or before < block.shape[1]):
            n = min(round(_FADE * self._rate), len(after))
            ramp = np.linspace(0, 1, n, dtype=np.float32)
            left = mean if before is None else block[:, before]
            after[:n] = ramp * after[:n] + (1 - ramp) * left[:n]
        return after

    def _choose(self, block: F32, mean: F32) -> int | None:
        """The channel to use alone, or None for the mean."""
        n_channels, size = block.shape[1], max(1, min(self._rate // 10, len(block)))
        n = len(block) // size  # parts of 0.1 s
        energies = np.square(block[: n * size].reshape(n, size, n_channels)).mean(axis=1)
        mixed = np.square(mean[: n * size].reshape(n, size)).mean(axis=1)
        audible = energies.max(axis=1, initial=0.0) > _AUDIBLE
        unrelated = energies.sum(axis=1) / n_channels**2  # energy of the mean if uncorrelated
        cancelled = audible & (mixed < _CANCELLED * unrelated)
        if self._channel is not None and self._channel < n_channels:
            stays = cancelled.any() or not audible.any()
            return self._channel if stays else None
        if not 0 < min(_PARTS, n) <= np.count_nonzero(cancelled):
            return None
        loudest = int(energies[cancelled].sum(axis=0).argmax())
        if not self._warned:
            self._warned = True
            _log.warning(
                "%s: from %.1f s on, the channels cancel each other when mixed (opposite phase);"
                " only channel %d of %d is used there",
                self._name,
                self._n_done / self._rate,
                loudest + 1,
                n_channels,
            )
        return loudest


def _mean(block: F32) -> F32:
    mean: F32 = block[:, 0] + block[:, 1]
    for channel in block.T[2:]:
        mean += channel
    mean *= np.float32(1 / block.shape[1])
    return mean
