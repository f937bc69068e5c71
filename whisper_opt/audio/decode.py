"""Recordings to 16 kHz mono float32.

soundfile (libsndfile) decodes wav, aiff, flac, mp3, ogg and opus; PyAV, when installed
(``whisper-opt[audio]``), what soundfile cannot: m4a, mp4, webm, aac; an ``ffmpeg`` on the PATH is
the last resort. Sound is decoded in blocks at its own rate, mixed to mono by the mean of its
channels and resampled by soxr (HQ), all as a stream, whose samples are exactly those that
``soxr.resample`` gives for the whole recording at once. :func:`open_audio` hands that stream out,
however long the recording; :func:`load_audio` joins it.

A damaged file is an error rather than a short recording, as far as the damage shows. A cut flac or
m4a is noticed, and so is an mp3 that lacks more than two frames of the length its header states. A
cut wav, aiff, ogg, opus or webm, or an mp3 without such a header, cannot be told from a shorter
recording: what is there is read.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator
from types import TracebackType
from typing import Any, BinaryIO, Union

import numpy as np

from whisper_opt.audio.media import (
    BLOCK,
    DECODERS,
    Blocks,
    DeclinedError,
    Media,
    Piece,
    as_float,
    open_media,
)
from whisper_opt.core.arrays import F32, NDArray
from whisper_opt.core.dims import SAMPLE_RATE
from whisper_opt.core.errors import AudioError

__all__ = ["STREAM_BLOCK", "AudioSource", "AudioStream", "load_audio", "open_audio"]

AudioSource = Union[str, "os.PathLike[str]", bytes, bytearray, memoryview, BinaryIO, NDArray]
"""What :func:`load_audio` and :func:`open_audio` read."""

STREAM_BLOCK = 4 * SAMPLE_RATE
"""Samples in a block of a stream; the last one may be shorter."""

_RATES = (1_000, 768_000)
"""Lowest and highest sample rate taken for sound (Hz)."""
_MAX_CHANNELS = 64


class AudioStream:
    """A recording in blocks, made by :func:`open_audio`.

    Iterating gives F32 [n] at 16 kHz, n = ``STREAM_BLOCK`` but for the last block, every one a new
    array. It may raise AudioError where damage shows only further on. Closing it, which leaving it
    as a context manager or its end does too, gives files and decoders back.
    """

    def __init__(self, blocks: Generator[F32, None, None], duration: float | None) -> None:
        self._blocks = blocks
        self.duration = duration
        """Seconds of sound as the header states them, exact for an array; None if unknown."""

    def __iter__(self) -> AudioStream:
        return self

    def __next__(self) -> F32:
        return next(self._blocks)

    def __enter__(self) -> AudioStream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop decoding; the stream then holds no more blocks."""
        self._blocks.close()


def open_audio(source: AudioSource, *, sample_rate: int | None = None) -> AudioStream:
    """Read a recording as a stream, in memory that does not grow with its length.

    Args:
        source: a path; the bytes of a file; a binary file object, read from where it stands; or an
            array [n_samples] or [n_samples, n_channels]. Floats are taken as they are, integers
            divided by half their range (uint8 and other unsigned types are centred first).
        sample_rate: rate of an array in Hz (default 16,000). A file states its own.

    Returns:
        The samples at 16 kHz, mono, all finite, in blocks. There is at least one sample.

    Raises:
        AudioError: the source cannot be opened or decoded, holds no samples, or is no sound in its
            type, shape or rate. What is wrong further on (damage, NaN or infinity) is raised when
            the stream comes to it.
    """
    if isinstance(source, np.ndarray):
        name, pieces = "the array", _array_blocks(source, sample_rate)
        first = next(pieces, None)
    elif sample_rate is not None:
        raise AudioError(
            f"sample_rate={sample_rate!r} was given with {type(source).__name__}; a file states its"
            " own rate, so give one with arrays only"
        )
    else:
        media = open_media(source)
        name = media.name
        first, pieces = _decode(media)
    blocks = _even(_resampled(first, pieces, name), name)
    next(blocks)  # runs to the first block, so that what is no sound at all is refused here
    return AudioStream(blocks, first.seconds if first else None)


def load_audio(source: AudioSource, *, sample_rate: int | None = None) -> F32:
    """Read a recording whole.

    Args:
        source: see :func:`open_audio`.
        sample_rate: rate of an array in Hz (default 16,000). A file states its own.

    Returns:
        F32 [n_samples] at 16 kHz: a new array of at least one sample, all finite.

    Raises:
        AudioError: the source cannot be opened or decoded, is visibly damaged, holds no samples,
            or holds NaN or infinity; or the array's type, shape or rate is not that of sound.
    """
    joined = bytearray()  # grows in place, so that joining the blocks needs no second copy
    with open_audio(source, sample_rate=sample_rate) as stream:
        for block in stream:
            joined.extend(block.data)
    return np.frombuffer(joined, np.float32)


