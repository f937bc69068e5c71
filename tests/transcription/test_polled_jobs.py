"""Jobs whose recordings are read elsewhere: the scheduler never waits for them."""

from __future__ import annotations

import collections
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.fake_backend import FakeBackend
from tests.support.reference_windows import DIMS, VOCAB
from tests.support.watched_backend import PLAIN, WatchedBackend, noise, quiet_model, talkative
from whisper_opt import AudioError, TranscribeOptions
from whisper_opt.text.results import Segment
from whisper_opt.transcription.admission import Terms
from whisper_opt.transcription.job import Chunk, TranscriptionJob
from whisper_opt.transcription.scheduler import Scheduler, Update

CLIPS = (0.0, 5.0, 5.0, 10.0, 10.0, 12.0)
OPTIONS: dict[str, Any] = {**PLAIN, "strategy": "batched", "clip_timestamps": CLIPS}


class Arriving:
    """Chunks that are there when a test says so."""

    polled = True

    def __init__(self, chunks: Iterator[Chunk]) -> None:
        self._chunks = chunks
        self._arrived: collections.deque[Chunk] = collections.deque()
        self.error: Exception | None = None
        self.all_read = False
        self.looks_left = 0
        self.closed = False

    def arrive(self, n: int = 1) -> None:
        """Read the next chunks."""
        for _ in range(n):
            self._arrived.append(next(self._chunks))

    @property
    def ended(self) -> bool:
        """Whether all was read; known only after ``looks_left`` looks."""
        if self.closed:
            return True
        if self._arrived or not self.all_read:
            return False
        self.looks_left -= 1
        return self.looks_left < 0

    def take(self) -> Chunk | None:
        if self._arrived:
            return self._arrived.popleft()
        error, self.error = self.error, None
        if error is not None:
            raise error
        return None

    def close(self) -> None:
        self.closed = True


def job_of(seconds: float = 12.0, seed: int = 0, **options: Any) -> tuple[Any, Arriving]:
    found: list[Arriving] = []

    def read(chunks: Iterator[Chunk]) -> Arriving:
        found.append(Arriving(chunks))
        return found[0]

    factory = quiet_model()._job_factory(FakeBackend(DIMS, talkative))
    chosen = TranscribeOptions(**{**OPTIONS, **options})
    return factory.job(noise(seconds, seed), None, chosen, read), found[0]


def finish(scheduler: Scheduler) -> list[Update]:
    updates = scheduler.step()
    while not scheduler.waits:
        updates += scheduler.step()
    return updates


def segments(updates: list[Update], job: TranscriptionJob) -> tuple[Segment, ...]:
    return tuple(segment for owner, new in updates if owner is job for segment in new)


@pytest.fixture
def scheduler(watched: WatchedBackend) -> Scheduler:
    return Scheduler(watched, VOCAB, 4)


def test_chunks_are_decoded_as_they_arrive(scheduler: Scheduler, watched: WatchedBackend) -> None:
    job, source = job_of()
    scheduler.start(job)
    assert scheduler.waits
    assert scheduler.step() == []
    assert scheduler.waits  # and it was not waited for
    updates: list[Update] = []
    for n in (1, 2):
        source.arrive(n)
        updates += finish(scheduler)
        assert scheduler.busy
    source.all_read = True
    updates += scheduler.step()
    assert (scheduler.busy, job.finished) == (False, True)
    expected = quiet_model().transcribe(noise(12.0), **OPTIONS)
    assert segments(updates, job) == expected.segments
    assert (job.done, job.duration) == (12.0, 12.0)
    assert watched.sessions == []


def test_others_are_decoded_meanwhile(scheduler: Scheduler) -> None:
    (late, source), (job, other) = job_of(), job_of(seed=1)
    scheduler.start(late, Terms(priority=5))
    scheduler.start(job)
    other.arrive(3)
    other.all_read = True
    updates = finish(scheduler)
    assert segments(updates, job) == quiet_model().transcribe(noise(12.0, 1), **OPTIONS).segments
    assert scheduler.busy
    source.arrive(1)
    scheduler.step()
    assert not scheduler.waits
    scheduler.cancel(late)
    assert (scheduler.busy, source.closed) == (False, True)


@pytest.mark.parametrize("looks", range(8))
def test_an_end_that_is_seen_late_is_reported_once(scheduler: Scheduler, looks: int) -> None:
    """The reader may end between any two looks of the scheduler."""
    job, source = job_of()
    scheduler.start(job)
    source.arrive(3)
    source.all_read, source.looks_left = True, looks
    last: list[TranscriptionJob] = []
    for _ in range(500):
        for owner, _new in scheduler.step():
            if not scheduler.holds(owner):
                last.append(owner)
    assert last == [job]
    assert job.done == job.duration == 12.0


def test_an_error_is_reported_although_nothing_is_decoded(scheduler: Scheduler) -> None:
    job, source = job_of()
    scheduler.start(job)
    source.arrive(1)
    source.error = AudioError("damaged")
    updates = finish(scheduler)
    assert updates[-1] == (job, [])
    assert str(job.error) == "damaged"
    assert not scheduler.busy


def test_an_error_frees_rows_at_once(scheduler: Scheduler, watched: WatchedBackend) -> None:
    job, source = job_of()
    scheduler.start(job)
    source.arrive(2)
    scheduler.step()
    assert scheduler.rows == 2
    source.error = AudioError("damaged")
    assert scheduler.step() == [(job, [])]
    assert scheduler.rows == 0
    assert watched.sessions == []


def test_no_more_windows_than_a_step_may_encode(
    scheduler: Scheduler, watched: WatchedBackend
) -> None:
    job, source = job_of()
    scheduler.start(job)
    source.arrive(3)
    scheduler.step(0)
    assert (scheduler.rows, watched.windows) == (0, [])
    scheduler.step(2)
    assert len(watched.windows) == 2
    assert scheduler.unserved(Terms().rank) == 0
    scheduler.close()
