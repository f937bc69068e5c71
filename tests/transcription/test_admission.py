"""Which recording a free row goes to."""

from __future__ import annotations

import math
from typing import Any

import pytest

from whisper_opt import OptionError
from whisper_opt.transcription.admission import ActiveJob, FairShare, OldestFirst, Terms
from whisper_opt.transcription.job import TranscriptionJob

NOTHING: Any = None


def active(
    turn: int,
    n_windows: int = 0,
    waiting: int = 1,
    terms: Terms | None = None,
    seconds: float = 3600.0,
) -> ActiveJob:
    each = ActiveJob(TranscriptionJob(None, lambda _: iter(())), terms or Terms(), turn)
    each.job.duration = seconds
    each.n_windows = n_windows
    each.served = n_windows > 0
    each.waiting.extend([NOTHING] * waiting)
    return each


def share(
    n_rows: int = 8, rows_per_job: int | None = 6, reserved: int = 0, gentle: bool = False
) -> FairShare:
    return FairShare(n_rows, rows_per_job=rows_per_job, reserved=reserved, gentle=gentle)


def served(
    admission: FairShare, jobs: list[ActiveJob], n: int, together: bool = False
) -> list[int]:
    """Index of the job that gets each of the next rows, in one step or one per step."""
    order: list[int] = []
    for turn in range(n):
        chosen = admission.choose(jobs, [jobs[i] for i in order] if together else [])
        if chosen is None:
            break
        chosen.waiting.popleft()
        chosen.n_windows += 1
        chosen.turn = 100 + turn
        order.append(jobs.index(chosen))
    return order


def test_the_oldest_comes_first() -> None:
    jobs = [active(0, waiting=0), active(1, waiting=2), active(2)]
    assert OldestFirst().choose(jobs, []) is jobs[1]
    assert OldestFirst().choose(jobs[:1], []) is None


def test_rows_are_given_in_turns() -> None:
    jobs = [active(3), active(1), active(2)]
    assert served(share(), jobs, 9) == [1, 2, 0]


def test_the_recording_with_the_fewest_rows_comes_first() -> None:
    jobs = [active(0, waiting=9), active(1, waiting=3), active(2, waiting=1)]
    assert served(share(), jobs, 8) == [0, 1, 2, 0, 1, 0, 1, 0]


def test_no_recording_has_more_than_its_rows() -> None:
    few = active(1, waiting=9, terms=Terms(rows=2))
    assert served(share(), [active(0, waiting=9), few], 99) == [0, 1, 0, 1, 0, 0, 0, 0]
    assert served(share(rows_per_job=1), [active(0, waiting=9, terms=Terms(rows=5))], 9) == [0]


@pytest.mark.parametrize(("n", "most"), [(1, 6), (2, 4), (3, 3), (8, 1)])
def test_by_default_each_has_an_equal_share(n: int, most: int) -> None:
    jobs = [active(0, waiting=9), *(active(1, n_windows=1, waiting=0) for _ in range(n - 1))]
    idle = [active(2, waiting=0) for _ in range(5)]
    assert len(served(share(rows_per_job=None), jobs + idle, 99)) == most
    assert served(share(n_rows=1, rows_per_job=None), [active(0, waiting=9)], 99) == [0]


def test_recordings_of_a_lower_priority_do_not_reduce_the_share() -> None:
    high = active(0, waiting=9, terms=Terms(priority=1))
    low = [active(1, waiting=9) for _ in range(7)]
    assert served(share(rows_per_job=None), [*low, high], 8) == [7] * 6 + [0, 1]
    live = [active(2, n_windows=1, waiting=0, terms=Terms(live=True)) for _ in range(3)]
    assert served(share(rows_per_job=None), [*live, active(0, waiting=9)], 8) == [3, 3]


def test_a_gentle_share_gives_one_row_per_step() -> None:
    jobs = [active(0, waiting=9), active(1, n_windows=2, waiting=9)]
    assert served(share(gentle=True), jobs, 9, together=True) == [0, 1]
    assert served(share(), [active(0, waiting=9)], 9, together=True) == [0] * 6


