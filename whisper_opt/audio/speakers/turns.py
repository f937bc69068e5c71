"""From windows with clustered voices to turns: the windows are averaged where they overlap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from whisper_opt.audio.speakers.windows import FRAMES, Activity, frame_time
from whisper_opt.core.arrays import F32

__all__ = ["MIN_OFF", "MIN_ON", "Spoken", "active_frames", "spans"]


class Spoken(NamedTuple):
    """A time in which one person speaks."""

    start: float
    """Seconds."""
    end: float
    """Seconds."""
    speaker: str


MIN_ON = 0.3
"""Seconds; shorter speech is dropped."""
MIN_OFF = 0.5
"""Seconds; a shorter pause is part of a turn."""


def active_frames(
    starts: Sequence[int],
    activities: Sequence[Activity],
    labels: Sequence[Sequence[int]],
    n_frames: int,
    n_speakers: int,
) -> Activity:
    """Who speaks in each frame of a recording.

    As many speakers are active in a frame as in its windows on average, rounded: those who are in
    most of the windows.

    Args:
        starts: first frame of each window.
        activities: who speaks in it.
        labels: the speaker of the recording that each speaker of a window is; -1: unknown, which
            is then guessed from the windows around it.
        n_frames: of the recording.
        n_speakers: of the recording.

    Returns:
        bool [n_frames, n_speakers].
    """
    names = [list(each) for each in labels]
    votes, _, _ = _count(starts, activities, names, n_frames, n_speakers)
    for start, activity, own in zip(starts, activities, names):
        _guess(activity, own, votes[start : start + FRAMES])
    votes, counts, windows = _count(starts, activities, names, n_frames, n_speakers)
    most = np.rint(counts / np.maximum(windows, 1)).astype(int)[:n_frames]
    return _most_voted(votes[:n_frames], most)


def _count(
    starts: Sequence[int],
    activities: Sequence[Activity],
    names: Sequence[Sequence[int]],
    n_frames: int,
    n_speakers: int,
) -> tuple[F32, F32, F32]:
    """For every frame: windows by speaker, active speakers of all windows, windows."""
    votes = np.zeros((n_frames + FRAMES, n_speakers), np.float32)
    counts = np.zeros(n_frames + FRAMES, np.float32)
    windows = np.zeros(n_frames + FRAMES, np.float32)
    for start, activity, own in zip(starts, activities, names):
        place = slice(start, start + FRAMES)
        active = np.zeros((FRAMES, n_speakers), np.bool_)
        for i, name in enumerate(own):
            if name >= 0:
                active[:, name] |= activity[:, i]
        votes[place] += active
        counts[place] += active.sum(axis=1)
        windows[place] += 1
    return votes, counts, windows


def _guess(activity: Activity, names: list[int], votes: F32) -> None:
    """Name speakers of a window without a voice: who speaks there in most other windows."""
    for i, name in enumerate(names):
        if name < 0 and activity[:, i].any():
            others = votes[activity[:, i]].sum(axis=0)
            others[[known for known in names if known >= 0]] = 0
            if others.any():
                names[i] = int(others.argmax())


def _most_voted(votes: F32, most: npt.NDArray[np.int_]) -> Activity:
    """The ``most`` speakers of each frame that have most votes, at least one."""
    rank = np.empty(votes.shape, np.intp)
    order = np.argsort(-votes, axis=1, kind="stable")
    np.put_along_axis(rank, order, np.arange(votes.shape[1])[None], axis=1)
    found: Activity = (rank < most[:, None]) & (votes > 0)
    return found


def spans(active: npt.NDArray[np.bool_]) -> list[tuple[float, float]]:
    """Start and end in seconds of the turns of one speaker, bool [n_frames]."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], active, [False]]).astype(np.int8)))
    found: list[tuple[float, float]] = []
    for first, past in zip(edges[::2], edges[1::2]):
        start, end = frame_time(first - 0.5), frame_time(past - 0.5)
        if found and start - found[-1][1] < MIN_OFF:
            start = found.pop()[0]
        found.append((max(0.0, start), end))
    return [(start, end) for start, end in found if end - start >= MIN_ON]
