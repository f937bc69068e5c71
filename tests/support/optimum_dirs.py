"""Directories of Optimum: graphs that its exporter made, with the weights of a random model.

``tools/goldens/make_optimum_golden.py`` stores the graphs without weights. Other precisions are
made here, by the tools of ONNX Runtime that Optimum and transformers.js use.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from tests.support.engines import sharp_checkpoint
from tests.support.models import random_dims
from tests.support.models_write import huggingface_config
from whisper_opt.core.dims import ModelDims
from whisper_opt.export.checkpoints import Checkpoint

__all__ = ["DATA", "DIMS", "MERGED", "SPLIT", "optimum_config", "write_optimum"]

DATA = Path(__file__).parents[1] / "data" / "optimum"
DIMS = random_dims(n_vocab=2000)
"""Those of the conformance tests."""
MERGED = ("decoder_model_merged",)
SPLIT = ("decoder_model", "decoder_with_past_model")


def optimum_config(dims: ModelDims) -> dict[str, Any]:
    """``config.json``; ids are arbitrary valid ones."""
    return {
        **huggingface_config(dims),
        "encoder_ffn_dim": 4 * dims.n_audio_state,
        "decoder_ffn_dim": 4 * dims.n_text_state,
        **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 0),
        "decoder_start_token_id": 1,
    }


def write_optimum(
    folder: Path,
    decoders: tuple[str, ...] = MERGED,
    *,
    attention: bool = False,
    precision: str = "fp32",
    subfolder: str = "",
    external: bool = False,
) -> Checkpoint:
    """Write a directory of Optimum; returns the checkpoint whose weights it has.

    Args:
        folder: the new directory.
        decoders: MERGED, SPLIT, or both together.
        attention: graphs that return cross-attention.
        precision: fp32, fp16 (inputs and outputs too) or int8; sets the suffix of the files.
        subfolder: where the graphs are, below ``folder``.
        external: store the weights in ``.onnx_data`` files.
    """
    checkpoint = sharp_checkpoint(DIMS)
    (folder / subfolder).mkdir(parents=True, exist_ok=True)
    for name in ("encoder_model", *decoders):
        kind = "attention" if attention and name != "encoder_model" else "plain"
        model = _with_weights(DATA / f"{kind}.{name}.onnx.gz", checkpoint)
        suffix = {"fp32": "", "fp16": "_fp16", "int8": "_quantized"}[precision]
        path = folder / subfolder / f"{name}{suffix}.onnx"
        if precision == "fp16":
            _save_fp16(model, path)
        elif precision == "int8":
            _save_int8(model, path)
        elif external:
            onnx.save(model, path, save_as_external_data=True, location=f"{path.name}_data")
        else:
            onnx.save(model, path)
    config = optimum_config(DIMS)
    generation = {
        "alignment_heads": checkpoint.alignment_heads,
        "suppress_tokens": checkpoint.suppress_tokens,
        "begin_suppress_tokens": checkpoint.begin_suppress_tokens,
        "is_multilingual": False,
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps(generation))
    (folder / "tokenizer.json").write_text(checkpoint.tokenizer_json, encoding="utf-8")
    return checkpoint


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _graphs(attribute.g)


def _with_weights(path: Path, checkpoint: Checkpoint) -> onnx.ModelProto:
    model = onnx.ModelProto()
    model.ParseFromString(gzip.decompress(path.read_bytes()))
    for graph in _graphs(model.graph):
        for value in graph.initializer:
            if value.doc_string:
                name = value.doc_string
                values = checkpoint.tensors[
                    name[: -len(".T")] if name.endswith(".T") else name
                ].read()
                values = values.T if name.endswith(".T") else values
                value.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values), value.name))
    return model


def _save_fp16(model: onnx.ModelProto, path: Path) -> None:
    from onnxruntime.transformers.float16 import convert_float_to_float16

    onnx.save(convert_float_to_float16(model, disable_shape_infer=True), path)


def _save_int8(model: onnx.ModelProto, path: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    plain = path.with_name("plain.onnx")
    onnx.save(model, plain)
    options = {"EnableSubgraph": True, "MatMulConstBOnly": True}
    quantize_dynamic(
        plain,
        path,
        op_types_to_quantize=["MatMul"],
        weight_type=QuantType.QUInt8,
        extra_options=options,
    )
    plain.unlink()
