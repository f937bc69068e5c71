"""A numpy forward pass that quantizes selected products as an engine does.

:mod:`whisper_opt.export.quantization.sensitivity` measures the cost of quantization with it.
Values are quantized, converted back and multiplied as floats. Results equal those of an engine but
for the last digits.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping

import numpy as np

from whisper_opt.core.arrays import F32
from whisper_opt.export.checkpoints.checkpoint import EMBEDDING, OUTPUT_HEAD, Checkpoint
from whisper_opt.export.graphs.groups import HEAD, group_of, matches
from whisper_opt.export.graphs.operators import GELU_MIN, GELU_STEPS, GELU_ZERO_POINT, MIN_ABSMAX
from whisper_opt.export.graphs.precision import Precision
from whisper_opt.export.quantization.activation_stats import ActivationStats
from whisper_opt.export.quantization.head8 import quantize_head
from whisper_opt.export.quantization.int4 import BLOCK, Int4Head, pack_int4, unpack_int4
from whisper_opt.export.quantization.int8 import round_columns
from whisper_opt.export.quantization.smoothing import NormSmoothing, norm_before
from whisper_opt.export.verification.reference import Reference

__all__ = ["QuantizedReference"]


def _quantize_rows(x: F32) -> F32:
    absmax = np.maximum(np.abs(x).max(axis=-1, keepdims=True), np.float32(MIN_ABSMAX))
    step = absmax / np.float32(127)
    rounded: F32 = np.rint(x / step) * step
    return rounded


def _quantize_after_gelu(x: F32) -> F32:
    least = np.float32(GELU_MIN * GELU_STEPS / GELU_ZERO_POINT)
    step = np.maximum(x.max(axis=-1, keepdims=True), least) / np.float32(GELU_STEPS)
    rounded: F32 = np.rint(x / step) * step
    return rounded


class QuantizedReference(Reference):
    """The model of one checkpoint with some groups of products quantized.

    Attributes:
        groups: the quantized groups (:func:`whisper_opt.export.graphs.groups.group_of`). May be
            changed at any time.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        stats: Mapping[str, ActivationStats],
        precision: Precision,
        groups: Collection[str] = (),
    ) -> None:
        """``precision``: int8 or int4. Quantized groups have 8 bits if ``kept`` matches them."""
        super().__init__(checkpoint)
        self.groups = groups
        self._bits, self._kept = precision.bits, precision.kept
        self._four_fit = precision.four_fit
        self._smoothing = NormSmoothing(checkpoint.tensors, stats)
        self._weights = functools.lru_cache(maxsize=16)(self._rounded_weight)
        self._head = functools.lru_cache(maxsize=2)(self._rounded_head)

    def _linear(self, x: F32, name: str, *, bias: bool = True) -> F32:
        group = group_of(name)
        if group not in self.groups:
            return super()._linear(x, name, bias=bias)
        weight = self._weights(name)
        if self._is_int4(name):
            blocks = x.reshape(len(x), -1, BLOCK)
            product = _quantize_rows(blocks).reshape(x.shape) @ weight
        elif norm_before(name):
            smoothing = self._smoothing.of(norm_before(name))
            smoothed = _quantize_rows((x - smoothing.mean) / smoothing.scale)
            product = smoothed @ weight + self._read(f"{name}.weight") @ smoothing.mean
        else:
            product = (
                _quantize_after_gelu(x) if name.endswith(".mlp.2") else _quantize_rows(x)
            ) @ weight
        return product + self._read(f"{name}.bias") if bias else product

    def _is_int4(self, name: str) -> bool:
        group = group_of(name)
        exact = group.startswith("encoder.") or matches(group, self._kept)
        return self._bits == 4 and not exact

    def _rounded_weight(self, name: str) -> F32:
        """[n_in, n_out]."""
        weight = self._read(f"{name}.weight")
        if self._is_int4(name):
            unpacked: F32 = unpack_int4(*pack_int4(weight)).T
            return unpacked
        columns = weight.T
        if norm_before(name):
            columns = columns * self._smoothing.of(norm_before(name)).scale[:, None]
        integers, scale = round_columns(columns, four_fit=self._four_fit)
        rounded: F32 = integers * scale
        return rounded

    def _embedding(self) -> F32:
        return self._head(EMBEDDING) if HEAD in self.groups else super()._embedding()

    def _output_head(self, embedding: F32) -> F32:
        if HEAD in self.groups and OUTPUT_HEAD in self._tensors:
            return self._head(OUTPUT_HEAD)
        return super()._output_head(embedding)

    def _rounded_head(self, matrix: str) -> F32:
        if self._bits == 4 and not matches(HEAD, self._kept):
            return Int4Head(self._tensors, matrix).rows()
        parts = (matrix, "decoder.ln.weight", "decoder.ln.bias")
        head = quantize_head(*(self._tensors[part] for part in parts))
        rounded: F32 = head.weight.T * head.scale[:, None] * head.shrink + head.mean
        return rounded
