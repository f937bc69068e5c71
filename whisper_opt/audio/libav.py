"""Decoding by PyAV (the libraries of FFmpeg): m4a, mp4, webm, aac and other audio formats.

A recording may be untrusted, so only self-contained formats are read: no playlists or session
descriptions, which make FFmpeg open other files or the network.

Time 0 is the start of the container. If the times of packets leave a gap of more than
:data:`_JITTER`, or packets cannot be decoded, silence is inserted, so that everything else keeps
its time. Smaller gaps are ignored: containers round times, and encoders add samples.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from whisper_opt.audio.arriving import Forward
from whisper_opt.audio.media import (
    MAX_CHANNELS,
    Blocks,
    Damage,
    DeclinedError,
    Media,
    Piece,
    as_float,
    silence,
)
from whisper_opt.audio.media import reason as _reason
from whisper_opt.audio.sndfile import is_mp3, states_length
from whisper_opt.core.arrays import F32
from whisper_opt.core.errors import AudioError
from whisper_opt.core.remedies import install_hint

__all__ = ["FORMATS", "pyav_blocks"]

FORMATS = (
    "aac,ac3,adx,aiff,amr,amrnb,amrwb,ape,asf,au,avi,caf,dsf,dts,eac3,flac,"
    "flv,gsm,matroska,mlp,mov,mp3,mp4,mpc,mpc8,mpeg,mpegts,mxf,nistsphere,nut,"
    "oga,ogg,rm,sox,tak,truehd,tta,voc,w64,wav,webm,wv,xwma"
)
"""FFmpeg's names of the audio formats that do not refer to other files or the network."""
_JITTER = 0.1
"""Seconds by which the time of a packet may differ from the duration of the samples before it."""
_EXACT_JITTER = 0.02
"""The same for formats that count samples."""
_COUNTED = ("flac", "ogg")
_BARE = ("aac", "mp3")
"""Formats without times. FFmpeg counts packets instead, and damage makes the count too low."""
_CUT_SLACK = 0.1
"""Seconds by which a recording may be shorter than its header states."""
_END_SLACK = 1.0
"""Seconds by which a time may be after the end that the container states."""
_MAX_PLANES = 8
"""Maximum channels of planar audio; decoders of damaged data may claim more."""
_INVALID = "invalid data"
_MAX_ERRORS = 100
"""Consecutive read errors after which decoding stops."""
_MAX_EMPTY = 1_000_000
"""Consecutive packets without audio after which decoding stops."""


def pyav_blocks(media: Media, damage: Damage) -> Blocks:
    """Decode the first audio track."""
    try:
        import av
    except ImportError as error:
        raise DeclinedError(f"not installed ({install_hint('audio')})") from error
    with contextlib.ExitStack() as stack:
        file: Any
        if media.arriving is None:
            file = stack.enter_context(media.open())
        else:
            file = Forward(media.arriving)
        options = {"format_whitelist": FORMATS, "protocol_whitelist": "none"}
        try:
            container = stack.enter_context(
                av.open(file, mode="r", options=options, metadata_errors="replace")
            )
        except _errors() as error:
            raise DeclinedError(_open_error(error)) from error
        if not container.streams.audio:
            raise AudioError(f"{media.name} has no audio track; expected one")
        yield from _Track(container, media, damage).pieces()


