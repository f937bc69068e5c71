"""Windows in a batch, which join and leave: results are those of single runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.decoding.test_constraints import N_VOCAB
from tests.decoding.test_loop import DIMS, SpyBackend, SpySession, job, lively
from tests.support.decode_cases import (
    BACKEND,
    FREE,
    Case,
    alone,
    random_cases,
)
from tests.support.decoding import decode
from tests.support.fake_backend import FakeBackend, FakeEncoded
from whisper_opt.core.errors import EngineError
from whisper_opt.decoding import (
    Batch,
    Decoded,
    DecodeRequest,
)

# --- a batch equals single runs ------------------------------------------------------------------


def together(cases: Sequence[Case], arrivals: Sequence[int]) -> list[Decoded]:
    """Decode in one batch; case i joins after step ``arrivals[i]``, equal ones in one call."""
    batch = Batch(BACKEND)
    found: dict[int, Decoded] = {}
    places: dict[int, int] = {}
    steps = 0
    while len(places) < len(cases) or len(batch):
        joining = [i for i, arrival in enumerate(arrivals) if arrival == steps]
        if joining:
            audio = FakeEncoded(tuple(cases[i].audio for i in joining))
            numbers = batch.add(audio, [cases[i].request for i in joining])
            places.update(zip(numbers, joining))
        new = batch.step()
        assert not set(new) & set(found)
        found.update(new)
        assert len(batch) == len(places) - len(found)
        steps += 1
    return [found[number] for number in sorted(found, key=lambda number: places[number])]


@settings(derandomize=True, deadline=None, max_examples=250)
@given(
    st.lists(st.integers(0, 12), min_size=1, max_size=16),
    st.integers(0, 2**32 - 1),
)
def test_windows_that_join_and_leave_equal_single_runs(arrivals: list[int], seed: int) -> None:
    cases = random_cases(len(arrivals), seed)
    assert together(cases, arrivals) == [alone(case) for case in cases]


def test_windows_differ_in_what_they_need() -> None:
    """Makes sure that the property above is tested with windows of many kinds."""
    cases = random_cases(300, 0)
    found = [alone(case) for case in cases]
    lengths = [len(each.hypotheses[0].tokens) for each in found]
    assert len(set(lengths)) > 10
    ended = [length < case.max_new_tokens for length, case in zip(lengths, cases)]
    assert 60 < sum(ended) < 240
    assert {case.kind for case in cases} == {"greedy", "beam", "sample"}
    # each option has an effect: leaving it out changes results
    for plain in ({"penalty": 1.0}, {"ngram": 0}, {"patience": 1.0}, {"seed": 5}):
        others = [alone(dataclasses.replace(case, **plain)) for case in cases]
        assert others != found, plain


def test_the_same_window_twice_has_the_same_result() -> None:
    cases = random_cases(8, 3)
    found = together([*cases, *cases], [0] * 16)
    assert found[:8] == found[8:]


# --- the batch itself ----------------------------------------------------------------------------


def audio(*seeds: int) -> FakeEncoded:
    return FakeEncoded(seeds)


def open_sessions(backend: SpyBackend) -> list[SpySession]:
    return [session for session in backend.sessions if not session.closed]


class JoiningBackend(SpyBackend):
    """Spy sessions that record joining rows; joins listed in ``failing`` raise an error."""

    def __init__(self, failing: BaseException | None = None) -> None:
        super().__init__()
        backend = self
        self.failing = failing
        self.joined = 0

        class Session(SpySession):
            def append(self, other: Any) -> None:
                if backend.failing is not None:
                    raise backend.failing
                backend.joined += 1
                super().append(other)

        self._make = Session

    def open(self, audio: Any) -> SpySession:
        self.sessions.append(self._make(self, audio))
        return self.sessions[-1]


def drain(batch: Batch) -> dict[int, Decoded]:
    found: dict[int, Decoded] = {}
    while len(batch):
        found.update(batch.step())
    return found


def test_an_empty_batch() -> None:
    batch = Batch(SpyBackend())
    assert len(batch) == 0
    assert batch.step() == {}
    batch.close()
    assert batch.step() == {}


def test_numbers_are_never_used_again() -> None:
    batch = Batch(BACKEND)
    assert batch.add(audio(1, 2), [job().request] * 2) == [0, 1]
    assert batch.add(audio(3), [job().request]) == [2]
    assert set(drain(batch)) == {0, 1, 2}
    assert batch.add(audio(4), [job().request]) == [3]
    batch.close()
    assert batch.add(audio(5, 6), [job().request] * 2) == [4, 5]
    assert set(drain(batch)) == {4, 5}


def test_windows_join_the_session_that_runs() -> None:
    backend = JoiningBackend()
    batch = Batch(backend)
    long, short = job(max_new_tokens=9, timestamps=False), job(max_new_tokens=2)
    never_ends = dataclasses.replace(long.request, constraints=())
    backend._scores = lambda seed, tokens: np.arange(N_VOCAB, dtype=np.float32)[::-1]
    batch.add(audio(1), [never_ends])
    batch.step()
    batch.add(audio(2, 3), [short.request, short.request])
    assert backend.joined == 1
    assert len(open_sessions(backend)) == 1
    running, joining = backend.sessions
    assert [n for name, n in joining.calls if name == "extend"] == [2]
    assert set(batch.step()) == {1, 2}
    batch.step()
    # one row, then three, then one again: finished rows are not fed
    assert [n for name, n in running.calls if name == "extend"] == [1, 1, 3, 1]
    drain(batch)
    assert open_sessions(backend) == []


def test_a_window_that_ends_with_its_first_token() -> None:
    backend = JoiningBackend()
    batch = Batch(backend)
    one, more = job(max_new_tokens=1).request, job(max_new_tokens=9).request
    batch.add(audio(1, 2), [one, one])
    assert open_sessions(backend) == []
    assert len(batch) == 2
    assert set(batch.step()) == {0, 1}
    batch.add(audio(5), [more])
    batch.add(audio(3), [one])
    assert backend.joined == 0
    found = batch.step()
    assert 3 in found
    assert found[3] == alone_by(one, 3)
    found.update(drain(batch))
    assert found[2] == alone_by(more, 5)


def alone_by(request: DecodeRequest, seed: int) -> Decoded:
    (found,) = decode(FakeBackend(DIMS, lively), audio(seed), [request])
    return found


def test_a_session_is_closed_with_its_last_window_and_another_opened() -> None:
    backend = JoiningBackend()
    batch = Batch(backend)
    request = job(max_new_tokens=3).request
    for round_ in range(3):
        batch.add(audio(round_), [request])
        assert len(open_sessions(backend)) <= 1
        assert list(drain(batch).values()) == [alone_by(request, round_)]
        assert open_sessions(backend) == []
    assert [session.closed for session in backend.sessions] == [1, 1, 1]


def test_a_prompt_that_does_not_fit_leaves_the_others_alone() -> None:
    backend = JoiningBackend()
    batch = Batch(backend)
    request = job(max_new_tokens=9).request
    batch.add(audio(8), [request])
    batch.step()
    with pytest.raises(EngineError, match="model holds 24"):
        batch.add(audio(9, 10), [request, job([31] * 25).request])
    assert len(batch) == 1
    (number,) = batch.add(audio(11), [request])
    found = drain(batch)
    assert list(found.values()) == [alone_by(request, 8), alone_by(request, 11)]
    assert number in found
    assert open_sessions(backend) == []


@pytest.mark.parametrize("verb", ["extend", "gather"])
@pytest.mark.parametrize(("session", "call"), [("joining", 0), ("running", 0), ("running", 2)])
def test_closing_after_an_interrupt_leaves_nothing_open(session: str, call: int, verb: str) -> None:
    backend = JoiningBackend()
    batch = Batch(backend)
    beams = [Case(i, (31,), 0, FREE, 12, "beam", 3).request for i in range(3)]
    batch.add(audio(0, 1), beams[:2])
    failing = (verb, call), KeyboardInterrupt()
    if session == "joining":
        backend.fail = failing
    else:
        (running,) = backend.sessions
        running.calls.clear()
        running._fail = failing
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012 - either of the calls
        batch.add(audio(2), beams[2:])
        drain(batch)
    batch.close()
    assert open_sessions(backend) == []
    assert len(batch) == 0
    backend.fail = None
    batch.add(audio(3), [job().request])
    assert list(drain(batch).values()) == [alone_by(job().request, 3)]


def test_a_join_that_fails_leaves_nothing_open() -> None:
    backend = JoiningBackend(failing=KeyboardInterrupt())
    batch = Batch(backend)
    request = job(max_new_tokens=9).request
    batch.add(audio(8), [request])
    with pytest.raises(KeyboardInterrupt):
        batch.add(audio(9), [request])
    batch.close()
    assert open_sessions(backend) == []
