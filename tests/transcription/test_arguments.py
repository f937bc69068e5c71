"""Invalid arguments of ``transcribe_many`` and ``detect_language`` are refused."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.watched_backend import PLAIN, WatchedBackend, engine, noise, noises
from whisper_opt import OptionError, TranscribeOptions, Whisper


@pytest.fixture
def model() -> Whisper:
    return Whisper(engine(), WatchedBackend())


@pytest.mark.parametrize(
    "one",
    [
        "talk.mp3",
        b"RIFF",
        bytearray(b"RIFF"),
        memoryview(b"RIFF"),
        Path("talk.mp3"),
        np.zeros(16000, np.float32),
        np.zeros((2, 16000), np.float32),
        io.BytesIO(b"RIFF"),
        None,
        5,
    ],
    ids=lambda one: type(one).__name__,
)
def test_a_single_recording_is_refused(model: Whisper, one: Any) -> None:
    with pytest.raises(OptionError, match=rf"{type(one).__name__}.*such as \[audio\]"):
        model.transcribe_many(one)


@pytest.mark.parametrize("n", [0, 1, 3])
def test_lists_of_different_lengths_are_refused_before_anything(model: Whisper, n: int) -> None:
    options = [TranscribeOptions(**PLAIN)] * n
    message = rf"options for {n} recording\(s\), but 2 recording\(s\)"
    with pytest.raises(OptionError, match=message):
        model.transcribe_many(noises(0.5, 0.6), options=options)


def test_options_that_are_left_over_are_an_error_at_the_end(model: Whisper) -> None:
    options = [TranscribeOptions(**PLAIN)] * 3
    results = model.transcribe_many(iter(noises(0.5, 0.6)), options=options)
    assert sorted(i for i, _ in (next(results), next(results))) == [0, 1]
    with pytest.raises(OptionError, match=r"options for 3 recording\(s\), but 2 recording\(s\)"):
        next(results)


def test_too_few_options_for_a_generator(model: Whisper) -> None:
    options = iter([TranscribeOptions(**PLAIN)])
    with pytest.raises(OptionError, match=r"options for 1 recording\(s\), but more"):
        list(model.transcribe_many(iter(noises(0.5, 0.6)), options=options))


def test_endless_options_are_taken_as_needed(model: Whisper) -> None:
    options = iter(lambda: TranscribeOptions(**PLAIN), None)
    assert len(list(model.transcribe_many(noises(0.5, 0.6), options=options))) == 2


@pytest.mark.parametrize("windows", [0, -1, 1.5, True, "2"])
def test_windows_to_detect_the_language_on(model: Whisper, windows: Any) -> None:
    with pytest.raises(OptionError, match=r"^windows is .*at least 1"):
        model.detect_language(noise(0.1), windows=windows)


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan"), True, "0.5"])
def test_threshold_of_a_sure_language(model: Whisper, threshold: Any) -> None:
    with pytest.raises(OptionError, match=r"^threshold is .*from 0 to 1"):
        model.detect_language(noise(0.1), threshold=threshold)
