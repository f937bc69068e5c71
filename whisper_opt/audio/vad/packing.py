"""Packing of speech spans into chunks, also while a recording is being read."""

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
    """Join neighbouring spans, and the silences between them, into chunks.

    A chunk takes as many spans as fit and then ends at the widest gap in its last third (or after
    its last span, if no other ends there). A span that is too long is split into equal parts.

    Args:
        spans: in order, not overlapping; read lazily.
        longest: maximum samples of a chunk, from the start of its first span to the end of its
            last.
        max_gap: longer silences, in samples, are not bridged; None: no limit.

    Yields:
        Chunks, in order.

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
    """Detect speech and pack it into chunks while a recording is being read.

    At most ``longest`` samples, one span and one block are kept in memory, so give the detector a
    ``max_speech_duration``.

    Args:
        blocks: F32 [n] at 16 kHz that are not modified later, such as an
            :class:`whisper_opt.audio.decode.AudioStream`.
        detector: finds the speech.
        longest: see :func:`pack`.
        max_gap: see :func:`pack`.

    Yields:
        The chunks of ``pack(detector.spans(...), longest)``, each as soon as it is final, with its
        samples (F32, a copy).

    Raises:
        AudioError: a block is not finite float32 samples.
        BackendUnavailable: ONNX Runtime or the model file is missing.
        OptionError: see :func:`pack`.
    """
    packer, stream, buffer = _Packer(longest, max_gap), detector.stream(), _Buffer()
    for block in blocks:
        buffer.append(block)
        for span in stream.feed(block):
            for chunk in packer.add(span):
                yield chunk, buffer.read(chunk)
        for chunk in packer.settle(stream.settled):
            yield chunk, buffer.read(chunk)
        buffer.drop(packer.earliest(stream.settled))
    for span in stream.finish():
        for chunk in packer.add(span):
            yield chunk, buffer.read(chunk)
    for chunk in packer.finish():
        yield chunk, buffer.read(chunk)


class _Packer:
    """The rules of :func:`pack`, span by span."""

    def __init__(self, longest: int, max_gap: int | None) -> None:
        if longest < 1:
            raise OptionError(f"longest is {longest!r}; expected a positive number of samples")
        if max_gap is not None and max_gap < 0:
            raise OptionError(f"max_gap is {max_gap!r}; expected a number of samples or None")
        self._longest = longest
        self._max_gap = max_gap
        self._held: list[Span] = []

    def earliest(self, bound: int) -> int:
        """Earliest start of the next chunk if no later span starts before ``bound``."""
        return self._held[0].start if self._held else bound

    def add(self, span: Span) -> list[Span]:
        """Add the next span; returns the chunks that are now final."""
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
        """The spans held back, as a chunk, if no span from ``bound`` on can change it."""
        if not self._held:
            return []
        full = bound - self._held[0].start >= self._longest
        if self._too_far(bound) or (full and self._best_end(bound) == len(self._held)):
            return self.finish()
        return []

    def finish(self) -> list[Span]:
        """The spans held back, as one chunk."""
        held, self._held = self._held, []
        return [Span(held[0].start, held[-1].end)] if held else []

    def _too_far(self, start: int) -> bool:
        if self._max_gap is None or not self._held:
            return False
        return start - self._held[-1].end > self._max_gap

    def _shift(self, start: int) -> Span:
        """Remove the first chunk of the spans held back; the next span begins at ``start``."""
        n_taken = self._best_end(start)
        taken, self._held = self._held[:n_taken], self._held[n_taken:]
        return Span(taken[0].start, taken[-1].end)

    def _best_end(self, start: int) -> int:
        """Number of spans in the chunk: up to the widest gap in the last third, or the later."""
        held = self._held
        least = held[0].start + self._longest * 2 // 3
        gaps = [after.start - before.end for before, after in zip(held, held[1:])]
        gaps.append(start - held[-1].end)
        n_held = len(held)
        ends = [n for n in range(1, n_held + 1) if held[n - 1].end >= least or n == n_held]
        return max(ends, key=lambda n: (gaps[n - 1], n))


class _Buffer:
    """The samples of a recording that are still needed."""

    def __init__(self) -> None:
        self._blocks: deque[F32] = deque()
        self._start = 0  # of the first block kept

    def append(self, block: F32) -> None:
        self._blocks.append(block)

    def drop(self, before: int) -> None:
        """Discard the blocks that end before sample ``before``."""
        while self._blocks and self._start + len(self._blocks[0]) <= before:
            self._start += len(self._blocks.popleft())

    def read(self, span: Span) -> F32:
        """A copy of the samples of a span, F32 [n]."""
        pieces, start = [], self._start
        for block in self._blocks:
            pieces.append(block[max(0, span.start - start) : max(0, span.end - start)])
            start += len(block)
        return np.concatenate(pieces)
