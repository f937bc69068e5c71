"""The token embedding and the output head, which are the same tensor in most models.

A fine-tuned model may have a separate head (:data:`OUTPUT_HEAD`). Then both are stored.

Scores of Whisper are about 20, where the spacing of float16 numbers is 0.016. Rounding them costs
more accuracy than all other rounding in a float16 model. In float16 the head therefore computes
scores minus an estimate of the best one, which are exact where it matters, and adds the estimate
in float32. The estimate is subtracted inside the product, before any rounding: the embedding has a
further column of ones, whose input is minus the estimate. The input has two rows, its rounding to
float16 and the remainder, so the embedding is read once for both.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any, Callable

import numpy as np
from onnx import TensorProto

from whisper_opt.core.arrays import NDArray
from whisper_opt.core.dims import ModelDims
from whisper_opt.export.checkpoints.checkpoint import EMBEDDING, OUTPUT_HEAD, Tensor
from whisper_opt.export.graphs.builder import MICROSOFT, GraphBuilder, Together
from whisper_opt.export.graphs.int4_operators import BLOCK, embed4, head4
from whisper_opt.export.graphs.operators import Operator, number
from whisper_opt.export.graphs.packed_weights import gather_columns, packed_weight, unpack_weight
from whisper_opt.export.graphs.precision import FP32, Precision
from whisper_opt.export.quantization.head8 import QuantizedHead, quantize_head
from whisper_opt.export.quantization.int4 import N_SPECIAL, Int4Head
from whisper_opt.runtime.head_bounds import STEPS
from whisper_opt.runtime.head_names import APPROXIMATE, APPROXIMATE_SCORES, EXACT, HIDDEN, SCOPE

__all__ = ["embed", "embed8", "exact_head", "head8", "two_stage_head"]

LIFT = 17.0
"""The estimate: distance of the best score from the mean. On speech it is 12 to 21 in tiny.en. With
sharp probabilities and 50,000 tokens it cannot be much different in any model."""
_COLUMNS = 8
"""Columns added to the embedding in float16. One is used; tensor cores need multiples of 8."""
_FLOAT, _INT64 = TensorProto.FLOAT, TensorProto.INT64


def embed(
    builder: GraphBuilder, tokens: str, tensors: Mapping[str, Tensor], types: Precision
) -> str:
    """Declare the embedding, which :func:`exact_head` may use too, and look tokens [N, S] up."""
    tensor = tensors[EMBEDDING]
    state = tensor.shape[1]
    if types.bits is not None:
        make = _embed_int4 if types.bits == 4 else _embed_int8
        return make(builder, tokens, tensors)
    if types.compute == np.float32:
        stored = types.storage or types.compute
        table = builder.weight(EMBEDDING, tensor.shape, tensor.read, stored)
        return builder.cast(builder.node("Gather", table, tokens), stored, np.float32)

    found = builder.node("Gather", _widened(builder, EMBEDDING, tensor, types), tokens)
    first, end, axis = (builder.constant([n]) for n in (0, state, 2))
    return builder.node("Slice", found, first, end, axis)


def _matrix(tensors: Mapping[str, Tensor]) -> str:
    """The name of the output head's tensor."""
    return OUTPUT_HEAD if OUTPUT_HEAD in tensors else EMBEDDING


def _widened(builder: GraphBuilder, name: str, tensor: Tensor, types: Precision) -> str:
    """A table [n_vocab, n_text_state] with a further column of ones, and columns of zeros."""
    vocab, state = tensor.shape

    def read() -> NDArray:
        more = np.eye(1, _COLUMNS, dtype=types.compute).repeat(vocab, axis=0)
        return np.concatenate([tensor.read().astype(types.compute), more], axis=1)

    return builder.weight(name, (vocab, state + _COLUMNS), read, types.compute)


def exact_head(
    builder: GraphBuilder,
    hidden: str,
    dims: ModelDims,
    tensors: Mapping[str, Tensor],
    types: Precision = FP32,
) -> str:
    """Scores f32 [N, P, n_vocab] of the head's inputs [N, P, n_text_state]."""
    if types.bits is not None:
        make = _int4_head if types.bits == 4 else _int8_head
        return make(builder, hidden, tensors)
    flat, name = builder.reshape(hidden, [-1, dims.n_text_state]), _matrix(tensors)
    tensor = tensors[name]
    if types.compute == np.float32:
        stored = types.storage or types.compute
        table = builder.weight(name, tensor.shape, tensor.read, stored)
        scores = builder.node("Gemm", flat, builder.cast(table, stored, np.float32), transB=1)
    else:
        scores = _centred(builder, flat, name, tensor, types)
    return _unflatten(builder, scores, hidden, [dims.n_vocab])


