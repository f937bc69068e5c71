"""Names of the two-stage output head in decoder graphs and manifests."""

from __future__ import annotations

__all__ = [
    "APPROXIMATE",
    "APPROXIMATE_SCORES",
    "EMBEDDING",
    "ERROR",
    "EXACT",
    "HIDDEN",
    "MEAN",
    "NORM",
    "OWN_HEAD",
    "SCOPE",
    "SHRINK",
]

EXACT = "exact"
"""Input: indices of the positions whose scores are exact."""
APPROXIMATE = "screened"
"""Input: indices of the positions whose scores are approximate."""
APPROXIMATE_SCORES = "rough"
"""Output: approximate scores of those positions."""
HIDDEN = "hidden"
"""Output: hidden states of those positions."""
SCOPE = "screen"
"""Prefix of the weights, which manifests list as tensors of the runtime."""
EMBEDDING, OWN_HEAD = "decoder.token_embedding.weight", "decoder.head.weight"
"""Tensor of the output head: the token embedding, or a separate matrix."""
MEAN, SHRINK, ERROR, NORM = (f"{SCOPE}.{name}" for name in ("mean", "shrink", "error", "norm"))
"""The other tensors: attributes of :class:`whisper_opt.runtime.head_bounds.HeadBounds`."""
