"""Mapping of hypotheses to cache slots.

A session has logical rows: any number per audio. The decoder graph needs a regular [A, G] grid of
slots: G per audio. This module computes only indices; the sessions move the arrays.
"""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np

from whisper_opt.core.arrays import Int

__all__ = ["AppendPlan", "CacheHistory", "CompactionPlan", "RowLayout", "SlotMap"]


class SlotMap:
    """Assignment of logical rows to the decoder's [A, G] slots, the same number G for every audio.

    Row r is in slot ``slot_of_row[r]``. An unused slot repeats a row of its audio, or row 0 if the
    audio has no rows; its results are discarded.
    """

    def __init__(self, audio_of_row: Int, n_audio: int) -> None:
        """``n_audio``: number of audios in the cross-attention cache."""
        members: list[list[int]] = [[] for _ in range(n_audio)]
        for row, audio in enumerate(audio_of_row.tolist()):
            members[audio].append(row)
        self.group = max(map(len, members))
        self.slot_of_row = np.zeros(len(audio_of_row), np.int64)
        row_of_slot = np.zeros(n_audio * self.group, np.int64)
        for audio, rows in enumerate(members):
            for i in range(self.group):
                slot = audio * self.group + i
                row_of_slot[slot] = rows[min(i, len(rows) - 1)] if rows else 0
                if i < len(rows):
                    self.slot_of_row[rows[i]] = slot
        self.row_of_slot = row_of_slot
        """The row whose tokens are fed to each slot."""
        self.unused = np.ones(len(row_of_slot), np.bool_)
        """True for slots that repeat a row."""
        self.unused[self.slot_of_row] = False
        self.is_identity = np.array_equal(self.slot_of_row, np.arange(len(row_of_slot)))
        """Whether row i is in slot i and every slot is used."""


@dataclasses.dataclass(frozen=True)
class CompactionPlan:
    """How audios and slots move when audios without rows are removed.

    Attributes:
        audios: old index of each audio.
        slots: old index of each slot.
    """

    audios: Int
    slots: Int


@dataclasses.dataclass(frozen=True)
class AppendPlan:
    """How slots move when the rows of another session are appended.

    Attributes:
        audios: new index of each audio of the other session.
        slots: old index of each slot in this session; arbitrary for ``new_slots``.
        new_slots: slots of rows from the other session.
        source_slots: their slots in the other session.
    """

    audios: Int
    slots: Int
    new_slots: Int
    source_slots: Int


