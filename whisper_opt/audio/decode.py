"""Decode recordings to 16 kHz mono float32.

soundfile (libsndfile) decodes wav, aiff, flac, ogg and opus. PyAV, if installed
(``whisper-opt[audio]``), decodes mp3 and the formats that soundfile cannot: m4a, mp4, webm, aac. An
``ffmpeg`` on the PATH is the last resort. Without PyAV soundfile decodes mp3 too.

Audio is decoded in blocks at its own sample rate, mixed to mono by the mean of its channels and
resampled by soxr (HQ), all as a stream. The samples are exactly those of ``soxr.resample`` on the
whole recording. :func:`open_audio` returns that stream, for recordings of any length;
:func:`load_audio` joins it.

Time 0 is the start of the file: if its audio track begins later, or packets are missing, silence
is inserted. If channels are in opposite phase, so that their mean would be silent, the loudest
channel is used alone.

**Damage.** Parts that cannot be decoded are replaced by silence, and a recording that was cut off
is read as far as it goes; a warning with the affected times is logged. ``strict_audio`` makes both
an error. A file of which nothing, or less than half, can be decoded is always an error. A truncated
wav, aiff, ogg, opus or webm, or an mp3 without a header that states its length, cannot be
distinguished from a shorter recording.

**Untrusted recordings.** Only self-contained formats are read: no playlists, and nothing else that
makes a decoder open other files or the network. ``max_duration`` and ``max_audio_bytes`` bound time
and memory.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator, Iterable
from typing import Any, BinaryIO, Callable, Union

import numpy as np

from whisper_opt.audio.arrays import MAX_SAMPLE, array_blocks, too_loud
from whisper_opt.audio.arriving import Arriving
from whisper_opt.audio.downmix import Downmix, OneChannel
from whisper_opt.audio.ffmpeg import ffmpeg_blocks
from whisper_opt.audio.libav import pyav_blocks
from whisper_opt.audio.media import (
    MAX_BYTES,
    MAX_DURATION,
    Blocks,
    BrokenOffError,
    Damage,
    DeclinedError,
    Media,
    Piece,
    open_media,
)
from whisper_opt.audio.sndfile import is_mp3, rest_in_steps, soundfile_blocks
from whisper_opt.core.arrays import F32, NDArray
from whisper_opt.core.closing import Closing
from whisper_opt.core.dims import SAMPLE_RATE
from whisper_opt.core.errors import AudioError
from whisper_opt.core.remedies import install_hint

__all__ = [
    "STREAM_BLOCK",
    "AudioSource",
    "AudioStream",
    "checked_rate",
    "decoded_on_arrival",
    "load_audio",
    "open_audio",
    "reopenable",
    "resampler_of",
]

AudioSource = Union[
    str, "os.PathLike[str]", bytes, bytearray, memoryview, BinaryIO, NDArray, Arriving
]
"""Sources that :func:`load_audio` and :func:`open_audio` accept."""

STREAM_BLOCK = 4 * SAMPLE_RATE
"""Samples per block of a stream; the last block may be shorter."""

_RATES = (1_000, 768_000)
"""Lowest and highest sample rate accepted (Hz)."""
_Decoder = tuple[str, Callable[[Media, Damage], Blocks]]
_DECODERS: tuple[_Decoder, ...] = (
    ("soundfile", soundfile_blocks),
    ("PyAV", pyav_blocks),
    ("ffmpeg", ffmpeg_blocks),
)
"""Decoders and their names, in the order in which they are tried."""


class AudioStream(Closing):
    """A recording as a stream of blocks, made by :func:`open_audio`.

    Iterating gives F32 [n] at 16 kHz, each a new array; n is ``STREAM_BLOCK`` except in the last
    block. It raises AudioError if damage is found on the way. Closing the stream releases files and
    decoders; so does its end, or leaving it as a context manager.
    """

    def __init__(
        self, blocks: Generator[F32, None, None], duration: float | None, n_channels: int = 1
    ) -> None:
        self._blocks = blocks
        self.duration = duration
        """Duration in seconds as the header states it, exact for an array; None if unknown."""
        self.n_channels = n_channels
        """Channels at the start of the recording, which are mixed to one."""

    def __iter__(self) -> AudioStream:
        return self

    def __next__(self) -> F32:
        return next(self._blocks)

    def close(self) -> None:
        """Stop decoding; no more blocks follow."""
        self._blocks.close()


def open_audio(
    source: AudioSource,
    *,
    sample_rate: int | None = None,
    channel: int | None = None,
    max_duration: float = MAX_DURATION,
    max_audio_bytes: int = MAX_BYTES,
    strict_audio: bool = False,
) -> AudioStream:
    """Read a recording as a stream, with memory that does not depend on its length.

    Args:
        source: a path; the bytes of a file; a binary file object, read from its current position;
            or an array [n_samples] or [n_samples, n_channels]. Floats are used as they are;
            integers are divided by half their range (unsigned ones are centred first).
        sample_rate: sample rate of an array in Hz (default 16,000); not for files.
        channel: use this channel alone, from 0; default: the mean of all channels.
        max_duration: refuse longer recordings, in seconds.
        max_audio_bytes: read at most this much from a file object or pipe.
        strict_audio: damage is an error; otherwise silence replaces what cannot be decoded, and a
            warning is logged.

    Returns:
        Blocks of mono samples at 16 kHz, all finite; at least one sample in all.

    Raises:
        AudioError: the source cannot be opened or decoded, holds no samples, or has a type, shape,
            scale or rate that is not that of audio. Faults further on (too long, refused damage,
            NaN or infinity) are raised when the stream reaches them.
    """
    damage = None
    if isinstance(source, np.ndarray):
        name, pieces = "the array", array_blocks(source, sample_rate)
        first = next(pieces, None)
    elif sample_rate is not None:
        raise AudioError(
            f"sample_rate={sample_rate!r} was given with {type(source).__name__}; a file states its"
            " own rate, so give one with arrays only"
        )
    else:
        media = open_media(source, max_audio_bytes)
        name = media.name
        damage = Damage(name, strict_audio)
        first, pieces = _decode(media, damage)
    n_channels = first.block.shape[1] if first else 1
    mono = _resampled(first, pieces, name, channel)
    blocks = _even(_bounded(mono, max_duration, name), name, damage)
    next(blocks)  # decodes to the first block, so that an unreadable source is refused here
    return AudioStream(blocks, first.seconds if first else None, n_channels)


def decoded_on_arrival(head: bytes) -> bool:
    """Whether a recording with these first bytes (12 or more) is decoded without its end.

    wav and flac are, by libsndfile, and mp3, by FFmpeg. Of ogg libsndfile reads the last page
    first, and mp4 may have its index at the end.
    """
    return (head[:4] == b"RIFF" and head[8:12] == b"WAVE") or head[:4] == b"fLaC" or is_mp3(head)


def load_audio(
    source: AudioSource,
    *,
    sample_rate: int | None = None,
    channel: int | None = None,
    max_duration: float = MAX_DURATION,
    max_audio_bytes: int = MAX_BYTES,
    strict_audio: bool = False,
) -> F32:
    """Read a whole recording.

    Args:
        source: see :func:`open_audio`.
        sample_rate: sample rate of an array in Hz (default 16,000); not for files.
        channel: see :func:`open_audio`.
        max_duration: see :func:`open_audio`.
        max_audio_bytes: maximum size of the result, and of what is read from a file object or pipe.
        strict_audio: see :func:`open_audio`.

    Returns:
        F32 [n_samples] at 16 kHz: a new array of at least one sample, all finite.

    Raises:
        AudioError: the source cannot be opened or decoded, holds no samples, too many of them,
            NaN or infinity, or refused damage; or the type, shape, scale or rate of the array is
            not that of audio.
    """
    joined = bytearray()  # grows in place, so that the blocks are not copied twice
    with open_audio(
        source,
        sample_rate=sample_rate,
        channel=channel,
        max_duration=max_duration,
        max_audio_bytes=max_audio_bytes,
        strict_audio=strict_audio,
    ) as stream:
        for block in stream:
            if len(joined) + block.nbytes > max_audio_bytes:
                raise AudioError(
                    f"the recording is longer than {len(joined) / (4 * SAMPLE_RATE):.0f} s, and its"
                    f" samples take more than max_audio_bytes ({max_audio_bytes}); use the batched"
                    " strategy, which does not keep them all in memory, or raise that limit"
                )
            joined.extend(block.data)
    return np.frombuffer(joined, np.float32)


def reopenable(source: AudioSource, max_audio_bytes: int = MAX_BYTES) -> AudioSource:
    """The same recording as a source that can be opened several times.

    File objects and pipes are read into memory; all other sources, also one that is still arriving,
    are returned as they are.

    Raises:
        AudioError: the source does not exist, cannot be read, or is empty or too large.
    """
    if isinstance(source, (np.ndarray, bytes, Arriving)):
        return source
    media = open_media(source, max_audio_bytes)
    return media.data if media.path is None else media.path


def _decode(media: Media, damage: Damage) -> tuple[Piece | None, Blocks]:
    """The first piece (None: no samples) and the rest, from the first decoder that succeeds."""
    refusals = []
    decoders = list(_decoders(media))
    for i, (name, decode) in enumerate(decoders):
        pieces = _continued(decode(media, damage), decoders[i + 1 :], media, damage)
        try:
            return next(pieces, None), pieces
        except DeclinedError as refusal:
            refusals.append(f"{name}: {refusal}")
    raise AudioError(f"{media.name} cannot be decoded as audio ({'; '.join(refusals)})")


def _decoders(media: Media) -> Iterable[_Decoder]:
    """Decoders in order; PyAV is first for mp3: libsndfile misreads some, and prints on stderr."""
    with media.open() as file:
        head = file.read(3)
    if not is_mp3(head) and not (media.path or "").lower().endswith(".mp3"):
        return _DECODERS
    return _DECODERS[1], _DECODERS[0], _DECODERS[2]


def _continued(pieces: Blocks, others: list[_Decoder], media: Media, damage: Damage) -> Blocks:
    """Pieces of one decoder and, if it breaks off, what another one decodes after that."""
    n, rate = 0, 1
    with contextlib.closing(pieces):
        try:
            for piece in pieces:
                n, rate = n + len(piece.block), piece.rate
                yield piece
            return
        except BrokenOffError as error:
            why = str(error)
    for _, decode in others:
        with contextlib.closing(_after(decode(media, damage), n)) as rest:
            try:
                first = next(rest, None)
            except (DeclinedError, BrokenOffError):
                continue
            if first is not None:
                yield first
                yield from rest
                if not damage.found:
                    damage.lost(n / rate, n / rate, why)
                return
    for piece in rest_in_steps(media, n):
        n, rate = n + len(piece.block), piece.rate
        yield piece
    if not n:
        raise DeclinedError(why)
    damage.cut(n / rate, None, f"{why}; extra 'audio' may read on: {install_hint('audio')}")


def _after(pieces: Blocks, n_skipped: int) -> Blocks:
    """``pieces`` without their first ``n_skipped`` sample frames."""
    with contextlib.closing(pieces):
        for piece in pieces:
            if n_skipped < len(piece.block):
                yield piece._replace(block=piece.block[n_skipped:])
            n_skipped = max(0, n_skipped - len(piece.block))


def _resampled(
    first: Piece | None, rest: Blocks, name: str, channel: int | None
) -> Generator[F32, None, None]:
    """Mix to mono or take one channel, check and resample; yields F32 [n], n may be 0."""
    with contextlib.closing(rest):
        if first is None:
            return
        rate = checked_rate(first.rate, name)
        resampler = resampler_of(rate)
        downmix = Downmix(rate, name) if channel is None else OneChannel(channel, name)
        piece: Piece | None = first
        while piece is not None:
            if piece.rate != rate:
                raise AudioError(
                    f"{name} changes its sample rate from {rate} to {piece.rate} Hz; expected one"
                    " rate: convert it first"
                )
            mono = _checked(downmix.feed(piece.block), name)
            yield resampler.resample_chunk(mono) if resampler else mono
            piece = next(rest, None)
    mono = _checked(downmix.finish(), name)
    yield resampler.resample_chunk(mono, last=True) if resampler else mono


def _checked(mono: F32, name: str) -> F32:
    peak = max(float(mono.max()), -float(mono.min())) if len(mono) else 0.0
    if not peak < np.inf:
        raise AudioError(f"{name} holds NaN or infinite samples; expected finite ones")
    if peak > MAX_SAMPLE:
        raise AudioError(too_loud(name, peak))
    return mono


def _bounded(
    blocks: Generator[F32, None, None], max_duration: float, name: str
) -> Generator[F32, None, None]:
    """The same blocks; raises AudioError if they are longer than ``max_duration``."""
    n_samples = 0
    with contextlib.closing(blocks):
        for block in blocks:
            n_samples += len(block)
            if n_samples > max_duration * SAMPLE_RATE:
                raise AudioError(
                    f"{name} lasts longer than max_duration ({max_duration:g} s); cut it, or raise"
                    " that limit"
                )
            yield block


def _even(
    blocks: Generator[F32, None, None], name: str, damage: Damage | None
) -> Generator[F32, None, None]:
    """Blocks of ``STREAM_BLOCK`` samples, preceded by an empty one as soon as there are samples."""
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
        raise AudioError(f"{name} holds no samples; expected audio")
    if damage is not None:
        damage.report()
    if n_held:
        yield block[:n_held]


def checked_rate(rate: int, name: str) -> int:
    """A sample rate in Hz; raises AudioError if it is out of range."""
    if not _RATES[0] <= rate <= _RATES[1]:
        raise AudioError(
            f"{name} has a sample rate of {rate} Hz; expected {_RATES[0]} to {_RATES[1]} Hz"
        )
    return rate


def resampler_of(rate: int) -> Any:
    """A resampler of a stream from a rate to 16 kHz; None if that is the rate."""
    if rate == SAMPLE_RATE:
        return None
    import soxr

    return soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32", quality="HQ")
