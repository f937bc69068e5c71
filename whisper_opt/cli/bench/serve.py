"""Runs a system to be measured in its own process: one JSON job per line of standard input.

Run as a file, with the folder and the name of a module that has a class ``System``::

    python serve.py FOLDER MODULE

It needs only the standard library, so that the Python of any environment can run it. The output of
the system goes to standard error; standard output has only the responses.

    {"job": "load", ...}          the other fields are arguments of ``System``
        {"ok": true, "seconds": ..., "memory": {...}, ...}
    {"job": "transcribe", ...}    the other fields are arguments of ``System.transcribe``
        {"ok": true, "memory": {...}, "cpu_seconds": ..., "text": ..., "segments": ...,
         "seconds": ...}
    {"job": "quit"}

The response to a job that fails is ``{"ok": false, "error": "..."}``; the process continues.
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
    """Resident memory in bytes: the peak and, if the system reports it, the current value.

    The peak is that of this process or of its largest finished child. On Linux it comes from
    ``/proc``, because ``getrusage`` includes the memory of the parent before ``exec``.
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


def _cpu_seconds() -> float:
    """CPU time of this process and its finished children, user and system."""
    return sum(os.times()[:4])


def serve(load: Callable[..., Any], jobs: TextIO, responses: TextIO) -> None:
    """Run jobs until the input ends or a job is ``quit``.

    Args:
        load: makes a system from the fields of a ``load`` job; the system has ``transcribe``, which
            returns the fields of a response, and may have ``about``, further fields of the
            response to ``load``.
        jobs: one JSON object per line.
        responses: one JSON object per line.
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
                response = {"seconds": time.perf_counter() - begin, **getattr(system, "about", {})}
            elif kind == "transcribe":
                if system is None:
                    raise ValueError("nothing is loaded yet")
                cpu = _cpu_seconds()
                response = dict(system.transcribe(**job))
                response["cpu_seconds"] = _cpu_seconds() - cpu
            else:
                raise ValueError(f"unknown job {kind!r}; expected load, transcribe or quit")
            response = {"ok": True, **response, "memory": memory()}
        except Exception as error:  # any error of the system is the response
            traceback.print_exc()
            response = {"ok": False, "error": f"{type(error).__name__}: {error}"}
        responses.write(json.dumps(response) + "\n")
        responses.flush()


def _jobs(lines: TextIO) -> Iterator[Job]:
    for line in lines:
        if line.strip():
            job: Job = json.loads(line)
            yield job


def _die_with_parent() -> None:
    """On Linux, end with the parent: a stopped process does not notice that the parent ended."""
    if sys.platform == "linux":
        import ctypes

        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, int(signal.SIGKILL))


def main() -> None:
    """Run the system that the arguments name."""
    folder, module = sys.argv[1:]
    _die_with_parent()
    sys.path[0] = folder  # instead of the folder of this file
    responses = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # output of the system, also from C, is no response
    sys.stdout = sys.stderr
    system = importlib.import_module(module).System
    serve(system, sys.stdin, responses)


if __name__ == "__main__":
    main()
