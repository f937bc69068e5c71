"""whisper_streaming in virtual time; WHISPER_STREAMING is the folder of its clone.

    WHISPER_STREAMING=DIR python live_whisper_streaming.py TASK.json RESULT.json

The loop is that of ``whisper_online.py`` with its voice activity controller (``--vac``): whenever
audio has come, all of it is inserted, and ``process_iter`` is called. Several sessions share one
model here, and one core in turns: the first whose audio has come is the next.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), os.environ["WHISPER_STREAMING"]]

import silero_vad  # noqa: E402  # paths are set above
import torch  # noqa: E402
from faster_whisper import WhisperModel  # noqa: E402
from whisper_online import FasterWhisperASR, VACOnlineASRProcessor  # noqa: E402

from peers.live_clock import SAMPLE_RATE, Clock, Heard, main_of  # noqa: E402

VAC_CHUNK = 0.04
"""Seconds; its default."""


class OnCpu(FasterWhisperASR):  # type: ignore[misc]
    """The model in int8 on the CPU, with one thread; its own is in half precision on a GPU."""

    def load_model(
        self, modelsize: Any = None, cache_dir: Any = None, model_dir: Any = None
    ) -> Any:
        return WhisperModel(model_dir, device="cpu", compute_type="int8", cpu_threads=1)


class Session:
    """A processor that notes what it gives."""

    def __init__(self, model: Any, chunk: float, heard: Heard, clock: Clock) -> None:
        self.heard, self.clock, self.taken = heard, clock, 0.0
        self.length = len(heard.samples) / SAMPLE_RATE
        self.online = VACOnlineASRProcessor(chunk, model, logfile=open(os.devnull, "w"))  # noqa: SIM115
        self._inner = self.online.online
        self._iterate, self._finish = self._inner.process_iter, self._inner.finish
        self._inner.process_iter, self._inner.finish = self.iterate, self.finish

    def iterate(self) -> Any:
        """An update."""
        found = self._iterate()
        buffer = self._inner.transcript_buffer.complete()
        self._note(found[2], "".join(word for _, _, word in buffer))
        return found

    def finish(self) -> Any:
        """The end of an utterance: what was not committed is."""
        found = self._finish()
        self._note(found[2], None)
        return found

    def _note(self, committed: str, partial: str | None) -> None:
        arrived = self.heard.start + self.taken
        self.heard.result(self.clock.now(), committed, partial, arrived)

    @property
    def due(self) -> float:
        """When enough audio has come."""
        return float(self.heard.start + min(self.taken + VAC_CHUNK, self.length))

    def step(self) -> bool:
        """Take what has come; False at the end."""
        end = min(self.clock.now() - self.heard.start, self.length)
        block = self.heard.samples[round(self.taken * SAMPLE_RATE) : round(end * SAMPLE_RATE)]
        self.taken = end
        self.online.insert_audio_chunk(block)
        self.online.process_iter()
        if end >= self.length:
            self.online.finish()
        return bool(end < self.length)


def load(settings: dict[str, Any]) -> Any:
    """The model."""
    torch.set_num_threads(settings["threads"])
    torch.hub.load = lambda **_: (silero_vad.load_silero_vad(), None)  # the same, without network
    return OnCpu(settings["language"], model_dir=settings["ctranslate2"])


def play(
    model: Any, settings: dict[str, Any], samples: Sequence[Any], starts: Sequence[float]
) -> tuple[list[Heard], Clock]:
    """Play recordings to sessions."""
    clock = Clock(settings["threads"])
    heard = [Heard(each, start) for each, start in zip(samples, starts)]
    sessions = [Session(model, settings["chunk"], each, clock) for each in heard]
    clock.skip(-clock.now())
    while sessions:
        session = min(sessions, key=lambda each: each.due)
        clock.skip(max(0.0, session.due - clock.now()))
        if not session.step():
            sessions.remove(session)
    return heard, clock


if __name__ == "__main__":
    names = ("faster-whisper", "ctranslate2", "silero-vad", "torch")
    main_of(load, play, {name: version(name) for name in names}, sys.argv)
