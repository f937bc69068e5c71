"""How many live sessions an engine can serve in time."""

from __future__ import annotations

__all__ = ["Capacity"]

_SHARE = 0.8
"""Part of the time that live sessions may take if people speak in all of them."""
_UNMEASURED = 8
"""Sessions at most while the cost of an update is not known."""
_ENOUGH = 5.0
"""Seconds of audio after which the cost is known."""
_RECENT = 120.0
"""Seconds of audio; older costs count half as much, and so on."""


class Capacity:
    """Measures what a second of speech costs."""

    def __init__(self, most: int | None = None) -> None:
        """``most``: this many sessions, whatever they cost; default: by what they cost."""
        self._most = most
        self._work = self._audio = 0.0

    def worked(self, work: float, audio: float) -> None:
        """Add seconds of work for seconds of new audio."""
        self._work += work
        self._audio += audio
        if self._audio > _RECENT:
            self._work /= 2
            self._audio /= 2

    @property
    def sessions(self) -> int:
        """Sessions that can be served if people speak in all of them."""
        if self._most is not None:
            return self._most
        if self._audio < _ENOUGH:
            return _UNMEASURED
        return max(1, int(_SHARE * self._audio / max(self._work, 1e-9)))
