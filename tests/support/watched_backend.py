"""Fake models and recordings for tests of the scheduler."""

from __future__ import annotations

import dataclasses
import functools
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.fake_backend import FakeBackend, FakeEncoded, FakeSession, Scores
from tests.support.models import random_checkpoint
from tests.support.reference_windows import BEGIN, DIMS, VOCAB
from whisper_opt import Whisper
from whisper_opt.audio import decode as audio
from whisper_opt.core.arrays import F32, Int
from whisper_opt.core.backend import Attention, Encoded, Session
from whisper_opt.core.dims import ModelDims
from whisper_opt.core.interruption import Interruption
from whisper_opt.core.logits import HostLogits
from whisper_opt.export import export
from whisper_opt.runtime.engine import Engine
from whisper_opt.text.results import Segment

__all__ = [
    "BATCHED",
    "ENDLESS",
    "PLAIN",
    "TEMPERATURES",
    "OpenStreams",
    "WatchedBackend",
    "WatchedSession",
    "engine",
    "fallback_options",
    "many",
    "noise",
    "noises",
    "quiet_model",
    "same",
    "spoken",
    "talkative",
    "windows_of",
]


def noise(seconds: float, seed: int = 0) -> F32:
    """Noise of varying loudness, float32 [n] at 16 kHz."""
    rng = np.random.default_rng(seed)
    n_samples = round(seconds * 16000)
    loudness = np.interp(np.arange(n_samples) / 16000, range(200), rng.uniform(0, 0.3, 200))
    sound: F32 = (rng.standard_normal(n_samples) * loudness).astype(np.float32)
    return np.clip(sound, -0.99, 0.99)


def talkative(seed: int, tokens: Sequence[int]) -> F32:
    """Random scores with frequent timestamps and ends of text."""
    state = zlib.crc32(np.array(tokens, np.int64).tobytes(), seed)
    scores: F32 = np.random.default_rng(state).standard_normal(DIMS.n_vocab, np.float32)
    scores *= np.float32(4)
    scores[BEGIN:] -= np.float32(3)
    scores[VOCAB.eot] += np.float32(4)
    scores[VOCAB.no_speech] += np.float32(14)
    return scores


PLAIN: dict[str, Any] = {"temperature": 0.0, "no_speech_threshold": None, "vad": "off"}
ENDLESS: dict[str, Any] = {**PLAIN, "suppress_tokens": (VOCAB.eot,), "without_timestamps": True}
"""Results that end at max_new_tokens only, which is then the number of steps of a window."""


class WatchedSession(FakeSession):
    """Records its calls in its backend."""

    def __init__(self, backend: WatchedBackend, audio: FakeEncoded) -> None:
        super().__init__(backend, audio)
        self.backend = backend

    @property
    def seeds(self) -> set[int]:
        return {seed for seed, _ in self._rows}

    def extend(self, tokens: Int, lengths: Int | None = None, at: Int | None = None) -> HostLogits:
        backend = self.backend
        begins = not any(held for _, held in self._rows)
        backend.note("prefill" if begins else "extend", self.seeds)
        backend.most = max(backend.most, len(set().union(*(s.seeds for s in backend.sessions))))
        if begins:
            rows = zip(self._rows, tokens.tolist(), (lengths if lengths is not None else []))
            for (seed, _), prompt, length in rows:
                backend.prompts.append((seed, tuple(prompt[: int(length)])))
        return super().extend(tokens, lengths, at)

    def append(self, other: Session) -> None:
        assert isinstance(other, WatchedSession)
        self.backend.note("join", other.seeds)
        super().append(other)

    def close(self) -> None:
        assert self in self.backend.sessions, "closed twice"
        self.backend.sessions.remove(self)
        super().close()


class WatchedBackend(FakeBackend):
    """A fake model that records its calls.

    Attributes:
        sessions: those that are open.
        diary: (what happened, the windows concerned), in order.
        prompts: (window, prompt) of every window that began.
        most: windows decoded at once at most.
        fail: from which entry of the diary on an interrupt comes, once.
    """

    def __init__(self, dims: ModelDims = DIMS, scores: Scores | None = talkative) -> None:
        super().__init__(dims, scores)
        self.sessions: list[WatchedSession] = []
        self.diary: list[tuple[str, frozenset[int]]] = []
        self.prompts: list[tuple[int, tuple[int, ...]]] = []
        self.most = 0
        self.fail: int | None = None
        self.error: BaseException = KeyboardInterrupt()

    def note(self, what: str, seeds: set[int]) -> None:
        self.diary.append((what, frozenset(seeds)))
        if self.fail is not None and len(self.diary) > self.fail:
            self.fail = None
            raise self.error

    def of(self, what: str) -> list[frozenset[int]]:
        return [seeds for name, seeds in self.diary if name == what]

    @property
    def windows(self) -> list[int]:
        """Every window encoded, in order."""
        return [seed for call in self.of("encode") for seed in call]

    def encode(self, mel: F32, interruption: Interruption | None = None) -> FakeEncoded:
        encoded = super().encode(mel)
        assert len(set(encoded.seeds)) == len(mel), "windows that cannot be told apart"
        self.note("encode", set(encoded.seeds))
        return encoded

    def open(self, audio: Encoded) -> WatchedSession:
        assert isinstance(audio, FakeEncoded)
        self.note("open", set(audio.seeds))
        self.sessions.append(WatchedSession(self, audio))
        return self.sessions[-1]

    def attention(self, audio: Encoded, tokens: Int, lengths: Int) -> Attention:
        found = super().attention(audio, tokens, lengths)
        self.sessions.pop()  # the one of the fake backend, which needs no closing
        return found


