"""Graphs of one operator, run by ONNX Runtime with the compiled kernels and without."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from onnx import TensorProto

from whisper_opt.arrays import F32, NDArray
from whisper_opt.export.builder import GraphBuilder
from whisper_opt.export.operators import (
    GELU_LINEAR_ADD,
    LINEAR,
    LINEAR_ADD,
    NORM_LINEAR,
    Operator,
    encoder_attention,
    encoder_attention_at,
)
from whisper_opt.native import LIBRARY

__all__ = ["LINEARS", "attention_graph", "difference", "graph", "linear_graph", "run", "session"]

LINEARS = (LINEAR, NORM_LINEAR, LINEAR_ADD, GELU_LINEAR_ADD)
TYPES = {
    "positions": TensorProto.INT64,
    "by_parts": TensorProto.BOOL,
    "weight": TensorProto.INT8,
}


def graph(
    operator: Operator,
    constants: Mapping[str, NDArray],
    shapes: Mapping[str, Sequence[Any]],
    result: Sequence[Any],
    **attributes: Any,
) -> bytes:
    """The operator with these constants; its other inputs are the graph's."""
    builder = GraphBuilder("one")
    for name, shape in shapes.items():
        builder.input(name, TYPES.get(name, TensorProto.FLOAT), list(shape))
    inputs = [
        builder.constant(constants[name]) if name in constants else name for name in operator.inputs
    ]
    output = operator(builder, *inputs, **attributes)
    builder.output(output, "y", TensorProto.FLOAT, list(result))
    model: bytes = builder.finish(20, 10).model.SerializeToString()
    return model


def linear_graph(operator: Operator, n_in: int, n_out: int, seed: int = 0) -> bytes:
    """A product with random weights; x is [a, m, n_in], and residual [a, m, n_out] where it is."""
    rng = np.random.default_rng([seed, n_in, n_out])
    constants = {
        "weight": rng.integers(-127, 128, (n_in, n_out)).astype(np.int8),
        "scale": rng.uniform(0.5, 2, n_out).astype(np.float32) / np.float32(64 * n_in**0.5),
        "bias": rng.standard_normal(n_out).astype(np.float32),
        "gain": rng.uniform(0.5, 2, n_in).astype(np.float32),
        "shift": rng.standard_normal(n_in).astype(np.float32),
    }
    shapes = {"x": ["a", "m", n_in], "residual": ["a", "m", n_out]}
    given = {name: shape for name, shape in shapes.items() if name in operator.inputs}
    return graph(operator, constants, given, ["a", "m", n_out])


def attention_graph(n_head: int, *, at: bool = False) -> bytes:
    """Attention of the encoder, of all positions or of those in ``positions``."""
    wide = 3 * 64 * n_head
    if at:
        operator = encoder_attention_at(n_head)
        shapes: dict[str, list[Any]] = {"qkv": ["a", "n", wide], "positions": ["m"]}
    else:
        operator = encoder_attention(n_head)
        shapes = {"qkv": ["a", "n", wide], "added": ["n", 1, 1], "by_parts": []}
    return graph(operator, {}, shapes, ["a", "m", 64 * n_head], num_heads=n_head)


def session(model: bytes, *, kernels: bool, threads: int = 1, library: Path = LIBRARY) -> Any:
    """What runs a graph."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # errors are looked at where they are raised
    if kernels:
        options.register_custom_ops_library(str(library))
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def run(runner: Any, **feeds: NDArray) -> F32:
    """The output."""
    found: F32 = runner.run(None, feeds)[0]
    return found


def difference(found: F32, expected: F32) -> float:
    """Root mean square of the difference, as a share of what was expected."""
    far = np.linalg.norm(found.astype(np.float64) - expected)
    return float(far / np.linalg.norm(expected.astype(np.float64)))
