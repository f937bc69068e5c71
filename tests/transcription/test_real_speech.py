"""Real speech after silence, and repeated speech."""

from __future__ import annotations

import numpy as np
import pytest

from tests.conftest import Engines
from tests.support.golden import clip_pcm
from whisper_opt.core.dims import SAMPLE_RATE


@pytest.mark.slow
def test_speech_that_repeats_itself_is_kept(engines: Engines) -> None:
    line = clip_pcm("en-jfk")[round(8.1 * SAMPLE_RATE) : round(10.6 * SAMPLE_RATE)]
    pause = np.zeros(round(0.8 * SAMPLE_RATE), np.float32)
    sound = np.concatenate([line, pause] * 8)
    found = engines.model("base").transcribe(sound, language="en")
    assert found.text.lower().count("what you can do for your country") == 8
    assert {segment.temperature for segment in found} == {0.0}


@pytest.mark.slow
@pytest.mark.parametrize("vad", ["off", "check", "cut"])
def test_silence_does_not_determine_the_language(engines: Engines, vad: str) -> None:
    silence = np.zeros(40 * SAMPLE_RATE, np.float32)
    sound = np.concatenate([silence, clip_pcm("de-fleurs-000")])
    found = engines.model("base").transcribe(sound, vad=vad, temperature=0.0)
    assert found.language == "de"
    assert found.language_probability is not None
    assert found.language_probability > 0.9
