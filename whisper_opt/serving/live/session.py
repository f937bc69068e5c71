"""LiveSession: audio that comes as it is spoken, and its text."""

from __future__ import annotations

import collections
import dataclasses
import logging
import threading
import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Callable, Union

from whisper_opt.audio.live_input import LiveInput, LiveSamples, as_block, check_rate
from whisper_opt.core.arrays import NDArray
from whisper_opt.core.dims import SAMPLE_RATE
from whisper_opt.core.errors import (
    EngineError,
    LiveSessionLost,
    StreamError,
    WhisperOptError,
)
from whisper_opt.core.options import LiveOptions, TranscribeOptions
from whisper_opt.serving.live.event_queue import EventQueue
from whisper_opt.serving.live.runner import Cancel, Runner
from whisper_opt.serving.live.turns import UpdateTurns
from whisper_opt.text.live_events import Failed, Lag, LiveEvent, Utterance
from whisper_opt.text.results import Transcript, moved
from whisper_opt.transcription.live.speakers import LiveSpeakers
from whisper_opt.transcription.live.transcriber import Finished, LiveTranscriber
from whisper_opt.transcription.live.window import Hypothesis, Update
from whisper_opt.transcription.live.words import text_of

__all__ = ["LiveSession", "final_options"]

_log = logging.getLogger(__name__)

_FINAL_DEADLINE = 3.0
"""Seconds in which the result of an utterance is wanted."""


def final_options(options: TranscribeOptions, language: str | None) -> TranscribeOptions:
    """The options with which an utterance is transcribed again at its end."""
    return dataclasses.replace(options, language=language, word_timestamps=True)


