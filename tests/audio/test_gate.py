"""Utterances in a stream, on made-up probabilities and on speech."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from whisper_opt.audio.vad import gate as module
from whisper_opt.audio.vad.gate import Edge, SpeechGate
from whisper_opt.core.arrays import F32

FRAME = 512


class _Made:
    """Probabilities that are the first sample of each frame."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self._left = np.empty(0, np.float32)
        self.continued = False

    def feed(self, samples: F32) -> F32:
        joined = np.concatenate([self._left, samples])
        n = len(joined) // FRAME * FRAME
        self._left = joined[n:]
        return joined[:n:FRAME]

    def continue_from(self, other: object) -> None:
        self.continued = True


class _Deaf(_Made):
    def feed(self, samples: F32) -> F32:
        return super().feed(samples) * 0


class _Late(_Made):
    """What :class:`_Made` finds, 16 frames later."""

    def __init__(self, *_: Any) -> None:
        super().__init__()
        self._held = np.empty(0, np.float32)

    def feed(self, samples: F32) -> F32:
        joined = np.concatenate([self._held, super().feed(samples)])
        n = max(0, len(joined) - 16)
        self._held = joined[n:]
        return joined[:n]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "Frames", _Made)
    monkeypatch.setattr(module, "SecondLook", _Deaf)


def sound(*parts: tuple[int, float]) -> F32:
    """(frames, probability), ..."""
    return np.concatenate([np.full(n * FRAME, p, np.float32) for n, p in parts])


def gate(**changed: Any) -> SpeechGate:
    given: dict[str, Any] = {
        **{"silence": 10 * FRAME, "pre_roll": 5 * FRAME, "tail": 3 * FRAME},
        **{"longest": 1000 * FRAME},
        **changed,
    }
    return SpeechGate(0.5, **given)


@pytest.mark.usefixtures("made")
@pytest.mark.parametrize("size", [1, 100, 512, 7000])
def test_an_utterance_with_its_padding(size: int) -> None:
    found, stream = list[Edge](), gate()
    given = sound((20, 0.1), (8, 0.9), (4, 0.2), (6, 0.9), (12, 0.1))
    for start in range(0, len(given), size):
        found += stream.feed(given[start : start + size])
    assert found == [Edge(15 * FRAME, True), Edge(41 * FRAME, False)]
    assert [(span.start // FRAME, span.end // FRAME) for span in stream.pauses] == [(28, 32)]


@pytest.mark.usefixtures("made")
def test_one_frame_is_no_speech() -> None:
    assert gate().feed(sound((20, 0.1), (1, 0.9), (20, 0.1))) == []


@pytest.mark.usefixtures("made")
def test_utterances_do_not_overlap() -> None:
    found = gate(pre_roll=20 * FRAME).feed(
        sound((3, 0.0), (5, 0.9), (11, 0.0), (5, 0.9), (11, 0.0))
    )
    assert found == [Edge(0, True), Edge(11 * FRAME, False), Edge(11 * FRAME, True),
                     Edge(27 * FRAME, False)]  # fmt: skip


@pytest.mark.usefixtures("made")
def test_a_long_utterance_ends_at_a_short_pause() -> None:
    found = gate(longest=100 * FRAME).feed(sound((100, 0.9), (6, 0.1), (50, 0.9)))
    assert found[1] == Edge(103 * FRAME, False)


def test_speech_after_loud_sounds_is_found_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "Frames", _Deaf)
    monkeypatch.setattr(module, "SecondLook", _Late)
    stream = gate()
    found = stream.feed(sound((30, 0.1), (40, 0.9)))
    assert found[0] == Edge(25 * FRAME, True)
    assert stream._frames.continued  # type: ignore[attr-defined]
