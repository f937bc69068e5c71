"""Whatever else an engine transcribes, the result of a recording is that of a call for it alone."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tests.conftest import Engines
from tests.support.engines_on_fakes import WAIT
from tests.support.golden import clip_pcm
from tests.support.watched_backend import PLAIN, WatchedBackend, engine, noise
from tests.transcription.test_language import DIMS, Polyglot
from tests.transcription.test_transcribe_many import (
    CLIPS,
    FEATURES,
    SECONDS,
    option_sets,
    same,
    talkative_checkpoint,
)
from whisper_opt import TranscribeOptions, Transcript, Whisper
from whisper_opt.export import export
from whisper_opt.serving import Engine

N_CALLERS = 4


def served(
    model: Whisper, audios: Sequence[Any], options: Sequence[TranscribeOptions], **arguments: Any
) -> list[Transcript]:
    """Transcripts from an engine with several callers, who submit one after another."""
    found: list[Any] = [None] * len(audios)
    ready = threading.Barrier(N_CALLERS)

    def call(first: int) -> None:
        ready.wait(WAIT)
        for i in range(first, len(audios), N_CALLERS):
            how = i % 3
            handle = shared.submit(audios[i], options[i], priority=i % 2)
            if how == 0:  # some wait for each result, some submit all first
                found[i] = handle.result(4 * WAIT)
            else:
                found[i] = handle

    with Engine(model, **arguments) as shared:
        threads = [threading.Thread(target=call, args=(i,)) for i in range(N_CALLERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(4 * WAIT)
        return [each if isinstance(each, Transcript) else each.result(4 * WAIT) for each in found]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Engine of a random multilingual model."""
    return export(talkative_checkpoint(), tmp_path_factory.mktemp("serving") / "engine").path


@pytest.fixture(scope="module")
def random_model(path: Path) -> Whisper:
    return Whisper.load(path, threads=1)


@settings(derandomize=True, deadline=None, max_examples=4, phases=[Phase.generate])
@given(
    recordings=st.lists(
        st.tuples(st.sampled_from(SECONDS), st.integers(0, 5), option_sets()),
        min_size=6,
        max_size=10,
    ),
    max_batch=st.sampled_from([1, 2, 5, 16]),
    most=st.integers(1, 3),
)
def test_random_options_and_arrivals(
    random_model: Whisper,
    recordings: list[tuple[float, int, dict[str, Any]]],
    max_batch: int,
    most: int,
) -> None:
    audios = [noise(seconds, seed) for seconds, seed, _ in recordings]
    options = [TranscribeOptions(**chosen) for _, _, chosen in recordings]
    found = served(random_model, audios, options, max_batch=max_batch, max_windows_per_step=most)
    for transcript, sound, chosen in zip(found, audios, options):
        same(transcript, random_model.transcribe(sound, options=chosen))


def test_languages_are_detected_as_by_transcribe() -> None:
    """The readers have the engine encode what they detect the language in."""
    backend = WatchedBackend(DIMS, Polyglot())
    model = Whisper(engine(DIMS.n_vocab), backend)
    audios = [noise(35.0, seed) for seed in range(8)]
    options = [
        TranscribeOptions(**PLAIN, max_new_tokens=6, multilingual=i % 2 == 1) for i in range(8)
    ]
    expected = [model.transcribe(sound, options=each) for sound, each in zip(audios, options)]
    backend.diary.clear()
    found = served(model, audios, options)
    assert found == expected
    assert len({transcript.language for transcript in found}) > 1
    assert backend.sessions == []


def test_windows_of_language_detection_are_counted() -> None:
    backend = WatchedBackend(DIMS, Polyglot())
    sound = noise(35.0, 1)
    with Engine(Whisper(engine(DIMS.n_vocab), backend), max_windows_per_step=1) as shared:
        shared.submit(sound, TranscribeOptions(**PLAIN, max_new_tokens=6)).result(WAIT)
        assert shared.stats().windows == len(backend.windows) > 2


@pytest.mark.slow
@pytest.mark.parametrize("max_batch", [8, 3])
def test_real_speech_equals_transcribe(engines: Engines, max_batch: int) -> None:
    """In int8 the rows of a batch equal single rows bit for bit, so results are equal too."""
    model = engines.model("tiny.en", precision="int8")
    rng = np.random.default_rng(max_batch)
    audios, options = [], []
    for _ in range(24):
        audios.append(clip_pcm(str(rng.choice(CLIPS))))
        options.append(TranscribeOptions(**FEATURES[rng.integers(len(FEATURES))]))
    found = served(model, audios, options, max_batch=max_batch)
    for transcript, sound, chosen in zip(found, audios, options):
        assert transcript == model.transcribe(sound, options=chosen)
