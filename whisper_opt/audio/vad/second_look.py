"""A second pass of the speech detector with a fresh state, for speech after loud noise or music.

The network carries its state from frame to frame. After loud audio that is not speech, such as
music, it misses quieter speech for minutes. So if no speech was found for a second, the audio is
also processed with an empty state, which is reset every second. If that pass finds speech, the
network continues with its state, and the half second before is processed with an empty state as
well, because speech may have begun there.

The second pass never runs during speech; on music and noise it doubles the work and delays the
probabilities by half a second.
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
_NONE = np.empty(0, np.float32)


class SecondLook(Frames):
    """Like :class:`Frames`; if the second pass finds speech, the larger probabilities are used."""

    def __init__(self, threshold: float) -> None:
        """``threshold``: probability from which a frame is speech."""
        super().__init__()
        self._threshold = threshold
        self._n_without = 0  # batches without speech
        self._n_looked = 0  # batches since the second pass began
        self._second: State = empty_state()
        self._kept = _NONE  # probabilities of the last batch, which the next may still change
        self._kept_batch = _NONE
        self._is_last = False

    def finish(self) -> F32:
        """Probabilities [n] of the frames that are left."""
        self._is_last = True
        return np.concatenate([super().finish(), self._take_kept()])

    def _run(self) -> F32:
        found, before = super()._run(), self._take_kept()
        second = self._look(found)
        if second is not None:
            if len(before):
                before = np.maximum(before, self._infer(self._kept_batch, empty_state())[0])
            found = np.maximum(found, second)
        elif self._n_looked and not self._is_last:
            self._kept, self._kept_batch = found, self._held.copy()
            return before
        return np.concatenate([before, found])

    def _look(self, found: F32) -> F32 | None:
        """Probabilities of the second pass, or None if it is not needed or finds no speech."""
        if found.max() >= self._threshold:
            self._n_without = self._n_looked = 0
            return None
        self._n_without += 1
        if self._n_without <= _WAIT or self._loudness() < _NOISE_FLOOR:
            self._n_looked = 0
            return None
        if self._n_looked % _RESET == 0:
            self._second = empty_state()
        second, self._second = self._infer(self._held, self._second)
        self._n_looked += 1
        is_speech = second >= self._threshold
        if is_speech.sum() < _LEAST and not is_speech[-_LAST:].all():
            return None
        self._state = self._second
        self._n_without = self._n_looked = 0
        return second

    def _take_kept(self) -> F32:
        kept, self._kept = self._kept, _NONE
        return kept
