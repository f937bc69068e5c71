"""Utterances in a stream of samples, found with little delay.

The spans of :class:`~whisper_opt.audio.vad.SpanStream` are those of a whole recording and come up
to a second late. A live session has to know within a few hundredths of a second.
"""

from __future__ import annotations

import collections
import dataclasses

from whisper_opt.audio.vad.network import FRAME, Frames
from whisper_opt.audio.vad.rules import Span, end_threshold
from whisper_opt.audio.vad.second_look import SecondLook
from whisper_opt.core.arrays import F32
from whisper_opt.core.dims import SAMPLE_RATE

__all__ = ["Edge", "SpeechGate"]

_LEAST = 2
"""Frames (32 ms) of speech in a row with which an utterance begins."""
_LEAST_SECOND = 8
"""Likewise, for the second pass, which is used after loud sounds that are not speech."""
_PAUSE = 3
"""Frames without speech that make a pause."""
_SHORTEST = round(0.15 * SAMPLE_RATE)
"""Samples of silence that end an utterance which has its maximum length."""
_MOST_PAUSES = 256


@dataclasses.dataclass(frozen=True)
class Edge:
    """The beginning or the end of an utterance.

    Attributes:
        at: sample of the stream; padding is included.
        is_start: whether it is the beginning.
    """

    at: int
    is_start: bool


class SpeechGate:
    """Finds where utterances begin and end, frame by frame (32 ms).

    Attributes:
        pauses: pauses within the current utterance and before it, the newest last.
    """

    def __init__(
        self, threshold: float, *, silence: int, pre_roll: int, tail: int, longest: int
    ) -> None:
        """Start a stream.

        Args:
            threshold: speech probability from which a frame is speech.
            silence: samples without speech that end an utterance. From half of ``longest`` on it
                becomes less, down to 0.15 s.
            pre_roll: samples before the speech that are part of an utterance.
            tail: samples after it.
            longest: samples in which an utterance should end.
        """
        self._high, self._low = threshold, end_threshold(threshold)
        self._silence, self._pre_roll, self._tail = silence, pre_roll, tail
        self._longest = longest
        self._frames = Frames(batch=1)
        self._second = SecondLook(threshold)
        self._n_second = 0  # frames of the second pass
        self._run_second = 0  # those of speech in a row
        self._position = 0  # first sample of the next frame
        self._bound = 0  # the next utterance does not begin before this sample
        self._run = 0  # frames of speech in a row
        self._start: int | None = None
        self._quiet: int | None = None
        self.pauses: collections.deque[Span] = collections.deque(maxlen=_MOST_PAUSES)

    @property
    def open(self) -> bool:
        """Whether an utterance has begun and not ended."""
        return self._start is not None

    @property
    def position(self) -> int:
        """Samples processed."""
        return self._position

    @property
    def quiet_since(self) -> int | None:
        """The sample from which on there has been no speech in the current utterance."""
        return self._quiet

    def feed(self, samples: F32) -> list[Edge]:
        """Add samples, F32 [n] at 16 kHz, any n."""
        found: list[Edge] = []
        for start in range(0, len(samples), FRAME):  # in steps: the second pass is not ahead
            block = samples[start : start + FRAME]
            for probability in self._frames.feed(block).tolist():
                found += self._step(probability)
            for probability in self._second.feed(block).tolist():
                found += self._step_second(probability)
        return found

    def begin(self, at: int) -> None:
        """Begin an utterance at a sample whether there is speech or not."""
        self._start, self._quiet = at, None

    def end(self, at: int) -> None:
        """End the current utterance at a sample; the next one begins there or later."""
        self._start, self._quiet, self._run = None, None, 0
        self._bound = at

    def _step(self, probability: float) -> list[Edge]:
        at = self._position
        self._position += FRAME
        self._run = self._run + 1 if probability >= self._high else 0
        if self._start is None:
            return self._opened(self._position - self._run * FRAME) if self._run >= _LEAST else []
        if probability >= self._high:
            if self._quiet is not None and at - self._quiet >= _PAUSE * FRAME:
                self.pauses.append(Span(self._quiet, at))
            self._quiet = None
        elif probability < self._low and self._quiet is None:
            self._quiet = at
        if self._quiet is None or self._position - self._quiet < self._needed():
            return []
        end = self._quiet + self._tail
        self.end(end)
        return [Edge(end, is_start=False)]

    def _step_second(self, probability: float) -> list[Edge]:
        self._n_second += 1
        self._run_second = self._run_second + 1 if probability >= self._high else 0
        if self._start is not None or self._run_second < _LEAST_SECOND:
            return []
        start = (self._n_second - self._run_second) * FRAME
        if start < self._bound:
            return []
        self._frames.continue_from(self._second)
        return self._opened(start)

    def _opened(self, speech: int) -> list[Edge]:
        start = max(speech - self._pre_roll, self._bound, 0)
        self.begin(start)
        return [Edge(start, is_start=True)]

    def _needed(self) -> float:
        """Samples of silence that end the current utterance."""
        assert self._start is not None
        half = self._longest / 2
        over = min(max(self._position - self._start - half, 0) / half, 1.0)
        least = min(_SHORTEST, self._silence)
        return self._silence - over * (self._silence - least)
