"""Whose update is decoded next."""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import Callable

__all__ = ["UpdateTurns"]


class UpdateTurns:
    """Limits how many updates of live sessions are decoded at once.

    On a CPU updates that are decoded at once delay each other more than they would if one waited
    for the other, and one that waits gets all audio that has come meanwhile. The next update of a
    session begins a fixed time after the last one began, so two that met once do not meet again.

    All calls are made in one thread.
    """

    def __init__(self, at_once: float = math.inf) -> None:
        """No updates; ``at_once``: how many are decoded at once."""
        self._at_once = at_once
        self._running: set[Hashable] = set()
        self._waiting: dict[Hashable, tuple[float, Callable[[], object]]] = {}
        self._calling = False  # sessions that wait

    def begin(self, session: Hashable, deadline: float, again: Callable[[], object]) -> bool:
        """Whether a session may begin an update.

        If not, ``again`` is called when it may; the earliest deadline comes first. A session that
        has begun must call :meth:`end`.
        """
        if len(self._running) >= self._at_once:
            self._waiting.setdefault(session, (deadline, again))
            return False
        self._running.add(session)
        return True

    def end(self, session: Hashable) -> None:
        """The update of a session has ended, or the session has."""
        self._running.discard(session)
        self._waiting.pop(session, None)
        if self._calling:  # by one that was called: the loop below goes on
            return
        self._calling = True
        try:
            while self._waiting and len(self._running) < self._at_once:
                first = min(self._waiting, key=lambda each: self._waiting[each][0])
                self._waiting.pop(first)[1]()
        finally:
            self._calling = False
