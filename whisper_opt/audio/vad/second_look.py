"""A second pass of the speech detector with a fresh state, for speech after loud noise or music.

The network carries its state from frame to frame. After loud audio that is not speech, such as
music, it misses quieter speech for minutes. So if no speech was found for a second, the audio is
also processed with an empty state, which is reset every second. If that pass finds speech, the
network continues with its state.

The second pass never runs during speech; on music and noise it doubles the work.
"""

from __future__ import annotations

import numpy as np

from whisper_opt.audio.vad.network import Frames, State, empty_state
from whisper_opt.core.arrays import F32

__all__ = ["SecondLook"]

_WAIT = 2
"""Batches (0.5 s each) without speech before the second pass begins."""
_RESET = 2
"""Batches after which the state of the second pass is reset. With 8, a tenth of the speech at
-45 dBFS after music at -20 dBFS is still missed; with 2, a twentieth."""
_LEAST = 8
"""Frames (32 ms each) per batch in which the second pass must find speech: with an empty state the
network classifies the beginning of a hum or of a tone as speech."""
_LAST = 2
"""Alternatively, frames at the end of a batch that must all be speech: speech has just begun."""
_NOISE_FLOOR = 10 ** (-70 / 20)
"""Loudness (root mean square) below which a batch is silence and needs no second pass."""


class SecondLook(Frames):
    """Like :class:`Frames`; if the second pass finds speech, the larger probabilities are used."""

    def __init__(self, threshold: float) -> None:
        """``threshold``: probability from which a frame is speech."""
        super().__init__()
        self._threshold = threshold
        self._n_without = 0  # batches without speech
        self._n_looked = 0  # batches since the second pass began
        self._second: State = empty_state()

    def _run(self) -> F32:
        found = super()._run()
        if found.max() >= self._threshold:
            self._n_without = self._n_looked = 0
            return found
        self._n_without += 1
        if self._n_without <= _WAIT or self._loudness() < _NOISE_FLOOR:
            self._n_looked = 0
            return found
        if self._n_looked % _RESET == 0:
            self._second = empty_state()
        second, self._second = self._infer(self._second)
        self._n_looked += 1
        is_speech = second >= self._threshold
        if is_speech.sum() < _LEAST and not is_speech[-_LAST:].all():
            return found
        self._state = self._second
        self._n_without = self._n_looked = 0
        return np.maximum(found, second)
