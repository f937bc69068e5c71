"""Recordings with several speakers: who speaks when, and who says which word."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Callable

import numpy as np
import numpy.typing as npt

from whisper_opt.audio.decode import AudioSource, load_audio
from whisper_opt.audio.speakers import Diarizer, SpeakerNetworks
from whisper_opt.audio.speakers.diarizer import voice_of
from whisper_opt.core.arrays import F32
from whisper_opt.core.errors import AudioError, OptionError
from whisper_opt.core.options import TranscribeOptions
from whisper_opt.text.results import Segment, Turn, Word
from whisper_opt.transcription.attribution import Encode, divided, finished
from whisper_opt.transcription.job import Chunk, TranscriptionJob

__all__ = ["Diarization", "Speaking", "attributed", "known_voices", "needed_networks"]

_STAY = 0.8
"""A word belongs to the speaker of the word before if he has this share of the best one's time."""
_HALF = 0.5
"""Share of a word during which another one speaks, from which they overlap."""
_POINT = 0.02
"""Seconds before and after a word without duration."""
_LONGEST_CLIP = 60.0
"""Seconds of a reference clip that are read."""


def needed_networks(networks: SpeakerNetworks | None) -> SpeakerNetworks:
    """The networks of a model; raises OptionError if it was loaded without them."""
    if networks is None:
        raise OptionError(
            "diarize is on, but the model was loaded without the networks for it; write them with"
            " whisper-opt export-speakers, and give the directory as speakers when loading"
        )
    return networks


def known_voices(networks: SpeakerNetworks, options: TranscribeOptions) -> dict[str, F32]:
    """The voices of the known speakers, F32 [n] of unit length.

    Raises:
        AudioError: a clip cannot be read, or nobody speaks in it.
    """
    found = {}
    for name, clip in options.speaker_options.clips:
        try:
            samples = load_audio(clip, max_duration=_LONGEST_CLIP)
        except AudioError as error:
            raise AudioError(f"the reference clip of {name} cannot be used: {error}") from error
        found[name] = voice_of(networks, samples, name)
    return found


class Diarization:
    """Diarization of one recording while it is transcribed."""

    def __init__(
        self, networks: SpeakerNetworks, options: TranscribeOptions, reading: Mapping[str, Any]
    ) -> None:
        """Nothing is read yet.

        Args:
            networks: the networks.
            options: as they were given.
            reading: arguments of ``open_audio``.
        """
        self._networks = networks
        self._options = options
        self._reading = dict(reading)

    def chunks(
        self,
        job: TranscriptionJob,
        source: AudioSource,
        chunks: Callable[[TranscriptionJob, AudioSource, dict[str, Any]], Iterator[Chunk]],
    ) -> Iterator[Chunk]:
        """The chunks of the recording; the turns of its speakers are known after the last one."""
        low, high = self._options.speaker_options.bounds
        known = known_voices(self._networks, self._options)
        diarizer = Diarizer(self._networks, low=low, high=high, known=known)
        job.hear = diarizer.feed
        yield from chunks(job, source, self._reading)
        job.turns = tuple(Turn(*turn) for turn in diarizer.finish())

    def complete(
        self, job: TranscriptionJob, encode: Encode, segments: list[Segment]
    ) -> list[Segment]:
        """The segments with speakers, divided where the speaker changes."""
        divided = attributed(segments, job.turns, encode)
        return finished(divided, words=self._options.word_timestamps)


class Speaking:
    """How long each speaker speaks in a stretch of time."""

    def __init__(self, turns: Sequence[Turn]) -> None:
        """``turns`` in order of time."""
        self._names = list(dict.fromkeys(turn.speaker for turn in turns))
        self._owners = np.array([self._names.index(turn.speaker) for turn in turns], np.intp)
        self._starts = np.array([turn.start for turn in turns])
        self._ends = np.array([turn.end for turn in turns])
        # the latest end of a turn and those before it: what ends before a time is left out by it
        self._latest = np.maximum.accumulate(self._ends) if len(turns) else self._ends

    def during(self, start: float, end: float) -> dict[str, float]:
        """Seconds of each speaker who speaks between two times; may be empty."""
        first = int(np.searchsorted(self._latest, start, "right"))
        past = int(np.searchsorted(self._starts, end, "left"))
        common = np.minimum(self._ends[first:past], end) - np.maximum(
            self._starts[first:past], start
        )
        seconds: npt.NDArray[np.float64] = np.zeros(len(self._names))
        np.add.at(seconds, self._owners[first:past], np.maximum(common, 0))
        return {self._names[i]: float(seconds[i]) for i in np.flatnonzero(seconds)}

    def nearest(self, time: float) -> str | None:
        """The speaker of the turn that is nearest to a time; None if there is no turn."""
        if not len(self._starts):
            return None
        apart = np.maximum(self._starts - time, time - self._ends)
        return self._names[int(self._owners[int(apart.argmin())])]


def attributed(segments: Sequence[Segment], turns: Sequence[Turn], encode: Encode) -> list[Segment]:
    """Segments with the speakers of their words, divided where the speaker changes.

    A word belongs to who speaks during most of it, or, if nobody does, to the nearest turn. Of
    speakers with about the same time the one of the word before is taken.

    Args:
        segments: with words.
        turns: in order of time.
        encode: text to tokens.
    """
    speaking = Speaking(turns)
    found: list[Segment] = []
    before: str | None = None
    for segment in segments:
        if not segment.words:
            speaker, _ = _speaker(speaking, segment.start, segment.end, before)
            found.append(dataclasses.replace(segment, speaker=speaker))
            continue
        words: list[Word] = []
        for word in segment.words:
            before, overlap = _speaker(speaking, word.start, word.end, before)
            words.append(dataclasses.replace(word, speaker=before, overlap=overlap))
        runs = [list(run) for _, run in itertools.groupby(words, key=lambda word: word.speaker)]
        found += divided(segment, runs, encode)
    return found


def _speaker(
    speaking: Speaking, start: float, end: float, before: str | None
) -> tuple[str | None, bool]:
    """Who speaks between two times, and whether someone else does for most of them."""
    if end - start < 2 * _POINT:
        start, end = start - _POINT, end + _POINT
    seconds = speaking.during(start, end)
    if not seconds:
        return speaking.nearest((start + end) / 2), False
    best = max(seconds, key=lambda name: seconds[name])
    if before in seconds and seconds[before] >= _STAY * seconds[best]:
        best = before
    others = [value for name, value in seconds.items() if name != best]
    return best, max(others, default=0.0) >= _HALF * (end - start)
