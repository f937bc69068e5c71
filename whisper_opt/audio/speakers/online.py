"""Speakers of utterances that come one after another: a name at once, and better ones at the end.

Each speaker is the mean of the voices that were taken for it, weighted by seconds of speech. A new
voice belongs to the nearest one, or to somebody new if none is near. What was heard first decides
much that way, so all voices are clustered again at the end, as those of a recording are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from whisper_opt.audio.speakers.clustering import Labels, cluster, similarities
from whisper_opt.audio.speakers.diarizer import names, recognized
from whisper_opt.core.arrays import F32

__all__ = ["NEAR", "OnlineSpeakers"]

NEAR = 0.4
"""Cosine similarity from which a voice is that of a speaker who was heard before."""
_SURE = 1.0
"""Seconds of speech; a voice of less begins no speaker, unless it is the first."""


class OnlineSpeakers:
    """Names the speakers of utterances; use from one thread."""

    def __init__(
        self, *, low: int = 1, high: int | None = None, known: Mapping[str, F32] | None = None
    ) -> None:
        """No utterances yet.

        Args:
            low: minimum number of speakers, at the end.
            high: maximum number of speakers; default: no limit.
            known: voices of known speakers by name, F32 [n] of unit length.
        """
        self._low, self._high = low, high
        self._known = dict(known or {})
        self._names = self._free()
        self._heard: dict[str, F32] = {}  # voices of those who have spoken, times seconds
        self._utterances: list[tuple[int, str]] = []  # index of its voice, -1: none; and its name
        self._voices: list[F32] = []
        self._seconds: list[float] = []

    def feed(self, voice: F32 | None, seconds: float) -> str | None:
        """The speaker of the next utterance.

        Args:
            voice: F32 [n] of unit length; None if there is none.
            seconds: of speech that it was made of.

        Returns:
            A name, A, B, ... or that of a known speaker. Without a voice it is that of the
            utterance before; None if there is none.
        """
        if voice is None or seconds <= 0:
            name = self._utterances[-1][1] if self._utterances else ""
            self._utterances.append((-1, name))
            return name or None
        name = self._nearest(voice, seconds)
        if name in self._known:
            self._heard[name] = self._known[name]
        else:
            self._heard[name] = self._heard.get(name, 0) + voice * np.float32(seconds)
        self._utterances.append((len(self._voices), name))
        self._voices.append(voice)
        self._seconds.append(seconds)
        return name

    def _free(self) -> Iterator[str]:
        return (name for name in names() if name not in self._known)

    def _nearest(self, voice: F32, seconds: float) -> str:
        known = recognized(voice[None], self._known)
        if known:
            return known[0]
        if self._heard:
            alike = similarities(voice[None], np.stack(list(self._heard.values())))[0]
            full = self._high is not None and len(self._heard) >= self._high
            if alike.max() >= NEAR or full or seconds < _SURE:
                return list(self._heard)[int(alike.argmax())]
        return next(self._names)

    def finish(self) -> tuple[str | None, ...]:
        """The speakers of all utterances, by all voices.

        Names stay with those who have most of the speech that had them.
        """
        if not self._voices:
            return tuple(name or None for _, name in self._utterances)
        labels, centres = cluster(
            np.stack(self._voices), self._seconds, low=self._low, high=self._high
        )
        named = self._renamed(labels, centres)
        found: list[str | None] = []
        for index, _ in self._utterances:
            before = found[-1] if found else None
            found.append(before if index < 0 else named[int(labels[index])])
        return tuple(found)

    def _renamed(self, labels: Labels, centres: F32) -> dict[int, str]:
        """A name for every cluster, of known speakers and of those that utterances had."""
        named = recognized(centres, self._known)
        shared: dict[tuple[int, str], float] = {}
        for index, name in self._utterances:
            if index >= 0 and name not in self._known:
                key = int(labels[index]), name
                shared[key] = shared.get(key, 0.0) + self._seconds[index]
        for label, name in sorted(shared, key=lambda key: -shared[key]):
            if label not in named and name not in named.values():
                named[label] = name
        for label in range(len(centres)):
            if label not in named:
                named[label] = next(name for name in self._free() if name not in named.values())
        return named
