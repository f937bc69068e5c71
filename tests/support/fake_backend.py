"""A backend without a model: scores are a fixed pseudo-random function of audio and tokens.

It keeps exactly what a real cache keeps (the tokens of each row), so that the decode loop, the
searches and the rules can be tested in milliseconds and against reference rules.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Sequence
from typing import Callable

import numpy as np

from whisper_opt.core.arrays import F32, Int
from whisper_opt.core.backend import Attention, Encoded, Session
from whisper_opt.core.dims import ModelDims
from whisper_opt.core.errors import EngineError
from whisper_opt.core.interruption import Interruption
from whisper_opt.core.logits import HostLogits
from whisper_opt.runtime.inputs import closed_session

__all__ = ["FakeBackend", "FakeEncoded", "FakeSession"]

Scores = Callable[[int, Sequence[int]], F32]


@dataclasses.dataclass(frozen=True)
class FakeEncoded:
    """One integer per window, derived from its mel."""

    seeds: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.seeds)

    def take(self, audios: Sequence[int]) -> FakeEncoded:
        return FakeEncoded(tuple(self.seeds[audio] for audio in audios))


class FakeBackend:
    """Implements :class:`whisper_opt.core.backend.Backend` in numpy."""

    def __init__(self, dims: ModelDims, scores: Scores | None = None) -> None:
        """``scores(seed, tokens)`` gives the next-token scores [n_vocab]; default: random."""
        self.dims = dims
        self.extends_at_once = True
        self._scores = scores

    def encode(self, mel: F32, interruption: Interruption | None = None) -> FakeEncoded:
        mel = np.ascontiguousarray(mel, np.float32)
        return FakeEncoded(tuple(zlib.crc32(window.tobytes()) for window in mel))

    def open(self, audio: Encoded) -> FakeSession:
        if not isinstance(audio, FakeEncoded):
            raise EngineError(f"audio was encoded by another backend ({type(audio).__name__})")
        return FakeSession(self, audio)

    def attention(self, audio: Encoded, tokens: Int, lengths: Int) -> Attention:
        """Two heads, whose scores depend on the audio and the tokens so far."""
        assert isinstance(audio, FakeEncoded)
        n_audio, n_tokens = tokens.shape
        at = np.tile(np.arange(n_tokens - 1), (n_audio, 1))
        logits = self.open(audio).extend(tokens, at=at).numpy()
        scores = np.zeros((n_audio, 2, n_tokens, self.dims.n_audio_ctx), np.float32)
        for i, seed in enumerate(audio.seeds):
            for j in range(n_tokens):
                state = zlib.crc32(tokens[i, : j + 1].tobytes(), seed)
                rng = np.random.default_rng(state)
                scores[i, :, j] = rng.standard_normal((2, self.dims.n_audio_ctx), np.float32)
        return Attention(scores, logits)

    def scores(self, seed: int, tokens: Sequence[int]) -> F32:
        """Next-token scores [n_vocab] after ``tokens`` for the audio ``seed``."""
        if self._scores is not None:
            return self._scores(seed, tokens)
        state = zlib.crc32(np.array(tokens, np.int64).tobytes(), seed)
        drawn = np.random.default_rng(state).standard_normal(self.dims.n_vocab, np.float32)
        scaled: F32 = drawn * np.float32(4)
        return scaled


class FakeSession:
    """Implements :class:`whisper_opt.core.backend.Session`: the cache is the tokens themselves."""

    def __init__(self, backend: FakeBackend, audio: FakeEncoded) -> None:
        """One empty row per window."""
        self._backend = backend
        self._rows: list[tuple[int, list[int]]] = [(seed, []) for seed in audio.seeds]

    def extend(self, tokens: Int, lengths: Int | None = None, at: Int | None = None) -> HostLogits:
        self._check_open()
        n_seq, n_new = tokens.shape
        sizes = [n_new] * n_seq if lengths is None else lengths.tolist()
        limit = self._backend.dims.n_text_ctx
        longest = max(len(held) + size for (_, held), size in zip(self._rows, sizes))
        if longest > limit:
            raise EngineError(f"a row would grow to {longest} tokens; the model holds {limit}")
        scores = []
        for i, (seed, held) in enumerate(self._rows):
            wanted = [*([] if at is None else at[i].tolist()), sizes[i] - 1]
            new = tokens[i, : sizes[i]].tolist()
            scores.append(
                [self._backend.scores(seed, [*held, *new[: index + 1]]) for index in wanted]
            )
            held.extend(new)
        return HostLogits(np.array(scores, np.float32))

    @property
    def extends_at_once(self) -> bool:
        return self._backend.extends_at_once

    def truncate(self, dropped: Int) -> None:
        self._check_open()
        for (_, held), n in zip(self._rows, dropped.tolist()):
            assert 0 <= n <= len(held)
            del held[len(held) - n :]

    def _check_open(self) -> None:
        if not self._rows:
            raise closed_session()

    def gather(self, rows: Int) -> None:
        self._check_open()
        self._rows = [(self._rows[row][0], list(self._rows[row][1])) for row in rows.tolist()]

    def append(self, other: Session) -> None:
        if not isinstance(other, FakeSession):
            raise EngineError(f"session of another backend ({type(other).__name__})")
        self._check_open()
        other._check_open()
        self._rows.extend(other._rows)
        other.close()

    def close(self) -> None:
        self._rows = []
