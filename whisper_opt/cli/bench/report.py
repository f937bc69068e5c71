"""Results of a benchmark: the JSON file and the table."""

from __future__ import annotations

import datetime
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from whisper_opt.cli.bench.machine import command_line, commit, machine, versions
from whisper_opt.cli.bench.measure import Found
from whisper_opt.cli.bench.recordings import Recording
from whisper_opt.cli.bench.scoring import BY_CHARACTER, check_scoring, score, whole
from whisper_opt.cli.bench.settings import Settings
from whisper_opt.cli.bench.stages import STAGES
from whisper_opt.core.errors import BackendUnavailable, WhisperOptError
from whisper_opt.core.files import replace_file

__all__ = [
    "FORMAT",
    "environment",
    "errors",
    "figures",
    "overview",
    "percentile",
    "read_json",
    "table",
    "write_json",
]

_LOADED = ("precision", "encoder_precision", "dialect", "device", "kernels")
FORMAT = 1
"""Version of the JSON file; changes with incompatible changes of its contents."""


def environment(arguments: Sequence[str]) -> dict[str, Any]:
    """The first entries of a benchmark's file; takes half a second to measure the machine's load.

    Args:
        arguments: the command line, program first.
    """
    now = datetime.datetime.now(datetime.timezone.utc)
    return {
        "format": FORMAT,
        "command": command_line(arguments),
        "made": now.isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": versions(),
        "commit": commit(Path(__file__).resolve().parent.parent),
    }