class RowLayout:
    """The rows of a session: audio, length and slot of each row."""

    def __init__(self, n_audio: int) -> None:
        """One empty row per audio."""
        self.n_audio = n_audio
        self.length = np.zeros(n_audio, np.int64)
        self._audio_of_row = np.arange(n_audio, dtype=np.int64)
        self.slots = SlotMap(self._audio_of_row, n_audio)

    def gather(self, rows: Int) -> Int:
        """Row i becomes old row ``rows[i]``; returns the old slot that is copied to each slot."""
        before = self.slots
        self._audio_of_row = self._audio_of_row[rows]
        self.length = self.length[rows]
        self.slots = SlotMap(self._audio_of_row, self.n_audio)
        return self._keep_unused(before.slot_of_row[rows[self.slots.row_of_slot]], before)

    def _keep_unused(self, source: Int, before: SlotMap) -> Int:
        """Leave unused slots as they are: their contents do not matter, and nothing moves."""
        slots = np.arange(len(source))
        return np.where(self.slots.unused & (slots < len(before.row_of_slot)), slots, source)

    def _unused_audios(self) -> list[int]:
        used = set(self._audio_of_row.tolist())
        return [audio for audio in range(self.n_audio) if audio not in used]

    def compact(self) -> CompactionPlan | None:
        """Remove the audios without rows if they are at least a quarter of all audios."""
        unused = self._unused_audios()
        if 4 * len(unused) < self.n_audio or not unused:
            return None
        n_used = self.n_audio - len(unused)
        # the last audios fill the gaps
        source = np.arange(n_used)
        gaps = [audio for audio in unused if audio < n_used]
        source[gaps] = [audio for audio in range(n_used, self.n_audio) if audio not in unused]
        position = {int(old): new for new, old in enumerate(source)}
        before = self.slots
        self._audio_of_row = np.array([position[a] for a in self._audio_of_row.tolist()], np.int64)
        self.n_audio = n_used
        self.slots = SlotMap(self._audio_of_row, n_used)
        return CompactionPlan(
            source, self._keep_unused(before.slot_of_row[self.slots.row_of_slot], before)
        )

    def append(self, other: RowLayout) -> AppendPlan:
        """Append the rows of another layout; its audios replace unused audios first."""
        unused, n_old, n_new = self._unused_audios(), self.n_audio, other.n_audio
        self.n_audio = n_old + max(n_new - len(unused), 0)
        audios = np.array([*unused[:n_new], *range(n_old, self.n_audio)], np.int64)
        n_rows, before = len(self.length), self.slots
        self._audio_of_row = np.concatenate([self._audio_of_row, audios[other._audio_of_row]])
        self.length = np.concatenate([self.length, other.length])
        self.slots = SlotMap(self._audio_of_row, self.n_audio)
        row_of_slot = self.slots.row_of_slot
        is_old = row_of_slot < n_rows
        slots = np.arange(len(row_of_slot)) % len(before.row_of_slot)
        slots[is_old] = before.slot_of_row[row_of_slot[is_old]]
        new_slots = np.flatnonzero(~is_old)
        source_slots = other.slots.slot_of_row[row_of_slot[new_slots] - n_rows]
        return AppendPlan(audios, self._keep_unused(slots, before), new_slots, source_slots)


class CacheHistory:
    """Tracks which write filled each cache position of each slot, to find what slots share.

    Hypotheses of one audio share their cache up to the position at which they diverge. The shared
    positions need not be copied when hypotheses change slots.
    """

    _serial = itertools.count(1)

    def __init__(self, n_slots: int, capacity: int) -> None:
        """All positions are empty, and so equal in all slots."""
        self._writes = np.zeros((n_slots, capacity), np.int64)

    def write(self, start: Int, n_new: int, first: int = 0) -> None:
        """Record a write of ``n_new`` positions from ``start`` on in slots, from ``first`` on."""
        slots = first + np.arange(len(start))[:, None]
        # writes of different slots count as different, even if the token is the same
        self._writes[slots, start[:, None] + np.arange(n_new)] = (next(self._serial) << 20) + slots

    def copy_from(self, slots: Int, other: CacheHistory, source: Int, used: int) -> None:
        """Record a copy of the first ``used`` positions from slots ``source`` of ``other``."""
        self._writes[slots, :used] = other._writes[source, :used]

    def rearrange(self, source: Int, used: int) -> list[tuple[Int, slice]]:
        """Record that slot i becomes a copy of old slot ``source[i]``.

        Returns:
            What must be copied: a few pairs of slots and the range of positions in which they
            differ from their source. Together they cover little more than the differences.
        """
        n, n_old = len(source), len(self._writes)
        before = np.pad(self._writes, ((0, max(n - n_old, 0)), (0, 0)))
        self._writes = before[source]
        moved = np.flatnonzero(source != np.arange(n))
        if not used:
            return []
        differ = self._writes[moved, :used] != before[moved, :used]
        some = differ.any(axis=1)
        moved, first = moved[some], differ[some].argmax(axis=1)
        # group slots that diverged about as long ago: up to 4 positions, up to 16, ...
        ages = np.ceil(np.log2(used - first) / 2)
        groups = [ages == age for age in np.unique(ages)]
        return [(moved[group], slice(int(first[group].min()), used)) for group in groups]
