"""Regenerate the graphs in tests/data/optimum with Optimum's own exporter.

Run from the repository root, in an environment of its own with optimum-onnx 0.1.0, transformers
4.57, torch 2.13, onnxruntime 1.23 and pytest (Optimum does not work with newer transformers):

    PYTHONPATH=. python tools/goldens/make_optimum_golden.py

The model is the small random one of the conformance tests (``sharp_checkpoint``). Its weights
follow from a seed, so they are left out of the stored graphs: each initializer names the tensor
that it is (``tests/support/optimum_dirs.py`` puts them back). What is stored:

    plain.*.onnx.gz        encoder, both decoders, and the merged one, as exported by default
    attention.*.onnx.gz    decoders that return their cross-attention
"""

from __future__ import annotations

import gzip
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from optimum.exporters.onnx import main_export
from optimum.exporters.onnx.config import ConfigBehavior
from optimum.exporters.onnx.model_configs import WhisperOnnxConfig
from transformers import AutoConfig, WhisperConfig, WhisperForConditionalGeneration

from tests.support.engines import sharp_checkpoint
from tests.support.models_write import huggingface_names
from tests.support.optimum_dirs import DATA, DIMS, optimum_config
from whisper_opt.core.arrays import F32

TASK = "automatic-speech-recognition-with-past"
SMALL = 64
"""Initializers of at most this many values are kept: shapes and constants."""


class WithAttention(WhisperOnnxConfig):  # type: ignore[misc]
    """Adds the cross-attention to the outputs of the decoders."""

    @property
    def outputs(self) -> dict[str, dict[int, str]]:
        """Names of the outputs and of their variable axes."""
        found: dict[str, dict[int, str]] = super().outputs
        if self._behavior is ConfigBehavior.DECODER:
            axes = {0: "batch_size", 2: "decoder_sequence_length", 3: "encoder_sequence_length"}
            for i in range(self._config.decoder_layers):
                found[f"cross_attentions.{i}"] = axes
        return found


def save_model(folder: Path, tensors: dict[str, F32]) -> None:
    """The model as a directory of transformers."""
    model = WhisperForConditionalGeneration(WhisperConfig(**optimum_config(DIMS)))
    names = huggingface_names(list(tensors))
    state = {names[name]: torch.from_numpy(v) for name, v in tensors.items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert missing == ["proj_out.weight"], missing  # tied to the embedding
    assert not unexpected, unexpected
    model.save_pretrained(folder)


def export(source: Path, target: Path, *, attention: bool) -> None:
    """Run Optimum's exporter."""
    options: dict[str, Any] = {}
    if attention:
        config = WithAttention(
            config=AutoConfig.from_pretrained(source, attn_implementation="eager"),
            task="automatic-speech-recognition",
        )
        first = config.with_behavior("decoder", use_past=True, use_past_in_inputs=False)
        later = config.with_behavior("decoder", use_past=True, use_past_in_inputs=True)
        options["model_kwargs"] = {"output_attentions": True}
        options["custom_onnx_configs"] = {
            "encoder_model": config.with_behavior("encoder"),
            "decoder_model": first,
            "decoder_with_past_model": later,
        }
    options.update(library_name="transformers", local_files_only=True)
    main_export(str(source), target, task=TASK, do_validation=False, **options)


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and its subgraphs."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from graphs(attribute.g)


def name_of(values: F32, tensors: dict[str, F32]) -> str:
    """The tensor that an initializer is, with ``.T`` if transposed."""
    for name, tensor in tensors.items():
        if tensor.shape == values.shape and np.array_equal(tensor, values):
            return name
        if tensor.ndim == 2 and tensor.T.shape == values.shape and (values == tensor.T).all():
            return f"{name}.T"
    raise ValueError(f"an initializer of shape {values.shape} is no tensor of the model")


def without_weights(model: onnx.ModelProto, tensors: dict[str, F32]) -> onnx.ModelProto:
    """The model with the name of a tensor in place of each large initializer."""
    for graph in graphs(model.graph):
        for value in graph.initializer:
            values = numpy_helper.to_array(value)
            if values.size > SMALL:
                name = name_of(values, tensors)
                value.ClearField("raw_data")
                value.doc_string = name
        for node in graph.node:
            node.ClearField("doc_string")
            node.ClearField("metadata_props")
        graph.ClearField("value_info")
    return model


def main() -> None:
    """Write every file."""
    tensors = {name: t.read() for name, t in sharp_checkpoint(DIMS).tensors.items()}
    DATA.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        save_model(Path(name, "model"), tensors)
        for kind in ("plain", "attention"):
            export(Path(name, "model"), Path(name, kind), attention=kind == "attention")
            for path in sorted(Path(name, kind).glob("*.onnx")):
                if kind == "attention" and path.stem == "encoder_model":
                    continue  # the same as the plain one
                model = without_weights(onnx.load(path), tensors)
                packed = gzip.compress(model.SerializeToString(deterministic=True), mtime=0)
                (DATA / f"{kind}.{path.name}.gz").write_bytes(packed)


if __name__ == "__main__":
    main()
