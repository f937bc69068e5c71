"""What is moved from the inputs of products into their weights before these are rounded.

Exact but for rounding: each channel's mean is taken out (``x @ W = (x - m) @ W + m @ W``) and loud
channels are made quieter while their weights grow (SmoothQuant: Xiao et al. 2022,
arXiv:2211.10438), by powers of two. A layer normalization before the product takes both in.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from whisper_opt.core.arrays import F32
from whisper_opt.export.checkpoints.checkpoint import Tensor
from whisper_opt.export.quantization.activation_stats import ActivationStats

__all__ = ["Smoothing", "NormSmoothing", "smooth", "norm_before"]


class Smoothing:
    """What is moved from the inputs of some products into their weights and biases.

    Attributes:
        mean: float32 [n_in], taken from the input.
        scale: float32 [n_in], what the input is divided by, powers of two.
    """

    def __init__(self, mean: F32, scale: F32) -> None:
        """See the attributes."""
        self.mean = mean
        self.scale = scale


def smooth(spread: ActivationStats, weight_absmax: F32) -> Smoothing:
    """Share the unevenness of channels between an input and the weights that multiply it.

    Args:
        spread: of the input.
        weight_absmax: float32 [n_in], largest magnitude of each channel's weights.
    """
    ratio = np.log2(np.maximum(spread.peak, 1e-6) / np.maximum(weight_absmax, 1e-6))
    scale = np.exp2(np.rint((ratio - ratio.mean()) / 2)).astype(np.float32)
    return Smoothing(spread.mean, scale)


def norm_before(product: str) -> str:
    """The layer normalization that a projection reads, or nothing."""
    block, _, part = product.rpartition(".")
    if part in ("key", "value") and block.endswith(".cross_attn"):
        return "encoder.ln_post"
    if part in ("query", "key", "value"):
        return f"{block}_ln"
    return f"{block}_ln" if product.endswith(".mlp.0") else ""


class NormSmoothing:
    """What is folded into every layer normalization of a model."""

    def __init__(self, tensors: Mapping[str, Tensor], stats: Mapping[str, ActivationStats]) -> None:
        """``stats``: of the inputs of all products, by their names."""
        self._tensors = tensors
        self._spreads = stats
        self._known: dict[str, Smoothing] = {}

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
        """What goes into one layer normalization."""
        if norm not in self._known:
            names = self.consumers(norm)
            absmax = [np.abs(self._tensors[f"{name}.weight"].read()).max(axis=0) for name in names]
            self._known[norm] = smooth(self._spreads[names[0]], np.max(absmax, axis=0))
        return self._known[norm]
