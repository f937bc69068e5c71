"""A draft model proposes tokens: fewer calls of the model, the same transcript."""

from __future__ import annotations

import dataclasses
import gc
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.models import random_checkpoint, random_dims
from tests.support.watched_backend import PLAIN, many, noise, noises
from tests.transcription.test_drafts import MODES, model, run, speaking
from tests.transcription.test_transcribe_many import talkative_checkpoint
from whisper_opt import OptionError, TranscribeOptions, Transcript, Whisper
from whisper_opt.core.arrays import F32
from whisper_opt.core.options import LoadOptions
from whisper_opt.export import export
from whisper_opt.serving import Engine
from whisper_opt.transcription.drafts import Assistant

SOUND = noise(90, 3)


def mistaken(seed: int, tokens: Sequence[int]) -> F32:
    """Scores of a model that is wrong about every fourth token."""
    scores = speaking(seed, tokens)
    return np.roll(scores, 1) if len(tokens) % 4 == 0 else scores


def assisted() -> tuple[Whisper, Any]:
    """The model of the other tests with a draft model, and its backend."""
    whisper, backend = model()
    _, draft = model()
    draft._scores = mistaken
    whisper._assistant = Assistant(draft)
    return whisper, backend


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_a_draft_model_saves_steps(mode: dict[str, Any]) -> None:
    expected, n_plain = run(SOUND, **mode)
    whisper, backend = assisted()
    assert whisper.transcribe(SOUND, **mode) == expected
    assert len(backend.of("prefill")) + len(backend.of("extend")) < 0.5 * n_plain


def test_recordings_in_a_batch_accept_different_numbers() -> None:
    sounds = noises(35, 62, 20, 50)
    expected = [run(sound, **PLAIN)[0] for sound in sounds]
    whisper, _ = assisted()
    found = many(whisper, sounds, **PLAIN, batch_size=3)
    assert [found[i] for i in range(4)] == expected
    with Engine(whisper, max_batch=3) as served:
        handles = [served.submit(sound, TranscribeOptions(**PLAIN)) for sound in sounds]
        assert [handle.result() for handle in handles] == expected


def test_a_known_text_comes_before_the_draft_model() -> None:
    expected, _ = run(SOUND, **PLAIN)
    whisper, backend = assisted()
    assert whisper.transcribe(SOUND, **PLAIN, draft=expected) == expected
    assert len(backend.of("extend")) < 10


@pytest.mark.parametrize("given", [{"beam_size": 2}, {"temperature": 0.5}])
def test_beams_and_draws_are_refused(given: dict[str, Any]) -> None:
    whisper, _ = assisted()
    with pytest.raises(OptionError, match="draft_model is given, but"):
        whisper.transcribe(SOUND, **{**PLAIN, **given})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Engines of one random model, and of one with another vocabulary."""
    folder = tmp_path_factory.mktemp("engines")
    export(talkative_checkpoint(), folder / "fp32")
    export(talkative_checkpoint(), folder / "int8", precision="int8")
    export(random_checkpoint(random_dims(n_vocab=51864)), folder / "other")
    return folder


def test_an_engine_as_the_draft_model_of_another(folder: Path) -> None:
    options: dict[str, Any] = {**PLAIN, "language": "en", "max_new_tokens": 40}

    def transcript(**given: Any) -> Transcript:
        with Whisper.load(folder / "fp32", threads=1, device="cpu", **given) as loaded:
            return loaded.transcribe(noise(40, 5), **options)

    found, expected = transcript(draft_model=str(folder / "int8")), transcript()
    assert [segment.tokens for segment in found] == [segment.tokens for segment in expected]


def test_another_vocabulary_is_refused(folder: Path) -> None:
    with pytest.raises(OptionError, match=r"draft_model has another vocabulary \(51864 ids;"):
        Whisper.load(folder / "fp32", device="cpu", draft_model=str(folder / "other"))


def test_speakers_and_verify(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The networks of speakers are loaded once; files of both models are verified."""
    opened: list[tuple[str | None, bool]] = []

    def watched(path: Path, options: LoadOptions, verify: bool) -> Whisper:
        opened.append((options.speakers, verify))
        return open_model(path, dataclasses.replace(options, speakers=None), verify)

    open_model = Whisper._open
    monkeypatch.setattr(Whisper, "_open", watched)
    given: dict[str, Any] = {"device": "cpu", "draft_model": str(folder / "int8")}
    Whisper.load(folder / "fp32", speakers="networks", verify=True, **given).close()
    assert opened == [("networks", True), (None, True)]


def test_closing_releases_the_draft_model(folder: Path) -> None:
    loaded = Whisper.load(folder / "fp32", device="cpu", draft_model=str(folder / "int8"))
    assert loaded._assistant is not None
    draft = weakref.ref(loaded._assistant._backend)
    loaded.close()
    gc.collect()
    assert draft() is None
