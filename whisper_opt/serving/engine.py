"""Engine: one model that transcribes for many callers at once, in one thread."""

from __future__ import annotations

import atexit
import contextlib
import math
import time
from typing import Callable

from whisper_opt.audio.decode import AudioSource
from whisper_opt.core.closing import Closing
from whisper_opt.core.options import LiveOptions, TranscribeOptions
from whisper_opt.serving.handle import Handle
from whisper_opt.serving.limits import Limits
from whisper_opt.serving.live.runner import EngineRunner
from whisper_opt.serving.live.session import LiveSession
from whisper_opt.serving.live.sessions import LiveSessions
from whisper_opt.serving.loop import EngineLoop
from whisper_opt.serving.requests import Request
from whisper_opt.serving.stats import EngineStats
from whisper_opt.text.results import Segment
from whisper_opt.transcription.admission import Terms
from whisper_opt.transcription.model import Whisper

__all__ = ["Engine"]


class Engine(Closing):
    """Transcribes recordings of many callers with one model; a context manager.

    All methods may be called from any thread. One thread decodes; it keeps one batch full with
    windows of all recordings, and never waits for a recording, a caller or a callback. Recordings
    are read in other threads. The result of a recording equals that of :meth:`Whisper.transcribe`
    with the same options, whatever else is transcribed meanwhile.

    Rows of the batch are shared: live recordings first, then by priority; then the recording with
    the fewest rows, then the earliest deadline, then in turns.

    Examples:
        >>> with Engine(model) as engine:  # doctest: +SKIP
        ...     handles = [engine.submit(path) for path in paths]
        ...     texts = [handle.result().text for handle in handles]
    """

    def __init__(
        self,
        model: Whisper,
        *,
        max_batch: int = 8,
        max_queued: int = 256,
        max_windows_per_step: int = 2,
        rows_per_recording: int | None = None,
        reserved_live_rows: int = 0,
        readers: int = 2,
        idle_unload_s: float | None = None,
        max_held_s: float = 6 * 3600.0,
        max_live: int | None = None,
        turns: contextlib.AbstractContextManager[object] | None = None,
    ) -> None:
        """Start the thread.

        Args:
            model: a loaded model, which others may use too.
            max_batch: maximum number of windows decoded at once.
            max_queued: maximum number of recordings that wait to be read.
            max_windows_per_step: maximum number of windows encoded between two decode steps: the
                running windows wait for that long.
            rows_per_recording: maximum number of windows of one recording that are decoded at once;
                default: three quarters of ``max_batch``, and no more than an equal share while
                others of its priority or a higher one want rows. With the batched strategy,
                ``batch_size`` of its options is another maximum.
            reserved_live_rows: rows of the batch that only live recordings may use.
            readers: number of threads that read recordings.
            idle_unload_s: close the engine and the model after so many seconds without work;
                default: never.
            max_held_s: do not begin to read another recording while those being transcribed hold
                more than so many seconds of audio in memory (96 bytes per ms).
            max_live: maximum number of live sessions; default: as many as can be served in time,
                by the measured cost of their updates.
            turns: entered for every step; engines that share it take turns.

        Raises:
            OptionError: a number is out of range.
            EngineError: the model was closed.
        """
        limits = Limits(
            max_batch, max_queued, max_windows_per_step, rows_per_recording, reserved_live_rows,
            readers, idle_unload_s, max_held_s, max_live,
        )  # fmt: skip
        self.model = model
        self._loop = EngineLoop(model, limits, turns)
        self._runner = EngineRunner(self._loop)
        self._live = LiveSessions(model, self._runner, max_live, self._loop.wake)
        self._loop.in_use = lambda: len(self._live) > 0
        atexit.register(self.close)

    # --- for callers ------------------------------------------------------------------------------

    def submit(
        self,
        audio: AudioSource,
        options: TranscribeOptions | None = None,
        *,
        sample_rate: int | None = None,
        priority: int = 0,
        deadline: float | None = None,
        live: bool = False,
        on_segment: Callable[[Segment], None] | None = None,
        on_progress: Callable[[float, float], None] | None = None,
    ) -> Handle:
        """Queue a recording; returns at once.

        Callbacks are called in a thread of the engine, one after another. If one raises, its
        recording fails with that error, and no other.

        Args:
            audio: path, bytes, binary file object, or numpy array [n] or [n, channels]. It must not
                change before the end.
            options: how to transcribe.
            sample_rate: rate of an array in Hz (default 16,000); not for files.
            priority: recordings of a higher priority come first.
            deadline: seconds from now in which the answer is wanted; among equals the earliest
                comes first. Nothing happens when it has passed.
            live: the recording comes before all others, and may use the reserved rows.
            on_segment: called with every segment.
            on_progress: called with (seconds done, total seconds so far) when more is done.

        Raises:
            QueueFull: ``max_queued`` recordings wait.
            EngineClosed: the engine accepts no more.
            OptionError: an option is not supported by this model.
        """
        self._loop.check_accepting()
        chosen = TranscribeOptions() if options is None else options
        chosen.check_alone()
        job, reading = self._loop.job(audio, sample_rate, chosen)
        by = math.inf if deadline is None else time.monotonic() + deadline
        rows = chosen.batch_size if chosen.strategy == "batched" else None
        terms = Terms(priority, by, live, rows)
        handle = Handle(self._loop.cancel)
        self._loop.add(Request(handle, job, reading, terms, on_segment, on_progress))
        return handle

    def live(
        self,
        options: TranscribeOptions | None = None,
        live: LiveOptions | None = None,
        *,
        sample_rate: int = 16_000,
        channels: int = 1,
    ) -> LiveSession:
        """Begin a live session: audio that comes as it is spoken.

        Its updates are windows of the one batch, before all recordings; among sessions the earliest
        deadline comes first. See docs/live.md.

        Args:
            options: how to transcribe. Utterances are transcribed with all of them when they end;
                before that, text is decoded as ``live`` says.
            live: when to decode, and when to commit words.
            sample_rate: rate of the samples in Hz.
            channels: number of interleaved channels, which are mixed.

        Raises:
            LiveSessionsFull: another session would delay those that there are.
            EngineClosed: the engine accepts no more.
            OptionError: an option is not supported by this model or by live sessions.
            AudioError: the rate is out of range.
        """
        self._loop.check_accepting(bounded=False)
        return self._live.begin(options, live, sample_rate, channels)

    def resume_live(self, session_id: str, from_sample: int) -> LiveSession:
        """Resume a live session whose connection was lost.

        Args:
            session_id: its ``id``.
            from_sample: number of the first sample that will be pushed now, at most ``received``;
                samples that it has are left out.

        Raises:
            LiveSessionLost: it has ended, or samples are missing.
        """
        return self._live.resume(session_id, from_sample)

    @property
    def live_capacity(self) -> tuple[int, int]:
        """Number of live sessions, and how many can be served in time as far as is known."""
        return len(self._live), self._live.capacity

    def stats(self) -> EngineStats:
        """What the engine is doing, and what it has done."""
        return self._loop.stats()

    @property
    def closed(self) -> bool:
        """Whether it accepts no more recordings."""
        return not self._loop.accepting

    @property
    def unloaded(self) -> bool:
        """Whether it was closed, and its model too, because it had nothing to do."""
        return self._loop.unloads

    def drain(self, timeout: float | None = None) -> bool:
        """Accept no more recordings, and wait until all are answered.

        Args:
            timeout: maximum wait in seconds; default: no limit.

        Returns:
            Whether all are answered. The engine remains to be closed.
        """
        return self._loop.drain(timeout)

    def close(self) -> None:
        """Cancel what is not finished, and end all threads; the model stays open."""
        if self._loop.in_another_process:
            return
        atexit.unregister(self.close)
        self._live.close()
        self._runner.close()
        self._loop.stop("the engine was closed")
        if self._loop.may_join:
            self._loop.thread.join()
