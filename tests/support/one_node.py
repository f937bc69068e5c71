"""Graphs of one operator, run by ONNX Runtime with and without the compiled kernels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from onnx import TensorProto

from whisper_opt.core.arrays import F32, NDArray
from whisper_opt.export.graphs.builder import GraphBuilder
from whisper_opt.export.graphs.convolutions import conv_gelu, pack_columns, round_columns
from whisper_opt.export.graphs.head import embed8, head8
from whisper_opt.export.graphs.int4_operators import LINEARS4, embed4, head4
from whisper_opt.export.graphs.operators import (
    LAYER_NORM,
    LINEARS,
    Operator,
    cross_attention,
    cross_scores,
    encoder_attention,
    encoder_attention_at,
    pack_keys,
    pack_values,
    self_attention,
)
from whisper_opt.export.graphs.packed_weights import pack_weight
from whisper_opt.export.quantization.int4 import pack_int4
from whisper_opt.runtime.native import LIBRARY
from whisper_opt.runtime.onnxruntime.graph import sums_overflow

__all__ = [
    "LINEARS",
    "LINEARS4",
    "attention_graph",
    "conv_constants",
    "conv_graph",
    "cross_graph",
    "difference",
    "embedding4_graph",
    "embedding_graph",
    "graph",
    "head4_constants",
    "head4_graph",
    "head_constants",
    "head_graph",
    "layer_norm_constants",
    "layer_norm_graph",
    "linear4_constants",
    "linear4_graph",
    "linear_graph",
    "pack_graph",
    "run",
    "self_attention_graph",
    "session",
]

TYPES = {
    "positions": TensorProto.INT64,
    "tokens": TensorProto.INT64,
    "by_parts": TensorProto.BOOL,
    "weight": TensorProto.INT8,
    "keys": TensorProto.UINT8,
    "values": TensorProto.INT8,
    "heads": TensorProto.INT64,
    "rows": TensorProto.INT64,
}


def graph(
    operator: Operator,
    constants: Mapping[str, NDArray],
    shapes: Mapping[str, Sequence[Any]],
    result: Sequence[Any],
    *,
    packed: bool = True,
    **attributes: Any,
) -> bytes:
    """A graph of the operator with these constants; its other inputs are inputs of the graph.

    8-bit ``weight`` is given as [n_in, n_out], and stored so if it shall not be ``packed``: then
    only kernels can read it.
    """
    builder = GraphBuilder("one")
    for name, shape in shapes.items():
        builder.input(name, TYPES.get(name, TensorProto.FLOAT), list(shape))
    if packed and "weight" in constants and constants["weight"].dtype == np.int8:
        constants = {**constants, "weight": pack_weight(constants["weight"])}
    inputs = [
        builder.constant(constants[name]) if name in constants else name for name in operator.inputs
    ]
    output = operator(builder, *inputs, **attributes)
    builder.output(output, "y", TensorProto.FLOAT, list(result))
    model: bytes = builder.finish(20, 10).model.SerializeToString()
    return model


def linear_graph(
    operator: Operator,
    n_in: int,
    n_out: int,
    seed: int = 0,
    *,
    rank: int = 3,
    packed: bool = True,
    four_fit: bool = False,
) -> bytes:
    """A product with random weights; x is [a, m, n_in], residual the same shape, or of ``rank``.

    ``four_fit``: the largest weights of which sums of four products fit 16 bits.
    """
    rng = np.random.default_rng([seed, n_in, n_out])
    weight = rng.integers(-127, 128, (n_in, n_out))
    constants = {
        "weight": (_limited(weight) if four_fit else weight).astype(np.int8),
        "scale": rng.uniform(0.5, 2, n_out).astype(np.float32) / np.float32(64 * n_in**0.5),
        "bias": rng.standard_normal(n_out).astype(np.float32),
        "gain": rng.uniform(0.5, 2, n_in).astype(np.float32),
        "shift": rng.standard_normal(n_in).astype(np.float32),
    }
    shapes: dict[str, list[Any]] = {
        "x": ["a", "m", n_in],
        "residual": ["r", "s", n_out] if rank == 3 else ["r", "s", n_out, "t"],
    }
    given = {name: shape for name, shape in shapes.items() if name in operator.inputs}
    return graph(operator, constants, given, ["a", "m", n_out], packed=packed)


def _limited(weight: NDArray) -> NDArray:
    """Weights [n_in, n_out] whose positive and negative sums of four are at most 128, some equal.

    The four are inputs 0, 1, 4, 5 and 2, 3, 6, 7 of every eight. The first columns have the
    extremes: four equal weights, one alone, and two.
    """
    n_in, n_out = weight.shape
    weight[:, 0::7] = np.where(weight[:, 0::7] < 0, -127, 127)
    four = weight.reshape(n_in // 8, 2, 2, 2, n_out).swapaxes(1, 2).copy()
    four[:, :, 1, :, 1::7] = 0
    four[:, :, 0, 1, 2::7] = 0
    four[:, :, 1, :, 2::7] = 0
    four[..., 3::7] = 127
    four[..., 4::7] = -127
    sums = np.maximum(*(np.maximum(s * four, 0).sum(axis=(2, 3), keepdims=True) for s in (1, -1)))
    four = np.trunc(four * np.minimum(1, 128 / np.maximum(sums, 1)))
    limited: NDArray = four.swapaxes(1, 2).reshape(n_in, n_out)
    return limited


def linear4_constants(n_in: int, n_out: int, seed: int = 0) -> dict[str, NDArray]:
    """Random weights of 4 bits, and the vectors of a product."""
    rng = np.random.default_rng([seed, n_in, n_out])
    packed, steps = pack_int4(rng.standard_normal((n_out, n_in)).astype(np.float32))
    return {
        "weight": packed,
        "steps": steps.astype(np.float16),
        "bias": rng.standard_normal(n_out).astype(np.float32),
        "gain": rng.uniform(0.5, 2, n_in).astype(np.float32),
        "shift": rng.standard_normal(n_in).astype(np.float32),
    }


def linear4_graph(
    operator: Operator, n_in: int, n_out: int, *, changed: Mapping[str, NDArray] | None = None
) -> bytes:
    """A product with random 4-bit weights; x is [a, m, n_in], residual [a, m, n_out].

    ``changed``: constants that replace those of :func:`linear4_constants`.
    """
    constants = {**linear4_constants(n_in, n_out), **(changed or {})}
    shapes: dict[str, list[Any]] = {"x": ["a", "m", n_in], "residual": ["r", "s", n_out]}
    given = {name: shape for name, shape in shapes.items() if name in operator.inputs}
    return graph(operator, constants, given, ["a", "m", n_out], n_in=n_in, n_out=n_out)


def head4_constants(n_in: int, n_words: int, n_special: int) -> dict[str, NDArray]:
    """A random output head of 4 bits."""
    rng = np.random.default_rng([n_in, n_words, n_special])
    return {
        "shrink": rng.uniform(0.25, 1, n_in).astype(np.float32),
        **{k: v for k, v in linear4_constants(n_in, n_words).items() if k in ("weight", "steps")},
        "mean": rng.standard_normal(n_in).astype(np.float32) / np.float32(n_in**0.5),
        "special": rng.standard_normal((n_special, n_in)).astype(np.float16),
    }


def head4_graph(
    n_in: int, n_words: int, n_special: int, *, changed: Mapping[str, NDArray] | None = None
) -> bytes:
    """The output head of :func:`head4_constants`; hidden is [n_seq, n_at, n_in].

    ``changed``: constants that replace those.
    """
    constants = {**head4_constants(n_in, n_words, n_special), **(changed or {})}
    shapes, result = {"hidden": ["s", "p", n_in]}, ["s", "p", n_words + n_special]
    return graph(head4(n_in, n_words), constants, shapes, result)


def embedding4_graph(n_in: int, n_words: int, n_special: int) -> bytes:
    """The embedding of tokens [n_seq, n] by the weights of :func:`head4_constants`."""
    constants, shapes = head4_constants(n_in, n_words, n_special), {"tokens": ["s", "p"]}
    return graph(embed4(n_in, n_words), constants, shapes, ["s", "p", n_in])


def layer_norm_constants(n: int) -> dict[str, NDArray]:
    """A random layer normalization."""
    rng = np.random.default_rng(n)
    return {
        "gain": rng.uniform(0.5, 2, n).astype(np.float32),
        "shift": rng.standard_normal(n).astype(np.float32),
    }


def layer_norm_graph(n: int, **changed: NDArray) -> bytes:
    """Layer normalization of x [a, m, n] by :func:`layer_norm_constants`, some of them changed."""
    constants = {**layer_norm_constants(n), **changed}
    return graph(LAYER_NORM, constants, {"x": ["a", "m", "n"]}, ["a", "m", "n"])


def conv_constants(n_channels: int, n_out: int) -> tuple[NDArray, dict[str, NDArray]]:
    """Weights i16 [3 * n_channels, n_out] of a random convolution, and its scale and bias."""
    rng = np.random.default_rng([n_channels, n_out])
    floats = rng.standard_normal((3 * n_channels, n_out)) / n_channels**0.5
    weight, scale = round_columns(floats.astype(np.float32))
    return weight, {"scale": scale, "bias": rng.standard_normal(n_out).astype(np.float32)}


def conv_graph(n_channels: int, n_out: int, stride: int, **changed: NDArray) -> bytes:
    """GELU of a convolution of x [a, f, n_channels] by :func:`conv_constants`, some changed."""
    weight, constants = conv_constants(n_channels, n_out)
    constants = {"weight": weight, **constants, **changed}
    constants["weight"] = pack_columns(constants["weight"])
    operator = conv_gelu(n_channels, stride)
    return graph(operator, constants, {"x": ["a", "f", "c"]}, ["a", "t", n_out])


def attention_graph(n_head: int, *, at: bool = False) -> bytes:
    """Attention of the encoder, of all positions or of those in ``positions``."""
    wide = 3 * 64 * n_head
    if at:
        operator = encoder_attention_at(n_head)
        shapes: dict[str, list[Any]] = {"qkv": ["a", "n", wide], "positions": ["m"]}
    else:
        operator = encoder_attention(n_head)
        shapes = {"qkv": ["a", "n", wide], "added": ["n"], "by_parts": []}
    return graph(operator, {}, shapes, ["a", "m", 64 * n_head], num_heads=n_head)


def self_attention_graph(n_head: int) -> bytes:
    """Self-attention of the decoder: outputs ``y``, ``key_out`` and ``value_out``."""
    builder = GraphBuilder("self")
    cache: list[Any] = ["n", "h", "c", 64]
    builder.input("qkv", TensorProto.FLOAT, ["n", "s", "w"])
    for name in ("key", "value"):
        builder.input(name, TensorProto.FLOAT, cache)
    builder.input("start", TensorProto.INT64, ["m"])
    operator = self_attention(n_head)
    outputs = operator.nodes(builder, operator.inputs, 3, num_heads=n_head)
    shapes: tuple[list[Any], ...] = (["n", "s", 64 * n_head], cache, cache)
    for value, name, shape in zip(outputs, ("y", "key_out", "value_out"), shapes):
        builder.output(value, name, TensorProto.FLOAT, shape)
    model: bytes = builder.finish(20, 10).model.SerializeToString()
    return model


def head_constants(n_in: int, n_vocab: int) -> dict[str, NDArray]:
    """A random output head."""
    rng = np.random.default_rng([n_in, n_vocab])
    return {
        "shrink": rng.uniform(0.25, 1, n_in).astype(np.float32),
        "weight": rng.integers(-127, 128, (n_in, n_vocab)).astype(np.int8),
        "scale": rng.uniform(0.5, 2, n_vocab).astype(np.float32) / np.float32(64 * n_in**0.5),
        "mean": rng.standard_normal(n_in).astype(np.float32) / np.float32(n_in**0.5),
    }


def head_graph(n_in: int, n_vocab: int, *, packed: bool = True) -> bytes:
    """The output head of :func:`head_constants`; hidden is [n_seq, n_at, n_in]."""
    shapes = {"hidden": ["s", "p", n_in]}
    operator, constants = head8((n_in, n_vocab)), head_constants(n_in, n_vocab)
    return graph(operator, constants, shapes, ["s", "p", n_vocab], packed=packed)


def embedding_graph(n_in: int, n_vocab: int) -> bytes:
    """The embedding of tokens [n_seq, n] by the weights of :func:`head_constants`."""
    shapes = {"tokens": ["s", "p"]}
    return graph(embed8(n_in), head_constants(n_in, n_vocab), shapes, ["s", "p", n_in])


def pack_graph(n_head: int, kind: str) -> bytes:
    """A graph that packs keys (``k``) or values (``v``): outputs ``packed`` and ``step``."""
    builder = GraphBuilder("pack")
    builder.input("x", TensorProto.FLOAT, ["a", "n", "w"])
    operator = pack_keys(n_head) if kind == "k" else pack_values(n_head)
    packed, step = operator.nodes(builder, ["x"], 2, num_heads=n_head)
    if kind == "k":
        builder.output(packed, "packed", TensorProto.UINT8, ["a", n_head, "p", 16, 64, 4])
    else:
        builder.output(packed, "packed", TensorProto.INT8, ["a", n_head, "q", 64, 4])
    builder.output(step, "step", TensorProto.FLOAT, ["a", n_head, 64])
    model: bytes = builder.finish(20, 10).model.SerializeToString()
    return model


def cross_graph(n_head: int, layer: int, *, scores: bool = False) -> bytes:
    """A graph of cross-attention or its scores; inputs may have any shape, to test checks."""
    shapes: dict[str, list[Any]] = {
        "queries": ["a0", "n", "w"],
        "keys": ["a1", "h1", "p", "c1", "b1", "four1"],
        "values": ["a2", "h2", "q", "c2", "four2"],
        "steps": ["a3", "l", "two", "h3", "c3"],
        "added": ["a4", "t"],
        "heads": ["h"],
        "rows": ["m"],
    }
    operator = cross_scores(n_head) if scores else cross_attention(n_head)
    result = ["a", "h", "m", "t"] if scores else ["a", "n", "w"]
    given = {name: shapes[name] for name in operator.inputs}
    return graph(operator, {}, given, result, num_heads=n_head, layer=layer)


def session(model: bytes, *, kernels: bool, threads: int = 1, library: Path = LIBRARY) -> Any:
    """An ONNX Runtime session of a graph."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # errors are checked by the tests
    if sums_overflow():  # otherwise ONNX Runtime's own products, the reference, saturate
        options.add_session_config_entry("session.x64quantprecision", "1")
    if kernels:
        options.register_custom_ops_library(str(library))
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def run(runner: Any, **feeds: NDArray) -> F32:
    """The output."""
    found: F32 = runner.run(None, feeds)[0]
    return found


def difference(found: F32, expected: F32) -> float:
    """Relative root mean square error."""
    far = np.linalg.norm(found.astype(np.float64) - expected)
    return float(far / np.linalg.norm(expected.astype(np.float64)))