def percentile(values: Sequence[float], percent: float) -> float:
    """Percentile of the values by the nearest-rank method."""
    ordered = sorted(values)
    return ordered[max(-(-len(ordered) * percent // 100), 1).__int__() - 1]


def figures(found: Found, settings: Settings) -> dict[str, Any]:
    """The results of one configuration so far."""
    configuration = found.configuration
    entry: dict[str, Any] = {
        "name": configuration.name,
        "engine": configuration.engine.name,
        "threads": configuration.threads,
        "beam_size": configuration.beam_size,
        "batch_size": configuration.batch_size,
        "length_s": configuration.seconds,
        **{key: found.loaded.get(key) for key in _LOADED},
    }
    if found.error is not None:
        entry["error"] = found.error
    if found.runs:
        entry.update(_times(found), memory=_memory(found))
        entry["errors"] = errors(found.recordings, found.runs[-1]["text"], settings.options)
    return entry


def _times(found: Found) -> dict[str, Any]:
    runs, last = found.runs, found.runs[-1]
    rounds = [run["seconds"] for run in runs]
    median = statistics.median(rounds)
    n = len(last["text"])
    seconds_of_audio = sum(found.recordings[i % len(found.recordings)].seconds for i in range(n))
    steps = [step for run in runs for step in run["steps_ms"]]
    times: dict[str, Any] = {
        "recordings": n,
        "audio_s": round(seconds_of_audio, 3),
        "load_s": round(found.loaded["seconds"], 4),
        "rounds_s": [round(second, 5) for second in rounds],
        "busy_cores": found.busy,
        "median_s": round(median, 5),
        "fastest_s": round(min(rounds), 5),
        "slowest_s": round(max(rounds), 5),
        "rtfx": round(seconds_of_audio / median, 2),
        "windows": last["windows"],
        "tokens": last["tokens"],
        "stages_s": {
            name: round(statistics.median(run["stages"][name] for run in runs), 6)
            for name in (*STAGES, "other")
        },
        "step_ms": {"n": len(steps)},
    }
    if steps:
        times["step_ms"].update(
            {f"p{percent}": round(percentile(steps, percent), 4) for percent in (50, 95, 99)}
        )
    if last["each"]:
        times["each_s"] = {
            recording.name: round(statistics.median(seconds), 5)
            for recording, *seconds in zip(found.recordings, *(run["each"] for run in runs))
        }
    return times


def _memory(found: Found) -> dict[str, int]:
    loaded, last = found.loaded["memory"], found.runs[-1]["memory"]
    memory = {"peak_bytes": last["peak_bytes"]} if "peak_bytes" in last else {}
    if "resident_bytes" in loaded:
        memory["loaded_bytes"] = loaded["resident_bytes"]
        memory["growth_bytes"] = max(last["peak_bytes"] - loaded["resident_bytes"], 0)
    return memory


def errors(
    recordings: Sequence[Recording], texts: Sequence[str], options: Mapping[str, Any]
) -> dict[str, Any]:
    """Word and character error rates in percent, or the reason why there are none.

    Errors in languages without spaces are counted by character. If recordings are repeated, only
    the first of each counts.
    """
    if options.get("task") == "translate":
        return {"reason": "a translation is not compared with a transcript"}
    known = [(r, text) for r, text in zip(recordings, texts) if r.text is not None]
    if not known:
        return {"reason": "no transcript"}
    try:
        check_scoring()
    except BackendUnavailable as missing:
        return {"reason": str(missing)}
    found: dict[str, Any] = {}
    for kind, unit, by_character in (("wer", "words", False), ("cer", "characters", True)):
        scores = [
            score(recording.text or "", text, recording.language or "und")
            for recording, text in known
            if (recording.language in BY_CHARACTER) == by_character
        ]
        if scores:
            total = whole(scores)
            found.update({kind: round(total.rate, 3), unit: total.words})
    return found


# ---------------------------------------------------------------- files


def write_json(path: Path, content: Any) -> None:
    """Write JSON to a temporary file beside ``path``, then rename it.

    Raises:
        WhisperOptError: it cannot be written.
    """
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, text.encode("utf-8"))
    except OSError as error:
        raise WhisperOptError(f"cannot write {path}: {error.strerror}") from error


def read_json(path: Path) -> dict[str, Any]:
    """Read the file of an earlier run.

    Raises:
        WhisperOptError: it does not exist, or is not such a file.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        version = found["format"]
        found["configurations"][:0]
    except OSError as error:
        raise WhisperOptError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise WhisperOptError(
            f"{path} was not written by whisper-opt bench ({type(error).__name__}: {error})"
        ) from error
    if version != FORMAT:
        raise WhisperOptError(
            f"{path} has format {version!r}; this whisper-opt reads {FORMAT}: measure again"
        )
    result: dict[str, Any] = found
    return result


# ---------------------------------------------------------------- tables


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table with aligned columns; the first column is left-aligned."""
    cells = [[str(cell).replace("|", "\\|") for cell in row] for row in (header, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        first, *rest = (
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths))
        )
        return "| " + " | ".join([first, *rest]) + " |"

    rule = "|" + "|".join(
        ("-" * (width + 2)) if i == 0 else ("-" * (width + 1) + ":")
        for i, width in enumerate(widths)
    )
    return "\n".join([line(cells[0]), rule + "|", *map(line, cells[1:])])


def overview(entries: Sequence[Mapping[str, Any]]) -> str:
    """The tables of results, and a line for each configuration that failed."""
    measured = [entry for entry in entries if "median_s" in entry]
    lines = []
    if measured:
        lines.append(table(_HEADER, map(_row, measured)))
        lines.append(table(("seconds in", *STAGES, "other"), map(_stages, measured)))
    reasons = {
        entry["errors"]["reason"] for entry in measured if "reason" in entry.get("errors", {})
    }
    lines += [f"errors not counted: {reason}" for reason in sorted(reasons)]
    lines += [f"failed: {entry['name']}: {entry['error']}" for entry in entries if "error" in entry]
    return "\n\n".join(lines)


_HEADER = (
    "",
    "precision",
    "device",
    "seconds",
    "slowest/fastest",
    "RTFx",
    "step ms p50",
    "p95",
    "p99",
    "peak MiB",
    "growth",
    "WER/CER %",
)


def _row(entry: Mapping[str, Any]) -> Sequence[object]:
    steps, memory = entry["step_ms"], entry["memory"]
    return (
        entry["name"],
        precision_text(entry),
        entry["device"],
        f"{entry['median_s']:.3f}",
        f"{entry['slowest_s'] / entry['fastest_s']:.2f}",
        f"{entry['rtfx']:.1f}",
        *(f"{steps[p]:.2f}" if p in steps else "-" for p in ("p50", "p95", "p99")),
        *(_mebibytes(memory.get(key)) for key in ("peak_bytes", "growth_bytes")),
        error_text(entry["errors"]),
    )


def precision_text(entry: Mapping[str, Any]) -> str:
    """Precision of the engine, and of the encoder if that is different."""
    encoder = entry.get("encoder_precision") or "engine"
    return f"{entry['precision']}{'' if encoder == 'engine' else f', {encoder} encoder'}"


def _stages(entry: Mapping[str, Any]) -> Sequence[object]:
    seconds = entry["stages_s"]
    return (entry["name"], *(f"{seconds[name]:.4f}" for name in (*STAGES, "other")))


def _mebibytes(n_bytes: int | None) -> str:
    return "-" if n_bytes is None else f"{n_bytes / (1 << 20):.0f}"


def error_text(found: Mapping[str, Any]) -> str:
    """Error rates for a table: words, characters, or both."""
    rates = [f"{found[kind]:.1f}" for kind in ("wer", "cer") if kind in found]
    return "/".join(rates) or "-"
