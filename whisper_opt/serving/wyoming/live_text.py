"""Text of a recording while it is received: a live session beside the recording itself."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable
from typing import Any, Callable, Union

from whisper_opt.core.errors import WhisperOptError
from whisper_opt.core.options import LiveOptions, TranscribeOptions
from whisper_opt.serving.http.logs import log_event
from whisper_opt.serving.http.models import ServedModel
from whisper_opt.text.live_events import Committed

__all__ = ["LiveText"]

_HOW = LiveOptions(vad=False, max_utterance_s=600.0, final="none")
"""The client says when the recording begins and ends."""


class LiveText:
    """Sends the text that is certain; the transcript comes from the whole recording afterwards.

    A model that cannot keep up sends nothing before the end.
    """

    def __init__(
        self,
        model: ServedModel,
        options: TranscribeOptions,
        rate: int,
        n_channels: int,
        send: Callable[[str], Awaitable[None]],
    ) -> None:
        """Begin; ``send`` takes each further piece of text."""
        self.text = ""
        """What was sent so far."""
        self._send = send
        self._session: Any = None
        self._task: Union[asyncio.Future[None], None] = None
        with contextlib.suppress(WhisperOptError):  # too many sessions
            self._session = model.engine.live(options, _HOW, sample_rate=rate, channels=n_channels)
            self._task = asyncio.ensure_future(self._pump())

    def push(self, samples: Any) -> None:
        """Add samples [n, channels], int16."""
        if self._session is not None:
            with contextlib.suppress(WhisperOptError):  # it has failed
                self._session.push(samples)

    async def _pump(self) -> None:
        try:
            async for event in self._session:
                if isinstance(event, Committed):
                    text = event.text if self.text else event.text.lstrip()
                    self.text += text
                    await self._send(text)
        except ConnectionError:
            self._session.cancel()
        except Exception as error:
            log_event("live session failed", logging.ERROR, exc=error)

    async def end(self) -> None:
        """The recording is complete, or dropped: nothing more is sent."""
        if self._session is not None:
            self._session.cancel()
        if self._task is not None:
            await self._task
        self._session = self._task = None
