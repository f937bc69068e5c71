"""openai-whisper in fp32, PyTorch on the CPU."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import torch
import whisper

from peers.peer import Peer, PeerResult

__all__ = ["System"]


class System(Peer):
    """A ``.pt`` file."""

    def __init__(self, model: str, threads: int, precision: str) -> None:
        if precision != "float32":
            raise ValueError(f"openai-whisper on a CPU computes float32, not {precision}")
        torch.set_num_threads(threads)
        self.about = {"versions": {name: version(name) for name in ("openai-whisper", "torch")}}
        self._model = whisper.load_model(model, device="cpu")

    def run_one(
        self, pcm: Any, path: str, beam_size: int, language: str, batch_size: int
    ) -> PeerResult:
        if batch_size > 1:
            raise ValueError("openai-whisper decodes one window at a time")
        found = whisper.transcribe(
            self._model,
            pcm,
            fp16=False,
            language=language,
            temperature=0.0,
            beam_size=None if beam_size == 1 else beam_size,
        )
        segments = [(s["start"], s["end"], s["text"]) for s in found["segments"]]
        return PeerResult(found["text"], segments)
