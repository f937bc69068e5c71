"""Runs of random programs on a backend, and the expected scores.

The expected result of each call follows from the tokens of the rows at that time (:class:`Scores`),
and is computed by feeding them to a new session of one row.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Union

import numpy as np
import pytest

from tests.support.backend_subjects import DIMS, N_CTX, TOLERANCE, mels, pad
from tests.support.programs import BEGIN, EOT, N_AUDIO, GreedyState, Step
from whisper_opt.core.arrays import F32, Bool
from whisper_opt.core.backend import (
    Backend,
    Encoded,
    MultiStepResult,
    MultiStepSession,
    Session,
    TokenMask,
    Top,
)
from whisper_opt.core.errors import EngineError
from whisper_opt.core.logits import top_k, top_row
from whisper_opt.decoding.multistep import greedy_row, greedy_rows

__all__ = ["Choice", "ExpectedScores", "Scores", "check_top", "mismatch", "run"]

Row = tuple[int, tuple[int, ...]]
"""An audio and the tokens fed after it."""


@dataclasses.dataclass(frozen=True)
class Scores:
    """Scores from a backend for one row.

    Attributes:
        audio: index of the window.
        tokens: all tokens fed to the row.
        scores: float32 [n_vocab] after the last of them.
    """

    audio: int
    tokens: tuple[int, ...]
    scores: F32


@dataclasses.dataclass(frozen=True)
class Choice:
    """A token that was chosen as the best of a row.

    Attributes:
        audio: index of the window.
        tokens: all tokens fed to the row.
        mask: the allowed tokens.
        token: the chosen token.
        logprob: its log-probability from the backend.
    """

    audio: int
    tokens: tuple[int, ...]
    mask: TokenMask
    token: int
    logprob: float


def mismatch(result: Union[Scores, Choice], reference: F32) -> float:
    """Difference between a result and the one for the expected scores [n_vocab]."""
    if isinstance(result, Scores):
        return float(np.abs(result.scores - reference).max())
    if _near_tie(reference[None], result.mask, 1e-3).any():
        return 0.0
    allowed = np.where(result.mask.ban[0], np.float32(-np.inf), reference)
    tokens, logprobs = top_row(allowed, int(result.mask.timestamp_begin[0]), 5)
    if result.token not in tokens:
        return np.inf
    expected = logprobs[tokens.index(result.token)]
    if expected == -np.inf or result.logprob == -np.inf:  # nothing was allowed
        return 0.0 if (expected, result.token) == (result.logprob, 0) else np.inf
    return max(abs(expected - result.logprob), logprobs[0] - expected)


class _Run:
    """A running program."""

    def __init__(self, backend: Backend, encoded: Encoded) -> None:
        self.backend, self.encoded = backend, encoded
        self.rows: list[Row] = []
        self.session: Session | None = None
        self.logits: Any = None
        self.results: list[Union[Scores, Choice]] = []

    def call(self, step: Step) -> None:
        getattr(self, step.operation)(step.arguments)

    def live(self) -> Session:
        assert self.session is not None
        return self.session

    def open(self, audios: list[int]) -> None:
        self.session = self.backend.open(self.encoded.take(audios))
        self.rows = [(audio, ()) for audio in audios]

    def extend(self, arguments: tuple[list[tuple[int, ...]], list[list[int]]]) -> None:
        new, at = arguments
        tokens, lengths = pad([np.array(sequence, np.int64) for sequence in new])
        wanted = np.array(at, np.int64).reshape(len(new), -1)
        self.logits = self.live().extend(tokens, lengths, wanted if wanted.size else None)
        scores = self.logits.numpy().copy()
        assert scores.shape == (len(new), wanted.shape[1] + 1, DIMS.n_vocab)
        np.testing.assert_allclose(self.logits.requested(), scores[:, :-1], rtol=0, atol=TOLERANCE)
        for i, ((audio, held), sequence) in enumerate(zip(self.rows, new)):
            for index, found in zip([*at[i], len(sequence) - 1], scores[i]):
                self.results.append(Scores(audio, held + sequence[: index + 1], found))
            self.rows[i] = audio, held + sequence

    def top(self, arguments: tuple[int, TokenMask]) -> None:
        k, mask = arguments
        scores = self.logits.numpy()[:, -1].copy()
        check_top(self.logits.top(k, mask), scores, k, mask)

    def gather(self, rows: list[int]) -> None:
        self.live().gather(np.array(rows, np.int64))
        self.rows = [self.rows[row] for row in rows]

    def run(self, arguments: tuple[list[GreedyState], int]) -> None:
        """In several steps at once if the session can, otherwise in single steps."""
        rows, steps = arguments
        while steps:
            session = self.live()
            multistep = isinstance(session, MultiStepSession) and session.supports_multistep
            found = self._multistep(rows, steps) if multistep else self._single_step(rows)
            assert 1 <= len(found.tokens) <= steps
            steps -= len(found.tokens)
            for tokens, logprobs in zip(found.tokens.tolist(), found.logprobs.tolist()):
                rows = [
                    self._took(i, row, *each)
                    for i, (row, *each) in enumerate(zip(rows, tokens, logprobs))
                ]
            live = [i for i, row in enumerate(rows) if row.sampled[-1] != EOT]
            if not live:
                return
            if len(live) < len(rows):
                self.gather(live)
                rows = [rows[i] for i in live]

    def _took(self, i: int, row: GreedyState, token: int, logprob: float) -> GreedyState:
        """Record a token of row i, unless the row has ended."""
        if row.sampled[-1] == EOT:
            assert (token, logprob) == (EOT, 0.0)
            return row
        audio, held = self.rows[i]
        self.rows[i] = audio, (*held, row.sampled[-1])
        self.results.append(Choice(audio, self.rows[i][1], row.mask, token, logprob))
        return row.after(token)

    def _multistep(self, rows: list[GreedyState], steps: int) -> MultiStepResult:
        session = self.live()
        assert isinstance(session, MultiStepSession)
        found = [greedy_row(row.rules, row.begin, EOT, DIMS.n_vocab) for row in rows]
        fixed = [row for row in found if row is not None]
        assert len(fixed) == len(rows)
        tokens = np.array([[row.sampled[-1]] for row in rows])
        return session.decode_steps(
            tokens, greedy_rows(fixed, [row.sampled for row in rows]), steps
        )

    def _single_step(self, rows: list[GreedyState]) -> MultiStepResult:
        logits = self.live().extend(np.array([[row.sampled[-1]] for row in rows]))
        ban = np.concatenate([row.mask.ban for row in rows])
        begin = np.concatenate([row.mask.timestamp_begin for row in rows])
        top = logits.top(1, TokenMask(ban, begin))
        return MultiStepResult(top.tokens.T, top.logprobs.T)

    def append(self, steps: list[Step]) -> None:
        other = _Run(self.backend, self.encoded)
        for step in steps:
            other.call(step)
        self.live().append(other.live())
        self.results += other.results
        self.rows += other.rows
        check_closed(other.live())

    def attention(self, arguments: tuple[list[int], list[tuple[int, ...]]]) -> None:
        audios, sequences = arguments
        tokens, lengths = pad([np.array(sequence, np.int64) for sequence in sequences])
        found = self.backend.attention(self.encoded.take(audios), tokens, lengths)
        assert found.scores.shape[::2] == (len(audios), tokens.shape[1])
        for audio, sequence, scores in zip(audios, sequences, found.logits):
            for n in range(len(sequence)):
                self.results.append(Scores(audio, sequence[: n + 1], scores[n].copy()))

    def overfull(self, n: int) -> None:
        tokens = np.zeros((len(self.rows), n), np.int64)
        with pytest.raises(EngineError, match=f"would grow to {N_CTX + 1} tokens"):
            self.live().extend(tokens)

    def close(self, _: None) -> None:
        self.live().close()
        check_closed(self.live())


def check_closed(session: Session) -> None:
    """A closed session raises, and can be closed again."""
    with pytest.raises(EngineError, match="closed"):
        session.extend(np.zeros((1, 1), np.int64))
    with pytest.raises(EngineError, match="closed"):
        session.gather(np.zeros(2, np.int64))
    session.close()


def check_top(found: Top, scores: F32, k: int, mask: TokenMask) -> None:
    """The choice equals the reference, unless the timestamp rule depends on rounding."""
    expected = top_k(scores, k, mask)
    clear = ~_near_tie(scores, mask)
    np.testing.assert_array_equal(found.tokens[clear], expected.tokens[clear])
    # 3000 programs: within 1e-6, since all scores that matter for the sum are exact in so small a
    # vocabulary; with real ones the two-stage head sums the tail from 8-bit scores
    np.testing.assert_allclose(found.logprobs[clear], expected.logprobs[clear], rtol=0, atol=1e-5)


def _near_tie(scores: F32, mask: TokenMask, within: float = 1e-6) -> Bool:
    allowed = np.where(mask.ban, np.float64(-1e30), scores.astype(np.float64))
    text, times = allowed[:, :BEGIN].max(axis=1), allowed[:, BEGIN:]
    peak = times.max(axis=1)
    together = peak + np.log(np.exp(times - peak[:, None]).sum(axis=1))
    near: Bool = np.abs(together - text) < within * (1 + np.abs(text))
    ruled: Bool = near & (mask.timestamp_begin < DIMS.n_vocab) & (text > -1e29)
    return ruled


def run(backend: Backend, encoded: Encoded, steps: Sequence[Step]) -> list[Union[Scores, Choice]]:
    """Run a program on the windows of ``mels(N_AUDIO)``; returns all results."""
    running = _Run(backend, encoded)
    for step in steps:
        running.call(step)
    return running.results


class ExpectedScores:
    """Expected scores of any row, from new sessions of one row that are fed all tokens at once."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._encoded = [backend.encode(mel[None]) for mel in mels(N_AUDIO)]

    def of(self, results: Sequence[Union[Scores, Choice]]) -> dict[Row, F32]:
        """Expected scores [n_vocab] for the row of each result."""
        wanted = {(result.audio, result.tokens) for result in results}
        found: dict[Row, F32] = {}
        for audio, tokens in sorted(wanted, key=lambda row: -len(row[1])):
            if (audio, tokens) in found:
                continue
            fed = np.array(tokens, np.int64)[None]
            session = self._backend.open(self._encoded[audio])
            scores = session.extend(fed, at=np.arange(len(tokens) - 1)[None]).numpy()[0].copy()
            session.close()
            for n in range(1, len(tokens) + 1):
                if (audio, tokens[:n]) in wanted:
                    found[audio, tokens[:n]] = scores[n - 1]
        return found
