"""Which recording a free row of the batch goes to.

A row is one window that is being decoded. The choice affects when a recording is finished, never
its result.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import time
from collections.abc import Collection, Mapping
from typing import Protocol

from whisper_opt.core.dims import N_SAMPLES, SAMPLE_RATE
from whisper_opt.core.errors import OptionError
from whisper_opt.transcription.fallback import Window
from whisper_opt.transcription.job import Chunk, TranscriptionJob

__all__ = ["ActiveJob", "Admission", "FairShare", "OldestFirst", "Rank", "Terms", "is_brief"]

Rank = tuple[bool, int]
"""Whether a recording is live, and its priority."""

WINDOW_S = N_SAMPLES / SAMPLE_RATE
"""Seconds of a window."""
_COMING = 8
"""Steps in which the first window of a short recording is read, if it is not an upload."""
_COURTESY = 16
"""Steps after a short recording in which no window of a longer one with a row is encoded."""
_PATIENCE = 48
"""Steps in which a longer recording without a row lets short ones finish first."""
_PUT_OFF_S = 10.0
"""Seconds for which the encoder of a window of a longer recording may be stopped again."""


@dataclasses.dataclass(frozen=True)
class Terms:
    """What a recording is entitled to.

    Attributes:
        priority: recordings of a higher priority come first.
        deadline: time at which the answer is wanted, on any clock; earlier ones come first.
        live: comes before everything else, and may use the reserved rows.
        rows: maximum number of rows; None for the limit that all have.
    """

    priority: int = 0
    deadline: float = math.inf
    live: bool = False
    rows: int | None = None

    @property
    def rank(self) -> Rank:
        """Recordings of a higher rank come first."""
        return self.live, self.priority


def is_brief(job: TranscriptionJob) -> bool:
    """Whether at most one window of audio is left of a recording, as far as is known."""
    return 0 < job.duration - job.done <= WINDOW_S


class ActiveJob:
    """A job that has been started, and its windows.

    Attributes:
        job: the job.
        terms: what it is entitled to.
        waiting: windows that can be decoded now, with their chunks.
        n_windows: windows that are being decoded, or are decoded again later.
        turn: when it was started, or had a row last.
        served: whether it has had a row.
        waited: steps before it had one.
        idle: steps since a window of it could be decoded, if it has no row.
        put_off: time at which the encoder was stopped first that worked for its next window, on the
            monotonic clock; None if it was not.
    """

    def __init__(self, job: TranscriptionJob, terms: Terms, turn: int) -> None:
        """A job without windows."""
        self.job = job
        self.terms = terms
        self.waiting: collections.deque[tuple[Chunk, Window]] = collections.deque()
        self.n_windows = 0
        self.turn = turn
        self.served = False
        self.waited = 0
        self.idle = 0
        self.put_off: float | None = None

    @property
    def gives_way(self) -> bool:
        """Whether the encoder may be stopped that works for it, because a brief one waits."""
        waited = 0.0 if self.put_off is None else time.monotonic() - self.put_off
        return not (self.brief or self.terms.live) and waited < _PUT_OFF_S

    @property
    def brief(self) -> bool:
        """Whether at most one window of audio is left."""
        return is_brief(self.job)

    @property
    def coming(self) -> bool:
        """Whether its first window is being read, and will probably be there in a few steps."""
        return not (self.served or self.waiting) and self.waited < _COMING

    @property
    def pending(self) -> bool:
        """Whether there are windows that are not decoded."""
        return bool(self.n_windows or self.waiting)

    def clear(self) -> None:
        """Forget all windows."""
        self.waiting.clear()
        self.n_windows = 0


class Admission(Protocol):
    """Chooses the recording whose window is decoded next."""

    def choose(
        self, active: Collection[ActiveJob], admitted: Collection[ActiveJob]
    ) -> ActiveJob | None:
        """The job that the next row goes to, one with a waiting window; None for no job.

        Args:
            active: all started jobs, the oldest first.
            admitted: jobs that were chosen for the same step.
        """


class OldestFirst:
    """Rows go to the oldest recording that has windows."""

    def choose(
        self, active: Collection[ActiveJob], admitted: Collection[ActiveJob]
    ) -> ActiveJob | None:
        """See :class:`Admission`."""
        return next((each for each in active if each.waiting), None)


class FairShare:
    """Rows are shared by the recordings that want them.

    They go to live recordings first, then by priority. Among equals they go to the recording with
    the fewest rows, then to that with the earliest deadline, then in turns. No recording has more
    than a maximum of rows, so that one that arrives later soon finds a free one.
    """

    def __init__(
        self,
        n_rows: int,
        *,
        rows_per_job: int | None = None,
        reserved: int = 0,
        gentle: bool = False,
    ) -> None:
        """Share the rows of a batch.

        Args:
            n_rows: rows of the batch.
            rows_per_job: maximum number of rows of one recording. Default: three quarters, and no
                more than an equal share while others of its rank or a higher one want rows.
            reserved: rows that only live recordings use.
            gentle: for devices on which encoding a window takes as long as many decode steps. A
                recording that has a row gets no other in the same step, and none while a recording
                of its rank or a higher one with at most one window of audio left wants or has one,
                or has just been started, nor in the next few steps: after one, another often comes.
                A recording without a row waits a few steps while there is such a one.

        Raises:
            OptionError: no row would be left for a recording.
        """
        if rows_per_job is not None and rows_per_job < 1:
            raise OptionError(
                f"the limit of rows per recording is {rows_per_job}; expected 1 or more"
            )
        if not 0 <= reserved < n_rows:
            raise OptionError(
                f"{reserved} of {n_rows} rows are reserved for live sessions; expected 0 to"
                f" {n_rows - 1}, so that other recordings have at least one"
            )
        self._n_rows = n_rows
        self._rows_per_job = rows_per_job
        self._open_rows = n_rows - reserved
        self._gentle = gentle
        self._step = 0
        self._last_brief: dict[Rank, int] = {}

    def choose(
        self, active: Collection[ActiveJob], admitted: Collection[ActiveJob]
    ) -> ActiveJob | None:
        """See :class:`Admission`."""
        wanting = [each for each in active if each.pending]
        used = sum(each.n_windows for each in wanting if not each.terms.live)
        ranks = collections.Counter(each.terms.rank for each in wanting)
        limits = {rank: self._limit(rank, ranks) for rank in ranks}
        may = [each for each in wanting if each.waiting and self._may(each, limits, used)]
        if self._gentle:
            brief = [each for each in active if each.coming or (each.pending and each.brief)]
            self._remember(brief, admitted)
            may = [
                each
                for each in may
                if not (
                    _delays(each, brief, admitted)
                    or _goes_after(each, brief)
                    or self._expects_brief(each)
                )
            ]
        return min(may, key=_order, default=None)

    def _remember(self, brief: Collection[ActiveJob], admitted: Collection[ActiveJob]) -> None:
        """Note in which step there was a brief recording of each rank."""
        self._step += not admitted  # the first choice of a step
        known = (each for each in brief if each.brief)
        self._last_brief.update((each.terms.rank, self._step) for each in known)

    def _expects_brief(self, each: ActiveJob) -> bool:
        """Whether another row of a job might delay a brief recording that arrives soon."""
        if not each.n_windows or each.brief:
            return False
        rank, soon = each.terms.rank, self._step - _COURTESY
        return any(other >= rank and step > soon for other, step in self._last_brief.items())

    def _limit(self, rank: Rank, ranks: Mapping[Rank, int]) -> int:
        """Maximum number of rows of a recording; ``ranks``: recordings of each that want rows."""
        if self._rows_per_job is not None:
            return self._rows_per_job
        n_wanting = sum(n for other, n in ranks.items() if other >= rank)
        return min(math.ceil(self._open_rows / n_wanting), max(1, self._n_rows * 3 // 4))

    def _may(self, each: ActiveJob, limits: Mapping[Rank, int], used: int) -> bool:
        """Whether a job may have another row; ``used``: rows of all that are not live."""
        terms, limit = each.terms, limits[each.terms.rank]
        if not terms.live and used >= self._open_rows:
            return False
        return each.n_windows < (limit if terms.rows is None else min(limit, terms.rows))


def _delays(each: ActiveJob, brief: Collection[ActiveJob], admitted: Collection[ActiveJob]) -> bool:
    """Whether another row of a job would delay what will be finished soon."""
    if not each.n_windows:
        return False
    if each in admitted:
        return True
    rank = each.terms.rank
    return any(other is not each and other.terms.rank >= rank for other in brief)


def _goes_after(each: ActiveJob, brief: Collection[ActiveJob]) -> bool:
    """Whether a job without a row lets short recordings go first, for a while."""
    if each.n_windows or each.brief or each.idle > _PATIENCE:
        return False
    first = (other for other in brief if other.pending and other.job.duration <= WINDOW_S)
    return any(other.terms.rank >= each.terms.rank for other in first)


def _order(each: ActiveJob) -> tuple[bool, int, int, float, int]:
    terms = each.terms
    return not terms.live, -terms.priority, each.n_windows, terms.deadline, each.turn
