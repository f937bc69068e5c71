"""How far an export is off, and whether that is too far."""

from __future__ import annotations

from typing import Any

import numpy as np

from whisper_opt.core.errors import VerificationError

__all__ = ["MEASURES", "require_error_below", "largest", "rms"]


def largest(pairs: Any) -> tuple[float, float]:
    """Largest difference, and largest value expected; infinite where not all are finite."""
    error = scale = 0.0
    for expected, found in pairs:
        if not (np.isfinite(found).all() and np.isfinite(expected).all()):
            return float("inf"), float(np.abs(expected).max())
        error = max(error, float(np.abs(found - expected).max()))
        scale = max(scale, float(np.abs(expected).max()))
    return error, scale


def rms(pairs: Any) -> tuple[float, float]:
    """Root mean squares, of the differences and of the values expected; of all pairs together."""
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


def require_error_below(what: str, error: float, allowed: float) -> None:
    """Refuse an engine of which ``what`` is further off than is allowed.

    Raises:
        VerificationError: it is.
    """
    if not error <= allowed:
        raise VerificationError(
            f"the exported engine's {what} differ from the checkpoint's by {error:.3g}; at most"
            f" {allowed:.3g} is allowed. No engine was written. Try another ONNX Runtime version;"
            " if it stays, report it"
        )
