"""The systems compared, with one interface; models are loaded on first use."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any, Protocol

from common import ROOT, digest, installed_version

from whisper_opt import Whisper
from whisper_opt.core.arrays import F32

__all__ = ["SOURCES", "FasterWhisper", "OpenaiWhisper", "Ours", "Settings", "System"]

SOURCES = (".py", ".c", ".h")
"""Suffixes of the source files that affect results."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of a transcription, translated to the options of each system.

    None means the default of the system. ``beam_size`` 1 is greedy; ``clips`` are
    (start, end) pairs in seconds, none of more than 30 s when ``batched``.
    """

    batched: bool = False
    batch_size: int = 8
    beam_size: int | None = None
    language: str | None = None
    fallback: bool = True
    timestamps: bool | None = None
    words: bool | None = None
    vad: bool | None = None
    clips: tuple[tuple[float, float], ...] = ()


class System(Protocol):
    """One library with one model."""

    @property
    def name(self) -> str:
        """Name in tables."""

    @property
    def version(self) -> str:
        """A string that changes if results may change."""

    def transcribe(self, pcm: F32, settings: Settings) -> str:
        """Text of 16 kHz mono samples [n]."""


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _negated(value: bool | None) -> bool | None:
    return None if value is None else not value


def _decoding(settings: Settings) -> dict[str, Any]:
    """Options that this library and openai-whisper call by the same names."""
    return _given(
        beam_size=None if settings.beam_size == 1 else settings.beam_size,
        language=settings.language,
        temperature=None if settings.fallback else 0.0,
        without_timestamps=_negated(settings.timestamps),
        word_timestamps=settings.words,
        clip_timestamps=[second for clip in settings.clips for second in clip] or None,
    )


class Ours:
    """This library; a missing engine is exported from its checkpoint."""

    name = "whisper_opt"

    def __init__(
        self, engine: Path, checkpoint: Path, threads: int, precision: str = "fp32"
    ) -> None:
        self._path = engine
        self._precision = precision
        self._checkpoint = checkpoint
        self._threads = threads

    @functools.cached_property
    def engine(self) -> Path:
        """The engine directory."""
        if not (self._path / "manifest.json").is_file():
            from whisper_opt.export import export

            export(self._checkpoint, self._path, precision=self._precision)
        return self._path

    @functools.cached_property
    def version(self) -> str:
        """Digest of the sources and of the engine's manifest."""
        package = ROOT / "whisper_opt"
        sources = digest(path for path in package.rglob("*") if path.suffix in SOURCES)
        return f"{sources}-{digest([self.engine / 'manifest.json'])}"

    @functools.cached_property
    def _model(self) -> Whisper:
        return Whisper.load(self.engine, threads=self._threads)

    def options(self, settings: Settings) -> dict[str, Any]:
        """Keyword arguments of :meth:`whisper_opt.Whisper.transcribe`."""
        vad = {None: None, False: "off", True: "cut"}[settings.vad]
        batch = settings.batch_size if settings.batched else None
        strategy = "batched" if settings.batched else None
        return {**_decoding(settings), **_given(strategy=strategy, batch_size=batch, vad=vad)}

    def transcribe(self, pcm: F32, settings: Settings) -> str:
        return self._model.transcribe(pcm, **self.options(settings)).text.strip()


class OpenaiWhisper:
    """openai-whisper in fp32, with the weights of the checkpoint."""

    name = "openai-whisper"

    def __init__(self, model: str, checkpoint: Path, threads: int) -> None:
        self._name = model
        self._checkpoint = checkpoint
        self._threads = threads
        self.version = f"{installed_version('openai-whisper')}-torch{installed_version('torch')}"

    @functools.cached_property
    def _model(self) -> Any:
        import torch
        from make_golden import load_model

        torch.set_num_threads(self._threads)
        return load_model(self._name, self._checkpoint)[0]

    def transcribe(self, pcm: F32, settings: Settings) -> str:
        import torch
        import whisper

        if settings.batched or settings.vad:
            raise ValueError("openai-whisper has neither batches nor voice activity detection")
        torch.manual_seed(0)  # temperatures above 0 sample
        result = whisper.transcribe(self._model, pcm, fp16=False, **_decoding(settings))
        return str(result["text"]).strip()


class FasterWhisper:
    """faster-whisper, ``WhisperModel`` or ``BatchedInferencePipeline``."""

    def __init__(self, checkpoint: Path, compute_type: str, threads: int) -> None:
        self._checkpoint = checkpoint
        self._compute_type = compute_type
        self._threads = threads
        self.name = f"faster-whisper {compute_type}"
        self.version = f"{installed_version('faster-whisper')}-{installed_version('ctranslate2')}"

    @functools.cached_property
    def _model(self) -> Any:
        from faster_whisper import WhisperModel

        return WhisperModel(
            str(self._checkpoint),
            device="cpu",
            compute_type=self._compute_type,
            cpu_threads=self._threads,
        )

    @functools.cached_property
    def _pipeline(self) -> Any:
        from faster_whisper import BatchedInferencePipeline

        return BatchedInferencePipeline(model=self._model)

    def transcribe(self, pcm: F32, settings: Settings) -> str:
        options = _given(
            beam_size=settings.beam_size,
            language=settings.language,
            temperature=None if settings.fallback else 0.0,
            without_timestamps=_negated(settings.timestamps),
            word_timestamps=settings.words,
            vad_filter=settings.vad,
        )
        if settings.batched:
            clips = [{"start": start, "end": end} for start, end in settings.clips] or None
            segments, _ = self._pipeline.transcribe(
                pcm, batch_size=settings.batch_size, clip_timestamps=clips, **options
            )
        else:
            if settings.clips:
                seconds = ",".join(str(second) for clip in settings.clips for second in clip)
                options["clip_timestamps"] = seconds
            segments, _ = self._model.transcribe(pcm, **options)
        return "".join(segment.text for segment in segments).strip()
