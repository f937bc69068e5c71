"""Virtual time for live systems: a clock that goes on by CPU time, and what they showed when.

Imported in the environments of the systems, which have numpy.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Callable

import numpy as np

__all__ = ["SAMPLE_RATE", "Clock", "Heard", "main_of"]

SAMPLE_RATE = 16_000


class Clock:
    """Seconds that go on by the time of the work, and by what is waited for.

    Waiting takes no time. The time of the work is the CPU time of the process: with one thread that
    of a core that does nothing else. With more threads it is that of the clock on the wall, and the
    machine must have no other work.
    """

    def __init__(self, threads: int) -> None:
        self._worked = time.process_time if threads == 1 else time.perf_counter
        self._idle = -self._worked()
        self.waited = 0.0

    def now(self) -> float:
        """The virtual time."""
        return self._idle + self._worked()

    def skip(self, seconds: float) -> None:
        """Wait."""
        self._idle += seconds
        self.waited += seconds


@dataclasses.dataclass
class Heard:
    """A recording that is played to a session from a virtual time on, and the session's output.

    Attributes:
        samples: float32 [n] at 16 kHz.
        start: virtual time of the first sample.
        arrived: virtual time at which the newest audio that was taken had arrived.
        log: (seconds since ``start``, ``committed``, ``partial`` or ``lag``, text or seconds).
    """

    samples: Any
    start: float
    arrived: float = 0.0
    log: list[tuple[float, str, Any]] = dataclasses.field(default_factory=list)

    def result(self, now: float, committed: str, partial: str | None, arrived: float) -> None:
        """Note what an update gave; ``arrived``: when its newest audio had come."""
        at = now - self.start
        if committed:
            self.log.append((at, "committed", committed))
        if partial is not None:
            self.log.append((at, "partial", partial))
        self.log.append((at, "lag", now - arrived))


Play = Callable[[Any, dict[str, Any], Sequence[Any], Sequence[float]], tuple[list[Heard], Clock]]
"""From a model, settings, recordings and their starts to what was heard, and the clock."""


def main_of(
    load: Callable[[dict[str, Any]], Any],
    play: Play,
    versions: dict[str, str],
    arguments: list[str],
) -> None:
    """Do what a file says: ``settings`` and ``plays``, lists of sessions (``samples``, ``start``).

    Sessions of one play run at once. The result has one list of logs for each play.
    """
    task = json.loads(Path(arguments[1]).read_text(encoding="utf-8"))
    model = load(task["settings"])
    first = np.load(task["plays"][0][0]["samples"])[: 5 * SAMPLE_RATE]
    play(model, task["settings"], [first], [0.0])  # warm, not counted
    results = []
    for each in task["plays"]:
        samples = [np.load(session["samples"]) for session in each]
        begun = time.process_time()
        heard, _ = play(model, task["settings"], samples, [s["start"] for s in each])
        work = time.process_time() - begun
        results.append({"work": work, "logs": [session.log for session in heard]})
    Path(arguments[2]).write_text(json.dumps({"versions": versions, "plays": results}))
