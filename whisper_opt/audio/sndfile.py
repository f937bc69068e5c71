"""Decoding by soundfile (libsndfile): wav, aiff, au, flac, ogg and opus; mp3 too without PyAV."""

from __future__ import annotations

import contextlib
import io
from typing import Any, BinaryIO

import numpy as np

from whisper_opt.audio.arriving import Arriving, ArrivingFile
from whisper_opt.audio.media import (
    BLOCK,
    MAX_CHANNELS,
    Blocks,
    BrokenOffError,
    Damage,
    DeclinedError,
    Media,
    Piece,
)
from whisper_opt.audio.media import reason as _reason
from whisper_opt.core.errors import AudioError

__all__ = ["is_mp3", "rest_in_steps", "soundfile_blocks", "states_length"]

_MP3_SLACK = 2 * 1152
"""Samples by which an mp3 may be shorter than its header states: some encoders count the header's
own frame."""
_TAIL_SLACK = 4096
"""Bytes that libsndfile may leave unread at the end of an mp3 or ogg: tags."""
_PROBE = 8192
"""Sample frames read at the stated end of an mp3 or ogg, to check whether the file ends there."""
_STEP = 1024
"""Sample frames per read after a block could not be read."""


def soundfile_blocks(media: Media, damage: Damage) -> Blocks:
    """Decode by libsndfile."""
    try:
        import soundfile
    except (ImportError, OSError) as error:  # OSError: the wheel has no libsndfile
        missing = getattr(error, "name", None)  # it, or what it needs
        what = "" if missing in (None, "soundfile") else f"{missing} is "
        raise DeclinedError(f"{what}not installed (pip install soundfile)") from error
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(media.open())
        try:
            if media.arriving is not None:
                file = stack.enter_context(_opened_when_there(media.arriving, soundfile))
            sound = stack.enter_context(soundfile.SoundFile(_Seeking(file)))
        except (RuntimeError, TypeError) as error:  # TypeError: a name that ends in .raw
            raise DeclinedError(_reason(error).rpartition(": ")[2].rstrip(".")) from error
        if sound.frames > 1 << 50:
            raise DeclinedError("the file does not state its length")
        if sound.channels > MAX_CHANNELS:
            raise AudioError(
                f"{media.name} has {sound.channels} channels; expected at most {MAX_CHANNELS}"
            )
        n_unread = _unread(media, soundfile) if _may_stop_early(sound) else 0
        if n_unread > _TAIL_SLACK:
            raise DeclinedError(f"stops {n_unread} bytes before the end of the file")
        seconds = sound.frames / sound.samplerate if sound.frames > 0 else None
        n_read = 0
        while True:
            # Without a buffer read() stops at the stated length; each block is a new array.
            buffer = np.empty((BLOCK, sound.channels), np.float32)
            try:
                block = sound.read(out=buffer)
            except RuntimeError as error:
                raise BrokenOffError(_reason(error).rstrip(".")) from error
            if not len(block):
                break
            n_read += len(block)
            yield Piece(sound.samplerate, block, seconds)
        _check_whole(damage, file, sound, n_read)


def rest_in_steps(media: Media, n_read: int) -> Blocks:
    """What libsndfile reads after ``n_read`` sample frames, up to the damaged place."""
    import soundfile

    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.suppress(RuntimeError))
        sound = stack.enter_context(
            soundfile.SoundFile(_Seeking(stack.enter_context(media.open())))
        )
        sound.seek(n_read)
        while True:
            block = sound.read(out=np.empty((_STEP, sound.channels), np.float32))
            if not len(block):
                return
            yield Piece(sound.samplerate, block)


def _opened_when_there(source: Arriving, soundfile: Any) -> BinaryIO:
    """A file that can be opened without waiting: soundfile opens one file at a time.

    Whatever libsndfile reads of this recording to open it has arrived.
    """
    while True:
        raw = ArrivingFile(source, patient=False)
        with contextlib.suppress(RuntimeError):
            soundfile.SoundFile(_Seeking(io.BufferedReader(raw))).close()
        if not raw.wanted:
            return source.open()
        source.wait_for(raw.wanted)


class _Seeking:
    """A file whose seek never raises, for which soundfile would print a traceback on stderr."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        try:
            return self._file.seek(offset, whence)
        except (OSError, ValueError):  # before the first byte
            return self._file.tell()


def is_mp3(head: bytes) -> bool:
    """Whether a file with these first bytes is an mp3."""
    return head[:3] == b"ID3" or (len(head) > 1 and head[0] == 0xFF and head[1] & 0xE6 == 0xE2)


def _may_stop_early(sound: Any) -> bool:
    """Whether libsndfile may stop before the end of the file.

    It estimates the length of an mp3 without a length header from its first frames and stops there.
    Of several recordings concatenated in one mp3 or ogg it reads only the first.
    """
    return _is_mpeg(sound) or sound.format == "OGG"


def _is_mpeg(sound: Any) -> bool:
    return bool(sound.format == "MP3" or sound.subtype.startswith("MPEG"))


def _unread(media: Media, soundfile: Any) -> int:
    """Bytes that libsndfile leaves at the end of the file, found by seeking to the end."""
    with media.open() as file:
        try:
            with soundfile.SoundFile(_Seeking(file)) as sound:
                sound.seek(max(0, sound.frames - _PROBE))
                while len(sound.read(out=np.empty((BLOCK, sound.channels), np.float32))):
                    pass
        except RuntimeError:  # damaged or cut off: decoding from the start finds where
            return 0
        return _bytes_left(file)


def _bytes_left(file: BinaryIO) -> int:
    position = file.tell()
    return file.seek(0, io.SEEK_END) - position


def _check_whole(damage: Damage, file: BinaryIO, sound: Any, n_read: int) -> None:
    """Compare what libsndfile decoded with the header and the size of the file."""
    n_unread = _bytes_left(file)
    if not n_read and n_unread > _TAIL_SLACK:
        raise DeclinedError(f"stops {n_unread} bytes before the end of the file")
    if _may_stop_early(sound) and n_unread > _TAIL_SLACK:
        raise BrokenOffError(f"reading stops {n_unread} bytes before the end of the file")
    if _is_mpeg(sound):
        short = sound.frames - n_read > _MP3_SLACK and states_length(file)
    else:
        short = n_read < sound.frames
    if short:
        damage.cut(n_read / sound.samplerate, sound.frames / sound.samplerate)


def states_length(mp3: BinaryIO) -> bool:
    """Whether the first frame after an ID3v2 tag is a Xing, Info or VBRI header."""
    mp3.seek(0)
    head = mp3.read(10)
    start = 0
    if head[:3] == b"ID3":  # the size has seven bits per byte
        start = 10 + sum(byte << shift for byte, shift in zip(head[6:], (21, 14, 7, 0)))
    mp3.seek(start)
    frame = mp3.read(2048)
    return any(tag in frame for tag in (b"Xing", b"Info", b"VBRI"))
