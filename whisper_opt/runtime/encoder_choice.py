"""In what an encoder is computed on the CPU: as the engine says, or faster, through OpenVINO.

The default is the engine's own precision, whose words are those of the reference. ``auto`` measures
what this CPU gains (:mod:`whisper_opt.runtime.openvino.probe`) and takes the most exact arithmetic
that is worth it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Callable

from whisper_opt.core.errors import BackendUnavailable

__all__ = ["WORTH_IT", "EncoderChoice", "choose_encoder", "fastest"]

WORTH_IT = 1.3
"""How many times as fast its products must be for a less exact arithmetic to be taken."""


@dataclasses.dataclass(frozen=True)
class EncoderChoice:
    """What computes the encoder.

    Attributes:
        precision: ``engine``: ONNX Runtime, in the precision of the engine; ``bf16`` or ``int8``:
            OpenVINO.
        reason: one line for people.
    """

    precision: str
    reason: str


def fastest(times: Mapping[str, float]) -> EncoderChoice:
    """The choice of ``auto`` for an fp32 engine.

    Args:
        times: seconds of a product in ``fp32``, and in ``bf16`` and ``int8`` where there is that.
    """
    best = "fp32"
    for name in ("bf16", "int8"):  # the more exact one first: int8 has to beat it as clearly
        if name in times and times[best] >= WORTH_IT * times[name]:
            best = name
    gains = [f"{name} {times['fp32'] / times[name]:.1f}" for name in times if name != "fp32"]
    said = f"products of OpenVINO, times the speed of fp32: {', '.join(gains) or 'nothing else'}"
    return EncoderChoice("engine" if best == "fp32" else best, said)


def choose_encoder(
    wanted: str, exported: str, measure: Callable[[], Mapping[str, float]]
) -> EncoderChoice:
    """What the option ``encoder_precision`` comes to.

    Args:
        wanted: ``engine``, ``bf16``, ``int8`` or ``auto``.
        exported: precision of the engine.
        measure: times products, as :func:`fastest` takes them; called for ``auto`` alone. May raise
            BackendUnavailable.
    """
    if wanted != "auto":
        return EncoderChoice(wanted, "as asked")
    if exported != "fp32":
        return EncoderChoice("engine", f"the engine is {exported}")
    try:
        return fastest(measure())
    except BackendUnavailable as error:
        return EncoderChoice("engine", str(error))
