"""The types of all values of a graph, which ``--precision`` selects.

Graphs are strongly typed: the ONNX types alone define the arithmetic (TensorRT 11 has no FP16
flag). Every change of type is an explicit ``Cast``. Log-mel, scores and attention scores are
float32 in every precision.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from onnx import helper

from whisper_opt.core.errors import OptionError
from whisper_opt.export.graphs.groups import HEAD, matches

__all__ = [
    "FP16",
    "FP32",
    "INT4",
    "INT8",
    "INT8_AVX2",
    "PRECISIONS",
    "STORED",
    "Precision",
    "make_precision",
]

_F16, _F32 = np.dtype(np.float16), np.dtype(np.float32)


@dataclasses.dataclass(frozen=True)
class Precision:
    """The types of one precision, and the tolerances of its verification.

    Layer normalization and the final scores are float32 in every precision.

    Attributes:
        name: name on the command line and in the manifest.
        compute: type of weights, products, attention and all keys and values.
        residual: type of the residual stream.
        measure: measure of errors against the checkpoint in float32. ``largest``: the largest error
            relative to the largest value. ``rms``: the root mean square relative to that of the
            values, for quantized graphs, whose largest error of a million values says little.
        cross_tolerance: largest relative error of the cross-attention keys and values, and of the
            attention scores.
        logits_tolerance: largest relative error of the scores.
        bits: bits of the decoder's weights if these are integers (the encoder's then have 8), else
            None.
        storage: type in the files of matrices of floats, positions and (without ``bits``)
            convolutions, if it is not ``compute``. They are converted when the engine is loaded.
        fused: whether the ``standard`` dialect has self-attention as one operator. That of ONNX
            Runtime rounds its scores to float16 on the CPU, unlike fused GPU kernels. A float16
            graph therefore spells out what such a kernel computes (float32 scores and softmax
            between float16 products), and a TensorRT build replaces it by one operator
            (:func:`whisper_opt.export.tensorrt.operators.with_attention`).
        hadamard: whether queries and keys of the decoder's self-attention are in the Hadamard basis
            (:mod:`whisper_opt.export.quantization.hadamard`), in which rounding errors are smaller.
            Elsewhere this gained nothing in measurements, since transformed weights are no longer
            exact float16 numbers.
        kept: groups of products (:mod:`whisper_opt.export.graphs.groups`) at higher precision: in
            float32 if the others have 8 bits, in 8 bits if they have 4.
        four_fit: whether 8-bit weights are so small that sums of four products fit 16 bits
            (:func:`whisper_opt.export.quantization.int8.round_columns`).
    """

    name: str
    compute: np.dtype[Any]
    residual: np.dtype[Any]
    measure: str
    cross_tolerance: float
    logits_tolerance: float
    bits: int | None = None
    storage: np.dtype[Any] | None = None
    fused: bool = True
    hadamard: bool = False
    kept: frozenset[str] = frozenset()
    four_fit: bool = False

    @property
    def head(self) -> Precision:
        """The precision of the embedding and the output head."""
        if not matches(HEAD, self.kept):
            return self
        return dataclasses.replace(self, bits=8 if self.bits == 4 else None, kept=frozenset())

    @property
    def compresses_padding(self) -> bool:
        """Whether padding is compressed: less exact, and faster for short audio."""
        return self.bits is not None

    @property
    def kv(self) -> int:
        """ONNX element type of keys and values at inputs and outputs of the graphs."""
        return int(helper.np_dtype_to_tensor_dtype(self.compute))


# rounding alone gives 4e-5 on ONNX Runtime 1.32, 1.3e-4 on 1.19 (tiny.en, noise), and 3e-6
FP32 = Precision("fp32", _F32, _F32, "largest", cross_tolerance=1e-3, logits_tolerance=1e-4)
FP16 = Precision(
    "fp16",
    _F16,
    _F32,
    "rms",
    cross_tolerance=1e-2,
    logits_tolerance=1e-2,
    fused=False,
    hadamard=True,
)
STORED = Precision(
    "fp16-storage", _F32, _F32, "rms", cross_tolerance=4e-3, logits_tolerance=4e-3, storage=_F16
)
# errors are larger on noise than on speech and in deeper models; errors of wrong graphs are far
# larger (docs/accuracy.md)
INT8 = Precision(
    "int8", _F32, _F32, "rms", cross_tolerance=0.25, logits_tolerance=0.25, bits=8, storage=_F16
)
INT8_AVX2 = dataclasses.replace(INT8, name="int8-avx2", four_fit=True)
# self-attention loses most by 4 bits for its size
INT4 = Precision(
    "int4",
    _F32,
    _F32,
    "rms",
    cross_tolerance=0.25,
    logits_tolerance=0.4,
    bits=4,
    storage=_F16,
    kept=frozenset({"decoder.blocks.*.attn.qkv", "decoder.blocks.*.attn.out"}),
)
PRECISIONS: Mapping[str, Precision] = {
    types.name: types for types in (FP32, FP16, STORED, INT8, INT8_AVX2, INT4)
}
"""All precisions of engines, by name."""


def make_precision(name: str) -> Precision:
    """The precision called ``name``.

    Raises:
        OptionError: no such precision.
    """
    if name not in PRECISIONS:
        raise OptionError(f"precision is {name!r}; expected one of {', '.join(PRECISIONS)}")
    return PRECISIONS[name]
