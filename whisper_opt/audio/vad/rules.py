"""From speech probabilities to spans of speech, frame by frame.

The rules are those of ``get_speech_timestamps`` in the package silero-vad, with one exception: when
speech that is too long is split at its longest silence, later silences remain candidates for the
next split.
"""

from __future__ import annotations

import dataclasses

from whisper_opt.audio.vad.network import FRAME
from whisper_opt.core.dims import SAMPLE_RATE
from whisper_opt.core.options import VadOptions

__all__ = ["Span", "SpanPadding", "SpanRules", "end_threshold"]

_HYSTERESIS = 0.15
_LEAST_THRESHOLD = 0.01
_MIN_PAUSE = round(0.098 * SAMPLE_RATE)
"""Speech that is too long may be split at silences of more samples than this."""


def end_threshold(threshold: float) -> float:
    """The speech probability below which speech ends that began with ``threshold``."""
    return max(threshold - _HYSTERESIS, _LEAST_THRESHOLD)


@dataclasses.dataclass(frozen=True, order=True)
class Span:
    """Part of a recording, in samples at 16 kHz, from ``start`` up to but not including ``end``."""

    start: int
    end: int

    @property
    def seconds(self) -> tuple[float, float]:
        """Start and end in seconds."""
        return self.start / SAMPLE_RATE, self.end / SAMPLE_RATE


class SpanRules:
    """Finds spans, not padded yet, from one probability per frame."""

    def __init__(self, options: VadOptions) -> None:
        self._high = options.threshold
        self._low = end_threshold(options.threshold)
        self._min_speech = round(options.min_speech_duration * SAMPLE_RATE)
        self._min_silence = round(options.min_silence_duration * SAMPLE_RATE)
        padding = 2 * round(options.speech_pad * SAMPLE_RATE)
        self._longest = options.max_speech_duration * SAMPLE_RATE - FRAME - padding
        self._position = 0  # first sample of the next frame
        self._start: int | None = None
        self._silence: int | None = None  # start of the current silence
        self._pauses: list[Span] = []  # silences at which the current span may be split

    @property
    def earliest(self) -> int:
        """Later spans do not start before this sample."""
        return self._position if self._start is None else self._start

    @property
    def under_way(self) -> Span | None:
        """The speech that has not ended yet, up to the last frame."""
        return None if self._start is None else Span(self._start, self._position)

    def step(self, probability: float) -> list[Span]:
        """Add the probability of the next frame; returns the spans that end there."""
        at = self._position
        self._position += FRAME
        if probability >= self._high:
            self._on_speech(at)
        if self._start is None or at == self._start:
            return []
        found = []
        if at - self._start > self._longest:
            found.append(self._split(self._start, at))
        if self._start is not None and probability < self._low:
            found += self._on_silence(self._start, at)
        return found

    def _on_speech(self, at: int) -> None:
        if self._silence is not None:
            if at - self._silence > _MIN_PAUSE:
                self._pauses.append(Span(self._silence, at))
            self._silence = None
        if self._start is None:
            self._start = at

    def _split(self, start: int, at: int) -> Span:
        """Split speech that is too long: at its longest silence, or at ``at`` if it has none."""
        self._silence = None
        if not self._pauses:
            self._start = None
            return Span(start, at)
        pause = max(self._pauses, key=lambda span: span.end - span.start)
        self._pauses = [other for other in self._pauses if other.start > pause.start]
        self._start = pause.end
        return Span(start, pause.start)

    def _on_silence(self, start: int, at: int) -> list[Span]:
        if self._silence is None:
            self._silence = at
        end = self._silence
        if at - end < self._min_silence:
            return []
        self._start = self._silence = None
        self._pauses = []
        return [Span(start, end)] if end - start > self._min_speech else []

    def finish(self, n_samples: int) -> list[Span]:
        """The span that extends to the end of the recording, if there is one."""
        if self._start is None or n_samples - self._start <= self._min_speech:
            return []
        return [Span(self._start, n_samples)]


class SpanPadding:
    """Widens spans on both sides; if two would overlap, they meet in the middle."""

    def __init__(self, padding: int) -> None:
        self._padding = padding
        self._held: Span | None = None  # its start is padded, its end is not

    def earliest(self, bound: int) -> int:
        """Earliest start of the next span if no unpadded one starts before ``bound``."""
        return self._held.start if self._held else max(0, bound - self._padding)

    def add(self, raw: Span) -> list[Span]:
        """Add the next span; returns the one before it, whose end is now final."""
        before, margin = self._held, self._padding
        if before and raw.start - before.end < 2 * margin:
            margin = (raw.start - before.end) // 2
        self._held = Span(max(0, raw.start - margin), raw.end)
        return [Span(before.start, before.end + margin)] if before else []

    def settle(self, bound: float) -> list[Span]:
        """The span held back, if no span that starts at ``bound`` or later can change its end."""
        held = self._held
        if held is None or bound - held.end < 2 * self._padding:
            return []
        self._held = None
        return [Span(held.start, held.end + self._padding)]
