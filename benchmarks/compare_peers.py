"""Time this library and other systems on the same weights and audio: the table of the README.

    pip install -e '.[cpu,export,bench]'
    python scripts/get_model.py tiny.en base
    python benchmarks/peers/install.py
    python benchmarks/compare_peers.py --whisper-cpp whisper.cpp/build

Each system runs in its own environment and process, with weights converted from the checkpoint by
peers/convert.py; a missing system is listed as not measured, with the reason. Systems take turns
clip by clip in rotating order, and processes that wait for their turn are stopped. The time of a
clip is the median of its rounds, that of a system the sum over clips. docs/benchmarks.md describes
the conditions.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import logging
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from common import ROOT, SAMPLE_RATE, Clip, clip_pcm, clips, joined, log
from peers.catalog import BENCHMARKS, PEERS, Peer, environments, python_of

from whisper_opt.cli.bench.machine import BUSY, busy_cores
from whisper_opt.cli.bench.measure import turns
from whisper_opt.cli.bench.recordings import Recording, write_wav
from whisper_opt.cli.bench.report import (
    environment,
    error_text,
    errors,
    precision_text,
    table,
    write_json,
)
from whisper_opt.cli.bench.workers import Pool, Program, Worker, WorkerError

SETS = ("jfk", "read", "long", "joined")
QUICK_SETS = SETS[:-1]


@dataclasses.dataclass(frozen=True)
class System:
    """One row of the table: a program and its settings.

    Attributes:
        name: name in the table.
        precision: arithmetic of the system.
        program: program of the worker.
        load: fields of its ``load`` job.
        peer: entry of the catalog; None for this library.
        unfit: why it cannot be measured; empty if it can.
    """

    name: str
    precision: str
    program: Program
    load: dict[str, Any]
    peer: Peer | None = None
    unfit: str = ""

    def refusal(self, case: Case) -> str:
        """Why it cannot be measured in a case; empty if it can."""
        peer = self.peer
        if self.unfit or peer is None:
            return self.unfit
        if case.beam > 1 and not peer.beam:
            return "no beam search"
        if case.batch > 1 and not peer.batch:
            return "one window at a time"
        longest = max(recording.seconds for recording in case.recordings)
        if peer.longest is not None and longest > peer.longest:
            return f"no more than {peer.longest:g} s at once"
        return ""

    def job(self, recording: Recording, case: Case) -> dict[str, Any]:
        """The ``transcribe`` job: segment times, temperature 0, no voice activity detection.

        In batches, both this library and faster-whisper split the recording at silences.
        """
        audio, language = [str(recording.path)], recording.language or "en"
        if self.peer is not None:
            fields = {"beam_size": case.beam, "batch_size": case.batch}
            return {"audio": audio, "language": language, **fields}
        options: dict[str, Any] = {"language": language, "temperature": 0.0, "vad": "off"}
        if case.beam > 1:
            options["beam_size"] = case.beam
        if case.batch > 1:
            options.update(strategy="batched", batch_size=case.batch, vad="cut")
        return {"audio": audio, "options": options, "arrays": True}


@dataclasses.dataclass(frozen=True)
class Case:
    """One table: recordings and decoding settings."""

    model: str
    name: str
    recordings: Sequence[Recording]
    beam: int
    batch: int

    @property
    def title(self) -> str:
        """For people."""
        seconds = sum(recording.seconds for recording in self.recordings)
        search = "greedy" if self.beam == 1 else f"beam {self.beam}"
        batch = "" if self.batch == 1 else f", batch {self.batch}"
        return f"{self.model}, {self.name} ({seconds:.0f} s), {search}{batch}"


# ---------------------------------------------------------------- who


def ours(args: argparse.Namespace, model: str) -> Iterator[System]:
    """This library with every engine of the model: ``engines/MODEL`` and ``engines/MODEL-*``.

    With ``--ours``, those with these endings: ``int8`` is ``engines/MODEL-int8``.
    """
    folders = [args.engines / model, *sorted(args.engines.glob(f"{model}-*"))]
    if args.ours is not None:
        folders = [args.engines / f"{model}-{ending}" for ending in args.ours]
    elif not (folders[0] / "manifest.json").is_file():
        from whisper_opt.export import export

        export(args.models_dir / model, folders[0])
    for folder, encoder in itertools.product(folders, args.encoder_precision):
        if (folder / "manifest.json").is_file():
            name = f"whisper_opt {folder.name[len(model) + 1 :]}".strip()
            name += "" if encoder == "engine" else f", {encoder} encoder"
            program = Program(name, ROOT, "whisper_opt.cli.bench.system")
            options = {"threads": args.threads, "encoder_precision": encoder, "device": "cpu"}
            load = {"model": str(folder.resolve()), "options": options}
            yield System(name, "", program, load)


def peers(args: argparse.Namespace, model: str) -> Iterator[System]:
    """The other systems, including those that cannot be measured."""
    for peer in PEERS:
        if args.peers is not None and not any(wanted in peer.name for wanted in args.peers):
            continue
        path = args.converted / model / peer.form
        load = {"model": str(path.resolve()), "threads": args.threads, "precision": peer.precision}
        if peer.native:
            load["build"] = str(args.whisper_cpp and args.whisper_cpp.resolve())
        yield System(
            peer.name,
            peer.precision,
            Program(
                peer.name,
                BENCHMARKS,
                f"peers.{peer.module}",
                Path(python_of(peer.environment)),
                {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(args.threads)},
            ),
            load,
            peer,
            _unfit(args, model, peer),
        )


def _unfit(args: argparse.Namespace, model: str, peer: Peer) -> str:
    if not Path(python_of(peer.environment)).exists():
        return f"not installed: python benchmarks/peers/install.py {peer.environment}"
    if peer.native and args.whisper_cpp is None:
        return "no build of whisper.cpp: --whisper-cpp"
    path = args.converted / model / peer.form
    if not path.exists() and args.convert:
        convert = [sys.executable, str(BENCHMARKS / "peers" / "convert.py")]
        source = str(args.models_dir / model)
        forms = ["huggingface", "openai.pt", peer.form]
        subprocess.run([*convert, source, str(path.parent), "--forms", *forms])
    return "" if path.exists() else f"the weights were not converted to {peer.form}"


# ---------------------------------------------------------------- what


def cases(args: argparse.Namespace, folder: Path) -> Iterator[Case]:
    """Every combination of models, sets, searches and batches requested."""
    for model in args.models:
        for name in args.sets:
            if name == "joined":
                recordings = [_joined(folder)]
            else:
                recordings = [_recording(clip, folder) for clip in _clips(name, args.quick)]
            for beam in args.beams:
                for batch in args.batches if name in ("long", "joined") else [1]:
                    yield Case(model, name, recordings, beam, batch)


def _clips(name: str, quick: bool) -> list[Clip]:
    english = [clip for clip in clips() if clip.language == "en"]
    if name == "jfk":
        return [clip for clip in english if clip.id == "en-jfk"]
    if name == "long":
        return [max(english, key=lambda clip: clip.duration_s)]
    chosen = [clip for clip in english if clip.kind == "read"]
    return chosen[:2] if quick else chosen


def _joined(folder: Path) -> Recording:
    """All English recordings with a transcript as one, of over ten minutes."""
    path = folder / "joined.wav"
    pcm, text = joined([clip for clip in clips() if clip.language == "en" and clip.wer])
    write_wav(path, pcm)
    return Recording("joined", path, len(pcm) / SAMPLE_RATE, "en", text)


def _recording(clip: Clip, folder: Path) -> Recording:
    path = folder / f"{clip.id}.wav"
    if not path.exists():
        write_wav(path, clip_pcm(clip.id))
    return Recording(clip.id, path, clip.duration_s, clip.language, clip.text)


# ---------------------------------------------------------------- measuring


@dataclasses.dataclass
class Row:
    """Results of one system in one case: a list of responses per recording."""

    system: System
    loaded: dict[str, Any] = dataclasses.field(default_factory=dict)
    responses: dict[str, list[dict[str, Any]]] = dataclasses.field(default_factory=dict)
    error: str = ""


def measure(
    case: Case, rows: Sequence[Row], args: argparse.Namespace, busy: list[float | None]
) -> None:
    """Fill the rows, and record how many cores were busy before each run."""
    with contextlib.closing(Pool(args.alive)) as pool:
        order = turns(len(rows), args.rounds * len(case.recordings))
        for n, i in enumerate(order):
            row, recording = rows[i], case.recordings[n // len(rows) % len(case.recordings)]
            if row.error:
                continue
            job = row.system.job(recording, case)
            try:
                worker = pool.get(row.system.name) or _new(row, pool, job)
                busy.append(busy_cores(args.pause))
                response = worker.request("transcribe", **job)
            except WorkerError as error:
                row.error = str(error)
                log.warning("%s", error)
                pool.drop(row.system.name)
                continue
            row.responses.setdefault(recording.name, []).append(response)


def _new(row: Row, pool: Pool, job: dict[str, Any]) -> Worker:
    """A process that has loaded its model and processed the audio once."""
    log.info("%s", row.system.name)
    worker = Worker(row.system.program)
    try:
        row.loaded = worker.request("load", **row.system.load)
        worker.request("transcribe", **job)
    except BaseException:
        worker.close()
        raise
    pool.put(row.system.name, worker)
    return worker


def result(case: Case, row: Row) -> dict[str, Any]:
    """The figures of one row.

    ``seconds`` are reported by the system itself if it runs as a program (whisper-cli), else the
    time from samples to segments; both are included if both are known.
    """
    system = row.system
    entry: dict[str, Any] = {
        "system": system.name,
        "precision": system.precision or (precision_text(row.loaded) if row.loaded else None),
    }
    done = [recording for recording in case.recordings if recording.name in row.responses]
    if row.error or len(done) < len(case.recordings):
        return {**entry, "not_measured": row.error or "interrupted"}
    wall = {name: [a["seconds"] for a in responses] for name, responses in row.responses.items()}
    cpu = {name: [a["cpu_seconds"] for a in found] for name, found in row.responses.items()}
    internal = {
        name: [sum(a["internal"]) for a in responses]
        for name, responses in row.responses.items()
        if "internal" in responses[0]
    }
    counted = internal if system.peer is not None and system.peer.native else wall
    texts = [row.responses[recording.name][-1]["text"][0] for recording in case.recordings]
    times = list(counted.values())
    seconds = _total(counted)
    return {
        **entry,
        "versions": row.loaded.get("versions"),
        "notes": row.loaded.get("notes", []),
        "seconds": round(seconds, 4),
        "rtfx": round(sum(recording.seconds for recording in case.recordings) / seconds, 2),
        "slowest_to_fastest": round(sum(map(max, times)) / sum(map(min, times)), 3),
        "wall_seconds": round(_total(wall), 4),
        "cpu_seconds": round(_total(cpu), 4),
        **({"internal_seconds": round(_total(internal), 4)} if internal else {}),
        "rounds_s": {name: [round(s, 5) for s in values] for name, values in counted.items()},
        "peak_bytes": max(a["memory"].get("peak_bytes", 0) for a in _all(row)),
        "errors": errors(case.recordings, texts, {}),
        "texts": dict(zip((recording.name for recording in case.recordings), texts)),
    }


def _total(times: dict[str, list[float]]) -> float:
    return sum(statistics.median(values) for values in times.values())


def _all(row: Row) -> Iterator[dict[str, Any]]:
    for responses in row.responses.values():
        yield from responses


def report(entries: Sequence[dict[str, Any]]) -> str:
    """The table of one case; factors are relative to the fastest row of this library."""
    measured = [entry for entry in entries if "seconds" in entry]
    own = [e["seconds"] for e in measured if e["system"].startswith("whisper_opt")]
    lines = []
    for entry in measured:
        factor = f"{entry['seconds'] / min(own):.2f}" if own else "-"
        lines.append(
            (
                entry["system"],
                entry["precision"],
                f"{entry['seconds']:.3f}",
                f"{entry['cpu_seconds']:.2f}",
                factor,
                f"{entry['rtfx']:.1f}",
                f"{entry['slowest_to_fastest']:.2f}",
                error_text(entry["errors"]),
                f"{entry['peak_bytes'] / (1 << 20):.0f}",
                ", ".join(entry["notes"]),
            )
        )
    columns = ("s", "CPU s", "x", "RTFx", "slowest/fastest", "WER %", "peak MiB", "notes")
    text = table(("", "precision", *columns), lines)
    missing = [
        f"not measured: {entry['system']}: {entry['not_measured']}"
        for entry in entries
        if "not_measured" in entry
    ]
    return "\n".join([text, *missing])


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["tiny.en", "base"])
    parser.add_argument("--models-dir", type=Path, default=ROOT / "models", help="checkpoints")
    parser.add_argument("--engines", type=Path, default=ROOT / "engines")
    parser.add_argument("--encoder-precision", nargs="+", default=["engine"], help="of ours")
    parser.add_argument("--converted", type=Path, default=ROOT / "build" / "peers" / "models")
    parser.add_argument(
        "--no-convert", dest="convert", action="store_false", help="convert nothing"
    )
    parser.add_argument("--whisper-cpp", type=Path, metavar="BUILD", help="has bin/whisper-cli")
    parser.add_argument(
        "--peers", nargs="*", metavar="NAME", help="only systems whose name contains it"
    )
    parser.add_argument("--ours", nargs="*", metavar="ENDING", help="only these engines of ours")
    parser.add_argument("--sets", nargs="+", choices=SETS, help="default: all, or the short ones")
    parser.add_argument("--beams", nargs="+", type=int, default=[1, 5])
    parser.add_argument(
        "--batches", nargs="+", type=int, default=[1, 8], help="for long recordings"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pause", type=float, default=0.3, help="seconds before each run")
    parser.add_argument("--alive", type=int, default=24, help="maximum number of processes")
    parser.add_argument(
        "--quick", action="store_true", help="dry run with little audio and one round"
    )
    parser.add_argument("--out", type=Path, help="JSON; default: benchmarks/results/peers.json")
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.out = 1, args.out or ROOT / "build" / "peers" / "quick.json"
    args.out = args.out or ROOT / "benchmarks" / "results" / "peers.json"
    args.sets = args.sets or list(QUICK_SETS if args.quick else SETS)
    return args


def main() -> int:
    """Measure all cases; the file is rewritten after each."""
    args = arguments()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    log.info("environments of the peers: %s", environments())
    found = {
        **environment(["python", f"benchmarks/{Path(__file__).name}", *sys.argv[1:]]),
        "threads": args.threads,
        "rounds": args.rounds,
        "pause": args.pause,
        "cases": [],
    }
    if (found["machine"]["busy_cores_before"] or 0) > BUSY:
        log.warning("other processes keep the machine busy: times will be unreliable")
    interrupted = False
    with tempfile.TemporaryDirectory() as folder:
        for case in cases(args, Path(folder)):
            print(f"\n## {case.title}\n", flush=True)
            systems = [*ours(args, case.model), *peers(args, case.model)]
            rows = [Row(system, error=system.refusal(case)) for system in systems]
            busy: list[float | None] = []
            try:
                measure(case, rows, args, busy)
            except KeyboardInterrupt:
                interrupted = True
            entries = [result(case, row) for row in rows]
            print(report(entries), flush=True)
            kept = {"model": case.model, "set": case.name, "beam": case.beam, "batch": case.batch}
            seconds = sum(recording.seconds for recording in case.recordings)
            kept.update(audio_seconds=round(seconds, 2), busy_cores=busy, systems=entries)
            found["cases"].append(kept)
            write_json(args.out, found)
            if interrupted:
                break
    print(f"\n{'interrupted; ' if interrupted else ''}figures: {args.out.name}")
    return 1 if interrupted else 0


if __name__ == "__main__":
    sys.exit(main())