def _centred(builder: GraphBuilder, flat: str, name: str, tensor: Tensor, types: Precision) -> str:
    """Scores f32 [n, n_vocab] of f32 [n, n_text_state], rounded relative to the estimate.

    ``name``: name of ``tensor``, the output head.
    """

    def minus_mean() -> NDArray:
        mean = tensor.read().mean(axis=0)
        return np.outer(-mean, np.eye(1, _COLUMNS)[0]).astype(np.float32)

    vocab, state = tensor.shape
    table = _widened(builder, name, tensor, types)
    weight = builder.weight("decoder.head.minus_mean", (state, _COLUMNS), minus_mean, types.compute)
    lift = builder.constant((-LIFT * np.eye(1, _COLUMNS)[0]).astype(types.compute))
    rounded = builder.cast(flat, np.float32, types.compute)
    minus = builder.node("MatMul", rounded, weight)
    minus = builder.node("Add", minus, lift)  # [n, 8]: -estimate, 0...
    rest = builder.node("Sub", flat, builder.cast(rounded, types.compute, np.float32))
    rest = builder.cast(rest, np.float32, types.compute)
    zeros = builder.node("Sub", minus, minus)  # not Pad, which CUDA lacks in some opsets
    pair = builder.node("Concat", rounded, minus, rest, zeros, axis=1)
    pair = builder.reshape(pair, [-1, state + _COLUMNS])  # [2 n, n_text_state + 8]
    both = builder.node("Gemm", pair, table, transB=1)
    both = builder.reshape(builder.cast(both, types.compute, np.float32), [-1, 2 * vocab])
    halves = builder.nodes("Split", [both, builder.constant([vocab, vocab])], 2, axis=1)
    scores = builder.node("Add", *halves)
    zero, one = builder.constant([0]), builder.constant([1])
    taken = builder.node("Slice", minus, zero, one, one)
    return builder.node("Sub", scores, builder.cast(taken, types.compute, np.float32))


def _unflatten(builder: GraphBuilder, value: str, like: str, tail: list[int]) -> str:
    """Give a value the first two dimensions [N, P] of ``like``, which may be 0, and ``tail``."""
    head = builder.node("Shape", like, start=0, end=2)
    shape = builder.node("Concat", head, builder.constant(tail), axis=0)
    return builder.node("Reshape", value, shape, allowzero=1)


def two_stage_head(
    builder: GraphBuilder,
    hidden: str,
    dims: ModelDims,
    tensors: Mapping[str, Tensor],
    types: Precision = FP32,
) -> None:
    """Declare a two-stage head: its inputs, outputs and tensors for the runtime.

    Approximate 8-bit scores select candidates, which :mod:`whisper_opt.runtime.head_bounds` scores
    exactly. Inputs :data:`EXACT` i64 [E] and :data:`APPROXIMATE` i64 [R] select among the P
    requested positions. Outputs are ``logits`` f32 [N, E, n_vocab], :data:`APPROXIMATE_SCORES` f32
    [N, R, n_vocab] and :data:`HIDDEN` f32 [N, P, n_text_state]. Without positions nothing is
    computed.
    """
    builder.scope(f"decoder.{SCOPE}")
    exact = builder.input(EXACT, _INT64, [f"n_{EXACT}"])
    at = builder.input(APPROXIMATE, _INT64, [f"n_{APPROXIMATE}"])
    chosen = builder.node("Gather", hidden, exact, axis=1)
    logits = exact_head(builder, chosen, dims, tensors, types)
    approximate = _approximate_logits(builder, hidden, at, dims, tensors)
    shape: list[int | str] = ["n_seq", f"n_{APPROXIMATE}", dims.n_vocab]
    builder.output(logits, "logits", _FLOAT, ["n_seq", f"n_{EXACT}", dims.n_vocab])
    builder.output(approximate, APPROXIMATE_SCORES, _FLOAT, shape)
    builder.output(hidden, HIDDEN, _FLOAT, ["n_seq", "n_at", dims.n_text_state])


def _scope(tensors: Mapping[str, Tensor]) -> str:
    """The scope of the embedding's weights: that of the head unless the head is separate."""
    return "decoder.embedding" if OUTPUT_HEAD in tensors else "decoder.head"