def _decode(media: Media) -> tuple[Piece | None, Blocks]:
    """The first piece (None: there is no sound) and the rest, by the first decoder that can."""
    refusals = []
    for name, decode in DECODERS:
        pieces = decode(media)
        try:
            return next(pieces, None), pieces
        except DeclinedError as refusal:
            refusals.append(f"{name}: {refusal}")
    raise AudioError(f"{media.name} cannot be decoded as audio ({'; '.join(refusals)})")


def _array_blocks(array: NDArray, sample_rate: int | None) -> Blocks:
    rate = SAMPLE_RATE if sample_rate is None else sample_rate
    if isinstance(rate, bool) or not isinstance(rate, (int, np.integer)):
        raise AudioError(f"sample_rate is {rate!r}; expected an integer number of Hz")
    if array.dtype.kind not in "iuf":
        raise AudioError(f"audio array has dtype {array.dtype}; expected floats or integers")
    shape = list(array.shape)
    if array.ndim not in (1, 2):
        raise AudioError(
            f"audio array has shape {shape}; expected [n_samples] or [n_samples, n_channels]"
        )
    if array.ndim == 1:
        array = array[:, None]
    elif 0 < array.shape[0] < array.shape[1] and array.shape[0] <= 8:
        raise AudioError(
            f"audio array has shape {shape}, which looks like [n_channels, n_samples]; expected"
            " [n_samples, n_channels]: pass its transpose"
        )
    if array.shape[1] > _MAX_CHANNELS:
        raise AudioError(
            f"audio array has shape {shape}: {array.shape[1]} channels; expected at"
            f" most {_MAX_CHANNELS}"
        )
    seconds = len(array) / rate if rate > 0 else None
    for start in range(0, array.size and len(array), BLOCK):
        yield Piece(int(rate), as_float(array[start : start + BLOCK]), seconds)


def _resampled(first: Piece | None, rest: Blocks, name: str) -> Generator[F32, None, None]:
    """Mix, check and resample; F32 [n] of any length, zero included."""
    with contextlib.closing(rest):
        if first is None:
            return
        rate = _checked_rate(first.rate, name)
        resampler = _resampler(rate)
        piece: Piece | None = first
        while piece is not None:
            if piece.rate != rate:
                raise AudioError(
                    f"{name} changes its sample rate from {rate} to {piece.rate} Hz; expected one"
                    " rate: convert it first"
                )
            mono = _mono(piece.block)
            if not np.isfinite(mono).all():
                raise AudioError(f"{name} holds NaN or infinite samples; expected finite ones")
            yield resampler.resample_chunk(mono) if resampler else mono
            piece = next(rest, None)
    if resampler:
        yield resampler.resample_chunk(np.empty(0, np.float32), last=True)


def _even(blocks: Generator[F32, None, None], name: str) -> Generator[F32, None, None]:
    """Cut into blocks of ``STREAM_BLOCK``; before them comes an empty one, once there is sound."""
    block, n_held = np.empty(STREAM_BLOCK, np.float32), 0
    begun = False
    with contextlib.closing(blocks):
        for samples in blocks:
            if len(samples) and not begun:
                begun = True
                yield samples[:0]
            while len(samples):
                n_taken = min(len(samples), STREAM_BLOCK - n_held)
                block[n_held : n_held + n_taken] = samples[:n_taken]
                samples, n_held = samples[n_taken:], n_held + n_taken
                if n_held == STREAM_BLOCK:
                    yield block
                    block, n_held = np.empty(STREAM_BLOCK, np.float32), 0
    if not begun:
        raise AudioError(f"{name} holds no samples; expected sound")
    if n_held:
        yield block[:n_held]


def _checked_rate(rate: int, name: str) -> int:
    if not _RATES[0] <= rate <= _RATES[1]:
        raise AudioError(
            f"{name} has a sample rate of {rate} Hz; expected {_RATES[0]} to {_RATES[1]} Hz"
        )
    return rate


def _resampler(rate: int) -> Any:
    if rate == SAMPLE_RATE:
        return None
    import soxr

    return soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32", quality="HQ")


def _mono(block: F32) -> F32:
    """Mean of the channels: F32 [n, n_channels] -> F32 [n]."""
    if block.shape[1] == 1:
        return np.ascontiguousarray(block[:, 0])
    with np.errstate(over="ignore"):
        mono: F32 = block[:, 0] + block[:, 1]
        for channel in block.T[2:]:
            mono += channel
        mono *= np.float32(1 / block.shape[1])
    return mono
