"""Hours of one live session in virtual time: memory, lag, and words at lost connections.

    python benchmarks/live_hours.py ENGINE SPEECH --hours 3 --lost 20 --out build/live-hours.json

SPEECH is as for benchmarks/live.py. Its English recordings over 30 s are played in a loop, with
pauses, to one session. Connections are lost at even distances, for some seconds; the next one
sends from half a second before what the session has received. Words are compared with those of
the offline transcript of each recording, where a connection was lost and where none was. The clock
goes on by the CPU time of one thread, so the machine may have other work. Linux only.
"""

from __future__ import annotations

import argparse
import array
import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from common import load
from live import Recording, recordings
from live_scoring import keys, lost_and_doubled, spoken
from server_clients import resident

from whisper_opt import Committed, Lag, LiveOptions, Whisper
from whisper_opt.cli.bench.machine import commit
from whisper_opt.core.arrays import F32
from whisper_opt.core.cpu import cpu_info
from whisper_opt.core.files import replace_file
from whisper_opt.serving.live.simulation import Simulation

ROOT = Path(__file__).resolve().parents[1]
RATE = 16_000
BLOCK = RATE // 10
PAUSE = 20.0
"""Seconds of silence after each recording."""
AWAY = 4.0
"""Seconds without a connection."""
AGAIN = RATE // 2
"""Samples that a new connection sends again."""


@dataclasses.dataclass
class Turn:
    """One recording in the loop.

    Attributes:
        recording: what is played.
        start: when, in seconds from the start of the session.
        lost: whether a connection is lost during it.
        words: what was committed.
    """

    recording: Recording
    start: float
    lost: bool = False
    words: list[str] = dataclasses.field(default_factory=list)


class Hours:
    """The session, its microphone and its connections."""

    def __init__(self, simulation: Simulation, found: list[Recording], seconds: float) -> None:
        self._simulation = simulation
        self.session = simulation.sessions.begin(None, LiveOptions(), RATE, 1)
        pause = np.zeros(round(PAUSE * RATE), np.float32)
        self._cycle = np.concatenate([part for r in found for part in (r.samples, pause)])
        self._end = round(seconds * RATE)
        self._heard = 0  # samples of the microphone so far
        self._connected = True
        self.resumed = 0
        self.lags = array.array("d")
        self.lag_times = array.array("d")
        self.turns: list[Turn] = []
        start = 0.0
        while start < seconds:
            for recording in found:
                self.turns.append(Turn(recording, start))
                start += len(recording.samples) / RATE + PAUSE
        self._turn = 0
        simulation.watchers.append(self.collect)
        simulation.at(BLOCK / RATE, self._tick)

    def lose_at(self, seconds: float) -> None:
        """Lose the connection at a time."""
        for turn in self.turns:
            end = turn.start + len(turn.recording.samples) / RATE
            turn.lost |= turn.start < seconds + AWAY and seconds < end
        self._simulation.at(seconds, self._lose)

    def _lose(self) -> None:
        self._connected = False
        self.session.detach()
        self._simulation.at(self._simulation.now() + AWAY, self._resume)

    def _resume(self) -> None:
        begin = max(0, self.session.received - AGAIN)
        self.session = self._simulation.sessions.resume(self.session.id, begin)
        self._connected = True
        self.resumed += 1
        self.session.push(self._between(begin, self._heard))

    def _between(self, begin: int, end: int) -> F32:
        return np.take(self._cycle, np.arange(begin, end), mode="wrap")

    def _tick(self) -> None:
        begin, self._heard = self._heard, min(self._heard + BLOCK, self._end)
        if self._connected:
            self.session.push(self._between(begin, self._heard))
        if self._heard < self._end:
            self._simulation.at((self._heard + BLOCK) / RATE, self._tick)
        else:
            self.session.finish()

    def collect(self) -> None:
        """Note what has come; no more is kept than is needed."""
        for event in self.session.take():
            if isinstance(event, Lag):
                self.lags.append(event.seconds)
                self.lag_times.append(self._simulation.now())
            elif isinstance(event, Committed):
                for word in event.words:
                    self._note(word.start, word.word)

    def _note(self, at: float, word: str) -> None:
        while self._turn + 1 < len(self.turns) and at > self.turns[self._turn + 1].start - 1:
            self._turn += 1
        self.turns[self._turn].words += keys(word)


def per_thousand(turns: list[Turn], offline: dict[str, list[str]]) -> dict[str, Any]:
    """Lost and doubled words of turns, per thousand."""
    lost = doubled = words = 0
    for turn in turns:
        known = offline[turn.recording.name]
        missing, again = lost_and_doubled(
            known, spoken(turn.words), spoken(keys(turn.recording.text))
        )
        lost, doubled, words = lost + missing, doubled + again, words + len(known)
    return {
        "turns": len(turns),
        "words": words,
        "lost_per_1000": round(1000 * lost / max(1, words), 2),
        "doubled_per_1000": round(1000 * doubled / max(1, words), 2),
    }


def lag_by_hour(hours: Hours) -> list[dict[str, float]]:
    """Lag in each hour."""
    times, lags = np.array(hours.lag_times), np.array(hours.lags)
    found = []
    for hour in range(int(times[-1] // 3600) + 1):
        here = lags[(times >= hour * 3600) & (times < (hour + 1) * 3600)]
        figures = {
            "p50": np.percentile(here, 50),
            "p95": np.percentile(here, 95),
            "max": here.max(),
        }
        found.append({name: round(float(value), 3) for name, value in figures.items()})
    return found


def played(args: argparse.Namespace) -> dict[str, Any]:
    """Play, and report."""
    model = Whisper.load(args.engine, threads=1)
    found = recordings(args.speech, False, [])
    offline = {r.name: spoken(keys(model.transcribe(r.samples).text)) for r in found}
    seconds, memory = args.hours * 3600, []
    with Simulation(model, max_live=1) as simulation:
        hours = Hours(simulation, found, seconds)
        for i in range(args.lost):
            hours.lose_at((i + 0.5) * seconds / args.lost)
        for minute in range(5, round(seconds / 60) + 1, 5):
            simulation.run(until=minute * 60)
            memory.append({"minute": minute, **resident(os.getpid())})
            print(json.dumps(memory[-1]), f"lag {max(hours.lags[-500:]):.2f}", flush=True)
        simulation.run()
        whole = [t for t in hours.turns if t.start + len(t.recording.samples) / RATE < seconds]
        return {
            "hours": args.hours,
            "resumed": hours.resumed,
            "cpu": cpu_info().name,
            "commit": commit(ROOT),
            "load_after": load(),
            "work": round(simulation.work / seconds, 3),
            "memory": memory,
            "lag": lag_by_hour(hours),
            "with lost connection": per_thousand([t for t in whole if t.lost], offline),
            "without": per_thousand([t for t in whole if not t.lost], offline),
        }


def main() -> int:
    """Command line; see the module docstring."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("engine")
    parser.add_argument("speech", type=Path)
    parser.add_argument("--hours", type=float, default=3.0)
    parser.add_argument("--lost", type=int, default=20, help="connections lost")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "live-hours.json")
    args = parser.parse_args()
    report = played(args)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    replace_file(args.out, (json.dumps(report, indent=1) + "\n").encode())
    print(json.dumps({key: report[key] for key in report if key != "memory"}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
