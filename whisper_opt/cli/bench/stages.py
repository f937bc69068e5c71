"""Time per stage of a transcription, measured from outside.

The backend, its sessions and its logits are wrapped, and so are the functions that read audio,
compute log-mels, detect speech and align words, in every module that imported them. The library
itself has no timing code.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import sys
import threading
import time
from collections.abc import Generator, Iterator
from types import ModuleType
from typing import Any, Callable, TypeVar

from whisper_opt.audio import decode as audio
from whisper_opt.audio import features, vad
from whisper_opt.core.arrays import F32, Int
from whisper_opt.core.backend import (
    Attention,
    Backend,
    Encoded,
    GreedyRows,
    Logits,
    MultiStepResult,
    MultiStepSession,
    Session,
    TokenMask,
    Top,
)
from whisper_opt.core.dims import ModelDims
from whisper_opt.core.interruption import Interruption
from whisper_opt.transcription import alignment as align

__all__ = ["STAGES", "Clock", "TimedBackend", "timing"]

STAGES = ("audio", "mel", "vad", "encode", "prefill", "step", "align")
"""Audio decoding; log-mel; speech detection; encoder; prompts, including language detection;
decoding steps, including selection and reordering; word timestamps. The rest is ``other``:
constraints, text and other work on the host."""

_Run = TypeVar("_Run", bound=Callable[..., Any])


class Clock:
    """Sums seconds by stage; time in a nested stage does not count for the outer one.

    Threads have their own stages, so the sum may exceed the elapsed time.
    """

    def __init__(self) -> None:
        """All counters are zero."""
        self._open = threading.local()
        self.reset()

    def reset(self) -> None:
        """Set all counters to zero."""
        self.seconds: collections.defaultdict[str, float] = collections.defaultdict(float)
        self.steps: list[float] = []
        """Seconds of every decoding step."""
        self.encoded = 0
        """Number of windows encoded."""

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the time in the ``with`` block as ``name``."""
        stack: list[float] = self._open.__dict__.setdefault("stack", [])
        begin = time.perf_counter()
        stack.append(0.0)
        try:
            yield
        finally:
            whole = time.perf_counter() - begin
            self.seconds[name] += whole - stack.pop()
            if stack:
                stack[-1] += whole

    def of(self, name: str, run: _Run) -> _Run:
        """``run``, timed as ``name``; if it returns a generator, its items are timed too."""

        @functools.wraps(run)
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.stage(name):
                found = run(*args, **kwargs)
            return self._each(name, found) if isinstance(found, Generator) else found

        return timed  # type: ignore[return-value]  # a wrapper of the same signature

    def _each(self, name: str, values: Iterator[Any]) -> Iterator[Any]:
        while True:
            with self.stage(name):
                try:
                    value = next(values)
                except StopIteration:
                    return
            yield value


@dataclasses.dataclass(frozen=True)
class _TimedLogits:
    """Logits; selection counts for the call that computed them."""

    scores: Logits
    owner: TimedSession

    def top(self, k: int, mask: TokenMask) -> Top:
        with self.owner.running():
            return self.scores.top(k, mask)

    def requested(self) -> F32:
        with self.owner.running():
            return self.scores.requested()

    def numpy(self) -> F32:
        with self.owner.running():
            return self.scores.numpy()


