"""UpdateTurns."""

from __future__ import annotations

import itertools

import pytest

from whisper_opt.serving.live.turns import UpdateTurns


class Session:
    """Asks again when it may, unless it wants nothing any more."""

    clock = itertools.count()

    def __init__(self, turns: UpdateTurns, within: float = 100.0) -> None:
        self.turns = turns
        self.within = within
        self.running = False
        self.wants = True

    def ask(self) -> None:
        if self.wants and not self.running:
            deadline = next(self.clock) + self.within
            self.running = self.turns.begin(self, deadline, self.ask)

    def end(self) -> None:
        self.running = False
        self.turns.end(self)


def some(n: int, at_once: float) -> list[Session]:
    turns = UpdateTurns(at_once)
    sessions = [Session(turns) for _ in range(n)]
    for session in sessions:
        session.ask()
    return sessions


@pytest.mark.parametrize("at_once", [1, 2])
def test_updates_are_decoded_in_the_order_in_which_they_were_asked_for(at_once: int) -> None:
    sessions = some(5, at_once)
    order = [i for i, session in enumerate(sessions) if session.running]
    assert len(order) == at_once
    for n in range(20):
        ended = sessions[order[n]]
        before = [session.running for session in sessions]
        ended.end()
        ended.ask()
        order += [i for i, session in enumerate(sessions) if session.running > before[i]]
        assert sum(session.running for session in sessions) == at_once
    assert order == [i % 5 for i in range(20 + at_once)]


def test_all_are_decoded_at_once_where_nothing_limits_them() -> None:
    turns = UpdateTurns()
    sessions = [Session(turns) for _ in range(50)]
    for session in sessions:
        session.ask()
    assert all(session.running for session in sessions)


def test_the_earliest_deadline_comes_first() -> None:
    turns = UpdateTurns(1)
    first, late, soon = Session(turns), Session(turns, 100.0), Session(turns, 10.0)
    for session in (first, late, soon):
        session.ask()
        session.ask()  # asking again changes nothing
    first.end()
    assert soon.running
    assert not late.running


def test_who_wants_nothing_any_more_lets_the_next_one_begin() -> None:
    first, second, third = some(3, 1)
    second.wants = False
    first.end()
    assert third.running


def test_who_waits_may_leave() -> None:
    first, second, third = some(3, 1)
    second.end()
    first.end()
    assert third.running
    assert not second.running
