"""Results of a verification, for the manifest."""

from __future__ import annotations

import dataclasses
from typing import Any

from whisper_opt.export.graphs.precision import FP32

__all__ = ["MANIFEST_KEYS", "Parity"]

MANIFEST_KEYS = {"bound_ratio": "screen_share"}
"""Fields of :class:`Parity` that have another name in the manifest (format 4)."""


@dataclasses.dataclass(frozen=True)
class Parity:
    """Results of a verification.

    Attributes:
        input: input of the model.
        cross_error: error of the cross-attention keys and values: the largest, or the root mean
            square (see ``measure``).
        cross_scale: the largest, or the root mean square, of those values themselves.
        logits_error: error of the decoder's scores.
        logits_scale: size of the scores.
        attention_error: error of the alignment heads' scores.
        attention_scale: size of the alignment heads' scores.
        bound_ratio: largest error of an approximate score relative to its bound; None without a
            two-stage output head.
        openai_whisper: error against openai-whisper's scores; None if it is not installed.
        decoded: prompt and text of the greedily decoded sequence; None without a vocabulary.
        cross_tolerance: largest allowed error relative to ``cross_scale`` (and to
            ``attention_scale``).
        logits_tolerance: largest allowed error relative to ``logits_scale``.
        measure: ``largest`` absolute value, or root mean square (``rms``).
    """

    input: str
    cross_error: float
    cross_scale: float
    logits_error: float
    logits_scale: float
    attention_error: float
    attention_scale: float
    bound_ratio: float | None
    openai_whisper: float | None
    decoded: str | None = None
    cross_tolerance: float = FP32.cross_tolerance
    logits_tolerance: float = FP32.logits_tolerance
    measure: str = FP32.measure

    def to_dict(self) -> dict[str, Any]:
        """The entry of the manifest."""
        measured = dataclasses.asdict(self)
        return {
            **{MANIFEST_KEYS.get(name, name): value for name, value in measured.items()},
            "reference": "numpy fp32",
            "provider": "CPUExecutionProvider",  # other providers' kernels were not run
        }