@pytest.mark.parametrize(
    ("seconds", "n_windows", "terms", "expected"),
    [
        (3.0, 1, Terms(), []),  # a short one is decoded
        (3.0, 0, Terms(), [1]),  # or comes first
        (3.0, 1, Terms(priority=-1), [0, 0]),
        (31.0, 1, Terms(), [0, 0]),
    ],
)
def test_a_gentle_share_does_not_delay_short_recordings(
    seconds: float, n_windows: int, terms: Terms, expected: list[int]
) -> None:
    short = active(1, n_windows, waiting=1 - n_windows, seconds=seconds, terms=terms)
    jobs = [active(0, n_windows=4, waiting=9), short]
    assert served(share(gentle=True), jobs, 9) == expected


def test_a_gentle_share_waits_a_little_for_a_recording_that_is_being_read() -> None:
    coming = active(1, waiting=0, seconds=0.0)
    jobs = [active(0, n_windows=2, waiting=9), coming]
    jobs[0].served = True
    assert served(share(gentle=True), jobs, 1) == []
    coming.waited = 8
    assert served(share(gentle=True), jobs, 1) == [0]
    assert served(share(), jobs, 1) == [0]


def test_a_gentle_share_expects_another_short_recording_after_one() -> None:
    """For some steps a longer recording with a row gets no other, one without a row does."""
    long, short = active(0, n_windows=1, waiting=9), active(1, n_windows=1, waiting=0, seconds=3.0)
    admission = share(gentle=True)
    assert served(admission, [long, short], 1) == []
    assert [admission.choose([long], []) for _ in range(15)] == [None] * 15
    assert admission.choose([long], []) is long
    assert served(admission, [long, short], 1) == []
    assert admission.choose([active(2)], []) is not None
    high = active(3, n_windows=1, waiting=9, terms=Terms(priority=1))
    assert admission.choose([high], []) is high


def test_the_end_of_a_recording_is_short() -> None:
    each = active(0, seconds=100.0)
    found = []
    for done, duration in ((0.0, 100.0), (70.0, 100.0), (70.0, 0.0)):  # the last: not known yet
        each.job.done, each.job.duration = done, duration
        found.append(each.brief)
    assert found == [False, True, False]


def test_the_earliest_deadline_comes_first_among_equals() -> None:
    jobs = [
        active(0),
        active(1, terms=Terms(deadline=9.0)),
        active(2, terms=Terms(deadline=8.0)),
        active(3, n_windows=1, terms=Terms(deadline=1.0)),
    ]
    assert served(share(), jobs, 9) == [2, 1, 0, 3]


def test_a_higher_priority_comes_first() -> None:
    jobs = [
        active(0, terms=Terms(deadline=1.0)),
        active(1, n_windows=3, terms=Terms(priority=2)),
        active(2, terms=Terms(priority=1)),
        active(3, terms=Terms(priority=-1, deadline=0.0)),
    ]
    assert served(share(), jobs, 9) == [1, 2, 0, 3]


def test_live_recordings_come_first_and_use_reserved_rows() -> None:
    jobs = [
        active(0, waiting=9, terms=Terms(priority=9)),
        active(1, waiting=2),
        active(2, waiting=3, terms=Terms(live=True, priority=-1)),
    ]
    assert served(share(n_rows=4, rows_per_job=4, reserved=2), jobs, 9) == [2, 2, 2, 0, 0]


def test_reserved_rows_stay_free() -> None:
    assert served(share(n_rows=4, reserved=3), [active(0, waiting=9)], 9) == [0]


@pytest.mark.parametrize("arguments", [{"reserved": 8}, {"reserved": -1}, {"rows_per_job": 0}])
def test_a_share_without_rows_is_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match="rows"):
        share(**arguments)


def test_terms_without_a_deadline_come_last() -> None:
    assert Terms().deadline == math.inf
    assert Terms(live=True).rank > Terms(priority=5).rank > Terms().rank


def test_a_long_recording_without_a_row_waits_a_few_steps() -> None:
    short, long = active(1, n_windows=1, waiting=0, seconds=3.0), active(0)
    admission = share(gentle=True)
    for long.idle in range(1, 49):
        assert admission.choose([long, short], []) is None
    long.idle = 49
    assert admission.choose([long, short], []) is long


@pytest.mark.parametrize(("priority", "waits"), [(-1, False), (0, True), (1, True)])
def test_it_waits_for_no_lower_rank(priority: int, waits: bool) -> None:
    terms = Terms(priority=priority)
    short, long = active(1, n_windows=1, waiting=0, seconds=3.0, terms=terms), active(0)
    assert (share(gentle=True).choose([long, short], []) is None) is waits
