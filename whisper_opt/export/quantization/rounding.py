"""A plain numpy forward pass in which chosen products are rounded as an engine rounds them.

For measuring what rounding costs, product by product (:mod:`whisper_opt.export.quantization.sensitivity`).
Values are rounded to the numbers that integers stand for and multiplied as floats, which gives what
an engine gives but for the last digits.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping

import numpy as np

from whisper_opt.core.arrays import F32
from whisper_opt.export.checkpoints.checkpoint import OUTPUT_HEAD, Checkpoint
from whisper_opt.export.graphs.groups import HEAD, chosen, group_of
from whisper_opt.export.graphs.operators import GELU_LOW, GELU_STEPS, GELU_ZERO, LEAST
from whisper_opt.export.graphs.precision import Precision
from whisper_opt.export.quantization.activation_stats import Spread
from whisper_opt.export.quantization.head8 import quantize_head
from whisper_opt.export.quantization.int4 import BLOCK, EMBEDDING, NibbleHead, pack, unpack
from whisper_opt.export.quantization.int8 import round_columns
from whisper_opt.export.quantization.smoothing import Folds, norm_before
from whisper_opt.export.verification.reference import Reference

__all__ = ["Rounded"]


def _by_row(x: F32) -> F32:
    loudest = np.maximum(np.abs(x).max(axis=-1, keepdims=True), np.float32(LEAST))
    step = loudest / np.float32(127)
    rounded: F32 = np.rint(x / step) * step
    return rounded


def _after_gelu(x: F32) -> F32:
    least = np.float32(GELU_LOW * GELU_STEPS / GELU_ZERO)
    step = np.maximum(x.max(axis=-1, keepdims=True), least) / np.float32(GELU_STEPS)
    rounded: F32 = np.rint(x / step) * step
    return rounded


class Rounded(Reference):
    """The model of one checkpoint, some groups of whose products are rounded.

    Attributes:
        groups: which (:func:`whisper_opt.export.graphs.groups.group_of`); may be changed at any time.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        spreads: Mapping[str, Spread],
        precision: Precision,
        groups: Collection[str] = (),
    ) -> None:
        """``precision``: int8 or int4, with its ``kept`` groups, which then have 8 bits."""
        super().__init__(checkpoint)
        self.groups = groups
        self._bits, self._kept = precision.bits, precision.kept
        self._folds = Folds(checkpoint.tensors, spreads)
        self._weights = functools.lru_cache(maxsize=16)(self._rounded_weight)
        self._head = functools.lru_cache(maxsize=2)(self._rounded_head)

    def _linear(self, x: F32, name: str, *, bias: bool = True) -> F32:
        group = group_of(name)
        if group not in self.groups:
            return super()._linear(x, name, bias=bias)
        weight = self._weights(name)
        if self._in_nibbles(name):
            blocks = x.reshape(len(x), -1, BLOCK)
            product = _by_row(blocks).reshape(x.shape) @ weight
        elif norm_before(name):
            folded = self._folds.into(norm_before(name))
            even = _by_row((x - folded.mean) / folded.quiet)
            product = even @ weight + self._read(f"{name}.weight") @ folded.mean
        else:
            product = (_after_gelu(x) if name.endswith(".mlp.2") else _by_row(x)) @ weight
        return product + self._read(f"{name}.bias") if bias else product

    def _in_nibbles(self, name: str) -> bool:
        group = group_of(name)
        exact = group.startswith("encoder.") or chosen(group, self._kept)
        return self._bits == 4 and not exact

    def _rounded_weight(self, name: str) -> F32:
        """[n_in, n_out]."""
        weight = self._read(f"{name}.weight")
        if self._in_nibbles(name):
            nibbles: F32 = unpack(*pack(weight)).T
            return nibbles
        columns = weight.T
        if norm_before(name):
            columns = columns * self._folds.into(norm_before(name)).quiet[:, None]
        integers, scale = round_columns(columns)
        rounded: F32 = integers * scale
        return rounded

    def _embedding(self) -> F32:
        return self._head(EMBEDDING) if HEAD in self.groups else super()._embedding()

    def _output_head(self, embedding: F32) -> F32:
        if HEAD in self.groups and OUTPUT_HEAD in self._tensors:
            return self._head(OUTPUT_HEAD)
        return super()._output_head(embedding)

    def _rounded_head(self, matrix: str) -> F32:
        if self._bits == 4 and not chosen(HEAD, self._kept):
            return NibbleHead(self._tensors, matrix).rows()
        parts = (matrix, "decoder.ln.weight", "decoder.ln.bias")
        head = quantize_head(*(self._tensors[part] for part in parts))
        rounded: F32 = head.weight.T * head.scale[:, None] * head.shrink + head.mean
        return rounded
