"""Where ``whisper-opt live`` hears from: a microphone, a file, or samples on standard input."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, BinaryIO, Callable, Protocol, Union

import numpy as np

from whisper_opt.audio.decode import open_audio
from whisper_opt.core.dims import SAMPLE_RATE
from whisper_opt.core.errors import BackendUnavailable, OptionError, WhisperOptError
from whisper_opt.core.remedies import install_hint
from whisper_opt.serving.http.live.audio import SampleReader

__all__ = ["FileSource", "Microphone", "PcmSource", "Push", "Source"]

Push = Callable[[Any], None]
"""Takes samples [n, channels]; float32, or int16."""
_PIECE_S = 0.1
"""Seconds of audio in a piece."""
_AHEAD_S = 20.0
"""Seconds of audio that a file may be ahead of what was heard."""


class Source(Protocol):
    """Audio that is heard until it ends or is stopped.

    Attributes:
        name: of its files.
        rate: samples per second.
        n_channels: channels of its samples.
    """

    name: str
    rate: int
    n_channels: int

    def run(self, push: Push, backlog: Callable[[], float], stop: threading.Event) -> None:
        """Push audio until there is no more, or ``stop`` is set; waits.

        Args:
            push: takes the audio.
            backlog: seconds of audio that wait to be heard.
            stop: ends it.

        Raises:
            WhisperOptError: there is no audio.
        """


class FileSource:
    """A recording, as fast as it is heard or at its own pace."""

    n_channels = 1
    rate = SAMPLE_RATE

    def __init__(self, path: str, name: str, *, paced: bool) -> None:
        self.name = name
        self._path = path
        self._paced = paced

    def run(self, push: Push, backlog: Callable[[], float], stop: threading.Event) -> None:
        """See :class:`Source`."""
        began, n_samples = time.monotonic(), 0
        with open_audio(self._path) as stream:
            for piece in _pieces(iter(stream)):
                push(piece.reshape(-1, 1))
                n_samples += len(piece)
                if self._paced:
                    stop.wait(max(0.0, began + n_samples / self.rate - time.monotonic()))
                while backlog() > _AHEAD_S and not stop.is_set():
                    stop.wait(_PIECE_S)
                if stop.is_set():
                    return


def _pieces(blocks: Iterator[Any]) -> Iterator[Any]:
    n = round(_PIECE_S * SAMPLE_RATE)
    for block in blocks:
        for i in range(0, len(block), n):
            yield block[i : i + n]


class PcmSource:
    """Samples of 16 bits, little endian, as they come from a pipe."""

    name = "stdin"

    def __init__(self, file: BinaryIO, rate: int, n_channels: int) -> None:
        self.rate = rate
        self.n_channels = n_channels
        self._file = file

    def run(self, push: Push, backlog: Callable[[], float], stop: threading.Event) -> None:
        """See :class:`Source`."""
        reader = SampleReader("linear16", self.n_channels)
        size = 2 * self.n_channels * max(1, round(_PIECE_S * self.rate))
        read = getattr(self._file, "read1", self._file.read)  # what is there, without waiting
        while not stop.is_set():
            data = read(size)
            if not data:
                return
            samples = reader.read(data)
            if len(samples):
                push(samples)
            while backlog() > _AHEAD_S and not stop.is_set():
                stop.wait(_PIECE_S)


class Microphone:
    """A recording device of PortAudio."""

    name = "microphone"
    n_channels = 1

    def __init__(self, device: Union[str, None] = None) -> None:
        """Choose a device.

        Raises:
            BackendUnavailable: sounddevice or PortAudio is missing.
            OptionError: there is no such device.
        """
        self._sounddevice = _sounddevice()
        self._device: Any = int(device) if device is not None and device.isdigit() else device
        try:
            found = self._sounddevice.query_devices(self._device, "input")
        except Exception as error:  # ValueError and PortAudioError
            raise OptionError(
                f"there is no recording device {device or '(default)'}: {error}; python -m"
                " sounddevice lists the devices"
            ) from error
        self.rate = round(found["default_samplerate"])

    def run(self, push: Push, backlog: Callable[[], float], stop: threading.Event) -> None:
        """See :class:`Source`."""

        def heard(data: Any, frames: int, at: object, status: object) -> None:
            push(np.frombuffer(bytes(data), "<i2").reshape(-1, 1))

        try:
            with self._sounddevice.RawInputStream(
                samplerate=self.rate,
                device=self._device,
                channels=1,
                dtype="int16",
                blocksize=round(_PIECE_S * self.rate),
                callback=heard,
            ):
                stop.wait()
        except Exception as error:
            raise WhisperOptError(f"the microphone cannot be opened: {error}") from error


def _sounddevice() -> Any:
    try:
        import sounddevice
    except ModuleNotFoundError as error:
        raise BackendUnavailable(
            f"--mic needs the package sounddevice; {install_hint('mic')}"
        ) from error
    except OSError as error:
        raise BackendUnavailable(
            f"--mic needs PortAudio ({error}); install it"
            f"{' (Debian, Ubuntu: apt install libportaudio2)' if sys.platform == 'linux' else ''}"
        ) from error
    return sounddevice