@functools.cache
def engine(n_vocab: int = DIMS.n_vocab, n_text_ctx: int = DIMS.n_text_ctx) -> Engine:
    """An engine with a vocabulary and token lists only."""
    narrow = {"n_audio_state": 64, "n_text_state": 64, "n_audio_head": 1, "n_text_head": 1}
    dims = dataclasses.replace(DIMS, n_vocab=n_vocab, n_text_ctx=n_text_ctx, **narrow)
    folder = Path(tempfile.mkdtemp(prefix="whisper-opt-test-"))
    return export(random_checkpoint(dims), folder / "engine")


def quiet_model() -> Whisper:
    """The same model on a plain backend."""
    return Whisper(engine(), FakeBackend(DIMS, talkative))


def windows_of(sound: F32, **options: Any) -> list[int]:
    """The windows of a recording that is transcribed alone."""
    backend = WatchedBackend()
    Whisper(engine(), backend).transcribe(sound, **options)
    return backend.windows


def many(model: Whisper, *args: Any, **options: Any) -> dict[int, Any]:
    results = list(model.transcribe_many(*args, **options))
    assert len({i for i, _ in results}) == len(results)
    return dict(results)


def noises(*seconds: float) -> list[F32]:
    return [noise(length, seed) for seed, length in enumerate(seconds)]


def spoken(seconds: Sequence[float], total: float, seed: int = 0) -> F32:
    """Noise whose frames are speech (``made_up``) within start, end, start, end, ..."""
    sound = noise(total, seed)
    starts = np.arange(0, len(sound), 512)
    times = starts / 16000
    speech = np.zeros(len(starts), np.bool_)
    for start, end in zip(seconds[::2], seconds[1::2]):
        speech |= (start <= times) & (times < end)
    sound[starts] = np.where(speech, np.float32(0.9), np.float32(0))
    return sound


BATCHED: dict[str, Any] = {
    "strategy": "batched",
    "temperature": 0.0,
    "no_speech_threshold": None,
}


class OpenStreams:
    """Counts open streams of recordings."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.n_open = 0
        self.n_opened = 0
        counts = self

        def open_audio(*args: Any, **kwargs: Any) -> Any:
            stream = audio.open_audio(*args, **kwargs)
            counts.n_open += 1
            counts.n_opened += 1
            close = stream.close

            def closing() -> None:
                counts.n_open -= 1
                close()

            stream.close = closing  # type: ignore[method-assign]
            return stream

        monkeypatch.setattr("whisper_opt.transcription.chunking.open_audio", open_audio)


def same(found: Sequence[Segment], expected: Sequence[Segment]) -> None:
    """Equal but for the rounding of times."""
    assert len(found) == len(expected)
    for mine, other in zip(found, expected):
        times: dict[str, Any] = {"start": mine.start, "end": mine.end, "words": mine.words}
        assert dataclasses.replace(other, **times) == mine
        assert (mine.start, mine.end) == pytest.approx((other.start, other.end), abs=1e-6)
        assert (mine.words is None) == (other.words is None)
        for word, another in zip(mine.words or (), other.words or ()):
            assert (word.word, word.probability) == (another.word, another.probability)
            assert (word.start, word.end) == pytest.approx((another.start, another.end), abs=0.011)
        assert len(mine.words or ()) == len(other.words or ())


TEMPERATURES: dict[str, Any] = {
    "temperature": (0.0, 0.4, 1.0),
    "no_speech_threshold": None,
    "vad": "off",
    "seed": 5,
}


def fallback_options(audios: Sequence[F32]) -> dict[str, Any]:
    """Temperatures with a threshold that about half the results at temperature 0 do not pass."""
    found = [segment for sound in audios for segment in quiet_model().transcribe(sound, **PLAIN)]
    middle = float(np.median([segment.avg_logprob for segment in found]))
    return {**TEMPERATURES, "logprob_threshold": middle, "compression_ratio_threshold": None}
