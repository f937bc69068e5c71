"""Probabilities of speech with a second look where the network's state may be stale.

The network carries its state from frame to frame. Loud sound that is not speech, such as music,
leaves a state that takes quieter speech after it for more of the same, for minutes. So sound in
which no speech was found for a second is also given to the network with an empty state, which is
emptied again every second. If speech is found that way, the network goes on with that state, and
the half second before it, which lay after other sound, is looked at with an empty state as well:
speech may have begun there.

Plain speech never asks for a second look; music and noise cost twice the work.
"""

from __future__ import annotations

import numpy as np

from whisper_opt.audio.vad.network import Frames, State, empty_state
from whisper_opt.core.arrays import F32

__all__ = ["SecondLook"]

_WAIT = 2
"""Batches (0.5 s each) without speech before the second look begins."""
_RESET = 2
"""Batches after which the state of the second look is emptied. With 8, a tenth of the speech at
-45 dBFS after music at -20 dBFS is still missed; with 2, a twentieth."""
_LEAST = 8
"""Frames (32 ms each) of a batch in which the second look must find speech: an empty state takes
the first moments of a hum or of a tone for speech."""
_LAST = 2
"""Or frames at the end of the batch: speech that has just begun."""
_NOISE_FLOOR = 10 ** (-70 / 20)
"""Loudness (root mean square) below which a batch counts as silence: nothing to look at."""
_NONE = np.empty(0, np.float32)


class SecondLook(Frames):
    """Like :class:`Frames`; if the second look finds speech, its probabilities count as well."""

    def __init__(self, threshold: float) -> None:
        """``threshold``: probability from which a frame is speech."""
        super().__init__()
        self._threshold = threshold
        self._n_without = 0  # batches without speech
        self._n_looked = 0  # batches that the second state has seen
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
        """Probabilities by the second look, if it is needed and finds speech."""
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
