"""Where the model attends to while it writes each token, for AlignAtt.

The method is that of Simul-Whisper (Wang et al. 2024) and of AlignAtt (Papi et al. 2023): when a
token is written, the attention of the alignment heads is standardised over the tokens so far,
smoothed and averaged; its maximum is the audio that the token belongs to. They do it at each step.
Attention of the decoder is causal, so the same follows from one pass over the whole text.
"""

from __future__ import annotations

import numpy as np

from whisper_opt.core.arrays import F32, Int, softmax
from whisper_opt.transcription.alignment import MEDIAN_WIDTH, CrossAttention, median_filter

__all__ = ["attended"]


def attended(attention: CrossAttention, n_positions: int) -> Int:
    """The position of the audio that the model attends to when it writes each text token.

    Args:
        attention: cross-attention for the text of a window.
        n_positions: positions (20 ms) of audio in the window, 1 or more; others are ignored.

    Returns:
        int64 [n_text], each from 0 to ``n_positions`` - 1. Token i depends on the tokens before it
        only.
    """
    first, n_text = attention.n_start, len(attention.probs)
    # the filter reaches a few positions beyond those that count
    width = min(n_positions + MEDIAN_WIDTH // 2, attention.scores.shape[-1])
    rows = slice(first, first + n_text)
    total = np.zeros((n_text, n_positions), np.float32)
    for scores in attention.scores[:, : first + n_text]:
        weights = softmax(scores)[:, :width]
        standardised = _standardised_so_far(weights)[rows]
        total += median_filter(standardised, MEDIAN_WIDTH)[:, :n_positions]
    places: Int = total.argmax(axis=1)
    return places


def _standardised_so_far(weights: F32) -> F32:
    """Weights [n_tokens, n], each row standardised by the rows up to it: float32, same shape."""
    exact = weights.astype(np.float64)
    count = np.arange(1, len(exact) + 1)[:, None]
    # relative to the first row, so that squares of nearly equal weights do not cancel
    exact -= exact[:1].copy()
    mean = np.cumsum(exact, axis=0) / count
    variance = np.cumsum(np.square(exact), axis=0) / count - np.square(mean)
    deviation = np.sqrt(np.maximum(variance, 0.0))
    result = np.zeros_like(exact)
    np.divide(exact - mean, deviation, out=result, where=deviation > 0)
    found: F32 = result.astype(np.float32)
    return found
