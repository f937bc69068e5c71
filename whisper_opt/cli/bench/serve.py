"""A system to be measured, in a process of its own: JSON jobs on standard input, one a line.

Run as a file, with the folder and the name of a module that has a class ``System``::

    python serve.py FOLDER MODULE

Only the standard library is needed here, so that any environment's Python can serve. What a system
prints goes to standard error; answers are all there is on standard output.

    {"job": "load", ...}          the other fields are arguments of ``System``
        {"ok": true, "seconds": ..., "memory": {...}, ...}
    {"job": "transcribe", ...}    the other fields are arguments of ``System.transcribe``
        {"ok": true, "memory": {...}, "text": ..., "segments": ..., "seconds": ...}
    {"job": "quit"}

What goes wrong is ``{"ok": false, "error": "..."}``; the process lives on.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable, TextIO

__all__ = ["memory", "serve"]

Job = dict[str, Any]


def memory() -> dict[str, int]:
    """Resident memory in bytes: now, where the system tells it, and at its peak.

    The peak is that of this process, or of a process it ran and waited for if that was larger.
    Linux keeps the peak of the program that runs now; ``getrusage`` there counts what the parent
    held before the program was started.
    """
    try:
        import resource
    except ImportError:  # not on Windows
        return {}
    unit = 1 if sys.platform == "darwin" else 1024
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit
    status = Path("/proc/self/status")
    if not status.is_file():
        own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        return {"peak_bytes": max(own, children)}
    fields = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
    now, peak = (int(fields[key].split()[0]) * 1024 for key in ("VmRSS", "VmHWM"))
    return {"resident_bytes": now, "peak_bytes": max(peak, children)}


def serve(load: Callable[..., Any], jobs: TextIO, answers: TextIO) -> None:
    """Do jobs until there are no more or one says so.

    Args:
        load: makes a system from the fields of a ``load`` job; the system has ``transcribe``, which
            returns the fields of an answer, and may have ``about``, a mapping for the answer to
            ``load``.
        jobs: a JSON object a line.
        answers: where answers go, a JSON object a line.
    """
    system: Any = None
    for job in _jobs(jobs):
        kind = job.pop("job", None)
        if kind == "quit":
            return
        try:
            if kind == "load":
                begin = time.perf_counter()
                system = load(**job)
                answer = {"seconds": time.perf_counter() - begin, **getattr(system, "about", {})}
            elif kind == "transcribe":
                if system is None:
                    raise ValueError("nothing is loaded yet")
                answer = dict(system.transcribe(**job))
            else:
                raise ValueError(f"unknown job {kind!r}; expected load, transcribe or quit")
            answer = {"ok": True, **answer, "memory": memory()}
        except Exception as error:  # whatever a system raises is its answer
            traceback.print_exc()
            answer = {"ok": False, "error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _jobs(lines: TextIO) -> Iterator[Job]:
    for line in lines:
        if line.strip():
            job: Job = json.loads(line)
            yield job


def _die_with_parent() -> None:
    """A stopped process does not notice that its parent is gone; Linux can end it."""
    if sys.platform == "linux":
        import ctypes

        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, int(signal.SIGKILL))


def main() -> None:
    """Serve the system that the arguments name."""
    folder, module = sys.argv[1:]
    _die_with_parent()
    sys.path[0] = folder  # instead of the folder of this file, whose names are for the library
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a system prints, in C too, is no answer
    sys.stdout = sys.stderr
    system = importlib.import_module(module).System
    serve(system, sys.stdin, answers)


if __name__ == "__main__":
    main()
