"""Text without speech: what a model wrote where nobody spoke is found and dropped.

Whisper writes "Thank you." into silence and repeats itself over music, often with a confidence that
no threshold on its own figures catches. Running voice activity detection over everything would cost
a noticeable share of a fast transcription; so it listens only where a segment gives cause.
"""

from __future__ import annotations

import functools

import numpy as np

from whisper_opt.audio.vad import SpeechDetector
from whisper_opt.core.arrays import F32
from whisper_opt.core.dims import SAMPLE_RATE
from whisper_opt.core.options import VadOptions
from whisper_opt.text.results import Segment

__all__ = ["SpeechCheck"]

NO_SPEECH = 0.2
"""No-speech probability of a window from which its text is looked into (speech: about 0.08)."""
SLOW = 5.0
"""Characters a second below which a text is looked into (speech: about 14)."""
QUIET = 10 ** (-40 / 20)
"""Loudness, as a share of the recording's loudest moment, below which a text is looked into."""
_MARGIN = 0.5
"""Seconds around a segment in which speech counts as its own: its times are the model's guess."""
_FRAME = SAMPLE_RATE // 10


class SpeechCheck:
    """Tells whether anybody speaks during a segment of one recording."""

    def __init__(self, samples: F32, options: VadOptions) -> None:
        """``samples``: float32 [n] at 16 kHz."""
        self._samples = samples
        self._options = options

    def __call__(self, segment: Segment) -> bool:
        """False where a segment gives cause for doubt and voice activity detection hears nobody."""
        start = max(round((segment.start - _MARGIN) * SAMPLE_RATE), 0)
        sound = self._samples[start : round((segment.end + _MARGIN) * SAMPLE_RATE)]
        if not self._is_doubtful(segment, sound):
            return True
        return bool(len(sound)) and bool(self._detector.spans(sound))

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

    @functools.cached_property
    def _detector(self) -> SpeechDetector:
        return SpeechDetector(self._options)


def _loudness(samples: F32) -> float:
    """Root mean square of the loudest tenth of a second."""
    frames = samples[: len(samples) // _FRAME * _FRAME].reshape(-1, _FRAME)
    if not len(frames):
        return 0.0
    return float(np.sqrt(np.einsum("ij,ij->i", frames, frames).max() / _FRAME))
