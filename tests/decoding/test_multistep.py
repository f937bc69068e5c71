"""Multi-step decoding: results are those of single steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.decoding.test_constraints import BEGIN, EOT, N_VOCAB, NO_TIMESTAMPS
from tests.decoding.test_loop import DIMS
from tests.support.decode_cases import BACKEND, FREE, Case, alone, random_cases
from tests.support.fake_backend import FakeBackend, FakeEncoded, FakeSession
from whisper_opt.core.arrays import Int
from whisper_opt.core.backend import Encoded, GreedyRows, MultiStepResult, TokenMask
from whisper_opt.decoding import Batch, Decoded
from whisper_opt.decoding.constraints import TimestampRules, banned_tokens


class RunningSession(FakeSession):
    """Multi-step decoding as on a device: from its state alone, noticing late that a row ended."""

    late = 2
    supports_multistep = True
    n_runs = 0
    fail: BaseException | None = None

    def decode_steps(self, tokens: Int, rows: GreedyRows, steps: int) -> MultiStepResult:
        type(self).n_runs += 1
        room = DIMS.n_text_ctx - max(len(held) for _, held in self._rows)
        assert room > 0
        before = [(audio, list(held)) for audio, held in self._rows]
        fed, previous, latest = tokens[:, 0], rows.previous, rows.latest
        found = []
        left = min(steps, room)
        while left:
            held = [(audio, list(held)) for audio, held in self._rows]
            top = self.extend(fed[:, None]).top(1, mask(rows, fed, previous, latest))
            ended = fed == rows.eot
            self._rows = [old if end else new for old, new, end in zip(held, self._rows, ended)]
            new = np.where(ended, rows.eot, top.tokens[:, 0])
            found.append((new, np.where(ended, 0, top.logprobs[:, 0])))
            latest = np.where(new >= rows.timestamp_begin, new, latest)
            fed, previous, left = new, fed, left - 1
            if (new == rows.eot).any():
                left = min(left, self.late)
            if self.fail is not None and len(found) == 2:
                self._rows = before
                raise self.fail
        chosen, logprobs = zip(*found)
        return MultiStepResult(np.stack(chosen), np.stack(logprobs).astype(np.float32))


def mask(rows: GreedyRows, last: Int, previous: Int, latest: Int) -> TokenMask:
    """The constraints of the host on the shortest history of this state."""
    ban = rows.ban.copy()
    for i, begin in enumerate(rows.timestamp_begin.tolist()):
        if begin < N_VOCAB:
            history = [token for token in (latest[i], previous[i], last[i]) if token >= 0]
            if latest[i] < begin:
                history = history[1:] if previous[i] < begin else history[2:]
            timed = TimestampRules(begin, EOT, NO_TIMESTAMPS, None)
            banned_tokens([timed], [int(t) for t in history]).write(ban[i], True)
    return TokenMask(ban, rows.timestamp_begin)


class RunningBackend(FakeBackend):
    def __init__(self, late: int = 2) -> None:
        super().__init__(DIMS, BACKEND.scores)
        self.session_type: type[RunningSession] = type(
            "Session", (RunningSession,), {"late": late, "n_runs": 0}
        )

    def open(self, audio: Encoded) -> FakeSession:
        assert isinstance(audio, FakeEncoded)
        return self.session_type(self, audio)


def greedy(cases: Sequence[Case]) -> list[Case]:
    """The same windows, none of which needs the host."""
    return [dataclasses.replace(case, kind="greedy", penalty=1.0, ngram=0) for case in cases]


def together(
    backend: FakeBackend, cases: Sequence[Case], at_once: int, most_steps: int | None = None
) -> list[Decoded]:
    """Decode with up to so many windows at once; others join when one is done."""
    batch, waiting = Batch(backend, most_steps), list(range(len(cases)))
    places: dict[int, int] = {}
    found: dict[int, Decoded] = {}
    while waiting or len(batch):
        joining, waiting = waiting[: at_once - len(batch)], waiting[at_once - len(batch) :]
        if joining:
            audio = FakeEncoded(tuple(cases[i].audio for i in joining))
            numbers = batch.add(audio, [cases[i].request for i in joining])
            places.update(zip(numbers, joining))
        found.update(batch.step())
    return [found[number] for number in sorted(found, key=lambda number: places[number])]


@settings(derandomize=True, deadline=None, max_examples=150)
@given(
    st.integers(1, 9), st.integers(1, 4), st.integers(0, 3), st.booleans(), st.integers(0, 2**32)
)
def test_results_are_those_of_single_steps(
    n: int, at_once: int, late: int, mixed: bool, seed: int
) -> None:
    """Equal tokens and bit-identical log-probabilities, also if some steps need the host."""
    cases = random_cases(n, seed)
    cases = cases if mixed else greedy(cases)
    backend = RunningBackend(late)
    assert together(backend, cases, at_once) == [alone(case) for case in cases]


def test_a_window_needs_few_runs() -> None:
    backend = RunningBackend()
    case = Case(5, (31,), 0, FREE, 12, "greedy")
    (found,) = together(backend, [case], 1)
    assert len(found.hypotheses[0].tokens) > 3
    assert backend.session_type.n_runs == 1


def test_a_run_may_be_short() -> None:
    """So that other windows can join, or leave, between two runs."""
    backend = RunningBackend()
    case = Case(5, (31,), 0, FREE, 12, "greedy")
    (found,) = together(backend, [case], 1, most_steps=3)
    assert found == alone(case)
    n_tokens = len(found.hypotheses[0].tokens)
    assert backend.session_type.n_runs >= (n_tokens - 1) // 3 > 1


@pytest.mark.parametrize(
    "change",
    [{"kind": "beam", "size": 2}, {"kind": "sample"}, {"penalty": 1.3}, {"ngram": 2}],
)
def test_one_window_that_needs_the_host_takes_all_there(change: dict[str, object]) -> None:
    backend = RunningBackend()
    case = Case(5, (31,), 0, FREE, 8, "greedy")
    other = dataclasses.replace(case, audio=6, max_new_tokens=20, **change)  # type: ignore[arg-type]
    assert together(backend, [case, other], 2) == [alone(case), alone(other)]
    assert backend.session_type.n_runs == 0


def test_a_session_may_decline() -> None:
    backend = RunningBackend()
    backend.session_type.supports_multistep = False
    case = Case(5, (31,), 0, FREE, 8, "greedy")
    assert together(backend, [case], 1) == [alone(case)]
    assert backend.session_type.n_runs == 0


def test_an_interrupt_loses_nothing() -> None:
    """The batch is unchanged and continues."""
    backend = RunningBackend()
    cases = [Case(audio, (31,), 0, FREE, 12, "greedy") for audio in (5, 6)]
    batch = Batch(backend)
    batch.add(FakeEncoded((5, 6)), [case.request for case in cases])
    backend.session_type.fail = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        batch.step()
    assert len(batch) == 2
    backend.session_type.fail = None
    found: dict[int, Decoded] = {}
    while len(batch):
        found.update(batch.step())
    assert [found[number] for number in sorted(found)] == [alone(case) for case in cases]


def test_limits_end_a_run() -> None:
    """A window that may have one token more, and one that fills the context."""
    assert BEGIN < N_VOCAB
    for n_new in (1, 2, 3, DIMS.n_text_ctx):
        case = Case(11, (31,), 0, FREE, n_new, "greedy")
        assert together(RunningBackend(), [case], 1) == [alone(case)]
