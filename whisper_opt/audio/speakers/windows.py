"""Windows of 10 s of a recording: who speaks when in each, and with which voice.

A window knows at most three speakers, of whom at most two speak at once, and numbers them by
itself. Their voices, from the times in which each speaks alone, tell which of different windows are
the same (``clustering``). The method is pyannote's (Bredin 2023, "pyannote.audio 2.1 speaker
diarization pipeline").
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from whisper_opt.audio.speakers.fbank import FRAME_SHIFT, N_MELS, FilterBanks
from whisper_opt.audio.speakers.networks import SpeakerNetworks
from whisper_opt.core.arrays import F32
from whisper_opt.core.dims import SAMPLE_RATE

__all__ = [
    "FRAME",
    "FRAMES",
    "SPEAKERS",
    "STEP",
    "WINDOW",
    "Activity",
    "Voice",
    "Windows",
    "frame_time",
]

Activity = npt.NDArray[np.bool_]
"""Who speaks in the frames of a window: [FRAMES, SPEAKERS]."""

FRAME = 270
"""Samples from frame to frame of the segmentation network: 16.9 ms."""
_FIELD = 991
"""Samples that a frame hears."""
WINDOW = 10 * SAMPLE_RATE
"""Samples of a window."""
FRAMES = (WINDOW - _FIELD) // FRAME + 1
STEP = 178
"""Frames from window to window: 3.0 s."""
SPEAKERS = 3
_SETS = np.array(
    [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [1, 0, 1], [0, 1, 1]], np.bool_
)
"""Which speakers each class of the network means."""
_BLOCK = 4 * SAMPLE_RATE
"""Samples that are processed at once, so that memory does not depend on the blocks given."""
_BATCH = 8
"""Windows, and voices, per call of a network."""
_LENGTHS = (30, 50, 75, 100, 150, 200, 250, 300)
"""Frames of 10 ms of which a voice is made: the most that there are; at most 3 s."""


def frame_time(frame: float) -> float:
    """The middle of a frame of the recording in seconds."""
    return (frame * FRAME + _FIELD / 2) / SAMPLE_RATE


@dataclasses.dataclass(frozen=True)
class Voice:
    """The voice of one speaker of a window.

    Attributes:
        window: number of the window.
        speaker: number of the speaker in it.
        weight: seconds of speech that it was made of.
        embedding: F32 [n] of unit length.
    """

    window: int
    speaker: int
    weight: float
    embedding: F32


class Windows:
    """The windows of a recording that comes in blocks; memory does not depend on its length.

    Attributes:
        starts: the first frame of each window.
        activities: who speaks in each.
        voices: of the speakers of all windows, in no order.
    """

    def __init__(self, networks: SpeakerNetworks) -> None:
        """No samples yet."""
        self._networks = networks
        self._banks = FilterBanks()
        self._samples = np.empty(0, np.float32)
        self._features = np.empty((0, N_MELS), np.float32)
        self._first = 0  # of the samples, as a frame of the filter banks and of the network
        self._n = 0  # samples so far
        self._next = 0  # frame of the next window
        self._waiting: dict[int, list[tuple[int, int, F32]]] = {}
        self.starts: list[int] = []
        self.activities: list[Activity] = []
        self.voices: list[Voice] = []

    @property
    def n_frames(self) -> int:
        """Frames of the recording so far."""
        return max(1, (self._n - _FIELD) // FRAME + 1)

    @property
    def duration(self) -> float:
        """Seconds of the recording so far."""
        return self._n / SAMPLE_RATE

    def feed(self, samples: F32) -> None:
        """Add F32 [n] at 16 kHz, any n."""
        for i in range(0, len(samples), _BLOCK):
            self._feed(samples[i : i + _BLOCK])

    def _feed(self, samples: F32) -> None:
        self._n += len(samples)
        self._samples = np.concatenate([self._samples, samples])
        self._features = np.concatenate([self._features, self._banks.feed(samples)])
        while True:
            last = self._next + (_BATCH - 1) * STEP
            if last * FRAME + WINDOW > self._n:
                return
            self._run([self._next + i * STEP for i in range(_BATCH)])
            self._next = last + STEP
            self._forget()

    def finish(self) -> None:
        """Process the rest; the last window ends with the recording."""
        if not self._n:
            return
        starts = []
        while self._next * FRAME + WINDOW < self._n:
            starts.append(self._next)
            self._next += STEP
        ending = max(0, -(-(self._n - WINDOW) // FRAME))
        if not self.starts or ending > (starts or self.starts)[-1]:
            starts.append(ending)
        if starts:
            missing = starts[-1] * FRAME + WINDOW - self._n
            self._samples = np.pad(self._samples, (0, max(0, missing)))
        for i in range(0, len(starts), _BATCH):
            self._run(starts[i : i + _BATCH])
        for length in list(self._waiting):
            self._embed(length)
        self._samples, self._features = self._samples[:0], self._features[:0]

    def _forget(self) -> None:
        """Drop what lies before the window that may come next, or the last 10 s."""
        first = max(0, min(self._next * FRAME, self._n - WINDOW - FRAME)) // FRAME_SHIFT
        gone = first - self._first
        if gone > 0:
            self._samples = self._samples[gone * FRAME_SHIFT :].copy()
            self._features = self._features[gone:].copy()
            self._first = first

    def _run(self, starts: Sequence[int]) -> None:
        offset = self._first * FRAME_SHIFT
        batch = np.stack(
            [self._samples[s * FRAME - offset : s * FRAME - offset + WINDOW] for s in starts]
        )
        scores = self._networks.segment(batch)
        for start, best in zip(starts, scores.argmax(axis=2)):
            activity = _SETS[best]
            self._collect(len(self.starts), start, activity)
            self.starts.append(start)
            self.activities.append(activity)

    def _collect(self, window: int, start: int, activity: Activity) -> None:
        """Queue the frames in which each speaker speaks alone."""
        alone = activity & (activity.sum(axis=1, keepdims=True) == 1)
        first = -(-start * FRAME // FRAME_SHIFT)
        last = min(first + WINDOW // FRAME_SHIFT - 2, self._first + len(self._features))
        centres = np.arange(first, last) * FRAME_SHIFT + 200 - start * FRAME
        frames = np.clip(np.rint((centres - _FIELD / 2) / FRAME).astype(int), 0, FRAMES - 1)
        for speaker in range(SPEAKERS):
            spoken = np.flatnonzero(alone[frames, speaker])
            length = max((n for n in _LENGTHS if n <= len(spoken)), default=0)
            if length:
                chosen = _longest_runs(spoken, length) + first - self._first
                queue = self._waiting.setdefault(length, [])
                queue.append((window, speaker, self._features[chosen]))
                if len(queue) == _BATCH:
                    self._embed(length)

    def _embed(self, length: int) -> None:
        queue = self._waiting.pop(length)
        found = self._networks.embed(np.stack([features for _, _, features in queue]))
        for (window, speaker, _), embedding in zip(queue, found):
            self.voices.append(Voice(window, speaker, length / 100, embedding))


def _longest_runs(frames: npt.NDArray[np.intp], n: int) -> npt.NDArray[np.intp]:
    """``n`` of the frames in order, of as few runs of consecutive ones as possible."""
    runs = np.split(frames, np.flatnonzero(np.diff(frames) > 1) + 1)
    runs.sort(key=len, reverse=True)
    chosen = np.concatenate(runs)[:n]
    return np.sort(chosen)
