"""transformers: ``WhisperForConditionalGeneration.generate`` in fp32, PyTorch on the CPU."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import torch
from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperTokenizer

from peers.peer import SAMPLE_RATE, Peer, PeerResult

__all__ = ["Generator", "System"]

WINDOW = 30 * SAMPLE_RATE


class Generator(Peer):
    """Features, ``generate`` and segments; subclasses load the model."""

    def __init__(self, model: str) -> None:
        self._features = WhisperFeatureExtractor.from_pretrained(model)
        self._tokenizer = WhisperTokenizer.from_pretrained(model)
        self._model: Any = None

    def run_one(
        self, pcm: Any, path: str, beam_size: int, language: str, batch_size: int
    ) -> PeerResult:
        if batch_size > 1:
            raise ValueError("one recording at a time: its windows depend on one another")
        long = len(pcm) > WINDOW
        # long-form decoding needs all frames and their mask, short-form a full window
        shape = {"truncation": False, "padding": "longest"} if long else {}
        inputs = self._features(
            pcm,
            sampling_rate=SAMPLE_RATE,
            return_tensors="pt",
            return_attention_mask=True,
            **shape,
        )
        options: dict[str, Any] = {
            "num_beams": beam_size,
            "do_sample": False,
            "return_timestamps": True,
        }
        if self._model.generation_config.is_multilingual:
            options.update(language=language, task="transcribe")
        with torch.inference_mode():
            found = self._model.generate(**inputs, **options, return_segments=True)
        segments = [
            (float(part["start"]), float(part["end"]), self._text(part["tokens"]))
            for part in found["segments"][0]
        ]
        return PeerResult("".join(text for _, _, text in segments), segments)

    def _text(self, tokens: Any) -> str:
        text: str = self._tokenizer.decode(tokens, skip_special_tokens=True)
        return text


class System(Generator):
    """A Hugging Face directory."""

    def __init__(self, model: str, threads: int, precision: str) -> None:
        if precision != "float32":
            raise ValueError(f"measured in float32, not {precision}")
        super().__init__(model)
        torch.set_num_threads(threads)
        self.about = {"versions": {name: version(name) for name in ("transformers", "torch")}}
        self._model = WhisperForConditionalGeneration.from_pretrained(
            model, dtype=torch.float32
        ).eval()
