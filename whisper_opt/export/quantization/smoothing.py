"""SmoothQuant: makes the channels of inputs more even before quantization.

SmoothQuant (Xiao et al. 2022, arXiv:2211.10438) divides large channels of an input by scales and
multiplies their weights by the same scales, here powers of two. Each channel's mean is subtracted
too (``x @ W = (x - m) @ W + m @ W``). Both are exact but for rounding. The layer normalization
before the product applies them to the input at no cost.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from whisper_opt.core.arrays import F32
from whisper_opt.export.checkpoints.checkpoint import Tensor
from whisper_opt.export.quantization.activation_stats import ActivationStats

__all__ = ["NormSmoothing", "Smoothing", "norm_before", "smooth"]


class Smoothing:
    """The shift and scales of the input of some products.

    Attributes:
        mean: float32 [n_in], subtracted from the input.
        scale: float32 [n_in], powers of two by which the input is divided.
    """

    def __init__(self, mean: F32, scale: F32) -> None:
        """See the attributes."""
        self.mean = mean
        self.scale = scale


def smooth(stats: ActivationStats, weight_absmax: F32) -> Smoothing:
    """Divide the unevenness of channels between an input and its weights.

    Args:
        stats: statistics of the input.
        weight_absmax: float32 [n_in], largest magnitude of each channel's weights.
    """
    ratio = np.log2(np.maximum(stats.peak, 1e-6) / np.maximum(weight_absmax, 1e-6))
    scale = np.exp2(np.rint((ratio - ratio.mean()) / 2)).astype(np.float32)
    return Smoothing(stats.mean, scale)


def norm_before(product: str) -> str:
    """The layer normalization before a projection, or an empty string."""
    block, _, part = product.rpartition(".")
    if part in ("key", "value") and block.endswith(".cross_attn"):
        return "encoder.ln_post"
    if part in ("query", "key", "value"):
        return f"{block}_ln"
    return f"{block}_ln" if product.endswith(".mlp.0") else ""


class NormSmoothing:
    """The smoothing of every layer normalization of a model."""

    def __init__(self, tensors: Mapping[str, Tensor], stats: Mapping[str, ActivationStats]) -> None:
        """``stats``: statistics of the inputs of all products, by their names."""
        self._tensors = tensors
        self._stats = stats
        self._smoothing: dict[str, Smoothing] = {}

    def consumers(self, norm: str) -> list[str]:
        """The projections whose input is a layer normalization; none for the output head's."""
        if norm == "encoder.ln_post":
            ends = (".cross_attn.key", ".cross_attn.value")
            return [name[:-7] for name in self._tensors if name[:-7].endswith(ends)]
        block, _, kind = norm.rpartition(".")
        parts = {
            "attn_ln": ("attn.query", "attn.key", "attn.value"),
            "cross_attn_ln": ("cross_attn.query",),
            "mlp_ln": ("mlp.0",),
        }
        return [f"{block}.{part}" for part in parts.get(kind, ())]

    def of(self, norm: str) -> Smoothing:
        """The smoothing of one layer normalization."""
        if norm not in self._smoothing:
            names = self.consumers(norm)
            absmax = [np.abs(self._tensors[f"{name}.weight"].read()).max(axis=0) for name in names]
            self._smoothing[norm] = smooth(self._stats[names[0]], np.max(absmax, axis=0))
        return self._smoothing[norm]
