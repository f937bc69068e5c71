"""Decoding by an ``ffmpeg`` program on the PATH, if no library can."""

from __future__ import annotations

import contextlib
import io
import re
import struct
from typing import Any, BinaryIO

import numpy as np

from whisper_opt.audio.libav import FORMATS
from whisper_opt.audio.media import (
    BLOCK,
    MAX_CHANNELS,
    Blocks,
    Damage,
    DeclinedError,
    Media,
    Piece,
    as_float,
)
from whisper_opt.audio.media import reason as _reason
from whisper_opt.core.errors import AudioError
from whisper_opt.core.processes import CREATION_FLAGS, find_program

__all__ = ["ffmpeg_blocks"]

_LOG_READ = 4096
"""Bytes read from the end of ffmpeg's log."""


def ffmpeg_blocks(media: Media, damage: Damage) -> Blocks:
    """Decode by the ``ffmpeg`` program."""
    import subprocess
    import tempfile

    program = find_program("ffmpeg")
    if program is None:
        raise DeclinedError("not on the PATH")
    with contextlib.ExitStack() as stack:
        try:
            path = stack.enter_context(media.on_disk())
            log = stack.enter_context(tempfile.TemporaryFile())
            process = stack.enter_context(
                subprocess.Popen(
                    _command(program, path, damage.strict),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    creationflags=CREATION_FLAGS,
                )
            )
        except OSError as error:
            raise DeclinedError(f"cannot be started: {_reason(error)}") from error
        stack.callback(process.kill)
        assert process.stdout is not None  # stdout=PIPE
        n_read, rate = 0, 1
        for piece in _au_blocks(process.stdout, media.name):
            n_read, rate = n_read + len(piece.block), piece.rate
            yield piece
        failed, message = process.wait(), _last_line(log)
        if failed and not n_read:
            raise DeclinedError(message or f"exit status {failed}")
        if failed:
            damage.cut(n_read / rate, None, f"ffmpeg: {message or f'exit status {failed}'}")
        elif message:
            damage.note(f"is damaged: ffmpeg: {message}")


def _command(program: str, path: str, strict: bool) -> list[str]:
    """Arguments that let ffmpeg open only the file itself, and only self-contained formats.

    "file:" makes a name such as "concat:a|b" a plain name. The au format states rate and channels
    in a header that can be read from a pipe. The filter inserts silence if packets are missing for
    0.1 s or more.
    """
    command = [program, "-nostdin", "-v", "error", *(["-xerror"] if strict else [])]
    command += ["-protocol_whitelist", "file", "-format_whitelist", FORMATS, "-i", f"file:{path}"]
    command += ["-map", "0:a:0", "-af", "aresample=async=1:first_pts=0:min_hard_comp=0.1"]
    return [*command, "-c:a", "pcm_f32be", "-f", "au", "pipe:1"]


def _last_line(log: BinaryIO) -> str:
    """The last message of ffmpeg, without addresses and without its misnomer for damaged data."""
    log.seek(max(0, log.seek(0, io.SEEK_END) - _LOG_READ))
    lines = log.read().decode("utf-8", "replace").strip().splitlines()
    lines = [line for line in lines if "Last message repeated" not in line]
    message = re.sub(r"^(\[[^\]]*\] *)+", "", lines[-1]) if lines else ""
    return message.replace("Operation not permitted", "invalid data")


def _au_blocks(pipe: Any, name: str) -> Blocks:
    """Parse 32-bit float Sun/NeXT audio; yields nothing if the header is incomplete."""
    header = pipe.read(24)
    if len(header) < 24 or header[:4] != b".snd":
        return
    offset, _, _, rate, n_channels = struct.unpack(">5I", header[4:])
    if not 0 < n_channels <= MAX_CHANNELS:
        raise AudioError(f"{name} has {n_channels} channels; expected 1 to {MAX_CHANNELS}")
    pipe.read(offset - 24)
    while True:
        data = pipe.read(4 * n_channels * BLOCK)
        n_samples = len(data) // (4 * n_channels)
        if not n_samples:
            return
        block = np.frombuffer(data, ">f4", n_samples * n_channels)
        yield Piece(rate, as_float(block.reshape(n_samples, n_channels)))
