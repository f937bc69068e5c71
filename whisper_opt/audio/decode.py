"""Recordings to 16 kHz mono float32.

soundfile (libsndfile) decodes wav, aiff, flac, ogg and opus; PyAV, when installed
(``whisper-opt[audio]``), mp3 and what soundfile cannot: m4a, mp4, webm, aac; an ``ffmpeg`` on the
PATH is the last resort. Without PyAV soundfile decodes mp3 too. Sound is decoded in blocks at its
own rate, mixed to mono by the mean of its channels and resampled by soxr (HQ), all as a stream,
whose samples are exactly those that ``soxr.resample`` gives for the whole recording at once.
:func:`open_audio` hands that stream out, however long the recording; :func:`load_audio` joins it.

Time 0 is that of the file: if its audio track begins later, or packets are missing, there is
silence. Channels in opposite phase, whose mean would be silent, are replaced by the loudest.

**Damage.** What cannot be decoded is replaced by silence, and a recording that was cut off is read
as far as it goes; a warning is logged that says which seconds are concerned. ``strict_audio`` makes
either an error. A file of which nothing, or less than half, can be decoded is an error always. A
cut wav, aiff, ogg, opus or webm, or an mp3 without a header that states its length, cannot be told
from a shorter recording.

**Recordings from strangers.** Only formats that hold their own sound are read: no playlists and
nothing else that makes a decoder open other files or the network. ``max_duration`` and
``max_audio_bytes`` bound time and memory.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator, Iterable
from types import TracebackType
from typing import Any, BinaryIO, Callable, Union

import numpy as np

from whisper_opt.audio.arrays import LOUDEST, array_blocks, too_loud
from whisper_opt.audio.downmix import Downmix
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
from whisper_opt.core.dims import SAMPLE_RATE
from whisper_opt.core.errors import AudioError
from whisper_opt.core.remedies import install_hint

__all__ = ["STREAM_BLOCK", "AudioSource", "AudioStream", "load_audio", "open_audio"]

AudioSource = Union[str, "os.PathLike[str]", bytes, bytearray, memoryview, BinaryIO, NDArray]
"""What :func:`load_audio` and :func:`open_audio` read."""

STREAM_BLOCK = 4 * SAMPLE_RATE
"""Samples in a block of a stream; the last one may be shorter."""

_RATES = (1_000, 768_000)
"""Lowest and highest sample rate taken for sound (Hz)."""
_Decoder = tuple[str, Callable[[Media, Damage], Blocks]]
_DECODERS: tuple[_Decoder, ...] = (
    ("soundfile", soundfile_blocks),
    ("PyAV", pyav_blocks),
    ("ffmpeg", ffmpeg_blocks),
)
"""Name and decoder, in the order they are tried."""


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


def open_audio(
    source: AudioSource,
    *,
    sample_rate: int | None = None,
    max_duration: float = MAX_DURATION,
    max_audio_bytes: int = MAX_BYTES,
    strict_audio: bool = False,
) -> AudioStream:
    """Read a recording as a stream, in memory that does not grow with its length.

    Args:
        source: a path; the bytes of a file; a binary file object, read from where it stands; or an
            array [n_samples] or [n_samples, n_channels]. Floats are taken as they are, integers
            divided by half their range (uint8 and other unsigned types are centred first).
        sample_rate: rate of an array in Hz (default 16,000). A file states its own.
        max_duration: refuse what lasts longer, in seconds.
        max_audio_bytes: read at most this much from a file object or pipe.
        strict_audio: damage is an error; else silence stands for what cannot be decoded, and a
            warning is logged.

    Returns:
        The samples at 16 kHz, mono, all finite, in blocks. There is at least one sample.

    Raises:
        AudioError: the source cannot be opened or decoded, holds no samples, or is no sound in its
            type, shape, scale or rate. What is wrong further on (too long, damage that is refused,
            NaN or infinity) is raised when the stream comes to it.
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
    blocks = _even(_bounded(_resampled(first, pieces, name), max_duration, name), name, damage)
    next(blocks)  # runs to the first block, so that what is no sound at all is refused here
    return AudioStream(blocks, first.seconds if first else None)


def load_audio(
    source: AudioSource,
    *,
    sample_rate: int | None = None,
    max_duration: float = MAX_DURATION,
    max_audio_bytes: int = MAX_BYTES,
    strict_audio: bool = False,
) -> F32:
    """Read a recording whole.

    Args:
        source: see :func:`open_audio`.
        sample_rate: rate of an array in Hz (default 16,000). A file states its own.
        max_duration: see :func:`open_audio`.
        max_audio_bytes: size of the result at most, and of what is read from a file object or pipe.
        strict_audio: see :func:`open_audio`.

    Returns:
        F32 [n_samples] at 16 kHz: a new array of at least one sample, all finite.

    Raises:
        AudioError: the source cannot be opened or decoded, holds no samples, more than is allowed,
            NaN or infinity, or damage that is refused; or the array's type, shape, scale or rate is
            not that of sound.
    """
    joined = bytearray()  # grows in place, so that joining the blocks needs no second copy
    with open_audio(
        source,
        sample_rate=sample_rate,
        max_duration=max_duration,
        max_audio_bytes=max_audio_bytes,
        strict_audio=strict_audio,
    ) as stream:
        for block in stream:
            if len(joined) + block.nbytes > max_audio_bytes:
                raise AudioError(
                    f"the recording is longer than {len(joined) / (4 * SAMPLE_RATE):.0f} s, and its"
                    f" samples take more than max_audio_bytes ({max_audio_bytes}); use the batched"
                    " strategy, which does not hold them all, or raise that limit"
                )
            joined.extend(block.data)
    return np.frombuffer(joined, np.float32)


def _decode(media: Media, damage: Damage) -> tuple[Piece | None, Blocks]:
    """The first piece (None: there is no sound) and the rest, by the first decoder that can."""
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
    """PyAV comes first for mp3: libsndfile misreads some, and prints notes on standard error."""
    with media.open() as file:
        head = file.read(3)
    if not is_mp3(head) and not (media.path or "").lower().endswith(".mp3"):
        return _DECODERS
    return _DECODERS[1], _DECODERS[0], _DECODERS[2]


def _continued(pieces: Blocks, others: list[_Decoder], media: Media, damage: Damage) -> Blocks:
    """Sound of one decoder and, if it breaks off, what another one finds behind that."""
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
        with contextlib.closing(_behind(decode(media, damage), n)) as rest:
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


def _behind(pieces: Blocks, n_skipped: int) -> Blocks:
    """Pieces without their first ``n_skipped`` sample frames."""
    with contextlib.closing(pieces):
        for piece in pieces:
            if n_skipped < len(piece.block):
                yield piece._replace(block=piece.block[n_skipped:])
            n_skipped = max(0, n_skipped - len(piece.block))


def _resampled(first: Piece | None, rest: Blocks, name: str) -> Generator[F32, None, None]:
    """Mix, check and resample; F32 [n] of any length, zero included."""
    with contextlib.closing(rest):
        if first is None:
            return
        rate = _checked_rate(first.rate, name)
        resampler, downmix = _resampler(rate), Downmix(rate, name)
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
    if peak > LOUDEST:
        raise AudioError(too_loud(name, peak))
    return mono


def _bounded(
    blocks: Generator[F32, None, None], max_duration: float, name: str
) -> Generator[F32, None, None]:
    """The same blocks, until there are too many."""
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
    if damage is not None:
        damage.report()
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
