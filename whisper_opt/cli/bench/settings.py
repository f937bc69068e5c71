"""Settings of a benchmark, in a module that is fast to import."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

__all__ = ["LISTS", "Settings"]

LISTS = ("encoder_precision", "threads", "beam_size", "batch_size", "seconds")
"""Settings of which every combination is measured, besides engines."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of the measurement.

    Attributes:
        rounds: timed runs of every configuration.
        warm_up: untimed runs in every new process.
        pause: seconds before each run.
        load: fields of ``LoadOptions`` other than those of the grid.
        options: fields of ``TranscribeOptions`` other than beam and batch.
        arrays: decode audio files before timing starts.
    """

    rounds: int = 5
    warm_up: int = 1
    pause: float = 0.3
    load: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    arrays: bool = False
