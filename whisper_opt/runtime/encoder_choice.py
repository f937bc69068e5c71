"""Choice of the encoder's precision on the CPU: that of the engine, or a faster one in OpenVINO.

The default is the precision of the engine, which gives the same words as the reference. ``auto``
measures the speedup on this CPU (:mod:`whisper_opt.runtime.openvino.probe`) and chooses the most
exact arithmetic whose speedup is large enough.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Callable

from whisper_opt.core.errors import BackendUnavailable

__all__ = ["MIN_SPEEDUP", "EncoderChoice", "choose_encoder", "fastest"]

MIN_SPEEDUP = 1.3
"""Smallest speedup of matrix multiplications for which a less exact arithmetic is chosen."""


@dataclasses.dataclass(frozen=True)
class EncoderChoice:
    """Precision in which the encoder is computed.

    Attributes:
        precision: ``engine``: ONNX Runtime, in the precision of the engine; ``bf16`` or ``int8``:
            OpenVINO.
        reason: one line that explains the choice to users.
    """

    precision: str
    reason: str


def fastest(times: Mapping[str, float]) -> EncoderChoice:
    """The choice of ``auto`` for an fp32 engine.

    Args:
        times: seconds per matrix multiplication in ``fp32``, and in ``bf16`` and ``int8`` if the
            CPU supports them.
    """
    best = "fp32"
    for name in ("bf16", "int8"):  # the more exact one first: int8 must beat it by the same factor
        if name in times and times[best] >= MIN_SPEEDUP * times[name]:
            best = name
    gains = [f"{name} {times['fp32'] / times[name]:.1f}" for name in times if name != "fp32"]
    reason = f"speed of OpenVINO relative to its fp32: {', '.join(gains) or 'nothing else'}"
    return EncoderChoice("engine" if best == "fp32" else best, reason)


def choose_encoder(
    wanted: str, exported: str, measure: Callable[[], Mapping[str, float]]
) -> EncoderChoice:
    """Resolve the option ``encoder_precision``.

    Args:
        wanted: ``engine``, ``bf16``, ``int8`` or ``auto``.
        exported: precision of the engine.
        measure: returns the times for :func:`fastest`; called for ``auto`` only. May raise
            BackendUnavailable.
    """
    if wanted != "auto":
        return EncoderChoice(wanted, "as requested")
    if exported != "fp32":
        return EncoderChoice("engine", f"the engine is {exported}")
    try:
        return fastest(measure())
    except BackendUnavailable as error:
        return EncoderChoice("engine", str(error))
