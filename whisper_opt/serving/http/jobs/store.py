"""The jobs of a server in an SQLite database, with their recordings beside it.

A job is accepted when its recording is on disk and its row is committed, in this order; whatever
happens to the process later, it is found again. All methods may be called from any thread.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Callable, Union

from whisper_opt.core.errors import WhisperOptError

__all__ = ["CANCELLED", "COMPLETED", "FAILED", "QUEUED", "RUNNING", "Job", "JobStore", "described"]

QUEUED, RUNNING = "queued", "running"
COMPLETED, FAILED, CANCELLED = "completed", "failed", "cancelled"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, client TEXT NOT NULL,
    model TEXT NOT NULL, translate INTEGER NOT NULL, fields TEXT NOT NULL, bytes INTEGER NOT NULL,
    status TEXT NOT NULL, created_at REAL NOT NULL, started_at REAL, finished_at REAL,
    duration REAL, error TEXT, result TEXT, webhook TEXT, webhook_tries INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX IF NOT EXISTS by_status ON jobs (status, number);
"""


@dataclasses.dataclass(frozen=True)
class Job:
    """A job as it is stored.

    Attributes:
        number: its place in the order of acceptance.
        id: its name for clients.
        client: name of the key that sent it.
        model: name of the model, as the client gave it.
        translate: whether its text is translated.
        fields: the fields of the form.
        n_bytes: size of the recording.
        status: ``queued``, ``running``, ``completed``, ``failed`` or ``cancelled``.
        created_at: Unix time in seconds, as are ``started_at`` and ``finished_at``.
        duration: seconds of audio, when it is completed.
        error: the error in the schema of the API, when it failed.
        result: the transcript as JSON, when it is completed.
        webhook: URL that is told the end; None if there is none, or it was told.
        webhook_tries: how often that failed.
    """

    number: int
    id: str
    client: str
    model: str
    translate: bool
    fields: tuple[tuple[str, str], ...]
    n_bytes: int
    status: str
    created_at: float
    started_at: Union[float, None]
    finished_at: Union[float, None]
    duration: Union[float, None]
    error: Any
    result: Union[str, None]
    webhook: Union[str, None]
    webhook_tries: int

    @property
    def ended(self) -> bool:
        """Whether its status is final."""
        return self.status not in (QUEUED, RUNNING)


def described(job: Job, progress: Union[tuple[float, float], None] = None) -> dict[str, Any]:
    """A job as clients see it; ``progress``: seconds done and in all, while it runs."""
    done, whole = progress or (job.duration or 0.0, job.duration)
    return {
        "id": job.id,
        "object": "transcription.job",
        "status": job.status,
        "model": job.model,
        "task": "translate" if job.translate else "transcribe",
        "bytes": job.n_bytes,
        "created_at": int(job.created_at),
        "started_at": None if job.started_at is None else int(job.started_at),
        "finished_at": None if job.finished_at is None else int(job.finished_at),
        "progress": {"seconds_done": done, "seconds": whole},
        "error": job.error,
    }


def _job(row: Sequence[Any]) -> Job:
    values = list(row)
    values[4] = bool(values[4])
    values[5] = tuple((name, value) for name, value in json.loads(values[5]))
    values[12] = json.loads(values[12]) if values[12] else None
    return Job(*values)


