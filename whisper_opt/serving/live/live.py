"""Live: a session on a model or an engine."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Union

from whisper_opt.audio.live_input import LiveSamples
from whisper_opt.core.closing import Closing
from whisper_opt.core.options import LiveOptions, TranscribeOptions
from whisper_opt.serving.engine import Engine
from whisper_opt.text.live_events import LiveEvent
from whisper_opt.transcription.model import Whisper

__all__ = ["Live"]


class Live(Closing):
    """A live session: audio goes in as it is spoken, text comes out.

    For many sessions make one :class:`whisper_opt.serving.Engine` and call its
    :meth:`~whisper_opt.serving.Engine.live`, or pass it here. All methods return at once, except
    :meth:`events`, and may be called from any thread. As a context manager it is cancelled at the
    end.

    Example:
        >>> with whisper_opt.Live(model, sample_rate=48_000) as live:  # doctest: +SKIP
        ...     microphone.start(live.push)
        ...     for event in live.events():
        ...         print(event)
    """

    def __init__(
        self,
        model: Union[Whisper, Engine],
        options: TranscribeOptions | None = None,
        live: LiveOptions | None = None,
        *,
        sample_rate: int = 16_000,
        channels: int = 1,
    ) -> None:
        """Begin a session.

        Args:
            model: a loaded model, for which an engine is made; or an engine, which other sessions
                and recordings share.
            options: how to transcribe; see :meth:`whisper_opt.serving.Engine.live`.
            live: when to decode, and when to commit words.
            sample_rate: rate of the samples in Hz.
            channels: number of interleaved channels, which are mixed.

        Raises:
            LiveSessionsFull: the engine cannot serve another session in time.
            OptionError: an option is not supported by this model or by live sessions.
            AudioError: the rate is out of range.
        """
        self._own = Engine(model) if isinstance(model, Whisper) else None
        engine = self._own if isinstance(model, Whisper) else model
        assert engine is not None
        try:
            self.session = engine.live(options, live, sample_rate=sample_rate, channels=channels)
        except BaseException:
            self.close()
            raise

    @property
    def id(self) -> str:
        """Name of the session."""
        return self.session.id

    @property
    def received(self) -> int:
        """Samples received so far."""
        return self.session.received

    def push(self, samples: LiveSamples, sample_rate: int | None = None) -> None:
        """Add samples of any number, type and rate.

        Args:
            samples: numpy array [n] or [n, channels] of floats (-1 to 1) or integers, or bytes of
                16 bits, little endian.
            sample_rate: their rate in Hz; default: that of the session.

        Raises:
            AudioError: they are no samples.
            StreamError: the session was finished or cancelled.
        """
        self.session.push(samples, sample_rate)

    def commit(self) -> None:
        """End the present utterance now."""
        self.session.commit()

    def clear(self) -> None:
        """Forget the audio that belongs to no committed word."""
        self.session.clear()

    def finish(self) -> None:
        """No more audio comes: the last utterance ends, and then the events."""
        self.session.finish()

    def cancel(self) -> None:
        """End the events at once."""
        self.session.cancel()

    def events(self) -> Iterator[LiveEvent]:
        """Yield the events as they come; waits for each. One reader at a time."""
        return self.session.events()

    def __aiter__(self) -> AsyncIterator[LiveEvent]:
        """Like :meth:`events`, in an asyncio event loop."""
        return self.session.__aiter__()

    def close(self) -> None:
        """Cancel the session, and close the engine if it is its own; the model stays open."""
        if hasattr(self, "session"):
            self.session.cancel()
        if self._own is not None:
            self._own.close()
