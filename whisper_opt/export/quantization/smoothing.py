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
from whisper_opt.export.quantization.activation_stats import Spread

__all__ = ["Folded", "Folds", "fold", "norm_before"]


class Folded:
    """What is moved from the inputs of some products into their weights and biases.

    Attributes:
        mean: float32 [n_in], taken from the input.
        quiet: float32 [n_in], what the input is divided by, powers of two.
    """

    def __init__(self, mean: F32, quiet: F32) -> None:
        """See the attributes."""
        self.mean = mean
        self.quiet = quiet


def fold(spread: Spread, loudest_weights: F32) -> Folded:
    """Share the unevenness of channels between an input and the weights that multiply it.

    Args:
        spread: of the input.
        loudest_weights: float32 [n_in], largest magnitude of each channel's weights.
    """
    ratio = np.log2(np.maximum(spread.peak, 1e-6) / np.maximum(loudest_weights, 1e-6))
    quiet = np.exp2(np.rint((ratio - ratio.mean()) / 2)).astype(np.float32)
    return Folded(spread.mean, quiet)


def norm_before(product: str) -> str:
    """The layer normalization that a projection reads, or nothing."""
    block, _, part = product.rpartition(".")
    if part in ("key", "value") and block.endswith(".cross_attn"):
        return "encoder.ln_post"
    if part in ("query", "key", "value"):
        return f"{block}_ln"
    return f"{block}_ln" if product.endswith(".mlp.0") else ""


class Folds:
    """What is folded into every layer normalization of a model."""

    def __init__(self, tensors: Mapping[str, Tensor], spreads: Mapping[str, Spread]) -> None:
        """``spreads``: of the inputs of all products, by their names."""
        self._tensors = tensors
        self._spreads = spreads
        self._known: dict[str, Folded] = {}

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

    def into(self, norm: str) -> Folded:
        """What goes into one layer normalization."""
        if norm not in self._known:
            names = self.consumers(norm)
            loudest = [np.abs(self._tensors[f"{name}.weight"].read()).max(axis=0) for name in names]
            self._known[norm] = fold(self._spreads[names[0]], np.max(loudest, axis=0))
        return self._known[norm]
