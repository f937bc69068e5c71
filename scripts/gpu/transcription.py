"""Seconds to transcribe real recordings, whole: this library and openai-whisper on one GPU."""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Callable

import numpy as np

from gpu import engines
from gpu.engines import PATHS, Setting
from gpu.measure import time_runs
from gpu.outcome import NotAvailableError
from whisper_opt import Whisper
from whisper_opt.audio.decode import load_audio
from whisper_opt.core.arrays import F32
from whisper_opt.core.dims import SAMPLE_RATE

__all__ = ["CASES", "OPENAI", "Case", "open_openai", "open_ours", "timed"]

OPENAI = "openai-whisper"
ROOT = Path(__file__).resolve().parents[2]
ROUNDS = 5


@dataclasses.dataclass(frozen=True)
class Case:
    """A recording and how it is decoded: in English, at temperature 0, with timestamps.

    Attributes:
        file: path in the repository.
        repeats: how often the recording is played.
        beam: beams; 1 is greedy.
        batch: windows decoded together; above 1, the recording is cut at silences first.
    """

    file: str
    repeats: int = 1
    beam: int = 1
    batch: int = 1

    def samples(self) -> F32:
        """The recording at 16 kHz.

        Raises:
            NotAvailableError: the recording is missing.
        """
        path = ROOT / self.file
        if not path.is_file():
            raise NotAvailableError(f"no recording at {path}")
        return np.tile(load_audio(path), self.repeats)


_LONG = "tests/data/speech/long/en-long-lj001.flac"
CASES: Mapping[str, Case] = {
    "jfk": Case("examples/jfk.flac"),
    "jfk beam5": Case("examples/jfk.flac", beam=5),
    "long": Case(_LONG),
    "long batch16": Case(_LONG, batch=16),
    "long times 8 batch64": Case(_LONG, repeats=8, batch=64),
}

Transcribe = Callable[[F32, Case], str]
"""Samples [n] at 16 kHz and the case -> text."""


@contextlib.contextmanager
def open_ours(setting: Setting, model: str, path: str) -> Iterator[Transcribe]:
    """This library on one of ``PATHS``."""
    way = PATHS[path]
    found = engines.engine(setting, model, way.engine)
    with Whisper(found, way.open(found, setting)) as whisper:

        def transcribe(samples: F32, case: Case) -> str:
            options: dict[str, Any] = {"language": "en", "temperature": 0.0, "vad": "off"}
            if case.beam > 1:
                options["beam_size"] = case.beam
            if case.batch > 1:
                options.update(strategy="batched", batch_size=case.batch, vad="cut")
            return str(whisper.transcribe(samples, **options).text)

        yield transcribe


@contextlib.contextmanager
def open_openai(setting: Setting, model: str, _: str) -> Iterator[Transcribe]:
    """openai-whisper on the same weights, in fp16 on a GPU.

    Raises:
        NotAvailableError: openai-whisper or the checkpoint is missing.
    """
    from tests.support.models_write import write_openai_pt
    from whisper_opt.export.checkpoints import load_checkpoint

    try:
        import whisper
    except ImportError as error:
        raise NotAvailableError(f"openai-whisper does not import: {error}") from error
    source, file = setting.models / model, setting.work / f"{model}.pt"
    if not source.is_dir():
        raise NotAvailableError(f"no checkpoint at {source}: python scripts/get_model.py {model}")
    if not file.is_file():
        write_openai_pt(load_checkpoint(source), file)
    device = "cpu" if setting.on_cpu else f"cuda:{setting.device_index}"
    loaded = whisper.load_model(str(file), device=device)

    def transcribe(samples: F32, case: Case) -> str:
        if case.batch > 1:
            raise NotAvailableError("openai-whisper decodes one window at a time")
        found = loaded.transcribe(
            samples,
            language="en",
            temperature=0.0,
            fp16=not setting.on_cpu,
            beam_size=None if case.beam == 1 else case.beam,
        )
        return str(found["text"])

    yield transcribe


def timed(transcribe: Transcribe, name: str, at_most: float) -> dict[str, Any]:
    """Seconds of one case of ``CASES``, median after a warm-up, and the text.

    A case that the system cannot run has an ``error`` instead.
    """
    case = CASES[name]
    samples = case.samples()
    try:
        text = transcribe(samples, case)
    except NotAvailableError as error:
        return {"error": str(error)}
    seconds = time_runs(lambda: transcribe(samples, case), at_most, ROUNDS, least=1)
    audio = len(samples) / SAMPLE_RATE
    median = statistics.median(seconds)
    return {
        "seconds": round(median, 4),
        "audio_seconds": round(audio, 2),
        "times_real_time": round(audio / median, 1),
        "rounds": len(seconds),
        "text": text.strip(),
    }
