"""The projections (linear layers) of a model as nodes of a graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Callable

import numpy as np

from whisper_opt.core.arrays import F32
from whisper_opt.export.checkpoints.checkpoint import Tensor
from whisper_opt.export.graphs.builder import GraphBuilder
from whisper_opt.export.graphs.operators import LAYER_NORM
from whisper_opt.export.graphs.precision import Precision
from whisper_opt.export.quantization.hadamard import apply_hadamard

__all__ = ["Gelu", "Linear"]

Gelu = Callable[[GraphBuilder, str], str]
"""Builds the exact GELU of a value."""


class Linear:
    """Projections by name, as [n_in, n_out] weights and [n_out] biases, in floats."""

    def __init__(
        self, builder: GraphBuilder, tensors: Mapping[str, Tensor], types: Precision
    ) -> None:
        """Bind a builder, the checkpoint tensors and the precision."""
        self.builder = builder
        self.tensors = tensors
        self.types = types

    def _weight(self, name: str, shape: Sequence[int], read: Callable[[], F32]) -> str:
        return self._declare(name, shape, read, self.types.compute)

    def _declare(self, name: str, shape: Sequence[int], read: Callable[[], F32], dtype: Any) -> str:
        """A weight of type ``dtype``; a matrix may be stored in another (``Precision.storage``)."""
        stored = self.types.storage
        if stored is None or len(shape) == 1:
            return self.builder.weight(name, shape, read, dtype)
        # a constant expression: ONNX Runtime evaluates it once, when it loads the graph
        return self.builder.cast(self.builder.weight(name, shape, read, stored), stored, dtype)

    def _matrix(self, name: str) -> str:
        tensor = self.tensors[f"{name}.weight"]
        n_out, n_in = tensor.shape
        return self._weight(
            f"{name}.weight", (n_in, n_out), lambda: np.ascontiguousarray(tensor.read().T)
        )

    def vector(self, name: str, dtype: Any = None) -> str:
        """Declare a checkpoint tensor, in ``dtype`` or the type of products."""
        tensor = self.tensors[name]
        return self._declare(name, tensor.shape, tensor.read, dtype or self.types.compute)

    def norm(self, name: str) -> tuple[str, str]:
        """Weight and bias of the layer normalization called ``name``, float32."""
        weight, bias = (self.vector(f"{name}.{part}", np.float32) for part in ("weight", "bias"))
        return weight, bias

    def normalized(self, value: str, name: str) -> str:
        """Layer normalization of the residual stream, in float32."""
        value = self.builder.cast(value, self.types.residual, np.float32)
        weights = self.norm(name)
        if self.types.bits is not None:
            return LAYER_NORM(self.builder, value, *weights)
        return self.builder.node("LayerNormalization", value, *weights, axis=-1, epsilon=1e-5)

    def inputs(self, value: str, norm: str) -> str:
        """Layer normalization of the residual stream, as an input of products."""
        return self.builder.cast(self.normalized(value, norm), np.float32, self.types.compute)

    def norm_linear(self, value: str, norm: str, name: str) -> str:
        """The projection ``name`` of the normalized residual stream."""
        return self(self.inputs(value, norm), name)

    def norm_qkv(self, value: str, norm: str, name: str) -> str:
        """Query, key and value projections of the normalized residual stream.

        Concatenated, [.., 3 * n_state]; the key bias is 0.
        """
        return self._qkv(self.inputs(value, norm), name)

    def linear_add(self, value: str, inner: str, name: str) -> str:
        """The residual stream plus a projection of ``inner``.

        The bias is added in the type of the residual stream, not in that of the product.
        """
        product = self.builder.cast(
            self(inner, name, bias=False), self.types.compute, self.types.residual
        )
        branch = self.builder.node("Add", product, self.vector(f"{name}.bias", self.types.residual))
        return self.builder.node("Add", value, branch)

    def gelu_linear_add(self, value: str, inner: str, name: str, gelu: Gelu) -> str:
        """The residual stream plus a projection of the GELU of ``inner``."""
        return self.linear_add(value, gelu(self.builder, inner), name)

    def __call__(self, value: str, name: str, *, bias: bool = True) -> str:
        """``value @ weight.T + bias`` of the ``nn.Linear`` called ``name``."""
        product = self.builder.node("MatMul", value, self._matrix(name))
        return self.builder.node("Add", product, self.vector(f"{name}.bias")) if bias else product

    def _qkv(self, value: str, name: str) -> str:
        parts = [self.tensors[f"{name}.{part}.weight"] for part in ("query", "key", "value")]
        state = parts[0].shape[0]

        def weight() -> F32:
            whole = np.ascontiguousarray(np.concatenate([part.read() for part in parts]).T)
            return self._with_hadamard(whole, name)

        product = self.builder.node(
            "MatMul", value, self._weight(f"{name}.qkv.weight", (state, 3 * state), weight)
        )
        return self.builder.node("Add", product, self._qkv_bias(name))

    def _qkv_bias(self, name: str) -> str:
        """Biases [3 * n_state] of an attention's query, key (zero) and value projections."""
        query, val = (self.tensors[f"{name}.{part}.bias"] for part in ("query", "value"))
        state = query.shape[0]

        def bias() -> F32:
            whole = np.concatenate([query.read(), np.zeros(state, np.float32), val.read()])
            return self._with_hadamard(whole, name)

        return self._weight(f"{name}.qkv.bias", (3 * state,), bias)

    def _with_hadamard(self, whole: F32, name: str) -> F32:
        """Queries and keys of [.., 3 * n_state] in the Hadamard basis (``Precision.hadamard``)."""
        if not (self.types.hadamard and name.startswith("decoder.")):
            return whole
        queries_and_keys, values = np.split(whole, [2 * whole.shape[-1] // 3], axis=-1)
        return np.concatenate([apply_hadamard(queries_and_keys), values], axis=-1)
