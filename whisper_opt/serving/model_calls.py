"""A model for reader threads: the thread of the engine computes what they ask for.

The language of a recording is detected while the recording is read, with the encoder. Between two
steps the engine runs a few encoders only, those of language detection included.
"""

from __future__ import annotations

import collections
import contextlib
import threading
from typing import Any, Callable, cast

from whisper_opt.core.arrays import F32, Int
from whisper_opt.core.backend import Attention, Backend, Encoded, Session
from whisper_opt.core.errors import EngineClosed
from whisper_opt.core.interruption import Interruption

__all__ = ["ModelCalls"]


class _Call:
    """An encoder run that a reader waits for."""

    def __init__(self, mel: F32) -> None:
        self.mel = mel
        self.ended = threading.Event()
        self.encoded: Encoded | None = None
        self.error: BaseException | None = None


class _HeldSession:
    """A session of a model that is not released before the session is closed."""

    def __init__(self, session: Session, held: contextlib.ExitStack) -> None:
        self._session = session
        self._held = held

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def close(self) -> None:
        with self._held:
            self._session.close()


class ModelCalls:
    """Implements ``Backend``; ``encode`` runs in the thread that calls :meth:`answer`."""

    def __init__(
        self,
        backend: Backend,
        use: Callable[[], contextlib.AbstractContextManager[Backend]],
        wake: Callable[[], None],
    ) -> None:
        """Wait for calls.

        Args:
            backend: the model.
            use: the model is not released in this context.
            wake: called when a reader waits.
        """
        self.dims = backend.dims
        self._backend = backend
        self._use = use
        self._wake = wake
        self._lock = threading.Lock()
        self._calls: collections.deque[_Call] = collections.deque()
        self._closed = False

    def __getattr__(self, name: str) -> Any:
        """Other attributes are those of the model."""
        return getattr(self._backend, name)

    def encode(self, mel: F32, interruption: Interruption | None = None) -> Encoded:
        """Have the engine encode windows; waits for it, and is not interrupted.

        Raises:
            EngineClosed: the engine is closed.
        """
        call = _Call(mel)
        with self._lock:
            if self._closed:
                raise EngineClosed("the engine was closed while a recording was read")
            self._calls.append(call)
        self._wake()
        call.ended.wait()
        if call.error is not None:
            raise call.error
        assert call.encoded is not None
        return call.encoded

    def open(self, audio: Encoded) -> Session:
        """See ``Backend``."""
        with contextlib.ExitStack() as held:
            session = held.enter_context(self._use()).open(audio)
            return cast(Session, _HeldSession(session, held.pop_all()))

    def attention(self, audio: Encoded, tokens: Int, lengths: Int) -> Attention:
        """See ``Backend``."""
        return self._backend.attention(audio, tokens, lengths)

    @property
    def waiting(self) -> bool:
        """Whether a reader waits."""
        return bool(self._calls)

    def answer(self) -> int:
        """Encode what one reader waits for; returns the number of windows."""
        with self._lock:
            if not self._calls:
                return 0
            call = self._calls.popleft()
        try:
            call.encoded = self._backend.encode(call.mel)
        except BaseException as error:  # raised again in the reader
            call.error = error
        call.ended.set()
        return len(call.mel)

    def close(self) -> None:
        """Answer no more calls."""
        with self._lock:
            self._closed = True
            calls, self._calls = list(self._calls), collections.deque()
        for call in calls:
            call.error = EngineClosed("the engine was closed while a recording was read")
            call.ended.set()