class _Track:
    """The first audio track of a container."""

    def __init__(self, container: Any, media: Media, damage: Damage) -> None:
        self._container = container
        self._media = media
        self._damage = damage
        self._stream = container.streams.audio[0]
        self._is_counted = container.format.name in _COUNTED
        self._is_bare = container.format.name in _BARE
        if container.format.name == "flac":  # else a frame with a wrong checksum is noise
            self._stream.codec_context.options = {"err_detect": "crccheck+explode"}
        self._stated_length = _seconds(container)
        self._start = None if container.start_time is None else container.start_time / 1e6
        self._length = self._stated_length
        if self._start is not None and self._stream.start_time and self._stream.duration:
            late = float(self._stream.start_time * self._stream.time_base) - self._start
            self._length = (self._length or 0.0) + (late if late > _JITTER else 0.0)
        self._rate = 0
        self._n = 0  # sample frames yielded so far, silence included
        self._n_filled = 0  # silence before the first packet
        self._n_good = self._n_bad = self._n_good_bytes = 0  # packets
        self._why = ""  # why the packets just before could not be decoded
        self._lost = 0.0  # their duration in seconds

    def pieces(self) -> Blocks:
        """Decoded audio, and silence in its gaps."""
        for frame in self._frames():
            if not self._rate:
                self._rate = frame.sample_rate
            yield from self._fill(frame)
            self._n += frame.samples
            yield Piece(frame.sample_rate, _samples(frame), self._length)
        self._check_end()

    def _frames(self) -> Iterator[Any]:
        n_empty = 0
        for packet in self._packets():
            try:
                frames = [frame for frame in packet.decode() if frame.samples > 0]
                readable = all(map(_is_readable, frames))
            except _errors():
                if not packet.size:  # the end, reached a second time
                    return
                readable = False
            if not readable:
                frames = []
                self._n_bad += 1
                self._why = _INVALID
                self._lost += self._seconds_of(packet)
            self._n_good += bool(frames)
            self._n_good_bytes += packet.size if frames else 0
            n_empty = 0 if frames else n_empty + 1
            if n_empty > _MAX_EMPTY:
                self._why = f"{n_empty} packets without audio"
                return
            yield from frames

    def _seconds_of(self, packet: Any) -> float:
        """Duration of a packet that cannot be decoded.

        In formats without a container a damaged packet extends to the next intact one.
        """
        seconds = float((packet.duration or 0) * (packet.time_base or 0))
        if self._is_bare and self._n_good:
            seconds *= max(1, round(packet.size * self._n_good / self._n_good_bytes))
        return seconds

    def _packets(self) -> Iterator[Any]:
        """Packets; after a read error, the packets that follow."""
        n_errors = 0
        packets = self._container.demux(self._stream)
        while n_errors < _MAX_ERRORS:
            try:
                packet = next(packets, None)
            except _errors():
                n_errors += 1
                self._why = _INVALID
                packets = self._container.demux(self._stream)
                continue
            if packet is None:
                return
            n_errors = 0
            yield packet

    def _fill(self, frame: Any) -> Blocks:
        """Silence before a frame, if its time shows that samples are missing."""
        start = self._n / self._rate
        n_missing = self._missing(frame)
        if not self._n:
            self._n_filled = n_missing
        for piece in silence(self._rate, n_missing):
            yield piece._replace(seconds=self._length)
        self._n += n_missing
        if self._why or (n_missing and start and self._is_counted):
            end = self._n / self._rate
            self._damage.lost(start, end, self._why or "packets are missing")
            self._why, self._lost = "", 0.0

    def _missing(self, frame: Any) -> int:
        """Number of samples missing before a frame."""
        if self._is_bare or frame.pts is None or not frame.time_base:
            return round(self._lost * self._rate)
        time = float(frame.pts * frame.time_base)
        if self._start is None:  # the container states none: use the time of its first frame
            self._start = time
        gap = time - self._start - self._n / self._rate
        if gap < -_JITTER:  # times restart, as in concatenated recordings
            self._start += gap
            return 0
        if self._container.duration and (
            time - self._start > self._container.duration / 1e6 + _END_SLACK
        ):
            self._start += gap  # a wrong time, after the end
            return 0
        jitter = _EXACT_JITTER if self._is_counted else _JITTER
        return round(gap * self._rate) if gap > (0.001 if self._why else jitter) else 0

    def _check_end(self) -> None:
        """Compare the decoded duration with the header."""
        if self._n_bad > self._n_good:
            raise AudioError(
                f"{self._media.name} is damaged: {self._n_bad} of {self._n_good + self._n_bad}"
                " packets cannot be decoded; download or convert it again"
            )
        if not self._rate:
            return
        seconds = self._n / self._rate
        stated = self._stated()
        if stated is not None and seconds - self._n_filled / self._rate < stated - _CUT_SLACK:
            self._damage.cut(seconds, stated)
        elif self._why and not self._is_bare:  # a tag, otherwise
            self._damage.lost(seconds, seconds + self._lost, self._why)

    def _stated(self) -> float | None:
        """Duration in seconds, if the header of this format states it reliably."""
        name = self._container.format.name
        if name == "mp3":
            with self._media.open() as file:
                return self._stated_length if is_mp3(file.read(3)) and states_length(file) else None
        return self._stated_length if name == "flac" or "mp4" in name else None


def _errors() -> tuple[type[Exception], ...]:
    """Errors of FFmpeg, and those that PyAV raises on damaged data."""
    import av

    python = (ArithmeticError, EOFError, LookupError, MemoryError, RuntimeError, TypeError)
    return (av.error.FFmpegError, OSError, ValueError, *python)


def _is_readable(frame: Any) -> bool:
    """Whether PyAV converts the samples safely; beyond eight planes it reads out of bounds."""
    n_channels = frame.layout.nb_channels
    most = _MAX_PLANES if frame.format.is_planar else MAX_CHANNELS
    return bool(frame.sample_rate > 0 and 0 < n_channels <= most)


def _samples(frame: Any) -> F32:
    block = frame.to_ndarray()  # [n_channels, n] if planar, else [1, n * n_channels]
    if frame.format.is_planar:
        block = block.T
    return as_float(block.reshape(frame.samples, -1))


def _open_error(error: BaseException) -> str:
    """Why a recording cannot be opened, for a message; FFmpeg's own text may mislead."""
    import av

    if isinstance(error, av.error.InvalidDataError) or not isinstance(error, av.error.FFmpegError):
        return _reason(error)
    return "not a known audio format, or damaged"


def _seconds(container: Any) -> float | None:
    stream = container.streams.audio[0]
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    return container.duration / 1_000_000 if container.duration else None  # in microseconds
