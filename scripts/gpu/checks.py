"""The checks, each in parts, so that a run can stop and continue."""

from __future__ import annotations

import dataclasses
import fnmatch
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Callable

from gpu import baseline, conform, engines, measure, roofline, transcription
from gpu.engines import PATHS, Setting
from gpu.outcome import FAILED, NOT_AVAILABLE, OK, NotAvailableError
from gpu.sizes import SIZES
from whisper_opt import Whisper
from whisper_opt.core.arrays import F32
from whisper_opt.core.options import LIBRARIES

__all__ = ["Check", "all_checks", "chosen", "run_check"]

Emit = Callable[[str, "dict[str, Any]"], None]
"""Called with a part and its results, or its ``error``."""

TORCH = {"torch-eager": False, "torch-compile": True}
PATIENCE = 1.5
"""Maximum seconds per measurement of a case."""
REAL = "tiny.en"
"""The real checkpoint whose transcripts are compared, if it was downloaded."""


@dataclasses.dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        name: ``kind/size/path``.
        parts: names of its parts.
        run: runs the given parts and reports the results of each.
    """

    name: str
    parts: tuple[str, ...]
    run: Callable[[Setting, Sequence[str], float, Emit], None]


def _rate(name: str) -> Check:
    def run(setting: Setting, parts: Sequence[str], seconds: float, emit: Emit) -> None:
        emit("rates", roofline.RATES[name](setting.device_index))

    return Check(f"roofline/{name}", ("rates",), run)


def _export(size: str, kind: tuple[str, str]) -> Check:
    def run(setting: Setting, parts: Sequence[str], seconds: float, emit: Emit) -> None:
        begin = time.perf_counter()
        found = engines.engine(setting, size, kind)
        files = found.manifest.files.values()
        n_bytes = sum(entry.size for entry in files)
        emit("engine", {"seconds": round(time.perf_counter() - begin, 2), "bytes": n_bytes})

    return Check(f"export/{size}/{'-'.join(kind)}", ("engine",), run)


def _build(size: str, library: str) -> Check:
    def run(setting: Setting, parts: Sequence[str], seconds: float, emit: Emit) -> None:
        record = engines.plans(setting, size, library).record
        emit(
            "plans",
            {
                "seconds": record.seconds,
                "bytes": sum(entry.size for entry in record.files.values()),
                "gpus": record.target.gpus,
                "version": record.target.version,
                "tokens": record.tokens,
            },
        )

    return Check(f"build/{size}/{library}", ("plans",), run)


SEEDS = ("seed 0", "seed 1")


def _expected(setting: Setting, size: str, part: str) -> list[F32]:
    seed = int(part.removeprefix("seed "))
    file = setting.work / "references" / f"{size}-{seed}.npz"
    return conform.reference_logits(file, lambda: engines.reference(setting, size), seed)


def _reference(size: str) -> Check:
    def run(setting: Setting, parts: Sequence[str], seconds: float, emit: Emit) -> None:
        for part in parts:
            begin = time.perf_counter()
            steps = len(_expected(setting, size, part))
            emit(part, {"steps": steps, "seconds": round(time.perf_counter() - begin, 2)})

    return Check(f"reference/{size}", SEEDS, run)


def _conformance(size: str, path: str) -> Check:
    def run(setting: Setting, parts: Sequence[str], seconds: float, emit: Emit) -> None:
        backend = engines.opened(setting, size, path)
        for part in parts:
            expected = _expected(setting, size, part)
            emit(part, conform.compare(backend, expected, int(part.removeprefix("seed "))))

    return Check(f"conformance/{size}/{path}", SEEDS, run)


def _speech(path: str) -> Check:
    def run(setting: Setting, parts: Sequence[str], seconds: float, emit: Emit) -> None:
        way = PATHS[path]
        folder = Path(__file__).resolve().parents[2] / "tests" / "data" / "speech" / "en"
        clips = sorted(path for path in folder.glob("*") if path.suffix in (".flac", ".wav"))
        if not clips:
            raise NotAvailableError(f"no recordings in {folder}")
        known = engines.engine(setting, REAL, engines.REFERENCE)
        found = engines.engine(setting, REAL, way.engine)
        ours = Whisper(found, way.open(found, setting))
        with Whisper(known, engines.reference(setting, REAL)) as theirs, ours:
            emit("tokens", conform.compare_speech(ours, theirs, clips))

    return Check(f"speech/{REAL}/{path}", ("tokens",), run)


def _transcription(system: str) -> Check:
    def run(setting: Setting, parts: Sequence[str], seconds: float, emit: Emit) -> None:
        theirs = system == transcription.OPENAI
        open_system = transcription.open_openai if theirs else transcription.open_ours
        end = time.perf_counter() + seconds
        with open_system(setting, REAL, system) as transcribe:
            for part in parts:
                left = end - time.perf_counter()
                if left < 1:
                    return
                emit(part, transcription.timed(transcribe, part, left / 2))

    return Check(f"transcription/{REAL}/{system}", tuple(transcription.CASES), run)


def _latency(size: str, path: str) -> Check:
    def run(setting: Setting, parts: Sequence[str], seconds: float, emit: Emit) -> None:
        end = time.perf_counter() + seconds
        backend = engines.opened(setting, size, path)
        for case in _cases(parts):
            left = end - time.perf_counter()
            if left < 1:
                return
            _part(emit, case.name, lambda c, s: measure.latency(backend, c, s), case, left)

    return Check(f"latency/{size}/{path}", _case_names(size), run)


def _torch(size: str, path: str) -> Check:
    def run(setting: Setting, parts: Sequence[str], seconds: float, emit: Emit) -> None:
        end = time.perf_counter() + seconds
        device = "cpu" if setting.on_cpu else f"cuda:{setting.device_index}"
        for case in _cases(parts):
            left = end - time.perf_counter()
            if left < 1:
                return
            _part(
                emit,
                case.name,
                lambda c, s: baseline.torch_latency(
                    SIZES[size], c, device=device, compiled=TORCH[path], at_most=s
                ),
                case,
                left,
            )

    names = _case_names(size)
    if TORCH[path]:  # compiled again for every shape, which is slow
        names = tuple(name for name in names if name in ("b1 beam1", "b16 beam1"))
    return Check(f"latency/{size}/{path}", names, run)


def _part(
    emit: Emit,
    name: str,
    run: Callable[[measure.Case, float], dict[str, Any]],
    case: measure.Case,
    left: float,
) -> None:
    """Results of one case, or its error: a batch that does not fit does not stop smaller ones."""
    try:
        emit(name, run(case, min(PATIENCE, left / 4)))
    except NotAvailableError:
        raise
    except Exception as error:
        emit(name, {"error": f"{type(error).__name__}: {str(error)[:500]}"})


def _cases(parts: Sequence[str]) -> Iterator[measure.Case]:
    return (case for case in measure.CASES if case.name in parts)


def _case_names(size: str) -> tuple[str, ...]:
    few = size == "test"
    return tuple(c.name for c in measure.CASES if not few or c.batch * c.beam in (1, 5, 20))


def all_checks(sizes: Sequence[str], *, on_cpu: bool) -> list[Check]:
    """All checks, the most important first."""
    ways = ["cpu"] if on_cpu else [path for path in PATHS if path != "cpu"]
    checks = [_rate(name) for name in (["numpy"] if on_cpu else ["torch", "bindings"])]
    for size in sizes:
        kinds = dict.fromkeys([engines.REFERENCE, *(PATHS[path].engine for path in ways)])
        checks += [*(_export(size, kind) for kind in kinds), _reference(size)]
        checks += [] if on_cpu else [_build(size, library) for library in LIBRARIES]
        for path in ways:
            checks += [_conformance(size, path), _latency(size, path)]
    checks += [_build(REAL, library) for library in ([] if on_cpu else LIBRARIES)]
    checks += [_speech(path) for path in ways]
    checks += [_transcription(system) for system in (*ways, transcription.OPENAI)]
    checks += [_torch(size, path) for size in sizes for path in TORCH]
    return checks


def chosen(checks: Iterable[Check], patterns: Sequence[str]) -> list[Check]:
    """Checks whose name matches one of the patterns; without patterns all."""
    return [
        check
        for check in checks
        if not patterns or any(fnmatch.fnmatch(check.name, pattern) for pattern in patterns)
    ]


def run_check(
    check: Check, setting: Setting, parts: Sequence[str], seconds: float, emit: Emit
) -> tuple[str, str]:
    """Run the parts; returns an outcome and an error, and never raises."""
    try:
        check.run(setting, parts, seconds, emit)
    except NotAvailableError as error:
        return NOT_AVAILABLE, str(error)
    except Exception as error:
        traceback.print_exc()  # gpu_check.py keeps the output of a check in its work folder
        where = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(where.filename).name}:{where.lineno}"
        return FAILED, f"{type(error).__name__}: {str(error)[:2000]} ({place})"
    return OK, ""
