"""Results are those of transformers' pipeline, as ``make_pipeline_golden.py`` stored them.

Texts are compared where both sides do the same: greedy decoding of recordings up to 30 s in fp32.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Engines
from tests.support import golden
from whisper_opt.integrations.transformers import AutomaticSpeechRecognitionPipeline, pipeline

DATA = Path(__file__).parents[2] / "data" / "pipeline"


def stored(model: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(gzip.decompress((DATA / f"{model}.json.gz").read_bytes()))
    return found


def listed(chunks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Chunks with times as lists, as they are stored."""
    return [
        {**chunk, "timestamp": list(chunk["timestamp"])} if "timestamp" in chunk else chunk
        for chunk in chunks
    ]


def transcriber(engines: Engines, model: str) -> AutomaticSpeechRecognitionPipeline:
    return pipeline("automatic-speech-recognition", engines.model(model))


@pytest.mark.slow
@pytest.mark.parametrize("model", ["tiny.en", "base"])
@pytest.mark.parametrize("mode", ["text", "chunks", "language"])
def test_short_recordings(model: str, mode: str, engines: Engines) -> None:
    found = stored(model)
    expected = {
        clip: outputs[mode]
        for clip, outputs in found["clips"].items()
        if mode in outputs and golden.clip(clip).duration_s <= 30
    }
    assert len(expected) >= 2
    run = transcriber(engines, model)
    results = run([golden.clip_pcm(clip) for clip in expected], **found["modes"][mode])
    for (clip, output), result in zip(expected.items(), results):
        assert result.keys() == output.keys(), clip
        assert result["text"] == output["text"], clip
        assert listed(result.get("chunks", [])) == output.get("chunks", []), clip
