"""Random programs on a session: calls as token decoders make them, in any order.

A program depends on its seed only, so every backend runs the same one. The expected result of each
call follows from the tokens of the rows at that time (:class:`Scores`), and is computed by feeding
them to a new session of one row.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Union

import numpy as np
import pytest

from tests.support.backend_subjects import DIMS, N_CTX, TOLERANCE, mels, pad
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
from whisper_opt.decoding.constraints import SuppressTokens, TimestampRules, TokenConstraint
from whisper_opt.decoding.multistep import greedy_row, greedy_rows

__all__ = [
    "N_AUDIO",
    "Choice",
    "ExpectedScores",
    "GreedyState",
    "Scores",
    "mismatch",
    "program",
    "run",
]

N_AUDIO = 5
"""Windows that programs choose from."""
MAX_ROWS = 7
BEGIN = DIMS.n_vocab - DIMS.n_audio_ctx - 1
EOT = 100

Row = tuple[int, tuple[int, ...]]
"""An audio and the tokens fed after it."""


@dataclasses.dataclass(frozen=True)
class Step:
    """One call: the operation and its arguments."""

    operation: str
    what: Any


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
class GreedyState:
    """State of a row in multi-step decoding.

    Attributes:
        sampled: tokens sampled so far; the last one is fed next.
        allowed: ids that may be sampled.
        timed: whether the row is under the timestamp rules.
    """

    sampled: tuple[int, ...]
    allowed: tuple[int, ...]
    timed: bool

    @property
    def rules(self) -> list[TokenConstraint]:
        banned = np.setdiff1d(np.arange(DIMS.n_vocab), self.allowed)
        rules: list[TokenConstraint] = [SuppressTokens(banned)]
        if self.timed:
            rules.append(TimestampRules(BEGIN, EOT, BEGIN - 1, None))
        return rules

    @property
    def begin(self) -> int | None:
        return BEGIN if self.timed else None

    @property
    def mask(self) -> TokenMask:
        ban = np.zeros((1, DIMS.n_vocab), np.bool_)
        for rule in self.rules:
            rule(self.sampled, ban[0])
        return TokenMask(ban, np.array([self.begin or DIMS.n_vocab]))

    def after(self, token: int) -> GreedyState:
        return dataclasses.replace(self, sampled=(*self.sampled, token))


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


class _Writer:
    """Makes a program, and tracks the lengths of the rows as the session under test does."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng([seed, 4])
        self.lengths: list[int] = []

    def opening(self) -> Step:
        audios = self.rng.integers(0, N_AUDIO, self.rng.integers(1, 5)).tolist()
        self.lengths = [0] * len(audios)
        return Step("open", audios)

    def new_tokens(self, n: int) -> tuple[int, ...]:
        return tuple(self.rng.integers(0, DIMS.n_vocab, n).tolist())

    def extend(self, lengths: Sequence[int] | None = None) -> Step:
        if lengths is None:
            longest = self.rng.choice([1, 1, 1, 2, 5, 40], p=[0.2, 0.2, 0.2, 0.15, 0.2, 0.05])
            lengths = self.rng.integers(1, longest + 1, len(self.lengths)).tolist()
        lengths = [min(n, N_CTX - held) for n, held in zip(lengths, self.lengths)]
        if min(lengths) < 1:  # a row is full: remove it
            return self.gather([i for i, n in enumerate(lengths) if n > 0] or [0])
        self.lengths = [held + n for held, n in zip(self.lengths, lengths)]
        n_at = int(self.rng.choice([0, 0, 0, 1, 2]))
        at = [self.rng.integers(0, n, n_at).tolist() for n in lengths]
        return Step("extend", ([self.new_tokens(n) for n in lengths], at))

    def gather(self, rows: list[int] | None = None) -> Step:
        n = len(self.lengths)
        if rows is None:
            kind = self.rng.choice(["any", "permutation", "fan-out", "drop", "identity", "beam"])
            rows = self._rows(str(kind), n)
        self.lengths = [self.lengths[row] for row in rows]
        return Step("gather", rows)

    def _rows(self, kind: str, n: int) -> list[int]:
        every = np.arange(n)
        if kind == "any":
            rows = self.rng.integers(0, n, self.rng.integers(1, MAX_ROWS + 1))
        elif kind == "permutation":
            rows = self.rng.permutation(n)
        elif kind == "fan-out":
            rows = np.repeat(every, max(MAX_ROWS // n, 1))
        elif kind == "drop":
            rows = np.sort(self.rng.permutation(n)[: self.rng.integers(1, n + 1)])
        elif kind == "beam":
            rows = np.where(self.rng.random(n) < 0.7, every, self.rng.integers(n))
        else:
            rows = every
        return [int(row) for row in rows]

    def append(self) -> Step | None:
        if len(self.lengths) >= MAX_ROWS - 2:
            return None
        other = _Writer(int(self.rng.integers(1 << 30)))
        steps = [other.opening()]
        more = (other.extend, other.gather)[: self.rng.integers(0, 3)]
        steps.extend(make() for make in more)
        self.lengths += other.lengths
        return Step("append", steps)

    def masks(self) -> Step:
        """Masks of many kinds, for :func:`whisper_opt.core.logits.top_k`."""
        n = len(self.lengths)
        ban = self.rng.random((n, DIMS.n_vocab)) < self.rng.choice([0, 0.2, 0.999], (n, 1))
        ban[self.rng.random(n) < 0.1] = True
        begin = np.where(self.rng.random(n) < 0.5, BEGIN, DIMS.n_vocab).astype(np.int64)
        return Step("top", (int(self.rng.choice([1, 2, 6, 11, 13])), TokenMask(ban, begin)))

    def run(self) -> Step | None:
        """Multi-step decoding: rows run to the last step, or end at the first one."""
        room = N_CTX - max(self.lengths)
        if room < 1:
            return None
        steps = int(min(self.rng.choice([1, 2, 3, 5, 12]), room))
        ends = self.rng.random(len(self.lengths)) < self.rng.choice([0, 0, 0.4, 1])
        rows = [self._greedy(ending=bool(end)) for end in ends]
        if ends.all():
            self.lengths = [length + 1 for length in self.lengths]
        else:
            self.lengths = [n + steps for n, end in zip(self.lengths, ends) if not end]
        return Step("run", (rows, steps))

    def _greedy(self, *, ending: bool) -> GreedyState:
        sampled = self.new_tokens(int(self.rng.integers(1, 5)))
        if self.rng.random() < 0.5:
            times = self.rng.integers(BEGIN, DIMS.n_vocab, len(sampled))
            which = self.rng.random(len(sampled)) < 0.6
            sampled = tuple(np.where(which, times, sampled).tolist())
        sampled = tuple(token + (token == EOT) for token in sampled)
        allowed = np.flatnonzero(self.rng.random(DIMS.n_vocab) < self.rng.choice([0.01, 0.7, 1]))
        allowed = np.array([EOT]) if ending else allowed[allowed != EOT]
        return GreedyState(sampled, tuple(allowed.tolist()), bool(self.rng.random() < 0.6))

    def attention(self) -> Step:
        audios = self.rng.integers(0, N_AUDIO, self.rng.integers(1, 4)).tolist()
        sequences = [self.new_tokens(int(self.rng.integers(1, 12))) for _ in audios]
        return Step("attention", (audios, sequences))

    def steps(self) -> Iterator[Step]:
        yield self.opening()
        n_steps = int(self.rng.integers(5, 12))
        if self.rng.random() < 0.15:  # to the end of the context
            near = [N_CTX - int(n) for n in self.rng.integers(2, 12, len(self.lengths))]
            near[0] -= int(self.rng.choice([0, 300]))
            yield self.extend(near)
        operations = ["extend", "gather", "append", "attention", "overfull", "again", "run"]
        for _ in range(n_steps):
            operation = self.rng.choice(operations, p=[0.4, 0.3, 0.1, 0.03, 0.04, 0.03, 0.1])
            if operation == "extend":
                step = self.extend()
                yield step
                if step.operation == "extend" and self.rng.random() < 0.5:
                    yield self.masks()
            elif operation == "gather":
                yield self.gather()
            elif operation in ("append", "run"):
                step_or_none = self.append() if operation == "append" else self.run()
                if step_or_none is not None:
                    yield step_or_none
            elif operation == "attention":
                yield self.attention()
            elif operation == "overfull":
                yield Step("overfull", N_CTX - max(self.lengths) + 1)
            else:
                yield Step("close", None)
                yield self.opening()
        yield self.extend([1] * len(self.lengths))
        yield Step("close", None)


def program(seed: int) -> list[Step]:
    """The program of a seed."""
    return list(_Writer(seed).steps())


class _Run:
    """A running program."""

    def __init__(self, backend: Backend, encoded: Encoded) -> None:
        self.backend, self.encoded = backend, encoded
        self.rows: list[Row] = []
        self.session: Session | None = None
        self.logits: Any = None
        self.results: list[Union[Scores, Choice]] = []

    def call(self, step: Step) -> None:
        getattr(self, step.operation)(step.what)

    def live(self) -> Session:
        assert self.session is not None
        return self.session

    def open(self, audios: list[int]) -> None:
        self.session = self.backend.open(self.encoded.take(audios))
        self.rows = [(audio, ()) for audio in audios]

    def extend(self, what: tuple[list[tuple[int, ...]], list[list[int]]]) -> None:
        new, at = what
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

    def top(self, what: tuple[int, TokenMask]) -> None:
        k, mask = what
        scores = self.logits.numpy()[:, -1].copy()
        check_top(self.logits.top(k, mask), scores, k, mask)

    def gather(self, rows: list[int]) -> None:
        self.live().gather(np.array(rows, np.int64))
        self.rows = [self.rows[row] for row in rows]

    def run(self, what: tuple[list[GreedyState], int]) -> None:
        """In several steps at once if the session can, otherwise in single steps."""
        rows, steps = what
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

    def attention(self, what: tuple[list[int], list[tuple[int, ...]]]) -> None:
        audios, sequences = what
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
