"""Latency and word errors of live transcription, and how many sessions a core serves.

python benchmarks/live.py ENGINE SPEECH [--policy P,...] [--set name=value ...] [--sessions]

SPEECH is a folder with manifest.jsonl (id, path, language, duration_s, text). All recordings over
30 s are played in virtual time, which is fed by the CPU time of one thread. Latency is measured
from the ends of words in the offline transcript of the same model. Word errors: without case and
punctuation, and digits are the same as their names.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from live_scoring import Scores, score, summary

from whisper_opt import Lag, LiveOptions, TranscribeOptions, Whisper, Word, load_audio
from whisper_opt.core.arrays import F32
from whisper_opt.serving.live.simulation import Player, Simulation

LEAST_SECONDS = 30.0
MOST_LAG = 1.0
SPREAD = 5.0
"""Seconds in which the sessions begin that are played at once; less than a recording lasts."""


@dataclasses.dataclass(frozen=True)
class Recording:
    """A recording and what is said in it."""

    name: str
    samples: F32
    language: str
    text: str


def recordings(folder: Path, multilingual: bool, only: list[str]) -> list[Recording]:
    """The recordings over 30 s that the model understands."""
    found = []
    for line in (folder / "manifest.jsonl").read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        if entry["duration_s"] <= LEAST_SECONDS or not entry.get("text"):
            continue
        if not entry.get("wer") or not (multilingual or entry["language"] == "en"):
            continue
        if only and entry["id"] not in only:
            continue
        samples = load_audio(str(folder / entry["path"]))
        found.append(Recording(entry["id"], samples, entry["language"], entry["text"]))
    return found


def offline_words(model: Whisper, recording: Recording) -> list[Word]:
    """The words of the transcript of a whole recording, with times."""
    offline = model.transcribe(
        recording.samples, options=options_of(model, recording), word_timestamps=True
    )
    return [word for segment in offline for word in segment.words or ()]


def played(
    model: Whisper, recording: Recording, live: LiveOptions, offline: Sequence[Word]
) -> Scores:
    """Scores of one recording that is played alone, beside the words of :func:`offline_words`."""
    options = options_of(model, recording)
    with Simulation(model) as simulation:
        player = Player(simulation, recording.samples, options, live)
        simulation.run()
        seconds = len(recording.samples) / 16_000
        return score(player.log, offline, recording.text, work=simulation.work, audio=seconds)


def options_of(model: Whisper, recording: Recording) -> TranscribeOptions:
    """The options of a recording."""
    return TranscribeOptions(language=recording.language if model.is_multilingual else None)


def starts(n: int) -> list[float]:
    """When sessions that are played at once begin, in seconds."""
    return [i * SPREAD / n for i in range(n)]


def lag_of(model: Whisper, samples: F32, live: LiveOptions, n: int) -> float:
    """The 95th percentile of the lag if so many sessions hear a recording at once."""
    with Simulation(model, max_live=n) as simulation:
        players = [Player(simulation, samples, None, live, start=start) for start in starts(n)]
        simulation.run()
        lags = [e.seconds for player in players for _, e in player.log if isinstance(e, Lag)]
    return float(np.percentile(lags, 95))


def sessions(model: Whisper, samples: F32, live: LiveOptions) -> int:
    """The largest number of sessions with a lag below a second, on one core."""
    best, worst = 0, 1
    while lag_of(model, samples, live, worst) < MOST_LAG:
        best, worst = worst, worst * 2
    while worst - best > 1:
        middle = (best + worst) // 2
        if lag_of(model, samples, live, middle) < MOST_LAG:
            best = middle
        else:
            worst = middle
    return best


def value(text: str) -> Any:
    """A value of the command line."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def main() -> int:
    """Command line; see the module docstring."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("engine")
    parser.add_argument("speech", type=Path)
    parser.add_argument("--policy", default="agreement,align_att,both")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--only", default="", help="ids of recordings")
    parser.add_argument("--sessions", action="store_true", help="sessions per core as well")
    parser.add_argument("--each", action="store_true", help="also scores of each recording")
    arguments = parser.parse_args()
    chosen = {name: value(text) for name, _, text in (s.partition("=") for s in arguments.set)}
    model = Whisper.load(arguments.engine, threads=1)
    only = [name for name in arguments.only.split(",") if name]
    found = recordings(arguments.speech, model.is_multilingual, only)
    offline = {each.name: offline_words(model, each) for each in found}
    for policy in arguments.policy.split(","):
        live, total = LiveOptions(policy=policy, **chosen), Scores()
        for each in found:
            scores = played(model, each, live, offline[each.name])
            total.add(scores)
            if arguments.each:
                show(f"{policy} {each.name}", summary(scores))
        show(policy, summary(total))
        if arguments.sessions:
            print(f"{policy:<12} sessions per core: {sessions(model, found[0].samples, live)}")
    return 0


def show(name: str, figures: dict[str, float]) -> None:
    """Print one line."""
    cells = " ".join(f"{key}={figure:.2f}" for key, figure in figures.items())
    print(f"{name:<12} {cells}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
