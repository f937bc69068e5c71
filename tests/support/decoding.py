"""Decoding without a scheduler: some windows, all at once."""

from __future__ import annotations

from collections.abc import Sequence

from whisper_opt.core.backend import Backend, Encoded
from whisper_opt.decoding import Batch, Decoded, DecodeRequest

__all__ = ["decode"]


def decode(backend: Backend, audio: Encoded, requests: Sequence[DecodeRequest]) -> list[Decoded]:
    """Decode windows in one batch; see :class:`Batch`.

    Returns:
        The candidates of each window, in the order of ``requests``.
    """
    batch = Batch(backend)
    found: dict[int, Decoded] = {}
    try:
        numbers = batch.add(audio, requests)
        while len(batch):
            found.update(batch.step())
    finally:
        batch.close()
    return [found[number] for number in numbers]