class LiveSession:
    """Created by :meth:`whisper_opt.serving.Engine.live`.

    Methods may be called from any thread, and none of them waits, except :meth:`events`.

    Attributes:
        id: name of the session, for :meth:`whisper_opt.serving.Engine.resume_live`.
        received: samples (of each channel) received so far, at the rate at which they came.
    """

    def __init__(
        self,
        runner: Runner,
        transcriber: LiveTranscriber,
        options: TranscribeOptions,
        live: LiveOptions,
        *,
        sample_rate: int = 16_000,
        channels: int = 1,
        speakers: LiveSpeakers | None = None,
        turns: UpdateTurns | None = None,
        ended: Callable[[LiveSession], None] = lambda session: None,
        worked: Callable[[float, float], None] = lambda work, audio: None,
    ) -> None:
        """Begin a session.

        Args:
            runner: where it runs.
            transcriber: the state of its transcription.
            options: how utterances are transcribed at their end.
            live: how the session works.
            sample_rate: rate of the samples in Hz, unless :meth:`push` is given another one.
            channels: channels of interleaved samples; they are mixed.
            speakers: tells the speakers of utterances apart.
            turns: of the updates of all sessions; default: this one waits for no other.
            ended: called at the end.
            worked: called after each update with seconds of work and of new audio.

        Raises:
            AudioError: the rate is none.
        """
        self.id = uuid.uuid4().hex
        self.received = 0
        self.options, self.live_options = options, live
        self._rate, self._channels = check_rate(sample_rate), channels
        self._runner = runner
        self._transcriber = transcriber
        self._speakers = speakers
        self._turns = UpdateTurns() if turns is None else turns
        self._on_end, self._worked = ended, worked
        self._input = LiveInput()
        self._queue = EventQueue()
        self._lock = threading.Lock()
        self._inbox: collections.deque[Callable[[], None]] = collections.deque()
        self._scheduled = False
        self._closed = False  # no more audio is accepted
        self._skip = 0
        self._connection = 0
        self._finishing = False
        self._arrivals: collections.deque[tuple[int, float]] = collections.deque()
        self._final: Union[Finished, None] = None
        self._waited = False  # whether the next update waits for other sessions
        self._cancel_update: Cancel = _nothing
        self._cancel_final: Cancel = _nothing
        self._received_s = self._heard_s = 0.0

    # --- in any thread ----------------------------------------------------------------------------

    def push(self, samples: LiveSamples, sample_rate: int | None = None) -> None:
        """Add samples; returns at once.

        Args:
            samples: numpy array [n] or [n, channels] of floats (-1 to 1) or integers, or bytes of
                16 bits, little endian; any number.
            sample_rate: their rate in Hz; default: that of the session.

        Raises:
            AudioError: they are no samples.
            StreamError: the session was finished or cancelled.
        """
        block = as_block(samples, self._channels)
        rate = self._rate if sample_rate is None else check_rate(sample_rate)
        with self._lock:
            if self._closed:
                raise StreamError("the live session has ended; begin another one")
            skipped = min(self._skip, len(block))
            self._skip -= skipped
            self.received += len(block) - skipped
            self._received_s += (len(block) - skipped) / rate
            arrived = self._runner.now()
        self._do(lambda: self._hear(block[skipped:], rate, arrived))

    def commit(self) -> None:
        """End the present utterance now."""
        self._do(self._transcriber.commit)

    def clear(self) -> None:
        """Forget the audio that belongs to no committed word."""
        self._do(self._transcriber.clear)

    def finish(self) -> None:
        """No more audio comes: the present utterance ends, and then the events."""
        with self._lock:
            closed, self._closed = self._closed, True
        if not closed:
            self._do(self._end_of_audio)

    def cancel(self) -> None:
        """End the events at once."""
        with self._lock:
            self._closed = True
        self._queue.end(at_once=True)
        self._do(self._drop_work)
        self._on_end(self)

    def detach(self) -> None:
        """The connection is lost: the session waits for ``resume_s`` to be resumed.

        Iterations of :meth:`events` end; what they have not yielded is kept.
        """
        with self._lock:
            self._connection += 1
            connection = self._connection
        self._queue.release()
        self._runner.call_later(self.live_options.resume_s, lambda: self._expire(connection))

    def resume(self, from_sample: int) -> None:
        """Go on with a new connection, whose first sample has this number.

        Raises:
            LiveSessionLost: the session has ended, or samples before this one are missing.
        """
        with self._lock:
            if self._closed:
                raise LiveSessionLost("the live session has ended; begin another one")
            if not 0 <= from_sample <= self.received:
                raise LiveSessionLost(
                    f"the live session has {self.received} samples, but the new connection begins"
                    f" with sample {from_sample}; send the samples from {self.received} on"
                )
            self._connection += 1
            self._skip = self.received - from_sample
        self._queue.release()

    def events(self) -> Iterator[LiveEvent]:
        """Yield the events as they come; waits for each. One reader at a time."""
        return iter(self._queue)

    def __aiter__(self) -> AsyncIterator[LiveEvent]:
        """Like :meth:`events`, in an asyncio event loop."""
        return self._queue.__aiter__()

    def take(self) -> list[LiveEvent]:
        """The events that have come and were not read; does not wait."""
        return self._queue.take()

    @property
    def backlog(self) -> float:
        """Seconds of audio that were received and are in no result yet; see :class:`Lag`."""
        return max(0.0, self._received_s - self._heard_s)

    @property
    def ended(self) -> bool:
        """Whether there will be no more events."""
        return self._queue.ended

    def _do(self, call: Callable[[], None]) -> None:
        """Call in the thread of the session, after all others."""
        with self._lock:
            self._inbox.append(call)
            scheduled, self._scheduled = self._scheduled, True
        if not scheduled:
            self._runner.post(self._work)

    def _expire(self, connection: int) -> None:
        with self._lock:
            lost = self._connection == connection
        if lost:
            self.cancel()

    # --- in the thread of the session -------------------------------------------------------------

    def _work(self) -> None:
        """Make the calls, then go on."""
        with self._lock:
            calls, self._inbox = self._inbox, collections.deque()
            self._scheduled = False
        self._guarded(lambda: [call() for call in calls])

    def _guarded(self, call: Callable[[], object]) -> None:
        """Call, then go on; an error ends the session, and no other."""
        try:
            call()
            self._advance()
        except WhisperOptError as error:
            self._stop(error)
        except Exception as error:
            _log.exception("a live session failed")
            failure = EngineError(f"the live session failed ({type(error).__name__}: {error})")
            failure.__cause__ = error
            self._stop(failure)

    def _hear(self, block: NDArray, rate: int, arrived: float) -> None:
        samples = self._input.feed(block, rate)
        self._transcriber.feed(samples)
        if self._transcriber.idle:
            self._arrivals.clear()
        self._arrivals.append((self._transcriber.received, arrived))

    def _end_of_audio(self) -> None:
        self._transcriber.feed(self._input.finish())
        self._transcriber.finish()
        self._finishing = True

    def _advance(self) -> None:
        """Report, and begin what is to be done next."""
        if self._queue.ended:
            return
        self._heard_s = self._transcriber.heard / SAMPLE_RATE
        update = self._next_update()
        if update is not None:
            heard = self._transcriber.heard
            self._cancel_update = self._runner.decode(
                update,
                self.live_options.update_s,
                lambda found, work: self._updated(update, heard, found, work),
            )
        self._begin_final()
        self._report()
        if self._finishing and self._transcriber.idle and self._final is None:
            if self._speakers is not None:
                self._queue.put(self._speakers.finish())
            self._queue.end()
            self._on_end(self)

    def _next_update(self) -> Update | None:
        """What to decode now; None if nothing, or while it must wait for other sessions."""
        if not self._transcriber.wants_update:
            return None
        deadline = self._runner.now() + self.live_options.update_s
        if not self._turns.begin(self, deadline, lambda: self._guarded(lambda: None)):
            self._waited = True
            return None
        waited, self._waited = self._waited, False
        late = self._runner.now() - self._arrivals[-1][1] if waited else 0.0
        late = min(late, self.live_options.update_s)
        return self._transcriber.next_update(late)

    def _report(self) -> None:
        events = self._transcriber.events
        while events:
            self._queue.put(events.popleft())

    def _updated(self, update: Update, heard: int, found: Hypothesis | None, work: float) -> None:
        self._turns.end(self)
        if self._queue.ended:  # it may have been cancelled
            return
        self._worked(work, (update.end - heard) / SAMPLE_RATE)

        def take() -> None:
            if found is None:
                self._transcriber.failed(update)
            else:
                self._transcriber.accept(update, found)
            self._report()
            self._queue.put(Lag(self._lag(update.end)))

        self._guarded(take)

    def _lag(self, heard: int) -> float:
        """Seconds since the arrival of the newest sample that an update heard."""
        while len(self._arrivals) > 1 and self._arrivals[0][0] < heard:
            self._arrivals.popleft()
        return self._runner.now() - self._arrivals[0][1]

    # --- results of utterances --------------------------------------------------------------------

    def _begin_final(self) -> None:
        """Transcribe the next finished utterance, if no other is being transcribed."""
        while self._final is None and self._transcriber.finished:
            utterance = self._transcriber.finished.popleft()
            if self._speakers is not None and len(utterance.samples):
                self._speakers.begin(utterance.samples)
            if self.live_options.final == "none" or not len(utterance.samples):
                self._report()
                self._queue.put(self._named(_without_final(utterance)))
                continue
            self._final = utterance
            self._cancel_final = self._runner.transcribe(
                utterance.samples,
                final_options(self.options, utterance.language),
                _FINAL_DEADLINE,
                self._transcribed,
            )

    def _transcribed(self, result: Union[Transcript, WhisperOptError]) -> None:
        utterance, self._final = self._final, None
        if utterance is None:  # the session was stopped
            return
        if isinstance(result, WhisperOptError):
            self._queue.put(Failed(result, utterance.number))
        else:
            found = _with_final(utterance, result)
            self._guarded(lambda: self._queue.put(self._named(found)))
            return
        self._guarded(lambda: None)

    def _named(self, found: Utterance) -> Utterance:
        """With its speaker, if speakers are told apart."""
        return found if self._speakers is None else self._speakers.named(found)

    def _stop(self, error: WhisperOptError) -> None:
        """End the session, because nothing is decoded any more."""
        with self._lock:
            self._closed = True
        self._report()
        final = [] if self._final is None else [self._final.number]
        for number in (*final, *self._transcriber.unfinished):
            self._queue.put(Failed(error, number))
        self._final = None
        self._queue.end()
        self._drop_work()
        self._on_end(self)

    def _drop_work(self) -> None:
        """Decode nothing more; what has been decoded is not cancelled."""
        self._final = None
        self._cancel_update()
        self._cancel_final()
        self._turns.end(self)


def _nothing() -> None:
    pass


def _without_final(utterance: Finished) -> Utterance:
    return Utterance(
        segments=(),
        text=text_of(utterance.words),
        start=utterance.start,
        end=utterance.end,
        utterance=utterance.number,
        language=utterance.language or "en",
        words=tuple(word.word for word in utterance.words),
    )


def _with_final(utterance: Finished, result: Transcript) -> Utterance:
    segments = tuple(moved(segment, utterance.start) for segment in result)
    return Utterance(
        segments=segments,
        text=result.text,
        start=utterance.start,
        end=utterance.end,
        utterance=utterance.number,
        language=result.language,
        words=tuple(word for segment in segments for word in segment.words or ()),
    )
