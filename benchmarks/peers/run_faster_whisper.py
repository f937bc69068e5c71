"""faster-whisper: ``WhisperModel``, or ``BatchedInferencePipeline`` above batch size 1."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from faster_whisper import BatchedInferencePipeline, WhisperModel

from peers.peer import SAMPLE_RATE, Peer, PeerResult

__all__ = ["System"]

WINDOW = 30.0


class System(Peer):
    """A CTranslate2 directory."""

    def __init__(self, model: str, threads: int, precision: str) -> None:
        self.about = {
            "versions": {name: version(name) for name in ("faster-whisper", "ctranslate2")}
        }
        self._model = WhisperModel(
            model, device="cpu", compute_type=precision, cpu_threads=threads, num_workers=1
        )

    def run_one(
        self, pcm: Any, path: str, beam_size: int, language: str, batch_size: int
    ) -> PeerResult:
        options = {
            "beam_size": beam_size,
            "best_of": 1,
            "language": language,
            "temperature": 0.0,
            "without_timestamps": False,
            "vad_filter": batch_size > 1 and len(pcm) > WINDOW * SAMPLE_RATE,
        }
        if batch_size > 1:
            if not options["vad_filter"]:
                options["clip_timestamps"] = [{"start": 0.0, "end": len(pcm) / SAMPLE_RATE}]
            pipeline = BatchedInferencePipeline(model=self._model)
            segments, _ = pipeline.transcribe(pcm, batch_size=batch_size, **options)
        else:
            segments, _ = self._model.transcribe(pcm, **options)
        found = [(s.start, s.end, s.text) for s in segments]
        return PeerResult("".join(text for _, _, text in found), found)
