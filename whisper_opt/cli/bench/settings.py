"""How to measure, apart from what measures: a command line can be read without loading that."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

__all__ = ["LISTS", "Settings"]

LISTS = ("encoder_precision", "threads", "beam_size", "batch_size", "seconds")
"""Of what every combination is measured, besides engines."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to measure.

    Attributes:
        rounds: runs of every configuration that count.
        warm_up: runs without a clock in every new process.
        pause: seconds before each run.
        load: fields of ``LoadOptions`` other than those of the grid.
        options: fields of ``TranscribeOptions`` other than beam and batch.
        arrays: sound is read before the clock runs.
    """

    rounds: int = 5
    warm_up: int = 1
    pause: float = 0.3
    load: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    arrays: bool = False
