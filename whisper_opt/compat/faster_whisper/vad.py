"""``faster_whisper.vad``: voice activity detection."""

from __future__ import annotations

import bisect
import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any, Union

import numpy as np

import whisper_opt
from whisper_opt.compat.faster_whisper.audio import SAMPLING_RATE, Samples, check_rate

__all__ = [
    "SpeechTimestampsMap",
    "VadOptions",
    "collect_chunks",
    "get_speech_timestamps",
    "library_options",
]

_HYSTERESIS = 0.15
"""Speech ends this far below the threshold, as it does with ``neg_threshold=None``."""


@dataclasses.dataclass
class VadOptions:
    """Options of voice activity detection, with faster-whisper's names and defaults.

    Attributes:
        threshold: a frame is speech if its speech probability is at least this.
        neg_threshold: probability below which speech ends; None: 0.15 below ``threshold``, the
            only value that is accepted.
        min_speech_duration_ms: shorter speech is dropped.
        max_speech_duration_s: longer speech is split at its longest silence.
        min_silence_duration_ms: a shorter silence does not end speech.
        speech_pad_ms: audio to add before and after speech.
    """

    threshold: float = 0.5
    neg_threshold: Union[float, None] = None
    min_speech_duration_ms: int = 0
    max_speech_duration_s: float = math.inf
    min_silence_duration_ms: int = 2000
    speech_pad_ms: int = 400


def library_options(options: VadOptions) -> whisper_opt.VadOptions:
    """The same options under the names of this library, in seconds.

    Raises:
        OptionError: ``neg_threshold`` is given, or a value is out of range.
    """
    lower = max(options.threshold - _HYSTERESIS, 0.01)
    if options.neg_threshold is not None and not math.isclose(options.neg_threshold, lower):
        raise whisper_opt.OptionError(
            f"neg_threshold is {options.neg_threshold}, but speech ends {_HYSTERESIS} below"
            f" threshold ({options.threshold}); leave it out, or change threshold"
        )
    try:
        return whisper_opt.VadOptions(
            threshold=options.threshold,
            min_speech_duration=options.min_speech_duration_ms / 1000,
            max_speech_duration=options.max_speech_duration_s,
            min_silence_duration=options.min_silence_duration_ms / 1000,
            speech_pad=options.speech_pad_ms / 1000,
        )
    except whisper_opt.OptionError as error:
        raise whisper_opt.OptionError(f"{options}: {error}; seconds are meant") from error


def get_speech_timestamps(
    audio: Samples,
    vad_options: VadOptions | None = None,
    sampling_rate: int = SAMPLING_RATE,
    **kwargs: Any,
) -> list[dict[str, int]]:
    """Speech in a recording: ``start`` and ``end`` of each part, in samples.

    Args:
        audio: float32 [n] at 16 kHz.
        vad_options: how to detect it.
        sampling_rate: 16,000; another rate is refused.
        **kwargs: fields of :class:`VadOptions`, instead of ``vad_options``.

    Raises:
        AudioError: the samples are not those of audio.
        OptionError: an option is not supported.
    """
    check_rate(sampling_rate)
    options = library_options(VadOptions(**kwargs) if vad_options is None else vad_options)
    if not len(audio):
        return []
    spans = whisper_opt.detect_speech(np.asarray(audio), options=options)
    return [{"start": span.start, "end": span.end} for span in spans]


def collect_chunks(
    audio: Samples,
    chunks: Iterable[Mapping[str, int]],
    sampling_rate: int = SAMPLING_RATE,
    max_duration: float = math.inf,
) -> tuple[list[Samples], list[dict[str, Any]]]:
    """Join parts of a recording, without the audio between them, up to ``max_duration``.

    Args:
        audio: samples [n].
        chunks: parts, as :func:`get_speech_timestamps` returns.
        sampling_rate: samples per second.
        max_duration: seconds; a part that does not fit begins the next chunk.

    Returns:
        The samples of each chunk, and its description: ``offset`` (seconds of speech before it),
        ``duration`` in seconds, ``segments`` (its parts). One empty chunk if there are no parts.
    """
    groups: list[list[Mapping[str, int]]] = [[]]
    n_samples = 0
    for chunk in chunks:
        size = chunk["end"] - chunk["start"]
        if groups[-1] and n_samples + size > max_duration * sampling_rate:
            groups.append([])
            n_samples = 0
        groups[-1].append(chunk)
        n_samples += size
    empty = np.zeros(0, np.float32)
    joined = [
        np.concatenate([empty, *(audio[part["start"] : part["end"]] for part in group)])
        for group in groups
    ]
    described: list[dict[str, Any]] = []
    n_before = 0
    for group, samples in zip(groups, joined):
        described.append(
            {
                "offset": n_before / sampling_rate,
                "duration": len(samples) / sampling_rate,
                "segments": group,
            }
        )
        n_before += len(samples)
    return joined, described


class SpeechTimestampsMap:
    """Times in a recording of times in its joined parts.

    Attributes:
        sampling_rate: samples per second.
        time_precision: decimals of the times that are returned.
        chunk_end_sample: end of each part in the joined audio, in samples.
        total_silence_before: seconds that are left out before each part.
    """

    def __init__(
        self, chunks: Iterable[Mapping[str, int]], sampling_rate: int, time_precision: int = 2
    ) -> None:
        """``chunks``: parts in order of time, as :func:`get_speech_timestamps` returns."""
        self.sampling_rate = sampling_rate
        self.time_precision = time_precision
        self.chunk_end_sample: list[int] = []
        self.total_silence_before: list[float] = []
        n_joined = 0
        for chunk in chunks:
            self.total_silence_before.append((chunk["start"] - n_joined) / sampling_rate)
            n_joined += chunk["end"] - chunk["start"]
            self.chunk_end_sample.append(n_joined)

    def get_original_time(
        self, time: float, chunk_index: int | None = None, is_end: bool = False
    ) -> float:
        """The time in the recording, in seconds.

        Args:
            time: seconds in the joined audio.
            chunk_index: the part that it is in; default: found by :meth:`get_chunk_index`.
            is_end: whether something ends then, so that the end of a part belongs to that part.

        Raises:
            IndexError: there are no parts.
        """
        index = self.get_chunk_index(time, is_end) if chunk_index is None else chunk_index
        return round(self.total_silence_before[index] + time, self.time_precision)

    def get_chunk_index(self, time: float, is_end: bool = False) -> int:
        """The index of the part that a time in the joined audio is in; arguments as above.

        Times after the end are in the last part; -1 if there are no parts.
        """
        sample = int(time * self.sampling_rate)
        if is_end and sample in self.chunk_end_sample:
            return self.chunk_end_sample.index(sample)
        after = bisect.bisect(self.chunk_end_sample, sample)
        return min(after, len(self.chunk_end_sample) - 1)
