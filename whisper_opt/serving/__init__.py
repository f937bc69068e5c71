"""One model that transcribes for many callers at once; needs no server.

>>> from whisper_opt import Whisper
>>> from whisper_opt.serving import Engine
>>> with Engine(Whisper.load("tiny.en")) as engine:  # doctest: +SKIP
...     print(engine.submit("talk.mp3").result().text)
"""

from __future__ import annotations

from whisper_opt.core.errors import EngineClosed, QueueFull, TranscriptionCancelled
from whisper_opt.serving.corpus import Corpus, Outcome
from whisper_opt.serving.corpus_run import transcribe_corpus, transcribe_recording
from whisper_opt.serving.engine import Engine
from whisper_opt.serving.engines import Engines
from whisper_opt.serving.handle import Handle
from whisper_opt.serving.live import LiveSession
from whisper_opt.serving.manifests import Manifest, Recording, Shard, check_options, read_manifest
from whisper_opt.serving.stats import EngineStats
from whisper_opt.serving.turns import Turns

__all__ = [
    "Corpus",
    "Engine",
    "EngineClosed",
    "EngineStats",
    "Engines",
    "Handle",
    "LiveSession",
    "Manifest",
    "Outcome",
    "QueueFull",
    "Recording",
    "Shard",
    "TranscriptionCancelled",
    "Turns",
    "check_options",
    "read_manifest",
    "transcribe_corpus",
    "transcribe_recording",
]
