"""Names of the inputs and outputs of the two-stage output head in decoder graphs."""

from __future__ import annotations

__all__ = ["APPROXIMATE", "APPROXIMATE_SCORES", "EXACT", "HIDDEN"]

EXACT = "exact"
"""Input: indices of the positions whose scores are exact."""
APPROXIMATE = "screened"
"""Input: indices of the positions whose scores are approximate."""
APPROXIMATE_SCORES = "rough"
"""Output: approximate scores of those positions."""
HIDDEN = "hidden"
"""Output: hidden states of those positions."""
