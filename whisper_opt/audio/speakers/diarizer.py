"""Who speaks when in a recording that comes in blocks."""

from __future__ import annotations

import itertools
import string
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from whisper_opt.audio.speakers.clustering import LEAST, Labels, cluster, similarities
from whisper_opt.audio.speakers.networks import SpeakerNetworks
from whisper_opt.audio.speakers.turns import Spoken, active_frames, spans
from whisper_opt.audio.speakers.windows import SPEAKERS, Voice, Windows
from whisper_opt.core.arrays import F32
from whisper_opt.core.errors import AudioError

__all__ = ["SIMILAR", "Diarizer", "main_voice", "names", "recognized", "voice_of"]

SIMILAR = 0.5
"""Cosine similarity from which a speaker is one of the known ones."""


def names() -> Iterator[str]:
    """A, B, ..., Z, AA, AB, ..."""
    for length in itertools.count(1):
        for letters in itertools.product(string.ascii_uppercase, repeat=length):
            yield "".join(letters)


def voice_of(networks: SpeakerNetworks, samples: F32, name: str) -> F32:
    """The voice of the person who speaks most in a clip: F32 [n] of unit length.

    Raises:
        AudioError: nobody speaks in it; ``name`` is that of the clip.
    """
    voice, _ = main_voice(networks, samples)
    if voice is None:
        raise AudioError(
            f"no speech was found in the reference clip of {name}; expected 2 to 10 s of one person"
        )
    return voice


def main_voice(networks: SpeakerNetworks, samples: F32) -> tuple[F32 | None, float]:
    """The voice of the person who speaks most.

    Args:
        networks: the networks.
        samples: F32 [n] at 16 kHz.

    Returns:
        The voice, F32 [d] of unit length, or None if nobody speaks; and the seconds of speech that
        it was made of, in which overlapping windows count several times.
    """
    windows = Windows(networks)
    windows.feed(samples)
    windows.finish()
    if not windows.voices:
        return None, 0.0
    labels, centres = _clustered(windows.voices, 1, None, least=0.0)
    totals = np.bincount(labels, [voice.weight for voice in windows.voices])
    best = int(totals.argmax())
    found: F32 = centres[best] / np.linalg.norm(centres[best])
    return found, float(totals[best])


def recognized(centres: F32, known: Mapping[str, F32]) -> dict[int, str]:
    """The names of those of some voices [n, d] that are voices of known speakers."""
    if not known:
        return {}
    alike = similarities(centres, np.stack(list(known.values())))
    best = alike.argmax(axis=1).tolist()
    return {i: list(known)[k] for i, k in enumerate(best) if alike[i, k] >= SIMILAR}


def _clustered(
    voices: Sequence[Voice], low: int, high: int | None, least: float = LEAST
) -> tuple[Labels, F32]:
    """The speaker of each voice, and the mean voice of each speaker."""
    return cluster(
        np.stack([voice.embedding for voice in voices]),
        [voice.weight for voice in voices],
        low=low,
        high=high,
        least=least,
    )


class Diarizer:
    """Finds the turns of the speakers of one recording."""

    def __init__(
        self,
        networks: SpeakerNetworks,
        *,
        low: int = 1,
        high: int | None = None,
        known: Mapping[str, F32] | None = None,
    ) -> None:
        """No samples yet.

        Args:
            networks: the networks.
            low: minimum number of speakers.
            high: maximum number of speakers; default: no limit.
            known: voices of known speakers by name.
        """
        self._windows = Windows(networks)
        self._low, self._high = low, high
        self._known = dict(known or {})

    def feed(self, samples: F32) -> None:
        """Add F32 [n] at 16 kHz, any n."""
        self._windows.feed(samples)

    def finish(self) -> tuple[Spoken, ...]:
        """The turns of all speakers in order of time."""
        windows = self._windows
        windows.finish()
        if not windows.voices:
            return ()
        labels, centres = _clustered(windows.voices, self._low, self._high)
        owners, known = self._recognized(centres)
        table = np.full((len(windows.starts), SPEAKERS), -1)
        for voice, label in zip(windows.voices, labels):
            table[voice.window, voice.speaker] = owners[label]
        n_speakers = max(owners) + 1
        active = active_frames(
            windows.starts, windows.activities, table.tolist(), windows.n_frames, n_speakers
        )
        end = windows.duration
        found = [
            (start, min(stop, end), speaker)
            for speaker in range(n_speakers)
            for start, stop in spans(active[:, speaker])
        ]
        return _named(sorted(found), known)

    def _recognized(self, centres: F32) -> tuple[list[int], dict[int, str]]:
        """The speaker of every cluster, and the names of those who are known."""
        named = recognized(centres, self._known)
        firsts = {name: i for i, name in reversed(named.items())}
        owners = [firsts[named[i]] if i in named else i for i in range(len(centres))]
        return owners, {i: name for name, i in firsts.items()}


def _named(
    found: Sequence[tuple[float, float, int]], known: Mapping[int, str]
) -> tuple[Spoken, ...]:
    """Turns with names; those who are not known are called A, B, ... as they appear."""
    free = (name for name in names() if name not in known.values())
    named = dict(known)
    turns = []
    for start, end, speaker in found:
        if speaker not in named:
            named[speaker] = next(free)
        turns.append(Spoken(round(float(start), 3), round(float(end), 3), named[speaker]))
    return tuple(turns)
