"""Spans to windows: joining neighbours, and cutting a recording up while it is read."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

import numpy as np

from whisper_opt.audio.vad.detect import SpeechDetector
from whisper_opt.audio.vad.rules import Span
from whisper_opt.core.arrays import F32
from whisper_opt.core.errors import OptionError

__all__ = ["cut", "merge", "pack"]


def merge(spans: Iterable[Span], gap: int) -> Iterator[Span]:
    """Join spans that are less than ``gap`` samples apart; in order, lazily."""
    held: Span | None = None
    for span in spans:
        if held is not None and span.start - held.end >= gap:
            yield held
            held = None
        held = Span(held.start if held else span.start, span.end)
    if held is not None:
        yield held


def pack(spans: Iterable[Span], longest: int, *, max_gap: int | None = None) -> Iterator[Span]:
    """Join neighbouring spans into stretches, silences inside included.

    A stretch takes as many spans as it can hold and then ends at the widest gap of its last third
    (or after its last span, if no other ends there). A span that is too long is cut into equal
    parts.

    Args:
        spans: in order, not overlapping; read as they are needed.
        longest: samples a stretch may have, from the start of its first span to the end of its
            last.
        max_gap: silences of more samples are not bridged; None bridges any.

    Yields:
        Stretches, in order.

    Raises:
        OptionError: ``longest`` is not positive, or ``max_gap`` negative.
    """
    packer = _Packer(longest, max_gap)
    for span in spans:
        yield from packer.add(span)
    yield from packer.finish()


def cut(
    blocks: Iterable[F32], detector: SpeechDetector, longest: int, *, max_gap: int | None = None
) -> Iterator[tuple[Span, F32]]:
    """Detect and pack while a recording is read, keeping only the samples still needed.

    What is kept is bounded by ``longest``, one span and one block, so give the detector a
    ``max_speech_duration``.

    Args:
        blocks: F32 [n] at 16 kHz that stay as they are, such as an
            :class:`whisper_opt.audio.decode.AudioStream`.
        detector: finds the speech.
        longest: see :func:`pack`.
        max_gap: see :func:`pack`.

    Yields:
        The stretches of ``pack(detector.spans(...), longest)`` as soon as each is certain, with
        their samples (F32, a copy).

    Raises:
        AudioError: a block is not finite float32 samples.
        BackendUnavailable: ONNX Runtime or the model file is missing.
        OptionError: see :func:`pack`.
    """
    packer, stream, tape = _Packer(longest, max_gap), detector.stream(), _Tape()
    for block in blocks:
        tape.append(block)
        for span in stream.feed(block):
            for stretch in packer.add(span):
                yield stretch, tape.read(stretch)
        for stretch in packer.settle(stream.settled):
            yield stretch, tape.read(stretch)
        tape.drop(packer.earliest(stream.settled))
    for span in stream.finish():
        for stretch in packer.add(span):
            yield stretch, tape.read(stretch)
    for stretch in packer.finish():
        yield stretch, tape.read(stretch)


class _Packer:
    """The rules of :func:`pack`, a span at a time."""

    def __init__(self, longest: int, max_gap: int | None) -> None:
        if longest < 1:
            raise OptionError(f"longest is {longest!r}; expected a positive number of samples")
        if max_gap is not None and max_gap < 0:
            raise OptionError(f"max_gap is {max_gap!r}; expected a number of samples or None")
        self._longest = longest
        self._max_gap = max_gap
        self._held: list[Span] = []

    def earliest(self, bound: int) -> int:
        """Where the next stretch may start if no span still to come starts before ``bound``."""
        return self._held[0].start if self._held else bound

    def add(self, span: Span) -> list[Span]:
        """Take the next span; returns the stretches it settles."""
        found = []
        if self._too_far(span.start):
            found += self.finish()
        while self._held and span.end - self._held[0].start > self._longest:
            found.append(self._shift(span.start))
        n_parts = -(-(span.end - span.start) // self._longest)
        edges = [span.start + (span.end - span.start) * i // n_parts for i in range(n_parts + 1)]
        parts = [Span(start, end) for start, end in zip(edges, edges[1:])]
        self._held.append(parts.pop())
        return found + parts

    def settle(self, bound: int) -> list[Span]:
        """What is held, if no span that starts at ``bound`` or later can join or divide it."""
        if not self._held:
            return []
        full = bound - self._held[0].start >= self._longest
        if self._too_far(bound) or (full and self._best_end(bound) == len(self._held)):
            return self.finish()
        return []

    def finish(self) -> list[Span]:
        """What is held, as one stretch."""
        held, self._held = self._held, []
        return [Span(held[0].start, held[-1].end)] if held else []

    def _too_far(self, start: int) -> bool:
        if self._max_gap is None or not self._held:
            return False
        return start - self._held[-1].end > self._max_gap

    def _shift(self, start: int) -> Span:
        """The first stretch of what is held, where the next span begins at ``start``."""
        n_taken = self._best_end(start)
        taken, self._held = self._held[:n_taken], self._held[n_taken:]
        return Span(taken[0].start, taken[-1].end)

    def _best_end(self, start: int) -> int:
        """How many spans to take: up to the widest gap in the last third, the last one if equal."""
        held = self._held
        least = held[0].start + self._longest * 2 // 3
        gaps = [after.start - before.end for before, after in zip(held, held[1:])]
        gaps.append(start - held[-1].end)
        n_held = len(held)
        ends = [n for n in range(1, n_held + 1) if held[n - 1].end >= least or n == n_held]
        return max(ends, key=lambda n: (gaps[n - 1], n))


class _Tape:
    """The samples of a recording that are still needed."""

    def __init__(self) -> None:
        self._blocks: deque[F32] = deque()
        self._start = 0  # of the first block held

    def append(self, block: F32) -> None:
        self._blocks.append(block)

    def drop(self, before: int) -> None:
        """Forget the blocks that end before a sample."""
        while self._blocks and self._start + len(self._blocks[0]) <= before:
            self._start += len(self._blocks.popleft())

    def read(self, span: Span) -> F32:
        """A copy of the samples of a span; F32 [n]."""
        pieces, start = [], self._start
        for block in self._blocks:
            pieces.append(block[max(0, span.start - start) : max(0, span.end - start)])
            start += len(block)
        return np.concatenate(pieces)
