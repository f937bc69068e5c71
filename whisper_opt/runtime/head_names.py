"""Names of the two-stage output head in decoder graphs: inputs, outputs and weights."""

from __future__ import annotations

__all__ = ["APPROXIMATE", "APPROXIMATE_SCORES", "EXACT", "HIDDEN", "SCOPE"]

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
