"""Decoding windows of log-mel frames."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.engines import random_engine
from tests.support.models import random_dims
from whisper_opt import OptionError, TranscribeOptions, Whisper, decode_windows, window_languages
from whisper_opt.audio.features import log_mel
from whisper_opt.core.arrays import F32

PLAIN: dict[str, Any] = {"temperature": 0.0, "max_new_tokens": 5}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Whisper:
    engine = random_engine(tmp_path_factory.mktemp("engine") / "tiny", random_dims())
    return Whisper.load(engine.path, device="cpu", threads=1)


@pytest.fixture(scope="module")
def samples() -> F32:
    return (np.random.default_rng(1).standard_normal(480_000) * 0.1).astype(np.float32)


@pytest.fixture(scope="module")
def mels(samples: F32) -> F32:
    second = np.random.default_rng(2).standard_normal((80, 3000)).astype(np.float32)
    return np.stack([log_mel(samples, 80).window(0, 3000), second])


@pytest.mark.parametrize("more", [{}, {"beam_size": 2}, {"initial_prompt": "One two"}])
def test_a_window_is_decoded_as_in_a_recording(
    more: dict[str, Any], model: Whisper, samples: F32, mels: F32
) -> None:
    options = {**PLAIN, **more, "language": "de", "task": "translate"}
    (found,) = decode_windows(model, mels[:1], **options)
    whole = model.transcribe(samples, vad="off", no_speech_threshold=None, **options)
    first = [segment for segment in whole if segment.seek == 0]
    assert found.avg_logprob == first[0].avg_logprob
    assert set(first[0].tokens) <= set(found.tokens)
    assert (found.start, found.end, found.language) == (0.0, 30.0, "de")


def test_windows_do_not_depend_on_one_another(model: Whisper, mels: F32) -> None:
    together = decode_windows(model, mels, **PLAIN)
    alone = [decode_windows(model, mels, batch_size=1, **PLAIN)[i] for i in range(2)]
    assert together == alone
    assert [segment.seek for segment in together] == [0, 3000]
    languages = window_languages(model, mels)
    assert [segment.language for segment in together] == [next(iter(p)) for p in languages]


def test_previous_text_is_text_or_tokens(model: Whisper, mels: F32) -> None:
    tokens = model.vocab.encode(" One two")
    by_text = decode_windows(model, mels, initial_prompt="One two", **PLAIN)
    assert decode_windows(model, mels, prompt_tokens=tokens, **PLAIN) == by_text
    with pytest.raises(OptionError, match="initial_prompt and prompt_tokens are both given"):
        decode_windows(model, mels, prompt_tokens=tokens, initial_prompt="A", **PLAIN)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"word_timestamps": True}, "word_timestamps is given, but it is about recordings"),
        ({"vad": "off"}, "vad is given, but it is about recordings"),
        ({"temperature": (0.0, 0.5)}, "decoded only once; expected one temperature"),
    ],
)
def test_options_of_recordings_are_refused(
    options: dict[str, Any], message: str, model: Whisper, mels: F32
) -> None:
    with pytest.raises(OptionError, match=message):
        decode_windows(model, mels, **options)


def test_the_temperature_is_zero_unless_options_are_given(model: Whisper, mels: F32) -> None:
    (found,) = decode_windows(model, mels[:1], max_new_tokens=2)
    assert found.temperature == 0
    options = TranscribeOptions(temperature=0.5, max_new_tokens=2)
    assert decode_windows(model, mels[:1], options=options)[0].temperature == 0.5


def test_log_probabilities_of_tokens(model: Whisper, mels: F32) -> None:
    (found,) = decode_windows(model, mels[:1], token_logprobs=True, **PLAIN)
    assert found.token_logprobs is not None
    assert len(found.token_logprobs) == len(found.tokens) > 0


@pytest.mark.parametrize("shape", [(80, 3000), (1, 128, 3000), (1, 80, 2999)])
def test_other_shapes_are_refused(shape: tuple[int, ...], model: Whisper) -> None:
    for function in (decode_windows, window_languages):
        with pytest.raises(OptionError, match=r"expected \[n, 80, 3000\]"):
            function(model, np.zeros(shape, np.float32))


def test_no_windows_have_no_results(model: Whisper, tmp_path: Path) -> None:
    assert decode_windows(model, np.zeros((0, 80, 3000), np.float32)) == []
