"""Hallucinations: text of segments without speech is found and dropped.

Whisper writes "Thank you." in silence and repeats itself over music, often with probabilities that
pass all thresholds. Voice activity detection of the whole recording would take a noticeable part of
the time of a transcription, so it runs for doubtful segments only.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from whisper_opt.audio.vad import SpeechDetector
from whisper_opt.core.arrays import F32
from whisper_opt.core.dims import SAMPLE_RATE
from whisper_opt.core.options import VadOptions
from whisper_opt.text.results import Dropped, Segment

__all__ = ["LoudGaps", "SpeechCheck"]

NO_SPEECH = 0.2
"""No-speech probability above which text is checked (speech: about 0.08)."""
SLOW = 5.0
"""Characters per second below which text is checked (speech: about 14)."""
QUIET = 10 ** (-40 / 20)
"""Loudness relative to the loudest moment of the recording below which text is checked."""
_MARGIN = 0.5
"""Seconds before and after a segment in which speech belongs to it; its times are inexact."""
_SHORT_PAUSE = 0.2
"""Seconds of silence that separate phrases."""
_FRAME = SAMPLE_RATE // 10
_LONG_GAP = 5.0
"""Shortest loud sound without speech that is reported, in seconds."""
_STEP = SAMPLE_RATE // 2
_FAINT = 10 ** (-40 / 20)
"""Loudness above which sound is loud if the recording has no speech to compare with."""
_FAINTER = 10 ** (-10 / 20)
"""Loudness relative to that of speech above which sound is loud."""


class SpeechCheck:
    """Finds out whether and when there is speech in a segment of one recording."""

    def __init__(self, samples: F32, options: VadOptions) -> None:
        """``samples``: float32 [n] at 16 kHz."""
        self._samples = samples
        self._options = options
        self._known: tuple[tuple[float, float], list[tuple[float, float]]] | None = None

    def __call__(self, segment: Segment) -> bool:
        """False if a segment is doubtful and voice activity detection finds no speech in it."""
        if not self.doubts(segment):
            return True
        samples = self._around(segment)
        return bool(len(samples)) and bool(SpeechDetector(self._options).spans(samples))

    def measure(self) -> None:
        """Find the loudest moment now, and not when it is first needed."""
        _ = self._peak

    def doubts(self, segment: Segment) -> bool:
        """Whether voice activity detection is needed for a segment; takes little time."""
        return self._is_doubtful(segment, self._around(segment))

    def speech(self, start: float, end: float) -> list[tuple[float, float]]:
        """Spans of speech between two times, all in seconds from the start of the samples."""
        if self._known is None or self._known[0] != (start, end):
            self._known = (start, end), self._find(start, end, self._options)
        return self._known[1]

    def phrases(self, start: float, end: float) -> list[tuple[float, float]]:
        """Like :meth:`speech`, but split at short pauses and without padding."""
        options = dataclasses.replace(
            self._options, min_silence_duration=_SHORT_PAUSE, speech_pad=0.0
        )
        return self._find(start, end, options)

    def _find(self, start: float, end: float, options: VadOptions) -> list[tuple[float, float]]:
        spans = SpeechDetector(options).spans(self._part(start, end))
        return [(start + span.seconds[0], start + span.seconds[1]) for span in spans]

    def _part(self, start: float, end: float) -> F32:
        return self._samples[max(round(start * SAMPLE_RATE), 0) : round(end * SAMPLE_RATE)]

    def _around(self, segment: Segment) -> F32:
        return self._part(segment.start - _MARGIN, segment.end + _MARGIN)

    def _is_doubtful(self, segment: Segment, samples: F32) -> bool:
        seconds = segment.end - segment.start
        return (
            segment.no_speech_prob > NO_SPEECH
            or len(segment.text.strip()) < SLOW * seconds
            or _loudness(samples) < QUIET * self._peak
        )

    @functools.cached_property
    def _peak(self) -> float:
        return _loudness(self._samples)


def _loudness(samples: F32) -> float:
    """Root mean square of the loudest tenth of a second."""
    frames = samples[: len(samples) // _FRAME * _FRAME].reshape(-1, _FRAME)
    if not len(frames):
        return 0.0
    return float(np.sqrt(np.einsum("ij,ij->i", frames, frames).max() / _FRAME))


class LoudGaps:
    """Finds long loud parts that were not transcribed because no speech was found in them."""

    def __init__(self) -> None:
        """Start a recording."""
        self._left = np.empty(0, np.float32)
        self._levels: list[float] = []
        self._spoken: list[tuple[int, int]] = []

    def feed(self, block: F32) -> None:
        """Add the next samples, float32 [n] at 16 kHz."""
        samples = np.concatenate([self._left, block])
        n_steps = len(samples) // _STEP
        steps = samples[: n_steps * _STEP].reshape(-1, _STEP)
        self._levels += np.sqrt(np.einsum("ij,ij->i", steps, steps) / _STEP).tolist()
        self._left = samples[n_steps * _STEP :].copy()

    def transcribed(self, start: float, end: float) -> None:
        """Mark a part as transcribed; times in seconds."""
        first, last = int(start * SAMPLE_RATE) // _STEP, -int(-end * SAMPLE_RATE // _STEP)
        self._spoken.append((first, last))

    def finish(self) -> list[Dropped]:
        """The loud parts that were not transcribed, in order of time."""
        spoken = np.zeros(len(self._levels), np.bool_)
        for first, last in self._spoken:
            spoken[first:last] = True
        levels = np.array(self._levels)
        bound = float(np.median(levels[spoken])) * _FAINTER if spoken.any() else _FAINT
        loud = np.concatenate([[False], ~spoken & (levels > bound), [False]])
        edges = np.flatnonzero(loud[1:] != loud[:-1]) * _STEP / SAMPLE_RATE
        return [
            Dropped(start, end, "loud sound")
            for start, end in zip(edges[::2].tolist(), edges[1::2].tolist())
            if end - start >= _LONG_GAP
        ]
