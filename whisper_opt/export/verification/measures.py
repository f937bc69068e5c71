"""Measures of the errors of an export, and their limits."""

from __future__ import annotations

from typing import Any

import numpy as np

from whisper_opt.core.errors import VerificationError

__all__ = ["MEASURES", "largest", "require_error_below", "rms"]


def largest(pairs: Any) -> tuple[float, float]:
    """Largest error and largest expected value; the error is infinite if a value is not finite."""
    error = scale = 0.0
    for expected, found in pairs:
        if not (np.isfinite(found).all() and np.isfinite(expected).all()):
            return float("inf"), float(np.abs(expected).max())
        error = max(error, float(np.abs(found - expected).max()))
        scale = max(scale, float(np.abs(expected).max()))
    return error, scale


def rms(pairs: Any) -> tuple[float, float]:
    """Root mean squares of the errors and of the expected values, over all pairs."""
    squares = np.zeros(2)
    n = 0
    for expected, found in pairs:
        difference = np.asarray(found, np.float64) - expected
        squares += np.square(difference).sum(), np.square(expected, dtype=np.float64).sum()
        n += difference.size
    if not np.isfinite(squares).all():
        return float("inf"), float(np.sqrt(squares[1] / n))
    error, scale = np.sqrt(squares / n)
    return float(error), float(scale)


MEASURES = {"largest": largest, "rms": rms}


def require_error_below(name: str, error: float, allowed: float) -> None:
    """Check that the error of ``name`` is at most ``allowed``.

    Raises:
        VerificationError: the error is larger, or is not a number.
    """
    if not error <= allowed:
        raise VerificationError(
            f"the exported engine's {name} differ from the checkpoint's by {error:.3g}; at most"
            f" {allowed:.3g} is allowed. No engine was written. Try another ONNX Runtime version;"
            " if the error remains, report it"
        )
