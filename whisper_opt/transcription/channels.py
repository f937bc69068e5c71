"""Recordings with one speaker per channel: every channel is transcribed by itself."""

from __future__ import annotations

import contextlib
import dataclasses
import heapq
from collections.abc import Generator, Iterator, Mapping
from typing import Any, Callable, Protocol

from whisper_opt.audio.decode import AudioSource, open_audio, reopenable
from whisper_opt.core.arrays import F32
from whisper_opt.core.options import TranscribeOptions
from whisper_opt.text.results import Dropped, Segment
from whisper_opt.transcription.attribution import Encode, finished
from whisper_opt.transcription.cross_talk import Levels, merge_channels
from whisper_opt.transcription.fallback import FallbackDecoder
from whisper_opt.transcription.job import Chunk, TranscriptionJob

__all__ = ["Channel", "ChannelSplit", "Recording"]


class Recording(Protocol):
    """A recording, or one channel of it, while it is read; see :class:`TranscriptionJob`."""

    language: str | None
    language_probability: float | None
    duration: float
    dropped: list[Dropped]

    @property
    def fallback(self) -> FallbackDecoder:
        """Decodes the windows."""

    @property
    def hear(self) -> Callable[[F32], None]:
        """Called with the samples, in order."""


class Channel:
    """One channel that is transcribed as part of a recording.

    Attributes:
        fallback: decodes its windows.
        language: language code; None until it is known.
        language_probability: probability of the language if it was detected.
        duration: length in seconds as far as it is known.
        dropped: parts that are not transcribed.
        levels: its loudness.
    """

    def __init__(self, fallback: FallbackDecoder, language: str | None) -> None:
        """Nothing was read."""
        self.fallback = fallback
        self.language = language
        self.language_probability: float | None = None
        self.duration = 0.0
        self.dropped: list[Dropped] = []
        self.levels = Levels()

    def hear(self, samples: F32) -> None:
        """Called with the samples of the channel, in order."""
        self.levels.feed(samples)


class ChannelSplit:
    """Transcription of every channel of a recording by itself, and the merged transcript."""

    def __init__(
        self, options: TranscribeOptions, reading: Mapping[str, Any], language: str | None
    ) -> None:
        """Nothing is read yet.

        Args:
            options: as they were given.
            reading: arguments of ``open_audio``.
            language: code of the language if it was given; else that of each channel is detected.
        """
        self._options = options
        self._reading = reading
        self._language = language
        self._channels: list[Channel] = []

    def chunks(
        self,
        job: TranscriptionJob,
        source: AudioSource,
        chunks: Callable[[Channel, AudioSource, dict[str, Any]], Iterator[Chunk]],
    ) -> Iterator[Chunk]:
        """The chunks of all channels, in order of time.

        Args:
            job: the transcription.
            source: the recording; it is opened once per channel.
            chunks: the chunks of one channel.
        """
        source = reopenable(source, self._options.max_audio_bytes)
        with open_audio(source, **self._reading) as stream:
            n = job.n_channels = stream.n_channels
        self._channels = [Channel(job.fallback, self._language) for _ in range(n)]
        with contextlib.ExitStack() as stack:
            parts = []
            for i, channel in enumerate(self._channels):
                found = _numbered(i, chunks(channel, source, {**self._reading, "channel": i}))
                parts.append(stack.enter_context(contextlib.closing(found)))
            for chunk in heapq.merge(*parts, key=lambda chunk: chunk.start):
                self._tell(job)
                yield chunk
        self._tell(job)
        for channel in self._channels:
            job.dropped += channel.dropped

    def _tell(self, job: TranscriptionJob) -> None:
        """Note length and language of the recording: those of the clearest channel."""
        job.duration = max(channel.duration for channel in self._channels)
        known = [channel for channel in self._channels if channel.language is not None]
        best = max(known, key=lambda channel: channel.language_probability or 0.0, default=None)
        if best is not None:
            job.language, job.language_probability = best.language, best.language_probability

    def complete(
        self, job: TranscriptionJob, encode: Encode, segments: list[Segment]
    ) -> list[Segment]:
        """The merged transcript."""
        levels = [channel.levels for channel in self._channels]
        merged, dropped = merge_channels(segments, levels, encode)
        job.dropped += dropped
        if len({segment.language for segment in merged}) < 2 and not self._options.multilingual:
            merged = [dataclasses.replace(segment, language=None) for segment in merged]
        return finished(merged, words=self._options.word_timestamps)


def _numbered(channel: int, chunks: Iterator[Chunk]) -> Generator[Chunk, None, None]:
    for chunk in chunks:
        chunk.channel = channel
        yield chunk
