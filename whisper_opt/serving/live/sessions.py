"""The live sessions of an engine: begin, resume, end."""

from __future__ import annotations

import math
import threading
from typing import Callable

from whisper_opt.core.errors import LiveSessionLost, LiveSessionsFull, OptionError
from whisper_opt.core.options import LiveOptions, TranscribeOptions
from whisper_opt.serving.live.capacity import Capacity
from whisper_opt.serving.live.runner import Runner
from whisper_opt.serving.live.session import LiveSession
from whisper_opt.serving.live.turns import UpdateTurns
from whisper_opt.transcription.diarization import needed_networks
from whisper_opt.transcription.live.speakers import LiveSpeakers
from whisper_opt.transcription.live.transcriber import LiveTranscriber
from whisper_opt.transcription.model import Whisper

__all__ = ["LiveSessions"]


class LiveSessions:
    """Sessions that have not ended."""

    def __init__(
        self,
        model: Whisper,
        runner: Runner,
        most: int | None = None,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        """No sessions.

        Args:
            model: a loaded model.
            runner: where the sessions run.
            most: sessions at most; default: as many as are served in time.
            changed: called when a session has ended.
        """
        self._changed = changed
        self._model = model
        self._runner = runner
        self._capacity = Capacity(most)
        self._turns = UpdateTurns(1 if model.device == "cpu" else math.inf)
        self._lock = threading.Lock()
        self._sessions: dict[str, LiveSession] = {}
        self._n_reserved = 0  # that are being built

    def __len__(self) -> int:
        return len(self._sessions)

    @property
    def capacity(self) -> int:
        """How many sessions can be served in time, as far as is known."""
        return self._capacity.sessions

    def begin(
        self,
        options: TranscribeOptions | None,
        live: LiveOptions | None,
        sample_rate: int,
        channels: int,
    ) -> LiveSession:
        """Begin a session; see :meth:`whisper_opt.serving.Engine.live`."""
        chosen, how = options or TranscribeOptions(), live or LiveOptions()
        _check(chosen)
        if isinstance(channels, bool) or not isinstance(channels, int) or channels < 1:
            raise OptionError(f"channels is {channels!r}; expected a positive integer")
        model = self._model
        chosen.check_model(
            is_multilingual=model.is_multilingual, n_audio_ctx=model.dims.n_audio_ctx
        )
        self._reserve()
        try:
            speakers = None
            if chosen.diarize:
                speakers = LiveSpeakers(needed_networks(model._speakers), chosen)
                chosen = chosen.without_speakers()
            session = LiveSession(
                self._runner,
                LiveTranscriber(model.vocab, model.dims, chosen, how),
                chosen,
                how,
                sample_rate=sample_rate,
                channels=channels,
                speakers=speakers,
                turns=self._turns,
                ended=self._ended,
                worked=self._capacity.worked,
            )
            with self._lock:
                self._sessions[session.id] = session
        finally:
            with self._lock:
                self._n_reserved -= 1
        return session

    def _reserve(self) -> None:
        """Keep a place for a session that is built, which takes time."""
        with self._lock:
            n = len(self._sessions) + self._n_reserved
            if n >= self._capacity.sessions:
                raise LiveSessionsFull(
                    f"there are {n} live sessions, and more would delay them; try again when one"
                    " has ended, or use another machine"
                )
            self._n_reserved += 1

    def resume(self, session_id: str, from_sample: int) -> LiveSession:
        """Resume a session; see :meth:`whisper_opt.serving.Engine.resume_live`."""
        session = self._sessions.get(session_id)
        if session is None:
            raise LiveSessionLost(
                f"there is no live session {session_id!r} (any more); begin another one"
            )
        session.resume(from_sample)
        return session

    def _ended(self, session: LiveSession) -> None:
        with self._lock:
            self._sessions.pop(session.id, None)
        self._changed()

    def close(self) -> None:
        """Cancel all sessions."""
        for session in list(self._sessions.values()):
            session.cancel()


def _check(options: TranscribeOptions) -> None:
    """Refuse options that live sessions cannot honour."""
    options.check_alone()
    for name in ("clip_timestamps", "transcript_prefix", "prefix", "draft"):
        if getattr(options, name):
            raise OptionError(f"{name} is given, but a live session has no use for it")
    if options.channels == "split":
        raise OptionError(
            "channels is 'split', but a live session is one voice or a mix; open a session for each"
            " channel"
        )
    if options.strategy != "sequential" or options.multilingual:
        name = "multilingual" if options.multilingual else "strategy='batched'"
        raise OptionError(
            f"{name} is given, but each utterance of a live session is a recording of its own;"
            " leave it out"
        )
