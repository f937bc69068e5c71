"""One model that transcribes for many callers at once; needs no server.

>>> from whisper_opt import Whisper
>>> from whisper_opt.serving import Engine
>>> with Engine(Whisper.load("tiny.en")) as engine:  # doctest: +SKIP
...     print(engine.submit("talk.mp3").result().text)
"""

from __future__ import annotations

from whisper_opt.core.errors import EngineClosed, QueueFull, TranscriptionCancelled
from whisper_opt.serving.engine import Engine
from whisper_opt.serving.engines import Engines
from whisper_opt.serving.handle import Handle
from whisper_opt.serving.live import LiveSession
from whisper_opt.serving.stats import EngineStats
from whisper_opt.serving.turns import Turns

__all__ = [
    "Engine",
    "EngineClosed",
    "EngineStats",
    "Engines",
    "Handle",
    "LiveSession",
    "QueueFull",
    "TranscriptionCancelled",
    "Turns",
]
