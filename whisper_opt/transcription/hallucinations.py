"""Text without speech: what a model wrote where nobody spoke is found and dropped.

Whisper writes "Thank you." into silence and repeats itself over music, often with a confidence that
no threshold on its own figures catches. Running voice activity detection over everything would cost
a noticeable share of a fast transcription; so it listens only where a segment gives cause.
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
"""No-speech probability of a window from which its text is looked into (speech: about 0.08)."""
SLOW = 5.0
"""Characters a second below which a text is looked into (speech: about 14)."""
QUIET = 10 ** (-40 / 20)
"""Loudness, as a share of the recording's loudest moment, below which a text is looked into."""
_MARGIN = 0.5
"""Seconds around a segment in which speech counts as its own: its times are the model's guess."""
_SHORT_PAUSE = 0.2
"""Seconds of silence that divide phrases."""
_FRAME = SAMPLE_RATE // 10
_LONG_GAP = 5.0
"""Seconds of loud sound without speech that are reported."""
_STEP = SAMPLE_RATE // 2
_FAINT = 10 ** (-40 / 20)
"""Loudness above which sound is loud where a recording has no speech to compare it with."""
_FAINTER = 10 ** (-10 / 20)
"""Loudness, as a share of that of speech, above which sound is loud."""


class SpeechCheck:
    """Tells whether anybody speaks during a segment of one recording, and when."""

    def __init__(self, samples: F32, options: VadOptions) -> None:
        """``samples``: float32 [n] at 16 kHz."""
        self._samples = samples
        self._options = options
        self._known: tuple[tuple[float, float], list[tuple[float, float]]] | None = None

    def __call__(self, segment: Segment) -> bool:
        """False where a segment gives cause for doubt and voice activity detection hears nobody."""
        sound = self._part(segment.start - _MARGIN, segment.end + _MARGIN)
        if not self._is_doubtful(segment, sound):
            return True
        return bool(len(sound)) and bool(SpeechDetector(self._options).spans(sound))

    def speech(self, start: float, end: float) -> list[tuple[float, float]]:
        """Where speech is between two times; all times in seconds from the start of the samples."""
        if self._known is None or self._known[0] != (start, end):
            self._known = (start, end), self._find(start, end, self._options)
        return self._known[1]

    def phrases(self, start: float, end: float) -> list[tuple[float, float]]:
        """Like :meth:`speech`, divided at every short pause, without padding."""
        options = dataclasses.replace(
            self._options, min_silence_duration=_SHORT_PAUSE, speech_pad=0.0
        )
        return self._find(start, end, options)

    def _find(self, start: float, end: float, options: VadOptions) -> list[tuple[float, float]]:
        spans = SpeechDetector(options).spans(self._part(start, end))
        return [(start + span.seconds[0], start + span.seconds[1]) for span in spans]

    def _part(self, start: float, end: float) -> F32:
        return self._samples[max(round(start * SAMPLE_RATE), 0) : round(end * SAMPLE_RATE)]

    def _is_doubtful(self, segment: Segment, sound: F32) -> bool:
        seconds = segment.end - segment.start
        return (
            segment.no_speech_prob > NO_SPEECH
            or len(segment.text.strip()) < SLOW * seconds
            or _loudness(sound) < QUIET * self._peak
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
    """Finds long sounds, too loud for a pause, that were not transcribed for want of speech."""

    def __init__(self) -> None:
        """Begin a recording."""
        self._left = np.empty(0, np.float32)
        self._levels: list[float] = []
        self._spoken: list[tuple[int, int]] = []

    def feed(self, block: F32) -> None:
        """Take the next samples, float32 [n] at 16 kHz."""
        samples = np.concatenate([self._left, block])
        n_steps = len(samples) // _STEP
        steps = samples[: n_steps * _STEP].reshape(-1, _STEP)
        self._levels += np.sqrt(np.einsum("ij,ij->i", steps, steps) / _STEP).tolist()
        self._left = samples[n_steps * _STEP :].copy()

    def transcribed(self, start: float, end: float) -> None:
        """Take note of a part that is transcribed, in seconds."""
        first, last = int(start * SAMPLE_RATE) // _STEP, -int(-end * SAMPLE_RATE // _STEP)
        self._spoken.append((first, last))

    def finish(self) -> list[Dropped]:
        """What was left out although it is loud, in order of time."""
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
