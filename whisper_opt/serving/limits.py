"""The limits of an engine."""

from __future__ import annotations

import dataclasses

from whisper_opt.core.errors import OptionError

__all__ = ["Limits"]


@dataclasses.dataclass(frozen=True)
class Limits:
    """Arguments of :class:`whisper_opt.serving.Engine`, checked.

    Raises:
        OptionError: a number is out of range.
    """

    max_batch: int
    max_queued: int
    windows_per_step: int
    rows_per_recording: int | None
    reserved_live_rows: int
    readers: int
    idle_unload_s: float | None
    max_held_s: float
    max_live: int | None = None

    def __post_init__(self) -> None:
        _check("max_batch", self.max_batch)
        _check("max_queued", self.max_queued)
        _check("max_windows_per_step", self.windows_per_step)
        _check("readers", self.readers)
        _check("reserved_live_rows", self.reserved_live_rows, low=0)
        if self.rows_per_recording is not None:
            _check("rows_per_recording", self.rows_per_recording)
        if self.max_live is not None:
            _check("max_live", self.max_live)
        for name in ("idle_unload_s", "max_held_s"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise OptionError(f"{name} is {value!r}; expected a number of seconds above 0")


def _check(name: str, value: object, low: int = 1) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise OptionError(f"{name} is {value!r}; expected an integer of at least {low}")
