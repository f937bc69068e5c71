"""Recordings to 16 kHz mono float32.

soundfile (libsndfile) decodes wav, aiff, flac, mp3, ogg and opus; PyAV, when installed
(``whisper-opt[audio]``), what soundfile cannot: m4a, mp4, webm, aac; an ``ffmpeg`` on the PATH is
the last resort. Sound is decoded in blocks at its own rate, mixed to mono by the mean of its
channels and resampled by soxr (HQ), all as a stream: beside the result, memory holds one block. The
stream gives exactly the samples that ``soxr.resample`` gives for the whole recording at once.

A damaged file is an error rather than a short recording, as far as the damage shows. A cut flac or
m4a is noticed, and so is an mp3 that lacks more than two frames of the length its header states. A
cut wav, aiff, ogg, opus or webm, or an mp3 without such a header, cannot be told from a shorter
recording: what is there is read.
"""

from __future__ import annotations

import contextlib
import os
from typing import Any, BinaryIO, Union

import numpy as np

from whisper_opt.arrays import F32, NDArray
from whisper_opt.dims import SAMPLE_RATE
from whisper_opt.errors import AudioError
from whisper_opt.media import BLOCK, DECODERS, Blocks, DeclinedError, as_float, open_media

__all__ = ["AudioSource", "load_audio"]

AudioSource = Union[str, "os.PathLike[str]", bytes, bytearray, memoryview, BinaryIO, NDArray]
"""What :func:`load_audio` reads."""

_RATES = (1_000, 768_000)
"""Lowest and highest sample rate taken for sound (Hz)."""
_MAX_CHANNELS = 64


def load_audio(source: AudioSource, *, sample_rate: int | None = None) -> F32:
    """Read a recording.

    Args:
        source: a path; the bytes of a file; a binary file object, read from where it stands; or an
            array [n_samples] or [n_samples, n_channels]. Floats are taken as they are, integers
            divided by half their range (uint8 and other unsigned types are centred first).
        sample_rate: rate of an array in Hz (default 16,000). A file states its own.

    Returns:
        F32 [n_samples] at 16 kHz: a new array of at least one sample, all finite.

    Raises:
        AudioError: the source cannot be opened or decoded, is visibly damaged, holds no samples,
            or holds NaN or infinity; or the array's type, shape or rate is not that of sound.
    """
    if isinstance(source, np.ndarray):
        return _collect(_array_blocks(source, sample_rate), "the array")
    if sample_rate is not None:
        raise AudioError(
            f"sample_rate={sample_rate!r} was given with {type(source).__name__}; a file states its"
            " own rate, so give one with arrays only"
        )
    media = open_media(source)
    refusals = []
    for name, decode in DECODERS:
        try:
            return _collect(decode(media), media.name)
        except DeclinedError as refusal:  # noqa: PERF203 - three rounds at most
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
    for start in range(0, array.size and len(array), BLOCK):
        yield int(rate), as_float(array[start : start + BLOCK])


def _collect(blocks: Blocks, name: str) -> F32:
    """Mix, check, resample and join."""
    joined = bytearray()  # grows in place, so that joining the blocks needs no second copy
    resampler: Any = None
    rate = 0
    with contextlib.closing(blocks):
        for block_rate, block in blocks:
            if not rate:
                rate = _checked_rate(block_rate, name)
                resampler = _resampler(rate)
            if block_rate != rate:
                raise AudioError(
                    f"{name} changes its sample rate from {rate} to {block_rate} Hz; expected one"
                    " rate: convert it first"
                )
            mono = _mono(block)
            if not np.isfinite(mono).all():
                raise AudioError(f"{name} holds NaN or infinite samples; expected finite ones")
            joined.extend((resampler.resample_chunk(mono) if resampler else mono).data)
    if resampler:
        joined.extend(resampler.resample_chunk(np.empty(0, np.float32), last=True).data)
    samples = np.frombuffer(joined, np.float32)
    if not len(samples):
        raise AudioError(f"{name} holds no samples; expected sound")
    return samples


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