class TimedSession:
    """A timed session: the first ``extend`` is the prefill, the others are steps."""

    def __init__(self, session: Session, clock: Clock) -> None:
        """Time ``session``."""
        self.session = session
        self._clock = clock
        self._stage = "prefill"
        self._fed = False

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Count the time in the ``with`` block for the current call."""
        begin = time.perf_counter()
        try:
            with self._clock.stage(self._stage):
                yield
        finally:
            if self._stage == "step":
                self._clock.steps[-1] += time.perf_counter() - begin

    def extend(self, tokens: Int, lengths: Int | None = None, at: Int | None = None) -> Logits:
        """As the session."""
        if self._fed:
            self._stage = "step"
            self._clock.steps.append(0.0)
        self._fed = True
        with self.running():
            return _TimedLogits(self.session.extend(tokens, lengths, at), self)

    @property
    def extends_at_once(self) -> bool:
        """As the session."""
        return self.session.extends_at_once

    def truncate(self, dropped: Int) -> None:
        """As the session."""
        with self.running():
            self.session.truncate(dropped)

    def gather(self, rows: Int) -> None:
        """As the session."""
        with self.running():
            self.session.gather(rows)

    def append(self, other: Session) -> None:
        """As the session; counts as prefill of the appended rows."""
        inner = other.session if isinstance(other, TimedSession) else other
        with self._clock.stage("prefill"):
            self.session.append(inner)

    def close(self) -> None:
        """As the session."""
        self.session.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.session, name)


class TimedMultiStepSession(TimedSession):
    """The same for a session with multi-step decoding; each step counts."""

    session: MultiStepSession

    @property
    def supports_multistep(self) -> bool:
        """As the session."""
        return self.session.supports_multistep

    def decode_steps(self, tokens: Int, rows: GreedyRows, steps: int) -> MultiStepResult:
        """As the session."""
        begin = time.perf_counter()
        with self._clock.stage("step"):
            found = self.session.decode_steps(tokens, rows, steps)
        n = len(found.tokens)
        self._clock.steps += [(time.perf_counter() - begin) / n] * n
        self._stage = "step"
        return found


class TimedBackend:
    """A timed backend."""

    def __init__(self, backend: Backend, clock: Clock) -> None:
        """Time ``backend``."""
        self._backend = backend
        self._clock = clock
        self.dims: ModelDims = backend.dims

    def encode(self, mel: F32, interruption: Interruption | None = None) -> Encoded:
        """As the backend; waits for asynchronous work to complete, and is not interrupted."""
        with self._clock.stage("encode"):
            found = self._backend.encode(mel)
            wait = getattr(self._backend, "synchronize", None)
            if wait is not None:
                wait()
        self._clock.encoded += len(mel)
        return found

    def open(self, audio: Encoded) -> TimedSession:
        """As the backend."""
        with self._clock.stage("prefill"):
            session = self._backend.open(audio)
        # the decode loop checks the type: only multi-step sessions may be a MultiStepSession
        timed = TimedMultiStepSession if isinstance(session, MultiStepSession) else TimedSession
        return timed(session, self._clock)

    def attention(self, audio: Encoded, tokens: Int, lengths: Int) -> Attention:
        """As the backend."""
        with self._clock.stage("align"):
            return self._backend.attention(audio, tokens, lengths)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)


def _timed_functions() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Functions to time, and their stages."""
    yield "audio", audio.load_audio
    yield "audio", audio.open_audio
    yield "mel", features.log_mel
    yield "vad", vad.cut
    yield "align", align.align_words


def _timed_methods() -> Iterator[tuple[str, type[Any], str]]:
    yield "audio", audio.AudioStream, "__next__"
    yield "vad", vad.SpeechDetector, "spans"


def _library() -> list[ModuleType]:
    return [
        module
        for name, module in sys.modules.items()
        if name.split(".")[0] == "whisper_opt" and module is not sys.modules[__name__]
    ]


@contextlib.contextmanager
def timing(clock: Clock) -> Iterator[None]:
    """Time the functions of the library during a ``with`` block."""
    with contextlib.ExitStack() as undo:
        for stage, function in _timed_functions():
            timed = clock.of(stage, function)
            for module in _library():
                names = [name for name, value in vars(module).items() if value is function]
                for name in names:
                    _set(undo, module, name, timed)
        for stage, owner, name in _timed_methods():
            _set(undo, owner, name, clock.of(stage, getattr(owner, name)))
        yield


def _set(undo: contextlib.ExitStack, owner: Any, name: str, value: Any) -> None:
    undo.callback(setattr, owner, name, getattr(owner, name))
    setattr(owner, name, value)
