"""Speech detection in whole recordings or in a stream of blocks."""

from __future__ import annotations

import math

import numpy as np

from whisper_opt.audio.decode import AudioSource, open_audio
from whisper_opt.audio.vad.network import Frames
from whisper_opt.audio.vad.rules import Span, SpanPadding, SpanRules
from whisper_opt.audio.vad.second_look import SecondLook
from whisper_opt.core.arrays import F32
from whisper_opt.core.dims import SAMPLE_RATE
from whisper_opt.core.errors import AudioError
from whisper_opt.core.options import VadOptions

__all__ = ["SpanStream", "SpeechDetector", "detect_speech"]


class SpeechDetector:
    """Finds speech. Threads and recordings may share a detector: each stream has its own state."""

    def __init__(self, options: VadOptions | None = None) -> None:
        self.options = options or VadOptions()

    def probabilities(self, samples: F32) -> F32:
        """Speech probability of each frame.

        Args:
            samples: F32 [n] at 16 kHz; the last frame is padded with zeros.

        Returns:
            F32 [ceil(n / FRAME)].

        Raises:
            AudioError: the samples are not finite float32 [n].
            BackendUnavailable: ONNX Runtime or the model file is missing.
        """
        frames = Frames()
        return np.concatenate([frames.feed(_checked(samples)), frames.finish()])

    def spans(self, samples: F32) -> list[Span]:
        """Spans of speech in a whole recording, F32 [n] at 16 kHz.

        Returns:
            Spans in order, not overlapping, within the recording.

        Raises:
            AudioError, BackendUnavailable: see :meth:`probabilities`.
        """
        stream = self.stream()
        return stream.feed(samples) + stream.finish()

    def first_speech(self, samples: F32, least: float = 1.0) -> int | None:
        """The first sample of speech; processes no more of the recording than necessary.

        Args:
            samples: F32 [n] at 16 kHz.
            least: minimum seconds of speech; if no speech is that long, shorter speech counts.

        Returns:
            Index of the sample, or None if there is no speech.

        Raises:
            AudioError, BackendUnavailable: see :meth:`probabilities`.
        """
        stream, found = self.stream(), list[Span]()
        for start in range(0, len(samples), SAMPLE_RATE):
            found += stream.feed(samples[start : start + SAMPLE_RATE])
            for span in (*found[-1:], *stream.under_way):
                if span.end - span.start >= least * SAMPLE_RATE:
                    return span.start
        found += stream.finish()
        long = [span.start for span in found if span.end - span.start >= least * SAMPLE_RATE]
        return next(iter((*long, *(span.start for span in found))), None)

    def stream(self) -> SpanStream:
        """Start detection in a new recording that comes in blocks."""
        return SpanStream(self.options)


def detect_speech(
    audio: AudioSource, *, sample_rate: int | None = None, options: VadOptions | None = None
) -> list[Span]:
    """Find the spans of speech in a recording, which is read as a stream.

    Args:
        audio: any source that :func:`whisper_opt.audio.decode.open_audio` reads.
        sample_rate: sample rate of an array in Hz (default 16,000); not for files.
        options: see :class:`whisper_opt.core.options.VadOptions`.

    Returns:
        Spans in order, not overlapping, within the recording.

    Raises:
        AudioError: the recording cannot be read.
        BackendUnavailable: ONNX Runtime or the model file is missing.
    """
    stream = SpeechDetector(options).stream()
    with open_audio(audio, sample_rate=sample_rate) as blocks:
        found = [span for block in blocks for span in stream.feed(block)]
    return found + stream.finish()


class SpanStream:
    """Speech detection in a stream of blocks; finds what :meth:`SpeechDetector.spans` finds."""

    def __init__(self, options: VadOptions) -> None:
        self._frames = SecondLook(options.threshold)
        self._rules = SpanRules(options)
        self._padding = SpanPadding(round(options.speech_pad * SAMPLE_RATE))
        self._n_samples = 0
        self._finished = False

    @property
    def settled(self) -> int:
        """Later spans do not start before this sample."""
        return self._padding.earliest(self._rules.earliest)

    @property
    def under_way(self) -> list[Span]:
        """The speech that has not ended yet, without padding: one span or none."""
        span = self._rules.under_way
        return [] if span is None else [span]

    def feed(self, block: F32) -> list[Span]:
        """Add the next samples, F32 [n] at 16 kHz, any n; returns the spans that are now final.

        Raises:
            AudioError: the samples are not finite float32 [n], or the stream is finished.
        """
        if self._finished:
            raise AudioError("samples came after the end of the recording; open another stream")
        block = _checked(block)
        self._n_samples += len(block)
        found = self._add(self._frames.feed(block))
        return found + self._padding.settle(self._rules.earliest)

    def finish(self) -> list[Span]:
        """End the recording; returns the remaining spans, and none if called again."""
        if self._finished:
            return []
        self._finished = True
        n_samples = self._n_samples
        found = self._add(self._frames.finish())
        for raw in self._rules.finish(n_samples):
            found += self._padding.add(raw)
        found += self._padding.settle(math.inf)
        return [Span(span.start, min(span.end, n_samples)) for span in found]

    def _add(self, probabilities: F32) -> list[Span]:
        found: list[Span] = []
        for probability in probabilities.tolist():
            for raw in self._rules.step(probability):
                found += self._padding.add(raw)
        return found


def _checked(samples: F32) -> F32:
    if not isinstance(samples, np.ndarray) or samples.ndim != 1 or samples.dtype != np.float32:
        shape = f"{samples.dtype} {list(samples.shape)}" if isinstance(samples, np.ndarray) else ""
        raise AudioError(
            f"samples are {shape or type(samples).__name__}; expected a float32 array [n_samples]"
            " at 16 kHz, as load_audio returns"
        )
    if not np.isfinite(samples).all():
        raise AudioError("samples hold NaN or infinity; expected finite ones")
    return samples
