"""Live sessions in virtual time: exact, and faster than real time.

The clock stands still while nothing is to be done, and goes on by what each piece of work costs:
the CPU time it takes, or a cost that is given. With given costs a simulation has the same result on
every machine.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import math
import time
from collections.abc import Iterator
from typing import Callable

from whisper_opt.core.arrays import F32
from whisper_opt.core.closing import Closing
from whisper_opt.core.options import LiveOptions, TranscribeOptions
from whisper_opt.serving.live.runner import Cancel, Decoded, Transcribed
from whisper_opt.serving.live.session import LiveSession
from whisper_opt.serving.live.sessions import LiveSessions
from whisper_opt.text.live_events import LiveEvent
from whisper_opt.text.results import Segment
from whisper_opt.transcription.admission import FairShare, Terms
from whisper_opt.transcription.job import ChunksOnDemand, TranscriptionJob
from whisper_opt.transcription.live.window import Hypothesis, Update
from whisper_opt.transcription.model import Whisper
from whisper_opt.transcription.scheduler import Scheduler
from whisper_opt.transcription.stream import transcript_of

__all__ = ["Cost", "Player", "Simulation"]

Cost = Callable[[int, int], float]
"""Seconds that a step takes, given the number of windows encoded in it and the rows decoded."""


class _Polled(ChunksOnDemand):
    """Chunks that are there at once, as those that a reader has read."""

    polled = True


class Simulation(Closing):
    """One engine in virtual time; implements ``Runner``. Use from one thread.

    All work is done one after another: audio, updates, utterances.
    """

    def __init__(
        self,
        model: Whisper,
        *,
        cost: Cost | None = None,
        max_batch: int = 8,
        max_windows_per_step: int = 2,
        max_live: int | None = None,
    ) -> None:
        """Start at time 0.

        Args:
            model: the model. It should have one thread: only the CPU time of the calling thread is
                measured.
            cost: what a step costs; default: its CPU time, and that of the work on audio as well.
            max_batch: as for :class:`whisper_opt.serving.Engine`.
            max_windows_per_step: likewise.
            max_live: likewise.
        """
        self._model = model
        self._cost = cost
        self._most_new = max_windows_per_step
        self._stack = contextlib.ExitStack()
        backend = self._stack.enter_context(model._shared.use())
        self._jobs = model._job_factory(backend)
        self._scheduler = Scheduler(
            backend,
            model.vocab,
            max_batch,
            admission=FairShare(max_batch, gentle=model.device == "cpu"),
            failures=(Exception,),
        )
        self._now = 0.0
        self._asked: float | None = None
        self._calls: list[tuple[float, int, Callable[[], object]]] = []
        self._order = itertools.count()
        self._running: dict[TranscriptionJob, _Running] = {}
        self.sessions = LiveSessions(model, self, max_live)
        self.work = 0.0
        """Seconds of work so far."""
        self.watchers: list[Callable[[], None]] = []
        """Called after each piece of work."""

    def now(self) -> float:
        """The virtual time in seconds; in a call of :meth:`at`, the time for which it was asked."""
        return self._now if self._asked is None else self._asked

    def post(self, call: Callable[[], object]) -> None:
        """Call soon."""
        self.at(self._now, call)

    def call_later(self, seconds: float, call: Callable[[], object]) -> None:
        """Call after a virtual time."""
        self.at(self._now + seconds, call)

    def at(self, when: float, call: Callable[[], object]) -> None:
        """Call at a virtual time."""
        heapq.heappush(self._calls, (when, next(self._order), call))

    def decode(self, update: Update, deadline: float, done: Decoded) -> Cancel:
        """See ``Runner``."""
        found: list[Hypothesis] = []
        job = self._jobs.update_job(update, found.append, _Polled)

        def ended(running: _Running) -> None:
            done(found[0] if found else None, running.work)

        return self._start(job, deadline, ended)

    def transcribe(
        self, samples: F32, options: TranscribeOptions, deadline: float, done: Transcribed
    ) -> Cancel:
        """See ``Runner``."""
        job = self._jobs.job(samples, None, options, _Polled)

        def ended(running: _Running) -> None:
            vocab = self._model.vocab
            done(job.error or transcript_of(job, tuple(running.segments), vocab))

        return self._start(job, deadline, ended)

    def _start(
        self, job: TranscriptionJob, deadline: float, ended: Callable[[_Running], None]
    ) -> Cancel:
        self._running[job] = _Running(ended)
        self._scheduler.start(job, Terms(deadline=self._now + deadline, live=True))

        def cancel() -> None:
            if self._running.pop(job, None) is not None:
                self._scheduler.cancel(job)

        return cancel

    def run(self, until: float = math.inf) -> None:
        """Do what is to be done up to a virtual time; default: until there is nothing to do."""
        while self._now < until:
            if self._calls and self._calls[0][0] <= self._now:
                self._asked, _, call = heapq.heappop(self._calls)
                self._measured(call)
                self._asked = None
            elif self._scheduler.busy:
                self._step()
            elif self._calls:
                self._now = max(self._now, min(self._calls[0][0], until))
            else:
                self._now = self._now if math.isinf(until) else until
                return

    def _measured(self, call: Callable[[], object]) -> None:
        begun = time.thread_time()
        call()
        self._advance(time.thread_time() - begun if self._cost is None else 0.0)

    def _step(self) -> None:
        scheduler = self._scheduler
        begun, n_encoded, rows = time.thread_time(), scheduler.n_encoded, scheduler.rows
        updates = scheduler.step(self._most_new)
        seconds = time.thread_time() - begun
        if self._cost is not None:
            seconds = self._cost(scheduler.n_encoded - n_encoded, max(rows, scheduler.rows))
        self._advance(seconds)
        for running in self._running.values():
            running.work += seconds / len(self._running)
        for job, segments in updates:
            self._running[job].segments += segments
            if not scheduler.holds(job):
                running = self._running.pop(job)
                self._measured(lambda running=running: running.ended(running))  # type: ignore[misc]

    def _advance(self, seconds: float) -> None:
        self._asked = None
        self._now += seconds
        self.work += seconds
        for watch in self.watchers:
            watch()

    def close(self) -> None:
        """Release the model."""
        self._scheduler.close()
        self._stack.close()


class _Running:
    """A job and what became of it."""

    def __init__(self, ended: Callable[[_Running], None]) -> None:
        self.ended = ended
        self.work = 0.0
        self.segments: list[Segment] = []


class Player:
    """Plays a recording to a session of a simulation, in blocks, as it would be spoken.

    Attributes:
        log: (virtual time, event) of all events.
    """

    def __init__(
        self,
        simulation: Simulation,
        samples: F32,
        options: TranscribeOptions | None = None,
        live: LiveOptions | None = None,
        *,
        start: float = 0.0,
        block: float = 0.1,
    ) -> None:
        """Begin a session now, and play from a virtual time on.

        Args:
            simulation: where.
            samples: float32 [n] at 16 kHz.
            options: as for :meth:`whisper_opt.serving.Engine.live`.
            live: likewise.
            start: virtual time of the first sample.
            block: seconds in a block; it arrives when its last sample was spoken.

        Raises:
            LiveSessionsFull: the simulation has as many sessions as it serves in time.
        """
        self._simulation = simulation
        self.log: list[tuple[float, LiveEvent]] = []
        self.session: LiveSession = simulation.sessions.begin(options, live, 16_000, 1)
        self._blocks = _blocks(samples, block)
        self._start, self._block, self._n = start, block, 0
        simulation.watchers.append(self.collect)
        self._next()

    def _next(self) -> None:
        """Arrange for the next block to arrive."""
        self._n += 1
        found = next(self._blocks, None)
        arrive = self.session.finish if found is None else lambda: self._arrive(found)
        late = 0 if found is None else self._block
        self._simulation.at(self._start + (self._n - 1) * self._block + late, arrive)

    def _arrive(self, block: F32) -> None:
        self.session.push(block)
        self._next()

    def collect(self) -> None:
        """Note the events that have come."""
        now = self._simulation.now()
        self.log += [(now, event) for event in self.session.take()]


def _blocks(samples: F32, seconds: float) -> Iterator[F32]:
    size = max(1, round(seconds * 16_000))
    for start in range(0, len(samples), size):
        yield samples[start : start + size]
