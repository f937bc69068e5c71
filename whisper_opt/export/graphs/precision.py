"""Which type every value of a graph has: the whole of what ``--precision`` means.

Graphs are strongly typed: arithmetic follows the ONNX types and nothing else (TensorRT 11 has no
FP16 flag), and where the policy changes the type, the graph has an explicit ``Cast``. Inputs and
outputs that hosts see keep their types in every precision: log-mel, scores and attention float32.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from onnx import helper

from whisper_opt.core.errors import OptionError
from whisper_opt.export.graphs.groups import HEAD, matches

__all__ = ["FP16", "FP32", "INT4", "INT8", "PRECISIONS", "STORED", "Precision", "make_precision"]

_F16, _F32 = np.dtype(np.float16), np.dtype(np.float32)


@dataclasses.dataclass(frozen=True)
class Precision:
    """The types of one arithmetic, and how exact its graphs must be.

    Layer normalization and the final scores are float32 in every precision.

    Attributes:
        name: as the command line and the manifest call it.
        compute: weights, products, attention and all keys and values.
        residual: the stream that layers add to.
        measure: what is judged of errors against the checkpoint in float32: the ``largest``, as a
            share of the largest value; or the root mean square (``rms``), as a share of that of the
            values: where values are rounded one in a million is far off, and that says little.
        cross_tolerance: how large that share may be of the cross-attention keys and values, and of
            the attention scores.
        logits_tolerance: how large it may be of the scores.
        bits: of the decoder's weights where they are integers (the encoder's then have 8); None
            where they are floats.
        storage: type in the files of what is computed in another one, and converted at load:
            matrices of floats, positions, convolutions. None where that is ``compute``.
        fused: whether the ``standard`` dialect says self-attention in one operator. ONNX Runtime's
            rounds its scores to float16 on the CPU, no fused kernel of a GPU does; so the graph
            says what such a kernel computes (float32 scores and softmax between float16 products)
            and a TensorRT build makes one operator of it (``tensorrt_ops.with_attention``).
        hadamard: whether queries and keys of the decoder's self-attention are in a basis in which
            rounding costs less (:mod:`whisper_opt.export.quantization.hadamard`). Elsewhere that was measured to
            win no more than weights lose that are no float16 numbers any more.
        kept: groups of products (:mod:`whisper_opt.export.graphs.groups`) that are a step more exact than
            the rest: float32 where the rest has 8 bits, 8 bits where it has 4.
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

    @property
    def head(self) -> Precision:
        """The policy of the embedding, which is the output head's too."""
        if not matches(HEAD, self.kept):
            return self
        return dataclasses.replace(self, bits=8 if self.bits == 4 else None, kept=frozenset())

    @property
    def compresses_padding(self) -> bool:
        """Whether padding is heard by parts: less exact, and faster the shorter the sound is."""
        return self.bits is not None

    @property
    def kv(self) -> int:
        """ONNX element type of the keys and values that go in and out of the graphs."""
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
# what 8 bits do to noise is more than what they do to speech, and more in deeper models; what is
# wrong is far beyond: docs/accuracy.md
INT8 = Precision(
    "int8", _F32, _F32, "rms", cross_tolerance=0.25, logits_tolerance=0.25, bits=8, storage=_F16
)
# self-attention is what 4 bits hurt most for its size
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
    types.name: types for types in (FP32, FP16, STORED, INT8, INT4)
}
"""Every arithmetic an engine can be exported in, by name."""


def make_precision(name: str) -> Precision:
    """The policy called ``name``.

    Raises:
        OptionError: no such precision.
    """
    if name not in PRECISIONS:
        raise OptionError(f"precision is {name!r}; expected one of {', '.join(PRECISIONS)}")
    return PRECISIONS[name]
