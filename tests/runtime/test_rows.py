"""The cache positions that must be copied are found, and no other positions differ."""

from __future__ import annotations

import numpy as np
import pytest

from whisper_opt.core.arrays import Int
from whisper_opt.runtime.rows import CacheHistory

CAPACITY = 40


class Cache:
    """A cache whose positions contain the index of their write; moved as CacheHistory returns."""

    def __init__(self, n_slots: int) -> None:
        self.history = CacheHistory(n_slots, CAPACITY)
        self.held = np.zeros((n_slots, CAPACITY), np.int64)
        self.wanted = self.held.copy()  # the contents if everything were copied
        self.moved = 0
        self.n_written = 0

    def write(self, start: Int, n_new: int) -> None:
        self.history.write(start, n_new)
        for slot, first in enumerate(start):
            for position in range(first, first + n_new):
                self.n_written += 1
                self.held[slot, position] = self.wanted[slot, position] = self.n_written

    def arrange(self, source: Int, length: Int) -> None:
        """``length``: positions of every slot that must be right afterwards."""
        n_old = len(self.wanted)
        self.wanted = self.wanted[source]
        parts = self.history.rearrange(source, int(length.max()))
        if len(source) > len(self.held):  # as after growing: the contents are arbitrary
            more = np.full((len(source) - n_old, CAPACITY), -1)
            self.held = np.concatenate([self.held[:n_old], more])
        values = [self.held[source[slots], span] for slots, span in parts]
        for (slots, span), value in zip(parts, values):
            self.held[slots, span] = value
            self.moved += value.size
        self.held = self.held[: len(source)]
        for held, wanted, n in zip(self.held, self.wanted, length):
            np.testing.assert_array_equal(held[:n], wanted[:n])


@pytest.mark.parametrize("seed", range(40))
def test_slots_are_as_if_everything_were_copied(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 7))
    cache, length = Cache(n), np.zeros(n, np.int64)
    for step in range(24):
        n_new = int(rng.integers(1, 4)) if step else int(rng.integers(1, 9))
        if length.max() + n_new > CAPACITY:
            break
        cache.write(length, n_new)
        length = length + rng.integers(1, n_new + 1, len(length))  # the rest was padding
        source = rng.integers(0, len(length), int(rng.integers(1, 9)))
        if rng.random() < 0.3:
            source = rng.permutation(len(length))
        length = length[source]
        cache.arrange(source, length)


def test_only_differences_are_copied() -> None:
    cache = Cache(1)
    cache.write(np.array([0]), 30)
    cache.arrange(np.array([0, 0, 0]), np.full(3, 30))
    assert cache.moved == 60  # two new slots
    cache.write(np.full(3, 30), 1)
    cache.arrange(np.array([1, 0, 0]), np.full(3, 31))
    assert cache.moved == 63
    cache.write(np.full(3, 31), 1)
    cache.arrange(np.array([0, 1, 1]), np.full(3, 32))  # slots 1 and 2 differ at 31 only
    assert cache.moved == 64


def test_rows_of_another_cache_share_nothing() -> None:
    history, other = CacheHistory(2, CAPACITY), CacheHistory(1, CAPACITY)
    history.write(np.array([0, 0]), 5)
    other.write(np.array([0]), 5)
    history.copy_from(np.array([1]), other, np.array([0]), 5)
    ((slots, span),) = history.rearrange(np.array([1, 1]), 5)
    assert slots.tolist() == [0]
    assert span == slice(0, 5)


def test_an_empty_cache_is_not_copied() -> None:
    history = CacheHistory(2, CAPACITY)
    assert history.rearrange(np.array([1, 0, 1]), 0) == []
    assert history.rearrange(np.array([0, 0, 1]), 9) == []
