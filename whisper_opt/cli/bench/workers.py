"""Worker processes that run jobs (see :mod:`whisper_opt.cli.bench.serve`).

A process without a job is stopped (SIGSTOP): the threads of most libraries spin for up to 0.2 s
after their last work, and would take a core from the next process.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from whisper_opt.core.closing import Closing
from whisper_opt.core.errors import WhisperOptError

__all__ = ["Pool", "Program", "Worker", "WorkerError"]

_SERVE = Path(__file__).with_name("serve.py")
_QUIT_SECONDS = 5.0
_CAN_STOP = hasattr(signal, "SIGSTOP")


class WorkerError(WhisperOptError):
    """A worker process failed or ended."""


@dataclasses.dataclass(frozen=True)
class Program:
    """The program that a worker runs.

    Attributes:
        name: for messages.
        folder: folder from which ``module`` is imported.
        module: a module with a class ``System``.
        python: the Python of its environment.
        environment: additional environment variables.
    """

    name: str
    folder: Path
    module: str
    python: Path = dataclasses.field(default_factory=lambda: Path(sys.executable))
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)


class Worker(Closing):
    """One process; started by the first job, stopped between jobs, ended by :meth:`close`."""

    def __init__(self, program: Program) -> None:
        """Nothing is started yet."""
        self.program = program
        self._process: subprocess.Popen[str] | None = None
        self._errors: Any = None
        self._at_work = False

    def request(self, job: str, **fields: Any) -> dict[str, Any]:
        """Run a job and return its response.

        Raises:
            WorkerError: the job failed, or the process ended; the message is that of the system.
        """
        process = self._start()
        self._signal(process, "SIGCONT")
        assert process.stdin is not None
        assert process.stdout is not None
        line, self._at_work = "", True
        with contextlib.suppress(OSError):  # the process ended: there is no response either
            process.stdin.write(json.dumps({"job": job, **fields}) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        if not line:
            message, status = self._last_message(), process.wait()
            self.close()
            raise WorkerError(f"{self.program.name} ended with status {status}: {message}")
        self._at_work = False
        self._signal(process, "SIGSTOP")
        response: dict[str, Any] = json.loads(line)
        if not response.pop("ok"):
            raise WorkerError(f"{self.program.name}: {response['error']}")
        return response

    def _start(self) -> subprocess.Popen[str]:
        if self._process is None:
            program = self.program
            self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as the process
            try:
                self._process = subprocess.Popen(
                    [str(program.python), str(_SERVE), str(program.folder), program.module],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=self._errors,
                    encoding="utf-8",
                    env={**os.environ, **program.environment},
                    start_new_session=True,  # Ctrl-C is handled by the parent
                )
            except OSError as error:
                self._errors.close()
                raise WorkerError(f"{program.name} cannot be started: {error}") from error
        return self._process

    def _last_message(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().decode("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else "no message"

    def _signal(self, process: subprocess.Popen[str], name: str) -> None:
        if _CAN_STOP:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(getattr(signal, name))

    def close(self) -> None:
        """End the process, if there is one."""
        process, self._process = self._process, None
        if process is None:
            return
        if not self._at_work:
            self._signal(process, "SIGCONT")
            with contextlib.suppress(OSError, ValueError, subprocess.TimeoutExpired):
                process.communicate('{"job": "quit"}\n', timeout=_QUIT_SECONDS)
        if process.poll() is None:
            _kill(process)
        pipes: tuple[Any, ...] = (process.stdin, process.stdout, self._errors)
        for pipe in pipes:
            with contextlib.suppress(OSError):  # unread input
                pipe.close()
        self._at_work = False


def _kill(process: subprocess.Popen[str]) -> None:
    """Kill a process and its children."""
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # it is the leader of its session
    else:
        process.kill()
    process.wait()


class Pool:
    """Workers by key; the least recently used ones are ended if there are too many."""

    def __init__(self, size: int) -> None:
        """``size``: maximum number of processes."""
        self._size = size
        self._alive: collections.OrderedDict[str, Worker] = collections.OrderedDict()

    def get(self, key: str) -> Worker | None:
        """The worker of ``key``, now the most recently used, or None."""
        worker = self._alive.get(key)
        if worker is not None:
            self._alive.move_to_end(key)
        return worker

    def put(self, key: str, worker: Worker) -> None:
        """Add a worker; ends others first if there are too many."""
        while len(self._alive) >= self._size:
            self._alive.popitem(last=False)[1].close()
        self._alive[key] = worker

    def drop(self, key: str) -> None:
        """End the worker of ``key``."""
        worker = self._alive.pop(key, None)
        if worker is not None:
            worker.close()

    def close(self) -> None:
        """End all."""
        while self._alive:
            self._alive.popitem()[1].close()
