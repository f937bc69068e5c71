"""Measurement: configurations take turns, each in its own process.

In every round each configuration runs once, in rotating order, so that disturbances affect all of
them alike. A process that waits for its turn is stopped. Before each run there is a pause, in which
the load of other processes is measured. A new process runs untimed first.
"""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Callable

import whisper_opt
from whisper_opt.cli.bench.grid import Configuration
from whisper_opt.cli.bench.machine import busy_cores
from whisper_opt.cli.bench.recordings import Recording, of_length
from whisper_opt.cli.bench.settings import Settings
from whisper_opt.cli.bench.workers import Pool, Program, Worker, WorkerError
from whisper_opt.core.cpu import memory_bytes
from whisper_opt.runtime.engine import read_engine

__all__ = ["Benchmark", "Found", "jobs", "load_options", "options_of", "turns"]

_FOLDER = Path(whisper_opt.__file__).resolve().parent.parent
_SPARE = 1 << 28
"""Approximate memory of a process besides its engine, in bytes."""


@dataclasses.dataclass
class Found:
    """Results of one configuration so far.

    Attributes:
        configuration: what was measured.
        recordings: recordings that it transcribes.
        loaded: result of its first ``load``.
        runs: results of ``transcribe``, one per round.
        busy: cores kept busy by other processes before each run; None: unknown.
        error: why it failed.
    """

    configuration: Configuration
    recordings: Sequence[Recording]
    loaded: dict[str, Any] = dataclasses.field(default_factory=dict)
    runs: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    busy: list[float | None] = dataclasses.field(default_factory=list)
    error: str | None = None


def turns(n: int, rounds: int) -> list[int]:
    """Indices in the order in which they run: each once per round, in rotating order."""
    return [(turn + i) % n for turn in range(rounds) for i in range(n)]


def jobs(found: Found, settings: Settings) -> dict[str, Any]:
    """The ``transcribe`` job of a configuration.

    With the sequential strategy a batch needs as many recordings as windows, so recordings are
    repeated.
    """
    configuration, recordings = found.configuration, list(found.recordings)
    batch, options = configuration.batch_size, options_of(configuration, settings)
    if options.get("strategy", "sequential") == "sequential":
        recordings *= max(1, -(-batch // len(recordings)))
    return {
        "audio": [str(recording.path) for recording in recordings],
        "languages": [recording.language for recording in recordings],
        "options": options,
        "batch": batch > 1,
        "arrays": settings.arrays,
    }


def options_of(configuration: Configuration, settings: Settings) -> dict[str, Any]:
    """Fields of ``TranscribeOptions``."""
    options = {**settings.options, "batch_size": configuration.batch_size}
    if configuration.beam_size > 1:
        options["beam_size"] = configuration.beam_size
    return options


def load_options(configuration: Configuration, settings: Settings) -> dict[str, Any]:
    """Fields of ``LoadOptions``."""
    chosen = {
        "threads": configuration.threads,
        "encoder_precision": configuration.encoder_precision,
    }
    return {**settings.load, **{name: v for name, v in chosen.items() if v is not None}}


class Benchmark:
    """Measures configurations on recordings."""

    def __init__(
        self,
        engines: Mapping[Configuration, Path],
        recordings: Sequence[Recording],
        settings: Settings,
    ) -> None:
        """Nothing is run yet; ``engines``: the directory of each configuration's engine."""
        self._engines = engines
        self._settings = settings
        self._recordings = recordings
        self.found = [Found(configuration, recordings) for configuration in engines]

    @property
    def n_runs(self) -> int:
        """Timed runs of all configurations together."""
        return len(self.found) * self._settings.rounds

    def run(self, on_run: Callable[[Found], None]) -> None:
        """Measure; ``on_run`` is called after every run, and once if a configuration fails.

        Raises:
            EngineError: an engine is missing.
        """
        pool = Pool(_room(self._engines))
        with tempfile.TemporaryDirectory() as folder:
            length = functools.cache(lambda s: of_length(self._recordings, s, Path(folder)))
            for found in self.found:
                seconds = found.configuration.seconds
                if seconds is not None:
                    found.recordings = [length(seconds)]
            try:
                for i in turns(len(self.found), self._settings.rounds):
                    found = self.found[i]
                    if found.error is None:
                        self._one(found, pool)
                        on_run(found)
            finally:
                pool.close()

    def _one(self, found: Found, pool: Pool) -> None:
        name, pause = found.configuration.name, self._settings.pause
        try:
            worker = pool.get(name)
            if worker is None:
                worker = self._new(found)
                pool.put(name, worker)
                for _ in range(self._settings.warm_up):
                    worker.request("transcribe", **jobs(found, self._settings))
            found.busy.append(busy_cores(pause) if pause else None)
            found.runs.append(worker.request("transcribe", **jobs(found, self._settings)))
        except WorkerError as error:
            found.error = str(error)
            pool.drop(name)

    def _new(self, found: Found) -> Worker:
        configuration = found.configuration
        worker = Worker(Program(configuration.name, _FOLDER, "whisper_opt.cli.bench.system"))
        try:
            path = str(self._engines[configuration].resolve())
            options = load_options(configuration, self._settings)
            loaded = worker.request("load", model=path, options=options)
        except BaseException:
            worker.close()
            raise
        found.loaded = found.loaded or loaded
        return worker


def _room(engines: Mapping[Configuration, Path]) -> int:
    """How many processes may exist at once: as many as fit in half of the free memory."""
    sizes = []
    for path in set(engines.values()):
        files = read_engine(path).manifest.files.values()
        sizes.append(2 * sum(entry.size for entry in files) + _SPARE)
    free = memory_bytes().get("MemAvailable", 0) // 2
    return max(1, min(len(engines), free // max(sizes)))
