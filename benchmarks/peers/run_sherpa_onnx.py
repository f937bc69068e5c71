"""sherpa-onnx: its own C++ loop over ONNX Runtime; greedy, one window."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import sherpa_onnx

from peers.peer import SAMPLE_RATE, Peer, PeerResult

__all__ = ["System"]


class System(Peer):
    """A directory of ``encoder.onnx``, ``decoder.onnx`` (or ``*.int8.onnx``) and ``tokens.txt``."""

    def __init__(self, model: str, threads: int, precision: str) -> None:
        suffix = {"float32": ".onnx", "int8": ".int8.onnx"}[precision]
        folder = Path(model)
        self.about = {
            "versions": {"sherpa-onnx": version("sherpa-onnx")},
            "notes": ["encodes 10 s of padding, not 30 s"],
        }
        self._recognizers: dict[str, Any] = {}
        self._options = {
            "encoder": str(folder / f"encoder{suffix}"),
            "decoder": str(folder / f"decoder{suffix}"),
            "tokens": str(folder / "tokens.txt"),
            "num_threads": threads,
            "enable_segment_timestamps": True,
        }
        self._recognizer("en")

    def _recognizer(self, language: str) -> Any:
        if language not in self._recognizers:
            make = sherpa_onnx.OfflineRecognizer.from_whisper
            self._recognizers[language] = make(language=language, **self._options)
        return self._recognizers[language]

    def run_one(
        self, pcm: Any, path: str, beam_size: int, language: str, batch_size: int
    ) -> PeerResult:
        if beam_size > 1 or batch_size > 1 or len(pcm) > 30 * SAMPLE_RATE:
            raise ValueError("sherpa-onnx decodes one window of at most 30 s greedily")
        recognizer = self._recognizer(language)
        stream = recognizer.create_stream()
        stream.accept_waveform(SAMPLE_RATE, pcm)
        recognizer.decode_stream(stream)
        found = stream.result
        starts = getattr(found, "segment_timestamps", [])
        lengths = getattr(found, "segment_durations", [])
        texts = getattr(found, "segment_texts", [])
        segments = [(s, s + d, text) for s, d, text in zip(starts, lengths, texts)]
        return PeerResult(found.text, segments)
