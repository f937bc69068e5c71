"""Common parts of the runners; imported in their environments, which have little but numpy."""

from __future__ import annotations

import dataclasses
import re
import time
import wave
from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = ["Peer", "PeerResult", "internal_seconds", "read_wav"]

SAMPLE_RATE = 16000


@dataclasses.dataclass(frozen=True)
class PeerResult:
    """The result of a system for one recording.

    Attributes:
        text: the whole text.
        segments: (start, end, text), in seconds; empty if the system returns no times.
        internal: seconds as reported by the system itself, if it does.
    """

    text: str
    segments: Sequence[tuple[float, float, str]] = ()
    internal: float | None = None


class Peer:
    """A system run by whisper_opt/cli/bench/serve.py: subclasses load a model and run it."""

    about: dict[str, Any] = {}  # noqa: RUF012  # replaced, not changed, by subclasses
    """Fields of the response to ``load``: versions, and notes on limitations."""

    def run_one(
        self, pcm: Any, path: str, beam_size: int, language: str, batch_size: int
    ) -> PeerResult:
        """Transcribe 16 kHz mono float32 samples [n], the contents of ``path``.

        With segment times, only temperature 0, no voice activity detection. ``beam_size`` 1
        is greedy; above ``batch_size`` 1 windows of the recording are decoded together.
        """
        raise NotImplementedError

    def transcribe(
        self, audio: Sequence[str], beam_size: int = 1, language: str = "en", batch_size: int = 1
    ) -> dict[str, Any]:
        """Transcribe recordings one by one; files are read before timing starts."""
        results, each = [], []
        for path in audio:
            pcm = read_wav(path)
            begin = time.perf_counter()
            results.append(self.run_one(pcm, path, beam_size, language, batch_size))
            each.append(time.perf_counter() - begin)
        internal = [found.internal for found in results if found.internal is not None]
        return {
            "text": [found.text.strip() for found in results],
            "segments": [list(found.segments) for found in results],
            "seconds": sum(each),
            "each": each,
            **({"internal": internal} if len(internal) == len(results) else {}),
        }


def read_wav(path: str) -> Any:
    """Float32 samples [n] of a 16-bit mono WAV file at 16 kHz."""
    with wave.open(path, "rb") as file:
        kind = (file.getnchannels(), file.getsampwidth(), file.getframerate())
        if kind != (1, 2, SAMPLE_RATE):
            raise ValueError(f"{path} has (channels, bytes, Hz) {kind}; expected (1, 2, 16000)")
        frames = file.readframes(file.getnframes())
    return np.frombuffer(frames, "<i2").astype(np.float32) / 32768


_TIMING = re.compile(r"(mel|sample|encode|decode|batchd|prompt) time =\s*([\d.]+) ms")


def internal_seconds(report: str) -> float:
    """The sum of the times that whisper.cpp reports, without loading."""
    found = dict(_TIMING.findall(report))
    if len(found) < 6:
        raise ValueError(f"whisper.cpp printed no timings but {report[-300:]!r}")
    return sum(map(float, found.values())) / 1000
