"""This library as a system for :mod:`whisper_opt.cli.bench.serve`."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

from whisper_opt.audio.decode import load_audio
from whisper_opt.cli.bench.machine import versions
from whisper_opt.cli.bench.stages import STAGES, Clock, TimedBackend, timing
from whisper_opt.core.options import LoadOptions, TranscribeOptions
from whisper_opt.runtime.devices import open_backend
from whisper_opt.runtime.engine import read_engine
from whisper_opt.text.results import Transcript
from whisper_opt.transcription.model import Whisper

__all__ = ["System"]


class System:
    """One engine on one device."""

    def __init__(self, model: str, options: dict[str, Any] | None = None) -> None:
        """Load an engine directory; ``options`` are fields of ``LoadOptions``."""
        load = LoadOptions(**(options or {}))
        engine = read_engine(model)
        opened = open_backend(engine, load)
        self._clock = Clock()
        backend = TimedBackend(opened.backend, self._clock)
        precision = opened.encoder_precision
        self._model = Whisper(engine, backend, opened.device, encoder_precision=precision)
        manifest = engine.manifest
        self.about = {
            "versions": versions(),
            "device": opened.device,
            "precision": manifest.precision,
            "encoder_precision": precision,
            "dialect": manifest.dialect,
            "kernels": opened.kernels,
        }

    def transcribe(
        self,
        audio: Sequence[str],
        options: dict[str, Any] | None = None,
        languages: Sequence[str | None] | None = None,
        batch: bool = False,
        arrays: bool = False,
    ) -> dict[str, Any]:
        """Transcribe recordings, one by one or, with ``batch``, together.

        Args:
            audio: paths.
            options: fields of ``TranscribeOptions``.
            languages: of every recording; used if ``options`` have no language.
            batch: transcribe together, in batches of ``batch_size`` windows.
            arrays: decode audio files before timing starts.

        Returns:
            Text and segments of every recording, seconds of each (if one by one) and of all,
            seconds by stage, milliseconds of the steps.
        """
        given = TranscribeOptions(**(options or {}))
        each = [
            given if given.language else dataclasses.replace(given, language=language)
            for language in languages or [None] * len(audio)
        ]
        sources: list[Any] = [load_audio(path) for path in audio] if arrays else list(audio)
        clock = self._clock
        clock.reset()
        with timing(clock):
            begin = time.perf_counter()
            run = self._together if batch else self._in_turn
            transcripts, seconds = run(sources, each)
            whole = time.perf_counter() - begin
        stages = {name: round(clock.seconds[name], 6) for name in STAGES}
        stages["other"] = round(max(whole - sum(stages.values()), 0.0), 6)
        return {
            "text": [found.text.strip() for found in transcripts],
            "segments": [[(s.start, s.end, s.text) for s in found] for found in transcripts],
            "seconds": whole,
            "each": seconds,
            "stages": stages,
            "windows": clock.encoded,
            "tokens": sum(len(s.tokens) for found in transcripts for s in found),
            "steps_ms": [round(1e3 * second, 4) for second in clock.steps],
        }

    def _in_turn(
        self, sources: list[Any], options: list[TranscribeOptions]
    ) -> tuple[list[Transcript], list[float]]:
        found, seconds = [], []
        for source, chosen in zip(sources, options):
            begin = time.perf_counter()
            found.append(self._model.transcribe(source, options=chosen))
            seconds.append(time.perf_counter() - begin)
        return found, seconds

    def _together(
        self, sources: list[Any], options: list[TranscribeOptions]
    ) -> tuple[list[Transcript], list[float]]:
        results = self._model.transcribe_many(
            sources, options=options, batch_size=options[0].batch_size
        )
        whole = dict(results)
        found = [whole[i] for i in range(len(sources))]
        return [value for value in found if isinstance(value, Transcript)], []
