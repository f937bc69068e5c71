"""Where hypotheses sit: logical rows, unequal in number per audio, in the decoder's [A, G] slots.

Integers alone: what moves where. The sessions move the arrays.
"""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np

from whisper_opt.core.arrays import Int

__all__ = ["Compaction", "Joining", "Layout", "Past", "Slots"]


class Slots:
    """Where logical rows sit: the decoder wants [A, G] rows, an equal number G for every audio.

    Row r sits in slot ``of_row[r]``. Slots that no row owns repeat a row of their audio, or any
    other where the audio has none; what they compute is thrown away.
    """

    def __init__(self, audio_of_row: Int, n_audio: int) -> None:
        """``n_audio``: audios held in the cross buffers."""
        members: list[list[int]] = [[] for _ in range(n_audio)]
        for row, audio in enumerate(audio_of_row.tolist()):
            members[audio].append(row)
        self.group = max(map(len, members))
        self.of_row = np.zeros(len(audio_of_row), np.int64)
        owner = np.zeros(n_audio * self.group, np.int64)
        for audio, rows in enumerate(members):
            for place in range(self.group):
                slot = audio * self.group + place
                owner[slot] = rows[min(place, len(rows) - 1)] if rows else 0
                if place < len(rows):
                    self.of_row[rows[place]] = slot
        self.owner = owner
        """The row whose tokens each slot carries."""
        self.spare = np.ones(len(owner), np.bool_)
        """Slots that repeat a row."""
        self.spare[self.of_row] = False
        self.plain = np.array_equal(self.of_row, np.arange(len(owner)))
        """Whether every slot is a row and they stand in order."""


@dataclasses.dataclass(frozen=True)
class Compaction:
    """Audios without rows are gone: audio i was ``audios[i]`` and slot i was ``slots[i]``."""

    audios: Int
    slots: Int


@dataclasses.dataclass(frozen=True)
class Joining:
    """Rows of another session have come.

    Attributes:
        place: where each audio of the other session lies now.
        slots: the old slot of one's own whose past each slot takes; where a row of the other
            session sits, any.
        joined: the slots where a row of the other session sits.
        source: the slots of the other session whose past they take.
    """

    place: Int
    slots: Int
    joined: Int
    source: Int


class Layout:
    """The rows of a session: whose audio each one hears, how long it is, in which slot it sits."""

    def __init__(self, n_audio: int) -> None:
        """One empty row an audio."""
        self.n_audio = n_audio
        self.length = np.zeros(n_audio, np.int64)
        self._audio_of_row = np.arange(n_audio, dtype=np.int64)
        self.slots = Slots(self._audio_of_row, n_audio)

    def gather(self, rows: Int) -> Int:
        """Row i becomes old row ``rows[i]``; returns the old slot that each slot takes."""
        before = self.slots
        self._audio_of_row = self._audio_of_row[rows]
        self.length = self.length[rows]
        self.slots = Slots(self._audio_of_row, self.n_audio)
        return self._kept(before.of_row[rows[self.slots.owner]], before)

    def _kept(self, source: Int, before: Slots) -> Int:
        """Spare slots keep the past they have: whatever it is, and nothing has to move."""
        slots = np.arange(len(source))
        return np.where(self.slots.spare & (slots < len(before.owner)), slots, source)

    def _dead(self) -> list[int]:
        live = set(self._audio_of_row.tolist())
        return [audio for audio in range(self.n_audio) if audio not in live]

    def compact(self) -> Compaction | None:
        """Forget audios without rows once they are a quarter of what every step reads."""
        dead = self._dead()
        if 4 * len(dead) < self.n_audio or not dead:
            return None
        n_live = self.n_audio - len(dead)
        # the last audios move into the holes
        source = np.arange(n_live)
        holes = [audio for audio in dead if audio < n_live]
        source[holes] = [audio for audio in range(n_live, self.n_audio) if audio not in dead]
        position = {int(old): new for new, old in enumerate(source)}
        before = self.slots
        self._audio_of_row = np.array([position[a] for a in self._audio_of_row.tolist()], np.int64)
        self.n_audio = n_live
        self.slots = Slots(self._audio_of_row, n_live)
        return Compaction(source, self._kept(before.of_row[self.slots.owner], before))

    def append(self, other: Layout) -> Joining:
        """Take over the rows of another layout after one's own; its audios fill holes first."""
        dead, n_old, n_new = self._dead(), self.n_audio, other.n_audio
        self.n_audio = n_old + max(n_new - len(dead), 0)
        place = np.array([*dead[:n_new], *range(n_old, self.n_audio)], np.int64)
        n_rows, before = len(self.length), self.slots
        self._audio_of_row = np.concatenate([self._audio_of_row, place[other._audio_of_row]])
        self.length = np.concatenate([self.length, other.length])
        self.slots = Slots(self._audio_of_row, self.n_audio)
        owner = self.slots.owner
        mine = owner < n_rows
        slots = np.arange(len(owner)) % len(before.owner)
        slots[mine] = before.of_row[owner[mine]]
        joined = np.flatnonzero(~mine)
        source = other.slots.of_row[owner[joined] - n_rows]
        return Joining(place, self._kept(slots, before), joined, source)


class Past:
    """Which write the positions of every slot hold, so that it is known what slots share.

    Hypotheses of one audio have one past up to where they part: what comes before need not move
    when they change places.
    """

    _serial = itertools.count(1)

    def __init__(self, n_slots: int, capacity: int) -> None:
        """Nothing was written, which all slots share."""
        self._writes = np.zeros((n_slots, capacity), np.int64)

    def write(self, start: Int, n_new: int) -> None:
        """Every slot writes ``n_new`` positions, from ``start`` [n_slots] on."""
        slots = np.arange(len(start))[:, None]
        # no two slots write the same, not even the same token
        self._writes[slots, start[:, None] + np.arange(n_new)] = (next(self._serial) << 20) + slots

    def take(self, slots: Int, other: Past, source: Int, used: int) -> None:
        """Some slots take the first ``used`` positions of slots elsewhere."""
        self._writes[slots, :used] = other._writes[source, :used]

    def arrange(self, source: Int, used: int) -> list[tuple[Int, slice]]:
        """Slot i takes the past of old slot ``source[i]``.

        Returns:
            What has to be copied: slots, and the positions in which they differ from their source;
            a few such pairs, that together cover little more than the differences.
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
        # together go those that parted about as long ago: up to 4 positions, up to 16, ...
        ages = np.ceil(np.log2(used - first) / 2)
        groups = [ages == age for age in np.unique(ages)]
        return [(moved[group], slice(int(first[group].min()), used)) for group in groups]
