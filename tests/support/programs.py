"""Random programs on a session: calls as token decoders make them, in any order.

A program depends on its seed only, so every backend runs the same one
(:mod:`tests.support.program_runs`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tests.support.backend_subjects import DIMS, N_CTX
from whisper_opt.core.backend import TokenMask
from whisper_opt.decoding.constraints import SuppressTokens, TimestampRules, TokenConstraint

__all__ = ["BEGIN", "EOT", "N_AUDIO", "GreedyState", "Step", "program"]

N_AUDIO = 5
"""Windows that programs choose from."""
MAX_ROWS = 7
BEGIN = DIMS.n_vocab - DIMS.n_audio_ctx - 1
EOT = 100


@dataclasses.dataclass(frozen=True)
class Step:
    """One call: the operation and its arguments."""

    operation: str
    arguments: Any


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