class _Int8Weights:
    """Weights of the head or the embedding in 8 bits, declared when used and quantized once."""

    def __init__(
        self, builder: GraphBuilder, tensors: Mapping[str, Tensor], scope: str, matrix: str
    ) -> None:
        parts = (matrix, "decoder.ln.weight", "decoder.ln.bias")
        head = Together(lambda: quantize_head(*(tensors[part] for part in parts)))
        vocab, state = tensors[matrix].shape
        self.builder = builder
        self._scope = scope
        self._head: Together[QuantizedHead] = head
        self.shapes = {
            "weight": (state, vocab),
            "scale": (vocab,),
            "mean": (state,),
            "shrink": (state,),
            "error": (vocab,),
            "norm": (1,),
        }

    def read(self, name: str) -> Callable[[], NDArray]:
        return self._head.part(name, operator.attrgetter(name))

    def __call__(self, name: str) -> str:
        dtype = np.int8 if name == "weight" else np.float32
        name, shape, read = f"{self._scope}.{name}", self.shapes[name], self.read(name)
        return self.builder.weight(name, shape, read, dtype)

    def packed(self) -> str:
        name, shape = f"{self._scope}.weight", self.shapes["weight"]
        return packed_weight(self.builder, name, shape, self.read("weight"))

    def host(self, *names: str) -> None:
        for name in names:
            self.builder.host(f"{self._scope}.{name}", self.shapes[name], self.read(name))


def _approximate_logits(
    builder: GraphBuilder,
    hidden: str,
    at: str,
    dims: ModelDims,
    tensors: Mapping[str, Tensor],
) -> str:
    name = _matrix(tensors)
    weights = _Int8Weights(builder, tensors, SCOPE, name)
    builder.host(name, (dims.n_vocab, dims.n_text_state), tensors[name].read)
    weights.host("mean", "shrink", "error", "norm")
    shrunk, absmax = _scaled_input(builder, hidden, weights("shrink"))
    shrunk, absmax = (builder.node("Gather", x, at, axis=1) for x in (shrunk, absmax))
    shape = weights.shapes["weight"]
    return _int8_logits(builder, shrunk, absmax, weights("weight"), weights("scale"), shape)


def _scaled_input(builder: GraphBuilder, hidden: str, shrink: str) -> tuple[str, str]:
    """The head's input times ``shrink``, and the largest magnitude of each row."""
    shrunk = builder.node("Mul", hidden, shrink)
    # of all positions: ONNX Runtime 1.19 does not reduce an empty tensor to the right shape
    absmax = builder.node(
        "ReduceMax", builder.node("Abs", shrunk), builder.constant([-1]), keepdims=1
    )
    return shrunk, absmax


def _int8_logits(
    builder: GraphBuilder,
    shrunk: str,
    absmax: str,
    weight: str,
    scale: str,
    shape: tuple[int, ...],
) -> str:
    """Scores [N, R, n_vocab] in 8 bits, without the product of the mean row.

    ``shape``: shape of the weight.
    """
    state, vocab = shape
    pair, scales = _int7_rows(builder, shrunk, absmax)
    products = builder.node(
        "MatMulIntegerToFloat",
        builder.reshape(pair, [-1, state]),
        weight,
        number(builder, 1),
        scale,
        builder.constant(np.array(STEPS + 1, np.uint8)),
        domain=MICROSOFT,
    )
    products = _unflatten(builder, products, shrunk, [2, vocab])
    return builder.node("Squeeze", builder.node("MatMul", scales, products), builder.constant([2]))


def embed8(n_state: int) -> Operator:
    """Embeddings [N, S, n_text_state] of tokens i64 [N, S], from the inputs of :func:`head8`."""

    def body(builder: GraphBuilder) -> list[str]:
        scale = builder.node("Gather", "scale", "tokens")
        scale = builder.node("Unsqueeze", scale, builder.constant([2]))
        columns = gather_columns(builder, "weight", "tokens", n_state)
        rows = builder.node("Mul", builder.node("Mul", columns, scale), "shrink")
        return [builder.node("Add", rows, "mean")]

    return Operator("Embed8", ("tokens", "weight", "scale", "shrink", "mean"), body)


def _embed_int8(builder: GraphBuilder, tokens: str, tensors: Mapping[str, Tensor]) -> str:
    """Embeddings [N, S, n_text_state] from columns of the weights."""
    weights = _Int8Weights(builder, tensors, _scope(tensors), EMBEDDING)
    rest = (weights(name) for name in ("scale", "shrink", "mean"))
    operator = embed8(tensors[EMBEDDING].shape[1])
    return operator(builder, tokens, weights.packed(), *rest)


