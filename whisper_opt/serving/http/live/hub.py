"""The live sessions of one connection, and the text that comes from them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any, Callable, Protocol

from whisper_opt.core.options import LiveOptions, TranscribeOptions
from whisper_opt.serving.http.logs import log_event
from whisper_opt.serving.http.metrics import Metrics
from whisper_opt.serving.http.models import ServedModel
from whisper_opt.text.live_events import Failed, Lag, LiveEvent, Utterance

__all__ = ["Hub", "LiveSession"]


class LiveSession(Protocol):
    """What a connection needs of :class:`whisper_opt.serving.live.LiveSession`."""

    def push(self, samples: Any) -> None:
        """Add samples."""

    def commit(self) -> None:
        """End the utterance."""

    def clear(self) -> None:
        """Forget the audio that belongs to no committed word."""

    def finish(self) -> None:
        """There is no more audio."""

    def cancel(self) -> None:
        """End at once."""

    @property
    def backlog(self) -> float:
        """Seconds of audio that wait to be heard."""

    def __aiter__(self) -> AsyncIterator[LiveEvent]:
        """Its events."""


class Hub:
    """Opens live sessions and passes their events on, in the event loop."""

    def __init__(
        self,
        metrics: Metrics,
        heard: Callable[[int, LiveEvent], None],
        ended: Callable[[int], None],
    ) -> None:
        """Open nothing yet.

        Args:
            metrics: counters of the server.
            heard: called with the number of a session and each of its events.
            ended: called with the number of a session after its last event.
        """
        self._metrics = metrics
        self._heard = heard
        self._ended = ended
        self._sessions: dict[int, LiveSession] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._n_opened = 0
        self.changed = asyncio.Event()
        """Set when a session has said something, or has ended."""

    def open(
        self,
        model: ServedModel,
        options: TranscribeOptions,
        live: LiveOptions,
        sample_rate: int,
        n_channels: int = 1,
    ) -> tuple[int, LiveSession]:
        """A new session and its number, from 0.

        Raises:
            QueueFull: the engine has as many sessions as it can keep up with.
            OptionError: the model does not support an option.
        """
        session = model.engine.live(options, live, sample_rate=sample_rate, channels=n_channels)
        number, self._n_opened = self._n_opened, self._n_opened + 1
        self._sessions[number] = session
        task = asyncio.ensure_future(self._pump(number, session, model.name))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return number, session

    async def _pump(self, number: int, session: LiveSession, model: str) -> None:
        try:
            async for event in session:
                self._count(event, model)
                self._heard(number, event)
                self.changed.set()
        except Exception as error:
            log_event("live session failed", logging.ERROR, exc=error, model=model)
        finally:
            del self._sessions[number]
            self._ended(number)
            self.changed.set()

    def _count(self, event: LiveEvent, model: str) -> None:
        if isinstance(event, Lag):
            self._metrics.live_lag.labels(model).observe(event.seconds)
        elif isinstance(event, Utterance):
            self._metrics.live_utterances.labels(model, "completed").inc()
            self._metrics.live_speech.labels(model).inc(max(0.0, event.end - event.start))
        elif isinstance(event, Failed):
            self._metrics.live_utterances.labels(model, "failed").inc()

    @property
    def backlog(self) -> float:
        """Seconds of audio that wait to be heard, of the session that has most."""
        return max((session.backlog for session in self._sessions.values()), default=0.0)

    async def ended(self) -> None:
        """Wait until the events of all sessions have ended."""
        while self._tasks:
            await asyncio.wait(tuple(self._tasks))

    def cancel(self) -> None:
        """End all sessions at once."""
        for session in tuple(self._sessions.values()):
            session.cancel()
        for task in tuple(self._tasks):
            task.cancel()