class JobStore:
    """The jobs in a directory."""

    def __init__(self, folder: Path, clock: Callable[[], float] = time.time) -> None:
        """Open or create the directory. Jobs that were running are queued again.

        Raises:
            WhisperOptError: the directory cannot be used, or another server uses it.
        """
        self._clock = clock
        self._folder = folder
        self._lock = threading.Lock()
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._db = sqlite3.connect(
                str(folder / "jobs.sqlite"), check_same_thread=False, timeout=1.0
            )
            self._db.execute("PRAGMA locking_mode = EXCLUSIVE")
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.executescript(_SCHEMA)
            self._change("UPDATE jobs SET status = ? WHERE status = ?", QUEUED, RUNNING)
        except (OSError, sqlite3.Error) as error:
            raise WhisperOptError(
                f"jobs_dir {str(folder)!r} cannot be used: {error}; choose a directory that can be"
                " written and that no other server uses"
            ) from error
        self._remove_strays()

    def _remove_strays(self) -> None:
        """Delete recordings without a job, and of jobs that have ended."""
        pending = {job.id for job in self.of_status(QUEUED)}
        for path in self._folder.glob("job_*"):
            if path.name not in pending:
                path.unlink()

    def _change(self, sql: str, *values: Any) -> int:
        with self._lock, self._db:
            return self._db.execute(sql, values).rowcount

    def _jobs(self, rest: str, *values: Any) -> list[Job]:
        with self._lock:
            return [_job(row) for row in self._db.execute(f"SELECT * FROM jobs {rest}", values)]

    def recording(self, job_id: str) -> Path:
        """Where the recording of a job is, or is to be written."""
        return self._folder / job_id

    def new_id(self) -> str:
        """A name for a job to come."""
        return f"job_{uuid.uuid4().hex}"

    def add(
        self,
        job_id: str,
        client: str,
        model: str,
        translate: bool,
        fields: Sequence[tuple[str, str]],
        n_bytes: int,
        webhook: Union[str, None],
    ) -> Job:
        """Accept a job whose recording is on disk."""
        self._change(
            "INSERT INTO jobs (id, client, model, translate, fields, bytes, status, created_at,"
            " webhook) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            *(job_id, client, model, translate, json.dumps(fields), n_bytes),
            *(QUEUED, self._clock(), webhook),
        )
        (job,) = self._jobs("WHERE id = ?", job_id)
        return job

    def get(self, job_id: str) -> Union[Job, None]:
        """A job; None if there is none of that name."""
        return next(iter(self._jobs("WHERE id = ?", job_id)), None)

    def of_client(self, client: str, limit: int, before: Union[int, None]) -> list[Job]:
        """Jobs of a client, the newest first; ``before``: only those accepted before this one."""
        bound = before if before is not None else 1 << 62
        return self._jobs(
            "WHERE client = ? AND number < ? ORDER BY number DESC LIMIT ?", client, bound, limit
        )

    def of_status(self, status: str, limit: int = -1) -> list[Job]:
        """Jobs of a status, the oldest first."""
        return self._jobs("WHERE status = ? ORDER BY number LIMIT ?", status, limit)

    @property
    def n_unfinished(self) -> int:
        """How many jobs are queued or running."""
        with self._lock:
            found = self._db.execute(
                "SELECT COUNT(*) FROM jobs WHERE status IN (?, ?)", (QUEUED, RUNNING)
            )
            return int(found.fetchone()[0])

    def start(self, job_id: str) -> bool:
        """A queued job runs; False if it is not queued any more."""
        sql = "UPDATE jobs SET status = ?, started_at = ? WHERE id = ? AND status = ?"
        return self._change(sql, RUNNING, self._clock(), job_id, QUEUED) > 0

    def requeue(self, job_id: str) -> None:
        """A running job is queued again."""
        sql = "UPDATE jobs SET status = ?, started_at = NULL WHERE id = ? AND status = ?"
        self._change(sql, QUEUED, job_id, RUNNING)

    def finish(
        self,
        job_id: str,
        status: str,
        *,
        duration: Union[float, None] = None,
        error: Any = None,
        result: Union[str, None] = None,
    ) -> bool:
        """A job ends, and its recording is deleted; False if it had ended before."""
        changed = self._change(
            "UPDATE jobs SET status = ?, finished_at = ?, duration = ?, error = ?, result = ?"
            " WHERE id = ? AND status IN (?, ?)",
            *(status, self._clock(), duration, json.dumps(error) if error else None, result),
            *(job_id, QUEUED, RUNNING),
        )
        self._delete_recording(job_id)
        return changed > 0

    def _delete_recording(self, job_id: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.recording(job_id).unlink()

    def remove(self, job_id: str) -> None:
        """Forget a job that has ended."""
        self._change("DELETE FROM jobs WHERE id = ?", job_id)
        self._delete_recording(job_id)

    def expire(self, keep: float) -> None:
        """Forget jobs that ended more than ``keep`` seconds ago."""
        self._change("DELETE FROM jobs WHERE finished_at < ?", self._clock() - keep)

    def unannounced(self) -> list[Job]:
        """Jobs that have ended and whose webhook was not told."""
        ended = (COMPLETED, FAILED, CANCELLED)
        return self._jobs("WHERE webhook IS NOT NULL AND status IN (?, ?, ?)", *ended)

    def announced(self, job_id: str) -> None:
        """The webhook of a job was told, or is given up."""
        self._change("UPDATE jobs SET webhook = NULL WHERE id = ?", job_id)

    def not_announced(self, job_id: str) -> None:
        """A try to tell the webhook of a job failed."""
        self._change("UPDATE jobs SET webhook_tries = webhook_tries + 1 WHERE id = ?", job_id)

    def close(self) -> None:
        """Close the database."""
        with self._lock:
            self._db.close()

    def __iter__(self) -> Iterator[Job]:
        return iter(self._jobs("ORDER BY number"))
