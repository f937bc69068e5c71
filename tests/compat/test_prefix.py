"""``prefix`` of both interfaces, token for token what the originals return."""

from __future__ import annotations

import json
from typing import Any

import pytest

import whisper_opt.compat.faster_whisper as faster_whisper
import whisper_opt.compat.whisper as whisper
from tests.conftest import Engines
from tests.support.golden import clip_pcm
from tests.support.prefix_cases import CLIPS, DECODED, GOLDEN, TRANSCRIBED

ENDLESS = "en-jfk"
"""A result repeats itself up to the limit, in which CTranslate2 counts the prefix."""
WANTED: dict[str, Any] = json.loads(GOLDEN.read_text("utf-8"))


@pytest.mark.slow
@pytest.mark.parametrize("clip_id", CLIPS)
def test_decode_continues_the_prefix_as_openai_whisper_does(clip_id: str, engines: Engines) -> None:
    model = whisper.load_model(str(engines.engine("tiny.en").path), device="cpu")
    mel = whisper.log_mel_spectrogram(whisper.pad_or_trim(clip_pcm(clip_id)))
    found = []
    for case in DECODED:
        result = model.decode(mel, whisper.DecodingOptions(**case))
        assert isinstance(result, whisper.DecodingResult)
        found.append(result.tokens)
    assert found == WANTED["decode"][clip_id]


@pytest.mark.slow
@pytest.mark.parametrize("clip_id", [clip for clip in CLIPS if clip != ENDLESS])
def test_transcribe_begins_with_the_prefix_as_faster_whisper_does(
    clip_id: str, engines: Engines
) -> None:
    model = faster_whisper.WhisperModel(str(engines.engine("tiny.en").path), device="cpu")
    found = []
    for case in TRANSCRIBED:
        segments, _ = model.transcribe(clip_pcm(clip_id), **case)
        found.append([segment.tokens for segment in segments])
    assert found == WANTED["transcribe"][clip_id]
