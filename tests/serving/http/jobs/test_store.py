"""The store of jobs: states, restarts, expiry."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from whisper_opt import Dropped, Segment, Transcript, WhisperOptError, Word
from whisper_opt.serving.http.jobs.results import dumped, loaded
from whisper_opt.serving.http.jobs.store import Job, JobStore


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def store(tmp_path: Path) -> Iterator[JobStore]:
    made = JobStore(tmp_path, Clock())
    yield made
    made.close()


def added(store: JobStore, client: str = "ada", webhook: str | None = None) -> Job:
    job_id = store.new_id()
    store.recording(job_id).write_bytes(b"sound")
    fields = [("model", "m"), ("languages[]", "de")]
    return store.add(job_id, client, "m", False, fields, 5, webhook)


def test_a_job_is_found_again(store: JobStore) -> None:
    job = added(store, webhook="http://x")
    assert store.get(job.id) == job
    assert job.fields == (("model", "m"), ("languages[]", "de"))
    assert (job.status, job.created_at, job.webhook) == ("queued", 1000.0, "http://x")
    assert store.get("job_0") is None


def test_a_job_s_life(store: JobStore) -> None:
    job = added(store)
    assert store.start(job.id)
    assert not store.start(job.id)
    assert store.n_unfinished == 1
    assert store.finish(job.id, "completed", duration=2.0, result="{}")
    found = store.get(job.id)
    assert found is not None
    assert (found.status, found.duration, found.result, found.ended) == (
        *("completed", 2.0, "{}"),
        True,
    )
    assert store.n_unfinished == 0
    assert not store.recording(job.id).exists()


def test_the_first_end_counts(store: JobStore) -> None:
    job = added(store)
    assert store.finish(job.id, "cancelled")
    assert not store.finish(job.id, "completed", result="{}")
    store.requeue(job.id)
    found = store.get(job.id)
    assert found is not None
    assert found.status == "cancelled"


def test_an_error_is_kept(store: JobStore) -> None:
    job = added(store)
    store.finish(job.id, "failed", error={"code": "x"})
    found = store.get(job.id)
    assert found is not None
    assert found.error == {"code": "x"}


def test_jobs_of_a_client(store: JobStore) -> None:
    jobs = [added(store, client) for client in ("ada", "bob", "ada", "ada")]
    mine = [jobs[3], jobs[2], jobs[0]]
    assert store.of_client("ada", 10, None) == mine
    assert store.of_client("ada", 2, None) == mine[:2]
    assert store.of_client("ada", 10, jobs[2].number) == mine[2:]
    assert store.of_client("eve", 10, None) == []


def test_what_ran_is_queued_after_a_restart(tmp_path: Path) -> None:
    store = JobStore(tmp_path)
    jobs = [added(store) for _ in range(3)]
    store.start(jobs[0].id)
    store.start(jobs[1].id)
    store.finish(jobs[1].id, "completed", result="{}")
    store.recording("job_stray").write_bytes(b"never accepted")
    store.close()
    again = JobStore(tmp_path)
    assert [job.status for job in again] == ["queued", "completed", "queued"]
    assert again.recording(jobs[0].id).read_bytes() == b"sound"
    assert {path.name for path in tmp_path.glob("job_*")} == {jobs[0].id, jobs[2].id}
    again.close()


def test_only_one_server_uses_a_directory(store: JobStore, tmp_path: Path) -> None:
    added(store)
    with pytest.raises(WhisperOptError, match="no other server uses"):
        JobStore(tmp_path)


def test_a_directory_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(WhisperOptError, match="cannot be used"):
        JobStore(tmp_path / "file")


def test_old_jobs_are_forgotten(tmp_path: Path) -> None:
    clock = Clock()
    store = JobStore(tmp_path, clock)
    jobs = [added(store) for _ in range(3)]
    store.finish(jobs[0].id, "completed", result="{}")
    clock.now += 10
    store.finish(jobs[1].id, "completed", result="{}")
    clock.now += 10
    store.expire(15.0)
    assert [job.id for job in store] == [jobs[1].id, jobs[2].id]
    store.close()


def test_webhooks_to_call(store: JobStore) -> None:
    jobs = [added(store, webhook=url) for url in ("http://a", "http://b", None)]
    for job in jobs[1:]:
        store.finish(job.id, "cancelled")
    assert [job.id for job in store.unannounced()] == [jobs[1].id]
    store.not_announced(jobs[1].id)
    assert [job.webhook_tries for job in store.unannounced()] == [1]
    store.announced(jobs[1].id)
    assert store.unannounced() == []


def test_results_are_read_as_they_were() -> None:
    words = (Word(0.0, 0.5, " né", 0.25), Word(0.5, 1.0, " x", 1.0))
    segments = (
        Segment(0, 0.0, 1.0, " né x", (1, 2), -0.5, 0.1, 1.2, 0.0, 0, words, "fr"),
        Segment(1, 1.0, 2.0, " y", (3,), -0.5, 0.1, 1.2, 0.4, 100, None, None, True),
        Segment(2, 2.0, 3.0, " z", (4,), -0.5, 0.1, 1.2, 0.4, 100, token_logprobs=(-0.25,)),
    )
    made = Transcript(segments, "fr", 2.0, " né x y", 0.5, (Dropped(2.0, 3.0, "silence", "z"),))
    assert loaded(dumped(made)) == made
