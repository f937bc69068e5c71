"""Products in 8 bits: one scale per column of weights, one per row of activations.

A product ``x @ W`` of floats becomes a product of integers (``MatMulIntegerToFloat``: unsigned 8
bits by signed 8 bits, summed exactly in 32 bits). Each column of W has its own scale. Each row of x
is divided by its largest magnitude, by which the products are multiplied again. Rows therefore do
not affect each other, and no audio can exceed a calibrated range. After a GELU, which is never less
than -0.17, the zero point is near the lower end, so positive values have nearly all of the 255
steps.

:mod:`whisper_opt.export.quantization.smoothing` makes rows more even before they are rounded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from whisper_opt.core.arrays import F32, NDArray
from whisper_opt.export.checkpoints.checkpoint import Tensor
from whisper_opt.export.graphs.builder import GraphBuilder, Together
from whisper_opt.export.graphs.linear import Gelu, Linear
from whisper_opt.export.graphs.operators import (
    GELU_LINEAR_ADD,
    LINEAR,
    LINEAR_ADD,
    NORM_LINEAR,
    Operator,
)
from whisper_opt.export.graphs.packed_weights import packed_weight
from whisper_opt.export.graphs.precision import Precision
from whisper_opt.export.quantization.activation_stats import ActivationStats
from whisper_opt.export.quantization.smoothing import NormSmoothing, Smoothing, norm_before

__all__ = ["Int8Linear", "round_columns"]


def round_columns(weight: F32) -> tuple[NDArray, F32]:
    """Quantize float32 [n_in, n_out] to int8 of the same shape and one scale per column."""
    scale = np.maximum(np.abs(weight).max(axis=0) / np.float32(127), np.float32(1e-12))
    return np.rint(weight / scale).astype(np.int8), scale.astype(np.float32)


class Int8Linear(Linear):
    """Projections as :class:`~whisper_opt.export.graphs.linear.Linear`, in 8 bits."""

    def __init__(
        self,
        builder: GraphBuilder,
        tensors: Mapping[str, Tensor],
        types: Precision,
        stats: Mapping[str, ActivationStats],
    ) -> None:
        """``stats``: statistics of the inputs of all products, by their names."""
        super().__init__(builder, tensors, types)
        self._smoothing = NormSmoothing(tensors, stats)

    def norm(self, name: str) -> tuple[str, str]:
        """As of :class:`Linear`, with the smoothing of its consumers."""
        if not self._smoothing.consumers(name):
            return super().norm(name)
        smoothing = self._smoothing.of(name)
        gain, shift = (self.tensors[f"{name}.{part}"] for part in ("weight", "bias"))
        state = gain.shape
        return (
            self.builder.weight(f"{name}.weight", state, lambda: gain.read() / smoothing.scale),
            self.builder.weight(
                f"{name}.bias", state, lambda: (shift.read() - smoothing.mean) / smoothing.scale
            ),
        )

    # products

    def __call__(self, value: str, name: str, *, bias: bool = True) -> str:
        """As of :class:`Linear`. Without ``bias``, the product of the mean is still added."""
        return self._product(LINEAR, [value], name, [name], bias=bias)

    def norm_linear(self, value: str, norm: str, name: str) -> str:
        """As of :class:`Linear`."""
        return self._product(NORM_LINEAR, [value, *self.norm(norm)], name, [name])

    def norm_qkv(self, value: str, norm: str, name: str) -> str:
        """As of :class:`Linear`."""
        parts = [f"{name}.{part}" for part in ("query", "key", "value")]
        return self._product(NORM_LINEAR, [value, *self.norm(norm)], f"{name}.qkv", parts)

    def linear_add(self, value: str, inner: str, name: str) -> str:
        """As of :class:`Linear`."""
        return self._product(LINEAR_ADD, [inner], name, [name], [value])

    def gelu_linear_add(self, value: str, inner: str, name: str, gelu: Gelu) -> str:
        """As of :class:`Linear`."""
        return self._product(GELU_LINEAR_ADD, [inner], name, [name], [value])

    def _product(
        self,
        operator: Operator,
        first: Sequence[str],
        name: str,
        parts: Sequence[str],
        last: Sequence[str] = (),
        *,
        bias: bool = True,
    ) -> str:
        """The projections ``parts`` side by side, by one operator.

        ``first`` and ``last`` are the operator's inputs before and after the weights.
        """
        norm = norm_before(parts[0])
        smoothing = self._smoothing.of(norm) if norm else None
        shape = self._shape(parts)
        columns = Together(lambda: round_columns(self._read(parts, smoothing)))
        integers = columns.part("weight", lambda found: found[0])
        scales = columns.part("scale", lambda found: found[1])
        weight = packed_weight(self.builder, f"{name}.weight", shape, integers)
        scale = self.builder.weight(f"{name}.scale", shape[1:], scales)
        offset = self.builder.weight(
            f"{name}.bias", shape[1:], lambda: self._offset(parts, smoothing, bias)
        )
        return operator(self.builder, *first, weight, scale, offset, *last)

    def _shape(self, parts: Sequence[str]) -> tuple[int, int]:
        shapes = [self.tensors[f"{part}.weight"].shape for part in parts]
        return shapes[0][1], sum(shape[0] for shape in shapes)

    def _read(self, parts: Sequence[str], smoothing: Smoothing | None) -> F32:
        weight = np.concatenate([self.tensors[f"{part}.weight"].read() for part in parts]).T
        return np.ascontiguousarray(
            weight if smoothing is None else weight * smoothing.scale[:, None]
        )

    def _offset(self, parts: Sequence[str], smoothing: Smoothing | None, bias: bool) -> F32:
        """Biases [n_out], plus the product of the mean; keys have no bias."""
        found = []
        for part in parts:
            weight, own = self.tensors[f"{part}.weight"], self.tensors.get(f"{part}.bias")
            total = own.read() if bias and own is not None else np.zeros(weight.shape[0])
            if smoothing is not None:
                total = total + np.einsum(
                    "on,n->o", weight.read(), smoothing.mean, dtype=np.float64
                )
            found.append(total)
        return np.concatenate(found).astype(np.float32)