def _int8_head(builder: GraphBuilder, hidden: str, tensors: Mapping[str, Tensor]) -> str:
    """Scores f32 [N, P, n_vocab] from 8-bit weights; inputs keep 14 bits."""
    weights = _Int8Weights(builder, tensors, "decoder.head", _matrix(tensors))
    operator = head8(weights.shapes["weight"])
    last = (weights(name) for name in ("scale", "mean"))
    return operator(builder, hidden, weights("shrink"), weights.packed(), *last)


def head8(shape: tuple[int, ...]) -> Operator:
    """The head of 8-bit engines: hidden [N, P, n_text_state] -> scores [N, P, n_vocab].

    Inputs ``shrink`` [n_text_state], packed ``weight`` of ``shape`` [n_text_state, n_vocab],
    ``scale`` [n_vocab] and ``mean`` [n_text_state] are those of
    :class:`whisper_opt.export.quantization.head8.QuantizedHead`.
    """

    def body(builder: GraphBuilder) -> list[str]:
        shrunk, absmax = _scaled_input(builder, "hidden", "shrink")
        weight = unpack_weight(builder, "weight", "scale")
        scores = _int8_logits(builder, shrunk, absmax, weight, "scale", shape)
        return [_add_mean(builder, scores, "hidden", "mean")]

    return Operator("Head8", ("hidden", "shrink", "weight", "scale", "mean"), body)


def _add_mean(builder: GraphBuilder, scores: str, hidden: str, mean: str) -> str:
    """Add the product of the mean row to scores."""
    column = builder.node("Unsqueeze", mean, builder.constant([1]))
    return builder.node("Add", scores, builder.node("MatMul", hidden, column))


class _Int4Weights:
    """Weights of the head or the embedding in 4 bits, declared when used and quantized once."""

    def __init__(
        self, builder: GraphBuilder, tensors: Mapping[str, Tensor], scope: str, matrix: str
    ) -> None:
        head = Together(lambda: Int4Head(tensors, matrix))
        vocab, self.state = tensors[matrix].shape
        self.words, self.blocks = vocab - N_SPECIAL, self.state // BLOCK

        def weight(name: str, shape: tuple[int, ...], dtype: Any = np.float32) -> str:
            read = head.part(name, operator.attrgetter(name))
            return builder.weight(f"{scope}.{name}", shape, read, dtype)

        self.packed = weight("packed", (self.words, self.blocks, BLOCK // 2), np.uint8)
        self.steps = weight("steps", (self.words, self.blocks), np.float16)
        self.special = weight("special", (N_SPECIAL, self.state), np.float16)
        self.shrink = weight("shrink", (self.state,))
        self.mean = weight("mean", (self.state,))


def _embed_int4(builder: GraphBuilder, tokens: str, tensors: Mapping[str, Tensor]) -> str:
    """Embeddings [N, S, n_text_state] from rows of the weights."""
    head = _Int4Weights(builder, tensors, _scope(tensors), EMBEDDING)
    operator = embed4(head.state, head.words)
    weights = (head.packed, head.steps, head.shrink, head.mean, head.special)
    return operator(builder, tokens, *weights)


def _int4_head(builder: GraphBuilder, hidden: str, tensors: Mapping[str, Tensor]) -> str:
    """Scores f32 [N, P, n_vocab] from 4-bit weights, and float16 weights of special tokens."""
    head = _Int4Weights(builder, tensors, "decoder.head", _matrix(tensors))
    operator = head4(head.state, head.words)
    weights = (head.shrink, head.packed, head.steps, head.mean, head.special)
    return operator(builder, hidden, *weights)


def _int7_rows(builder: GraphBuilder, value: str, absmax: str) -> tuple[str, str]:
    """[N, R, n] -> uint8 [N, R, 2, n] with zero point STEPS + 1, and scales [N, R, 1, 2].

    The second row is the remainder of the first. ``absmax``: [N, R, 1] largest magnitudes.
    """
    absmax = builder.node("Max", absmax, number(builder, 1e-30))
    step = builder.node("Div", absmax, number(builder, STEPS))
    steps = builder.node("Div", value, step)
    high = builder.node("Round", steps)
    rest = builder.node("Mul", builder.node("Sub", steps, high), number(builder, 2 * STEPS))
    axis = builder.constant([2])
    rows = [builder.node("Unsqueeze", row, axis) for row in (high, builder.node("Round", rest))]
    pair = builder.node("Add", builder.node("Concat", *rows, axis=2), number(builder, STEPS + 1))
    small = builder.node("Div", step, number(builder, 2 * STEPS))
    scales = builder.node("Unsqueeze", builder.node("Concat", step, small, axis=2), axis)
    return builder.node("Cast", pair, to=TensorProto.UINT8), scales
