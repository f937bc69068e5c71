"""Optimum's ``ORTModelForSpeechSeq2Seq`` in fp32: ONNX Runtime under transformers' ``generate``."""

from __future__ import annotations

from importlib.metadata import version

import onnxruntime
from optimum.onnxruntime import ORTModelForSpeechSeq2Seq

from peers.run_transformers import Generator

__all__ = ["System"]


class System(Generator):
    """A model exported by ``optimum-cli export onnx``."""

    def __init__(self, model: str, threads: int, precision: str) -> None:
        if precision != "float32":
            raise ValueError(f"measured in float32, not {precision}")
        super().__init__(model)
        names = ("optimum-onnx", "transformers", "onnxruntime")
        self.about = {"versions": {name: version(name) for name in names}}
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._model = ORTModelForSpeechSeq2Seq.from_pretrained(
            model, provider="CPUExecutionProvider", session_options=options
        )
