"""Helpers of the conformance tests: expected scores, and sessions that are compared with them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tests.support.backend_subjects import DIMS, TOLERANCE, mels, pad
from whisper_opt.core.arrays import F32, Int
from whisper_opt.core.backend import Backend, Encoded, Session

__all__ = ["ExpectedScores", "Fed", "Rows", "close", "draw", "last", "opened"]


def draw(seed: int, *lengths: int) -> list[Int]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, DIMS.n_vocab, n).astype(np.int64) for n in lengths]


class ExpectedScores:
    """Expected scores after every token of a sequence, from a new session of one row."""

    def __init__(self, backend: Backend, n_audio: int) -> None:
        self.backend = backend
        self.encoded: list[Encoded] = [backend.encode(mel[None]) for mel in mels(n_audio)]
        self._known: dict[tuple[int, bytes], F32] = {}

    def __call__(self, audio: int, tokens: Int) -> F32:
        """[len(tokens), n_vocab]."""
        key = (audio, tokens.tobytes())
        if key not in self._known:
            session = self.backend.open(self.encoded[audio])
            at = np.arange(len(tokens) - 1)[None]
            self._known[key] = session.extend(tokens[None], at=at).numpy()[0].copy()
            session.close()
        return self._known[key]


def close(found: F32, expected: F32) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


def opened(backend: Backend, n_audio: int) -> Session:
    return backend.open(backend.encode(mels(n_audio)))


def last(session: Session, tokens: Any, lengths: Int | None = None) -> F32:
    """Scores [n_seq, n_vocab] after each row's last token."""
    scores: F32 = session.extend(np.asarray(tokens, np.int64), lengths).numpy()[:, -1].copy()
    return scores


class Rows:
    """A session and the tokens of its rows; all scores are compared with the expected ones."""

    def __init__(self, backend: Backend, n_audio: int, seed: int = 0) -> None:
        self.expected_scores = ExpectedScores(backend, n_audio)
        self.session = opened(backend, n_audio)
        self.held: list[tuple[int, Int]] = [
            (audio, np.zeros(0, np.int64)) for audio in range(n_audio)
        ]
        self._rng = np.random.default_rng(seed)

    def extend(self, lengths: Sequence[int], at: Int | None = None) -> None:
        new = [self._rng.integers(0, DIMS.n_vocab, n).astype(np.int64) for n in lengths]
        found = self.session.extend(*pad(new), at).numpy()
        assert len(found) == len(self.held)
        for row, ((audio, before), tokens) in enumerate(zip(self.held, new)):
            self.held[row] = (audio, np.concatenate([before, tokens]))
            wanted = [*([] if at is None else at[row]), len(tokens) - 1]
            expected = self.expected_scores(*self.held[row])[len(before) + np.array(wanted)]
            close(found[row], expected)

    def step(self, n: int = 1) -> None:
        for _ in range(n):
            self.extend([1] * len(self.held))

    def truncate(self, *dropped: int) -> None:
        self.session.truncate(np.array(dropped, np.int64))
        self.held = [(a, tokens[: len(tokens) - n]) for (a, tokens), n in zip(self.held, dropped)]

    def gather(self, *rows: int) -> None:
        self.session.gather(np.array(rows, np.int64))
        self.held = [self.held[row] for row in rows]


class Fed:
    """A session and the tokens of each of its rows."""

    def __init__(
        self, backend: Backend, expected_scores: ExpectedScores, audios: Sequence[int], seed: int
    ) -> None:
        self.expected_scores = expected_scores
        self.rows = list(zip(audios, draw(seed, *(3 + 2 * i for i in range(len(audios))))))
        self.session = backend.open(backend.encode(mels(4)).take(audios))
        self.check(last(self.session, *pad([tokens for _, tokens in self.rows])))

    def check(self, found: F32) -> None:
        assert len(found) == len(self.rows)
        for scores, (audio, tokens) in zip(found, self.rows):
            close(scores, self.expected_scores(audio, tokens)[-1])

    def step(self, seed: int) -> None:
        new = np.random.default_rng(seed).integers(0, DIMS.n_vocab, (len(self.rows), 1))
        self.rows = [(a, np.append(tokens, n)) for (a, tokens), n in zip(self.rows, new)]
        self.check(last(self.session, new))

    def gather(self, *rows: int) -> None:
        self.rows = [self.rows[row] for row in rows]
        self.session.gather(np.array(rows))

    def append(self, other: Fed) -> None:
        self.rows += other.rows
        self.session.append(other.session)
