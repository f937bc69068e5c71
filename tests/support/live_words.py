"""Words of live results for tests."""

from __future__ import annotations

from whisper_opt.transcription.live.words import LiveWord

__all__ = ["words"]


def words(
    text: str, *, start: float = 0.0, each: float = 0.3, margin: int = 100, probability: float = 0.9
) -> tuple[LiveWord, ...]:
    """One word per space-separated part, with its space; ``|`` divides without a space."""
    parts = [
        (" " if i == 0 else "") + piece
        for part in text.split()
        for i, piece in enumerate(part.split("|"))
    ]
    return tuple(
        LiveWord(
            text=part,
            tokens=tuple(ord(character) % 1000 + 1 for character in part),
            start=start + i * each,
            end=start + (i + 1) * each,
            probability=probability,
            margin=margin,
        )
        for i, part in enumerate(parts)
    )
