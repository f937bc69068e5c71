"""Latency of live words by the clock on the wall, beside that of the virtual clock.

    python benchmarks/live_wall.py ENGINE SPEECH --only ID --out build/live-wall.json
    python benchmarks/live_wall.py ENGINE SPEECH --ways Live
    python benchmarks/live_wall.py ENGINE SPEECH --only ID --threads 2 --sessions 1 2 4 8

SPEECH is as for benchmarks/live.py. Recordings (``--only``; default: all over 30 s) are played one
after the other as they would be spoken, in blocks of 0.1 s: to ``whisper_opt.Live``, to ``WS
/v1/realtime`` of a server in its own process, and in virtual time. With ``--sessions`` the first
one is played to so many sessions of one engine at once instead, which begin within 5 s. Needs the
extra ``serve``; Linux only.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Callable

import numpy as np
from common import load
from live import Recording, offline_words, options_of, played, recordings, starts
from live_scoring import Scores, score, summary
from server_clients import cpu_seconds, free_port, running

from whisper_opt import Committed, Lag, Live, LiveEvent, LiveOptions, Partial, Whisper, Word
from whisper_opt.cli.bench.machine import commit
from whisper_opt.core.arrays import F32
from whisper_opt.core.cpu import cpu_info
from whisper_opt.core.files import replace_file
from whisper_opt.serving import Engine, LiveSession

ROOT = Path(__file__).resolve().parents[1]
RATE, WIRE_RATE = 16_000, 24_000
BLOCK = 0.1
WAYS = ("virtual", "Live", "server")
PREFIX = "conversation.item.input_audio_transcription"

Timed = list[tuple[float, LiveEvent]]


def spoken(samples: F32, rate: int, begun: float, push: Callable[[F32], object]) -> None:
    """Push blocks as they would be spoken."""
    size = round(BLOCK * rate)
    for start in range(0, len(samples), size):
        block = samples[start : start + size]
        time.sleep(max(0.0, begun + (start + len(block)) / rate - time.monotonic()))
        push(block)


def followed(session: Live | LiveSession, samples: F32) -> Timed:
    """Play a recording to a session; its events and when they came, from the first sample on."""
    begun = time.monotonic()

    def speak() -> None:
        spoken(samples, RATE, begun, session.push)
        session.finish()

    speaker = threading.Thread(target=speak)
    speaker.start()
    log = [(time.monotonic() - begun, event) for event in session.events()]
    speaker.join()
    return log


def through_live(model: Whisper, recording: Recording) -> tuple[Timed, float]:
    """Events of ``Live`` and when they came; CPU seconds."""
    cpu = time.process_time()
    with Live(model, options_of(model, recording)) as live:
        log = followed(live, recording.samples)
    return log, time.process_time() - cpu


def through_engine(model: Whisper, recording: Recording, n: int) -> list[Timed]:
    """Events of ``n`` sessions of one engine, and when they came from the start of each."""
    logs: list[Timed] = [[] for _ in range(n)]
    with Engine(model, max_live=n) as engine:

        def follow(start: float, log: Timed) -> None:
            time.sleep(start)
            log.extend(followed(engine.live(options_of(model, recording)), recording.samples))

        followers = [threading.Thread(target=follow, args=each) for each in zip(starts(n), logs)]
        for follower in followers:
            follower.start()
        for follower in followers:
            follower.join()
    return logs


def many(model: Whisper, recording: Recording, words: list[Word], n: int) -> dict[str, float]:
    """Lag of all of ``n`` sessions, and how late the words of the first one came."""
    logs = through_engine(model, recording, n)
    lags = [event.seconds for log in logs for _, event in log if isinstance(event, Lag)]
    first = summary(score(logs[0], words, recording.text, work=1.0, audio=1.0))
    return {
        "lag_p95": float(np.percentile(lags, 95)),
        **{name: first[name] for name in ("shown_mean", "committed_mean")},
    }


def through_server(engine: str, recording: Recording, threads: int) -> tuple[Timed, float]:
    """Texts of the server and when they came; CPU seconds of the server."""
    from websockets.exceptions import ConnectionClosed
    from websockets.sync.client import connect

    port = free_port()
    log: Timed = []
    command = [sys.executable, "-m", "whisper_opt", "serve", engine, "--port", str(port)]
    with contextlib.ExitStack() as stack:
        file = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "log"
        command += ["--threads", str(threads)]
        process = stack.enter_context(running(command, port, "/readyz", file))
        address = f"ws://127.0.0.1:{port}/v1/realtime?intent=transcription"
        link = stack.enter_context(connect(address))
        wanted = {"type": "transcription", "include": ["whisper_opt.partials"]}
        link.send(json.dumps({"type": "session.update", "session": wanted}))
        samples = resampled(recording.samples)
        cpu, begun = cpu_seconds(process.pid), time.monotonic()

        def push(block: F32) -> None:
            pcm = (np.clip(block, -1, 1) * 32767).astype("<i2").tobytes()
            audio = base64.b64encode(pcm).decode()
            link.send(json.dumps({"type": "input_audio_buffer.append", "audio": audio}))

        def speak() -> None:
            spoken(samples, WIRE_RATE, begun, push)
            link.send(json.dumps({"type": "whisper_opt.finish"}))

        speaker = threading.Thread(target=speak)
        speaker.start()
        try:
            while True:
                message = json.loads(link.recv())
                at = time.monotonic() - begun
                if message["type"] == f"{PREFIX}.delta":
                    log.append((at, Committed(message["delta"], (), 0)))
                elif message["type"] == "whisper_opt.partial":
                    log.append((at, Partial(message["text"], (), 0)))
                elif message["type"] == "error":
                    raise RuntimeError(str(message))
        except ConnectionClosed:
            speaker.join()
        return [*log, (0.0, Lag(0.0))], cpu_seconds(process.pid) - cpu


def resampled(samples: F32) -> F32:
    """At the rate of the realtime API; exact, by the Fourier transform."""
    n = len(samples) * WIRE_RATE // RATE
    return (np.fft.irfft(np.fft.rfft(samples), n) * (WIRE_RATE / RATE)).astype(np.float32)


def one_way(
    way: str, model: Whisper, recording: Recording, words: list[Word], args: argparse.Namespace
) -> Scores:
    """Scores of a recording that is played in one of the ways, beside its offline words."""
    if way == "virtual":
        return played(model, recording, LiveOptions(), words)
    if way == "Live":
        log, work = through_live(model, recording)
    else:
        log, work = through_server(args.engine, recording, args.threads)
    seconds = len(recording.samples) / RATE
    return score(log, words, recording.text, work=work, audio=seconds)


def main() -> int:
    """Command line; see the module docstring."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("engine")
    parser.add_argument("speech", type=Path)
    parser.add_argument("--only", nargs="+", default=[], help="ids of recordings")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sessions", type=int, nargs="+", default=[], help="how many at once")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "live-wall.json")
    args = parser.parse_args()
    model = Whisper.load(args.engine, threads=args.threads)
    chosen = recordings(args.speech, model.is_multilingual, args.only)
    if args.sessions:
        chosen = chosen[:1]
    offline = {each.name: offline_words(model, each) for each in chosen}
    before = load()
    found: dict[str, Any] = {}

    def note(name: str, figures: dict[str, float]) -> None:
        found[name] = {key: round(figures[key], 3) for key in figures}
        print(name, json.dumps(found[name]), flush=True)

    for n in args.sessions:
        note(f"{n} sessions", many(model, chosen[0], offline[chosen[0].name], n))
    for way in () if args.sessions else args.ways:
        total = Scores()
        for recording in chosen:
            scores = one_way(way, model, recording, offline[recording.name], args)
            total.add(scores)
            note(f"{way}, {recording.name}", summary(scores))
        if len(chosen) > 1:
            note(way, summary(total))
    report = {
        "recordings": [each.name for each in chosen],
        "cpu": cpu_info().name,
        "threads": args.threads,
        "commit": commit(ROOT),
        "load_before": before,
        "results": found,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    replace_file(args.out, (json.dumps(report, indent=1) + "\n").encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
