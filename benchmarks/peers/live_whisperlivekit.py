"""WhisperLiveKit in virtual time.

    python live_whisperlivekit.py TASK.json RESULT.json

Its ``AudioProcessor``, the whole of its server but the WebSocket, runs in an event loop with a
virtual clock: voice activity controller, queue, policy, and the formatter of results. Calls of
the model run in the loop and not in threads, so that one core does everything.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import selectors
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np  # the path is set above
import torch
from whisperlivekit import audio_processor
from whisperlivekit.core import TranscriptionEngine
from whisperlivekit.whisper import _ALIGNMENT_HEADS

from peers.live_clock import SAMPLE_RATE, Clock, Heard, main_of

BLOCK = 0.1
"""Seconds of audio in a message."""


class Loop(asyncio.SelectorEventLoop):
    """An event loop in virtual time."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(_Selector(clock))
        self._clock = clock

    def time(self) -> float:
        """The virtual time."""
        seconds: float = self._clock.now()
        return seconds


class _Selector(selectors.SelectSelector):
    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    def select(self, timeout: float | None = None) -> Any:
        self._clock.skip(max(0.0, timeout or 0.0))
        return super().select(0)


async def directly(function: Any, *args: Any, **kwargs: Any) -> Any:
    """Instead of ``asyncio.to_thread``."""
    return function(*args, **kwargs)


def noting(processor: Any, heard: Heard, clock: Clock) -> None:
    """Note what a processor's policy gives."""
    policy = processor.transcription

    def wrapped(method: Any, *args: Any, **kwargs: Any) -> Any:
        arrived = heard.arrived
        tokens, end = method(*args, **kwargs)
        committed = policy.asr.sep.join(token.text for token in tokens or ())
        heard.result(clock.now(), committed, policy.get_buffer().text or "", arrived)
        return tokens, end

    for name in ("process_iter", "finish"):
        if hasattr(policy, name):
            setattr(policy, name, functools.partial(wrapped, getattr(policy, name)))


async def session(engine: Any, heard: Heard, clock: Clock) -> None:
    """Play one recording."""
    processor = audio_processor.AudioProcessor(transcription_engine=engine, pcm_input=True)
    noting(processor, heard, clock)
    await asyncio.sleep(max(0.0, heard.start - clock.now()))
    results = await processor.create_tasks()

    async def read() -> None:
        async for _ in results:
            pass

    reading = asyncio.create_task(read())
    pcm = (np.clip(heard.samples, -1, 1) * 32767).astype(np.int16)
    size = round(BLOCK * SAMPLE_RATE)
    for begin in range(0, len(pcm), size):
        due = heard.start + (begin + size) / SAMPLE_RATE
        while clock.now() < due:
            await asyncio.sleep(due - clock.now())
        heard.arrived = due
        await processor.process_audio(pcm[begin : begin + size].tobytes())
    await processor.process_audio(b"")
    await reading
    await processor.cleanup()


def load(settings: dict[str, Any]) -> Any:
    """The engine of its server."""
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(settings["threads"])
    setattr(asyncio, "to_thread", directly)  # noqa: B010  # another type
    name = settings["model"]
    chosen: dict[str, Any] = {"model_path": settings["ctranslate2"]}
    if settings["policy"] == "simulstreaming":
        weights = Path(tempfile.mkdtemp()) / f"{name}.pt"  # its name says whether it is English
        weights.symlink_to(Path(settings["openai"]).resolve())
        chosen = {
            "decoder_model_path": str(weights),
            "encoder_model_path": settings["ctranslate2"],
            "custom_alignment_heads": _ALIGNMENT_HEADS[name].decode(),
        }
    return TranscriptionEngine(
        model_size=name,
        lan=settings["language"],
        backend="faster-whisper",
        backend_policy=settings["policy"],
        asr_coalesce_min_s=settings["coalesce"],
        pcm_input=True,
        warmup_file="",
        **chosen,
    )


def play(
    model: Any, settings: dict[str, Any], samples: Sequence[Any], starts: Sequence[float]
) -> tuple[list[Heard], Clock]:
    """Play recordings to sessions."""
    clock = Clock(settings["threads"])
    heard = [Heard(each, start) for each, start in zip(samples, starts)]
    audio_processor.time = clock.now
    loop = Loop(clock)
    clock.skip(1.0 - clock.now())  # it takes 0 for no time
    for each in heard:
        each.start += 1.0

    async def all_of_them() -> None:
        await asyncio.gather(*(session(model, each, clock) for each in heard))

    asyncio.set_event_loop(loop)
    try:
        loop.run_until_complete(all_of_them())
    finally:
        loop.close()
    return heard, clock


if __name__ == "__main__":
    names = ("whisperlivekit", "faster-whisper", "ctranslate2", "torch")
    main_of(load, play, {name: version(name) for name in names}, sys.argv)
