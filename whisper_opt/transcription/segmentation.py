"""Segments of a window: its tokens, split at timestamps as in openai-whisper."""

from __future__ import annotations

import dataclasses

from whisper_opt.core.dims import HOP_LENGTH, SAMPLE_RATE, ModelDims
from whisper_opt.text.results import Segment
from whisper_opt.text.vocabulary import Vocab
from whisper_opt.transcription.fallback import Window, WindowResult

__all__ = ["WindowSegments", "seconds_of", "split_at_timestamps"]


@dataclasses.dataclass(frozen=True)
class WindowSegments:
    """The result of a window as segments.

    Attributes:
        segments: in order, with ids from 0, including segments without text.
        n_done: mel frames of the window that the segments finish.
        single_timestamp_ending: whether the tokens end with a single timestamp, which means that
            there is no speech after it.
    """

    segments: list[Segment]
    n_done: int
    single_timestamp_ending: bool


def seconds_of(n_frames: int) -> float:
    """Duration of mel frames in seconds."""
    return n_frames * HOP_LENGTH / SAMPLE_RATE


def split_at_timestamps(
    window: Window, result: WindowResult, vocab: Vocab, dims: ModelDims
) -> WindowSegments:
    """Split the tokens of a window between adjacent timestamps.

    Times are in seconds from the start of the chunk.
    """
    begin, tokens = vocab.timestamp_begin, result.tokens
    times = [token in vocab.times for token in tokens]
    single_ending = times[-2:] == [False, True]
    cuts = [i for i in range(1, len(tokens)) if times[i] and times[i - 1]]
    offset = seconds_of(window.seek)
    precision = seconds_of(dims.frames_per_position)
    if not cuts:
        everything = range(len(tokens))
        timestamps = [token for token, is_time in zip(tokens, times) if is_time]
        length = seconds_of(window.size)
        if timestamps and timestamps[-1] != begin:
            length = (timestamps[-1] - begin) * precision
        (segment,) = _segments(window, result, vocab, [(offset, offset + length, everything)])
        segment = dataclasses.replace(segment, truncated=result.truncated)
        return WindowSegments([segment], window.size, single_ending)
    if single_ending:
        cuts.append(len(tokens))
    spans = []
    for first, last in zip([0, *cuts], cuts):
        part = tokens[first:last]
        start, end = (part[0] - begin) * precision, (part[-1] - begin) * precision
        spans.append((offset + start, offset + end, range(first, last)))
    n_done = (tokens[cuts[-1] - 1] - begin) * dims.frames_per_position
    segments = _segments(window, result, vocab, spans)
    return WindowSegments(segments, window.size if single_ending else n_done, single_ending)


def _segments(
    window: Window,
    result: WindowResult,
    vocab: Vocab,
    spans: list[tuple[float, float, range]],
) -> list[Segment]:
    """Segments of (start, end, places of its tokens in the result)."""
    return [
        Segment(
            id=i,
            start=start,
            end=end,
            text=vocab.decode(result.tokens[places.start : places.stop]),
            tokens=result.tokens[places.start : places.stop],
            avg_logprob=result.avg_logprob,
            no_speech_prob=result.no_speech_prob,
            compression_ratio=result.compression_ratio,
            temperature=result.temperature,
            seek=window.seek,
            token_logprobs=result.token_logprobs
            and result.token_logprobs[places.start : places.stop],
        )
        for i, (start, end, places) in enumerate(spans)
    ]
