"""Turns of speakers, with networks that tell tones apart: windows, clustering, joining."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from tests.support.speaker_networks import ToneNetworks, tones
from whisper_opt.audio.speakers import Diarizer
from whisper_opt.audio.speakers.clustering import cluster
from whisper_opt.audio.speakers.diarizer import names, voice_of
from whisper_opt.audio.speakers.turns import Spoken, active_frames, spans
from whisper_opt.audio.speakers.windows import (
    _BATCH,
    FRAME,
    FRAMES,
    STEP,
    WINDOW,
    frame_time,
)
from whisper_opt.core.arrays import F32
from whisper_opt.core.errors import AudioError

TURNS = [(1.0, 5.0, 2), (6.0, 9.0, 0), (8.0, 12.0, 1), (14.0, 20.0, 2), (30.0, 33.0, 0)]


def found(
    turns: list[tuple[float, float, int]], seconds: float, block: int = 64_000, **options: object
) -> tuple[Spoken, ...]:
    diarizer = Diarizer(ToneNetworks.networks(), **options)  # type: ignore[arg-type]
    sound = tones(turns, seconds)
    for start in range(0, len(sound), block):
        diarizer.feed(sound[start : start + block])
    return diarizer.finish()


def same(turns: tuple[Spoken, ...], expected: list[tuple[float, float, str]]) -> None:
    assert [turn.speaker for turn in turns] == [name for _, _, name in expected]
    for turn, (start, end, _) in zip(turns, expected):
        assert abs(turn.start - start) < 0.05, turn
        assert abs(turn.end - end) < 0.05, turn


@pytest.mark.parametrize("block", [16_000, 64_000, 10_000_000])
def test_turns_are_those_of_the_speakers(block: int) -> None:
    expected = [
        (1.0, 5.0, "A"), (6.0, 9.0, "B"), (8.0, 12.0, "C"), (14.0, 20.0, "A"), (30.0, 33.0, "B"),
    ]  # fmt: skip
    same(found(TURNS, 40.0, block), expected)


@pytest.mark.parametrize("seconds", [3.0, 9.99, 10.0, 10.01, 12.5, 47.3])
def test_every_length_has_its_last_turn(seconds: float) -> None:
    same(found([(0.5, seconds - 0.5, 1)], seconds), [(0.5, seconds - 0.5, "A")])
    same(found([(seconds - 2, seconds, 1)], seconds), [(seconds - 2, seconds, "A")])


@pytest.mark.parametrize("more", [0, 1, FRAME - 1, FRAME])
def test_lengths_at_which_the_last_window_ends(more: int) -> None:
    n = (_BATCH - 1) * STEP * FRAME + WINDOW + more  # a batch of windows, and nothing after it
    sound = tones([(0.5, n / 16_000, 1)], n / 16_000)
    diarizer = Diarizer(ToneNetworks.networks())
    diarizer.feed(sound)
    same(diarizer.finish(), [(0.5, n / 16_000, "A")])


def test_without_speech_there_are_no_turns() -> None:
    assert found([], 15.0) == ()
    assert Diarizer(ToneNetworks.networks()).finish() == ()


def test_short_pauses_and_short_speech_do_not_count() -> None:
    same(found([(1.0, 3.0, 0), (3.4, 6.0, 0), (7.0, 7.2, 1)], 12.0), [(1.0, 6.0, "A")])
    same(found([(1.0, 3.0, 0), (3.7, 6.0, 0)], 12.0), [(1.0, 3.0, "A"), (3.7, 6.0, "A")])


def test_the_number_of_speakers_may_be_given() -> None:
    assert {turn.speaker for turn in found(TURNS, 40.0, high=2)} == {"A", "B"}
    assert {turn.speaker for turn in found(TURNS, 40.0, low=3, high=3)} == {"A", "B", "C"}
    assert {turn.speaker for turn in found(TURNS, 40.0, low=1, high=1)} == {"A"}


def test_known_speakers_have_their_names() -> None:
    networks = ToneNetworks.networks()
    known = {
        "Bob": voice_of(networks, tones([(0.5, 3.0, 1)], 4.0), "Bob"),
        "Eve": voice_of(networks, tones([(0.5, 3.0, 3)], 4.0), "Eve"),
    }
    turns = found(TURNS, 40.0, known=known)
    assert [turn.speaker for turn in turns] == ["A", "B", "Bob", "A", "B"]
    with pytest.raises(AudioError, match="no speech was found in the reference clip of Ann"):
        voice_of(networks, tones([], 4.0), "Ann")


def test_memory_does_not_grow_with_the_recording() -> None:
    diarizer = Diarizer(ToneNetworks.networks())
    sound = tones([(i + 0.2, i + 0.9, i % 2) for i in range(0, 60, 2)], 60.0)
    windows = diarizer._windows
    for start in range(0, len(sound), 64_000):
        diarizer.feed(sound[start : start + 64_000])
        assert len(windows._samples) < 32 * 16_000  # eight windows and one block
        assert len(windows._features) < 32 * 100


def test_names_go_on_after_z() -> None:
    assert list(itertools.islice(names(), 28))[24:] == ["Y", "Z", "AA", "AB"]


# clustering


def voices(counts: list[int], seed: int = 0, spread: float = 0.03) -> tuple[F32, list[int]]:
    """Noisy copies of unrelated directions, in random order, and which each is of."""
    rng = np.random.default_rng(seed)
    centres = np.linalg.qr(rng.standard_normal((64, 64)))[0][: len(counts)]
    truth = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    found = centres[truth] + rng.standard_normal((len(truth), 64)) * spread
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    return found.astype(np.float32), truth.tolist()


@pytest.mark.parametrize("counts", [[1], [5, 7], [40, 3, 20], [1500, 700, 400]])
def test_clusters_are_the_directions(counts: list[int]) -> None:
    points, truth = voices(counts)
    labels, centres = cluster(points, [2.0] * len(points))
    assert len(centres) == len(counts)
    assert len(set(zip(truth, labels.tolist()))) == len(counts)


def test_small_clusters_join_the_most_similar() -> None:
    points, _ = voices([20, 20, 1])
    assert len(cluster(points, [2.0] * 41)[1]) == 2
    assert len(cluster(points, [2.0] * 41, low=3, high=3)[1]) == 3


def test_numbers_of_clusters_are_kept() -> None:
    points, _ = voices([30, 30, 30, 30])
    for k in range(1, 7):
        _, centres = cluster(points, [2.0] * 120, low=k, high=k)
        assert len(centres) == k
    assert len(cluster(points, [2.0] * 120, high=3)[1]) == 3
    assert len(cluster(points[:2], [2.0] * 2, low=5)[1]) <= 2


# from windows to turns


def test_windows_vote_where_they_overlap() -> None:
    one = np.zeros((FRAMES, 3), np.bool_)
    one[:, 0] = True
    other = np.zeros((FRAMES, 3), np.bool_)
    other[:, 1] = True
    starts = [0, 100, 200]
    labels = [[0, -1, -1], [-1, 0, -1], [-1, 1, -1]]
    active = active_frames(starts, [one, other, other], labels, 700, 2)
    assert active[:589, 0].all()  # two windows against one
    assert not active[:589, 1].any()
    assert active[689:, 1].all()
    assert not active[689:, 0].any()


def test_spans_are_seconds() -> None:
    active = np.zeros(400, np.bool_)
    active[100:200] = True
    active[220:230] = True  # after 0.34 s
    active[300:310] = True  # 0.17 s long
    ((start, end),) = spans(active)
    assert start == frame_time(99.5)
    assert end == frame_time(229.5)
