"""Live transcription beside whisper_streaming and WhisperLiveKit: latency, word errors, sessions.

    python benchmarks/live_peers.py ENGINE SPEECH --model tiny.en --ctranslate2 DIR \
        --openai FILE.pt --python PYTHON --whisper-streaming CLONE \
        --out benchmarks/results/live-peers.json [--sessions N ...] [--systems NAME ...]

DIR and FILE.pt have the weights of ENGINE (benchmarks/peers/convert.py). PYTHON is that of an
environment with faster-whisper, whisperlivekit, silero-vad, librosa and torch. Every system plays
the English recordings over 30 s in virtual time (benchmarks/live.py, benchmarks/peers/live_*.py),
which is fed by the CPU time of one thread, and all are scored alike. Scores of a recording are kept
in ``build/live-peers``, so that a run can be continued; ``--again`` plays it again. Results are
added to those that the file has. ``--sessions N ...`` plays the shortest recording to so many
sessions at once.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import load
from live import Recording, offline_words, options_of, recordings, starts
from live_scoring import Log, Scores, score, summary

from whisper_opt import Committed, Lag, LiveEvent, LiveOptions, Partial, Whisper, Word
from whisper_opt.cli.bench.machine import commit
from whisper_opt.core.cpu import cpu_info
from whisper_opt.core.files import replace_file
from whisper_opt.serving.live.simulation import Player, Simulation

ROOT = Path(__file__).resolve().parents[1]
KEPT = ROOT / "build" / "live-peers"
OURS = "whisper-opt"

_STREAMING, _LIVEKIT = "live_whisper_streaming.py", "live_whisperlivekit.py"
SYSTEMS: dict[str, tuple[str, dict[str, Any]]] = {
    "whisper_streaming, 1 s": (_STREAMING, {"chunk": 1.0}),
    "whisper_streaming, 0.5 s": (_STREAMING, {"chunk": 0.5}),
    "WhisperLiveKit, AlignAtt": (_LIVEKIT, {"policy": "simulstreaming", "coalesce": 0.0}),
    "WhisperLiveKit, AlignAtt, 0.75 s": (
        _LIVEKIT,
        {"policy": "simulstreaming", "coalesce": 0.75},
    ),
    "WhisperLiveKit, LocalAgreement": (_LIVEKIT, {"policy": "localagreement", "coalesce": 0.0}),
    "WhisperLiveKit, LocalAgreement, 0.75 s": (
        _LIVEKIT,
        {"policy": "localagreement", "coalesce": 0.75},
    ),
}
"""Runner and settings of each. Seconds: new audio after which the model runs."""


@dataclasses.dataclass(frozen=True)
class Played:
    """What a system did in one play.

    Attributes:
        work: CPU seconds.
        logs: of each session; times from the start of its recording.
    """

    work: float
    logs: Sequence[Log]


class Ours:
    """This library, in this process."""

    def __init__(self, model: Whisper) -> None:
        self._model = model
        self.versions: dict[str, str] = {"commit": commit(ROOT) or ""}

    def play(self, plays: Sequence[Sequence[tuple[Recording, float]]]) -> list[Played]:
        """Play recordings to sessions; those of one play run at once."""
        return [self._play(each) for each in plays]

    def _play(self, sessions: Sequence[tuple[Recording, float]]) -> Played:
        with Simulation(self._model, max_live=len(sessions)) as simulation:
            players = [
                Player(
                    simulation,
                    recording.samples,
                    options_of(self._model, recording),
                    LiveOptions(),
                    start=start,
                )
                for recording, start in sessions
            ]
            simulation.run()
            logs: list[Sequence[tuple[float, LiveEvent]]] = [
                [(at - start, event) for at, event in player.log]
                for player, (_, start) in zip(players, sessions)
            ]
            return Played(simulation.work, logs)


class Peer:
    """Another system, in its environment."""

    def __init__(self, args: argparse.Namespace, name: str, folder: Path) -> None:
        self._args, self._folder = args, folder
        self._script, settings = SYSTEMS[name]
        self._settings = {
            **settings,
            "threads": args.threads,
            "model": args.model,
            "language": "en",
            "ctranslate2": str(args.ctranslate2),
            "openai": str(args.openai),
        }
        self.versions: dict[str, str] = {}

    def play(self, plays: Sequence[Sequence[tuple[Recording, float]]]) -> list[Played]:
        """Play recordings to sessions; those of one play run at once."""
        task, result = self._folder / "task.json", self._folder / "result.json"
        listed = [
            [{"samples": self._stored(recording), "start": start} for recording, start in each]
            for each in plays
        ]
        task.write_text(json.dumps({"settings": self._settings, "plays": listed}))
        script = ROOT / "benchmarks" / "peers" / self._script
        environment = {**os.environ, "OMP_NUM_THREADS": str(self._args.threads), "PYTHONPATH": ""}
        if self._args.whisper_streaming:
            environment["WHISPER_STREAMING"] = str(self._args.whisper_streaming)
        command = [self._args.python, str(script), str(task), str(result)]
        subprocess.run(command, check=True, env=environment)
        found = json.loads(result.read_text(encoding="utf-8"))
        self.versions = found["versions"]
        return [
            Played(each["work"], [events(log) for log in each["logs"]]) for each in found["plays"]
        ]

    def _stored(self, recording: Recording) -> str:
        file = self._folder / f"{recording.name}.npy"
        if not file.exists():
            np.save(file, recording.samples)
        return str(file)


def events(log: Sequence[Any]) -> list[tuple[float, LiveEvent]]:
    """The log of a peer as events."""

    def event(kind: str, value: Any) -> LiveEvent:
        if kind == "lag":
            return Lag(value)
        return (Committed if kind == "committed" else Partial)(value, (), 0)

    return [(at, event(kind, value)) for at, kind, value in whole_words(log)]


def whole_words(log: Sequence[Any]) -> list[tuple[float, str, Any]]:
    """A log without commits in the middle of a word: the beginning of the word is committed with
    its end. AlignAtt of WhisperLiveKit commits tokens."""
    found: list[tuple[float, str, Any]] = []
    last = -1  # index of the last commit
    for at, kind, value in log:
        if kind == "committed":
            goes_on = last >= 0 and not value[0].isspace() and _has_letters(value.split()[0])
            if goes_on:
                head, space, tail = found[last][2].rpartition(" ")
                found[last] = (found[last][0], kind, head)
                value = space + tail + value
            last = len(found)
        found.append((at, kind, value))
    return found


def _has_letters(text: str) -> bool:
    return any(character.isalnum() for character in text)


def scored(
    system: Ours | Peer,
    recording: Recording,
    words: list[Word],
    kept: Path,
    again: bool,
) -> Scores:
    """Scores of a recording that is played alone, or those that were kept."""
    if kept.exists() and not again:
        return Scores(**json.loads(kept.read_text(encoding="utf-8")))
    played = system.play([[(recording, 0.0)]])[0]
    seconds = len(recording.samples) / 16_000
    found = score(played.logs[0], words, recording.text, work=played.work, audio=seconds)
    kept.parent.mkdir(parents=True, exist_ok=True)
    replace_file(kept, json.dumps(dataclasses.asdict(found)).encode())
    return found


def rounded(figures: dict[str, float]) -> dict[str, float]:
    """Figures for the file."""
    return {name: round(value, 3) for name, value in figures.items()}


def lag_p95(played: Played) -> float:
    """The 95th percentile of the lag of all sessions."""
    lags = [event.seconds for log in played.logs for _, event in log if isinstance(event, Lag)]
    return float(np.percentile(lags, 95))


def sessions(
    system: Ours | Peer, recording: Recording, words: list[Word], n: int
) -> dict[str, float]:
    """Sessions that hear a recording at once on one core: the lag of all, and how late the words
    of the first one came."""
    played = system.play([[(recording, start) for start in starts(n)]])[0]
    figures = summary(score(played.logs[0], words, recording.text, work=1.0, audio=1.0))
    first = {name: figures[name] for name in ("shown_mean", "committed_mean")}
    return rounded({"lag_p95": lag_p95(played), **first})


def measured(args: argparse.Namespace, report: dict[str, Any], folder: Path) -> None:
    """Add the figures of the systems to a report."""
    model = Whisper.load(args.engine, threads=1)
    found = [
        r
        for r in recordings(args.speech, False, args.only)
        if len(r.samples) < 16_000 * args.longest
    ]
    offline = {each.name: offline_words(model, each) for each in found}
    results = report.setdefault("models", {}).setdefault(args.model, {})
    for name in args.systems:
        system = Ours(model) if name == OURS else Peer(args, name, folder)
        threads = "" if args.threads == 1 or name == OURS else f", {args.threads} threads"
        entry = results.setdefault(f"{name}{threads}", {})
        before = load()
        if not args.no_words:
            total, each = Scores(), {}
            for recording in found:
                kept = KEPT / args.model / f"{name}{threads}" / f"{recording.name}.json"
                scores = scored(system, recording, offline[recording.name], kept, args.again)
                each[recording.name] = rounded(summary(scores))
                total.add(scores)
            entry.update({"together": rounded(summary(total)), "each": each})
            show(f"{args.model} {name}", entry["together"])
        shortest = min(found, key=lambda each: len(each.samples))
        for n in args.sessions:
            figures = sessions(system, shortest, offline[shortest.name], n)
            entry.setdefault("sessions", {})[str(n)] = figures
            show(f"{args.model} {name}, {n} sessions", figures)
        entry["load_before"] = before
        entry["versions"] = system.versions or entry.get("versions", {})


def show(name: str, figures: dict[str, float]) -> None:
    """Print one line."""
    cells = " ".join(f"{key}={figure:.2f}" for key, figure in figures.items())
    print(f"{name:<40} {cells}", flush=True)


def main() -> int:
    """Command line; see the module docstring."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("engine")
    parser.add_argument("speech", type=Path)
    parser.add_argument("--model", required=True, help="tiny.en, base, ...")
    parser.add_argument("--ctranslate2", type=Path, help="the weights for CTranslate2")
    parser.add_argument("--openai", type=Path, help="the weights for PyTorch, for AlignAtt")
    parser.add_argument("--python", default=sys.executable, help="Python of the peers")
    parser.add_argument("--whisper-streaming", type=Path, help="clone of whisper_streaming")
    parser.add_argument("--systems", nargs="+", default=[OURS, *SYSTEMS], choices=[OURS, *SYSTEMS])
    parser.add_argument("--only", nargs="+", default=[], help="ids of recordings")
    parser.add_argument("--longest", type=float, default=120.0, help="seconds of a recording")
    parser.add_argument(
        "--sessions", type=int, nargs="+", default=[], metavar="N", help="play N sessions at once"
    )
    parser.add_argument(
        "--threads",
        type=int,
        default=1,
        help="of the peers; above 1 on a machine without other work",
    )
    parser.add_argument("--again", action="store_true", help="play what is kept again")
    parser.add_argument("--no-words", action="store_true", help="sessions only")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "live-peers.json")
    args = parser.parse_args()
    report = json.loads(args.out.read_text(encoding="utf-8")) if args.out.exists() else {}
    report["cpu"] = cpu_info().name
    with tempfile.TemporaryDirectory() as folder:
        measured(args, report, Path(folder))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    replace_file(args.out, (json.dumps(report, indent=1) + "\n").encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
