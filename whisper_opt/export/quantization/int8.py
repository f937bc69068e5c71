"""Products in 8 bits: one scale per column of weights, one per row of activations.

A product ``x @ W`` of floats becomes a product of integers (``MatMulIntegerToFloat``: unsigned 8
bits by signed 8 bits, summed exactly in 32 bits). Each column of W has its own scale. Each row of x
is divided by its largest magnitude, by which the products are multiplied again. Rows therefore do
not affect each other, and no audio can exceed a calibrated range. After a GELU, which is never less
than -0.17, the zero point is near the lower end, so positive values have nearly all of the 255
steps.

In precision ``int8-avx2`` scales of columns are as large as is needed for sums of four products to
fit 16 bits: AVX2 then adds two results of its instruction for bytes (vpmaddubsw) before it widens
them (docs/kernels.md).

:mod:`whisper_opt.export.quantization.smoothing` makes rows more even before they are rounded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from whisper_opt.core.arrays import F32, NDArray
from whisper_opt.export.checkpoints.checkpoint import Tensor
from whisper_opt.export.graphs.builder import GraphBuilder, Together
from whisper_opt.export.graphs.operators import LINEARS
from whisper_opt.export.graphs.packed_weights import packed_weight
from whisper_opt.export.graphs.precision import Precision
from whisper_opt.export.quantization.activation_stats import ActivationStats
from whisper_opt.export.quantization.fused import FusedLinear
from whisper_opt.export.quantization.smoothing import NormSmoothing, Smoothing, norm_before

__all__ = ["FOUR_LIMIT", "Int8Linear", "largest_fours", "round_columns"]


FOUR_LIMIT = 128
"""Largest sum of the positive or of the negative weights of four inputs: 255 times as much fits 16
bits with a sign."""
_WIDER = np.float32(1.004)
"""Factor of scales while rounding makes a sum larger than the limit."""


def largest_fours(weight: NDArray) -> NDArray:
    """Largest sums [n_out] of the positive or negative weights of four inputs, in every column.

    The four of weights [n_in, n_out] are inputs 0, 1, 4, 5 and 2, 3, 6, 7 of every eight.
    """
    n_in, n_out = weight.shape
    rows = np.pad(weight, ((0, -n_in % 8), (0, 0))).reshape(-1, 2, 2, 2, n_out)
    positive = np.maximum(rows, 0).sum(axis=(1, 3))
    negative = np.maximum(-rows, 0).sum(axis=(1, 3))
    largest: NDArray = np.maximum(positive, negative).max(axis=(0, 1))
    return largest


def round_columns(weight: F32, *, four_fit: bool = False) -> tuple[NDArray, F32]:
    """Quantize float32 [n_in, n_out] to int8 of the same shape and one scale per column.

    With ``four_fit`` no sum of :func:`largest_fours` exceeds :data:`FOUR_LIMIT`.
    """
    scale = np.maximum(np.abs(weight).max(axis=0) / np.float32(127), np.float32(1e-12))
    if not four_fit:
        return np.rint(weight / scale).astype(np.int8), scale.astype(np.float32)
    limit = largest_fours(weight) / np.float32(FOUR_LIMIT)
    scale = np.maximum(scale, limit).astype(np.float32)
    integers = np.rint(weight / scale)
    above = np.flatnonzero(largest_fours(integers) > FOUR_LIMIT)
    while len(above):
        scale[above] *= _WIDER
        integers[:, above] = np.rint(weight[:, above] / scale[above])
        above = above[largest_fours(integers[:, above]) > FOUR_LIMIT]
    return integers.astype(np.int8), scale


class Int8Linear(FusedLinear):
    """Projections as :class:`~whisper_opt.export.graphs.linear.Linear`, in 8 bits."""

    operators = LINEARS

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

    def _declare_weights(
        self, name: str, parts: Sequence[str], shape: tuple[int, int]
    ) -> Sequence[str]:
        smoothing = self._smoothing_of(parts[0])

        def read() -> F32:
            whole = np.concatenate([self.tensors[f"{part}.weight"].read() for part in parts]).T
            smoothed = whole if smoothing is None else whole * smoothing.scale[:, None]
            return np.ascontiguousarray(smoothed)

        four_fit = self.types.four_fit
        columns = Together(lambda: round_columns(read(), four_fit=four_fit))
        integers = columns.part("weight", lambda found: found[0])
        scales = columns.part("scale", lambda found: found[1])
        return (
            packed_weight(self.builder, f"{name}.weight", shape, integers),
            self.builder.weight(f"{name}.scale", shape[1:], scales),
        )

    def _smoothing_of(self, part: str) -> Smoothing | None:
        norm = norm_before(part)
        return self._smoothing.of(norm) if norm else None

    def _offset(self, part: str, *, bias: bool) -> NDArray:
        """The bias plus the product of the mean, which is added without ``bias`` too."""
        total, smoothing = super()._offset(part, bias=bias), self._smoothing_of(part)
        if smoothing is None:
            return total
        weight = self.tensors[f"{part}.weight"].read()
        product: NDArray = np.einsum("on,n->o", weight, smoothing.mean, dtype=np.float64)
        return total + product
