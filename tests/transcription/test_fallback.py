"""Temperature fallback in a batch."""

from __future__ import annotations

import collections

import pytest

from tests.support.watched_backend import (
    TEMPERATURES,
    WatchedBackend,
    fallback_options,
    many,
    noises,
    quiet_model,
)
from whisper_opt import Whisper


@pytest.mark.parametrize("beam_size", [None, 3])
def test_windows_fall_back_one_by_one(
    model: Whisper, watched: WatchedBackend, beam_size: int | None
) -> None:
    audios = noises(31.0, 64.0, 5.0, 95.0)
    options = {**fallback_options(audios), "beam_size": beam_size, "best_of": 2}
    found = many(model, audios, batch_size=4, **options)
    temperatures = [segment.temperature for t in found.values() for segment in t]
    assert len(set(temperatures)) > 1
    assert set(temperatures) <= {0.0, 0.4, 1.0}
    for i, sound in enumerate(audios):
        assert found[i] == quiet_model().transcribe(sound, **options)
    attempts = collections.Counter(seed for seed, _ in watched.prompts)
    assert {1, 2, 3} >= set(attempts.values()) > {1}
    # the encoded audio is used again
    assert collections.Counter(watched.windows) == dict.fromkeys(attempts, 1)
    assert watched.most == 4


def test_others_go_on_while_one_falls_back(model: Whisper, watched: WatchedBackend) -> None:
    audios = noises(31.0, 64.0, 5.0, 95.0)
    many(model, audios, batch_size=4, **fallback_options(audios))
    begun: set[int] = set()
    undisturbed = 0
    running: frozenset[int] = frozenset()
    again: set[int] = set()
    for what, seeds in watched.diary:
        if what == "open":
            again |= seeds & begun
            begun |= seeds
        if what == "extend":
            undisturbed += bool(again and (seeds & running) - again)
            assert again <= seeds
            running, again = seeds, set()
    assert undisturbed > 0


def test_the_prompt_is_the_same_at_every_temperature(
    model: Whisper, watched: WatchedBackend
) -> None:
    audios = noises(64.0, 95.0)
    many(model, audios, batch_size=2, **fallback_options(audios))
    prompts: dict[int, set[tuple[int, ...]]] = collections.defaultdict(set)
    for seed, prompt in watched.prompts:
        prompts[seed].add(prompt)
    assert {len(each) for each in prompts.values()} == {1}
    assert len(watched.prompts) > len(prompts)


def test_a_silent_window_does_not_fall_back(model: Whisper, watched: WatchedBackend) -> None:
    audios = noises(64.0, 95.0, 31.0)
    options = {**TEMPERATURES, "logprob_threshold": -0.001, "no_speech_threshold": 0.3}
    many(model, audios, batch_size=3, **options)
    attempts = collections.Counter(seed for seed, _ in watched.prompts)
    assert set(attempts.values()) == {1, 3}
