"""onnx-asr with Optimum's export: greedy, one window, no times."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import onnx_asr
import onnxruntime

from peers.peer import SAMPLE_RATE, Peer, PeerResult

__all__ = ["System"]


class System(Peer):
    """A directory of ``optimum-cli export onnx`` with ``vocab.json`` and ``added_tokens.json``."""

    def __init__(self, model: str, threads: int, precision: str) -> None:
        if precision != "float32":
            raise ValueError(f"measured in float32, not {precision}")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.about = {
            "versions": {name: version(name) for name in ("onnx-asr", "onnxruntime")},
            "notes": ["no segment times"],
        }
        self._model: Any = onnx_asr.load_model(
            "whisper", model, providers=["CPUExecutionProvider"], sess_options=options
        )

    def run_one(
        self, pcm: Any, path: str, beam_size: int, language: str, batch_size: int
    ) -> PeerResult:
        if beam_size > 1 or batch_size > 1 or len(pcm) > 30 * SAMPLE_RATE:
            raise ValueError("onnx-asr decodes one window of at most 30 s greedily")
        return PeerResult(self._model.recognize(pcm, sample_rate=SAMPLE_RATE, language=language))
