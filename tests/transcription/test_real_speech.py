"""Real speech after silence, and repeated speech."""

from __future__ import annotations

import numpy as np
import pytest

from tests.conftest import Engines
from tests.support.golden import clip, clip_pcm
from whisper_opt.audio.decode import load_audio
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


def _words(text: str) -> list[str]:
    return "".join(c for c in text.lower() if c.isalpha() or c == " ").split()


@pytest.mark.slow
def test_each_channel_has_the_words_of_its_speaker(engines: Engines) -> None:
    model = engines.model("tiny.en")
    sound = load_audio(str(clip("en-derived-stereo-2spk").path), channel=0)
    both = np.stack([sound, load_audio(str(clip("en-derived-stereo-2spk").path), channel=1)])
    found = model.transcribe(both.T, channels="split")
    for channel in range(2):
        alone = model.transcribe(both[channel], word_timestamps=True)
        mine = "".join(segment.text for segment in found if segment.channel == channel)
        assert _words(mine) == _words(alone.text)
    assert not [part for part in found.dropped if part.reason == "cross-talk"]


@pytest.mark.slow
def test_a_channel_does_not_have_the_words_it_hears(engines: Engines) -> None:
    first, second = clip_pcm("en-jfk"), clip_pcm("en-ls-2412-153948-0000")
    tracks = np.zeros((2, len(first) + len(second)), np.float32)
    tracks[0, : len(first)], tracks[1, len(first) :] = first, second
    heard = tracks + np.float32(0.1) * tracks[::-1]
    found = engines.model("tiny.en").transcribe(heard.T, channels="split")
    border = len(first) / SAMPLE_RATE
    assert {segment.channel for segment in found if segment.end <= border + 0.3} == {0}
    assert {segment.channel for segment in found if segment.start >= border - 0.3} == {1}
    assert "ask not what your country" in found.text.lower()
    assert "native country" in found.text.lower()
