"""Results are those of transformers' pipeline, as ``make_pipeline_golden.py`` stored them.

Compared is what both sides do alike: greedy decoding in fp32, without ``chunk_length_s``.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Engines
from tests.support import golden
from whisper_opt.integrations.transformers import pipeline

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


def outputs(
    engines: Engines, model: str, mode: str, *, long: bool
) -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Clip, stored output and output of this library."""
    found = stored(model)
    expected = {
        clip: results[mode]
        for clip, results in found["clips"].items()
        if mode in results and (golden.clip(clip).duration_s > 30) == long
    }
    assert expected
    run = pipeline("automatic-speech-recognition", engines.model(model))
    results = run([golden.clip_pcm(clip) for clip in expected], **found["modes"][mode])
    return [(clip, output, mine) for (clip, output), mine in zip(expected.items(), results)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "mode"),
    [
        *(("tiny.en", mode) for mode in ("text", "chunks", "language")),
        *(("base", mode) for mode in ("text", "chunks")),
    ],
)
def test_short_recordings(model: str, mode: str, engines: Engines) -> None:
    for clip, expected, found in outputs(engines, model, mode, long=False):
        assert found.keys() == expected.keys(), clip
        assert found["text"] == expected["text"], clip
        assert listed(found.get("chunks", [])) == expected.get("chunks", []), clip


@pytest.mark.slow
def test_long_recordings_with_timestamps(engines: Engines) -> None:
    for clip, expected, found in outputs(engines, "tiny.en", "chunks", long=True):
        assert {**found, "chunks": listed(found["chunks"])} == expected, clip


@pytest.mark.slow
def test_words(engines: Engines) -> None:
    """Texts are the same; starts mostly, ends where no rule for long words shortens them."""
    starts = []
    for clip, expected, found in outputs(engines, "tiny.en", "words", long=False):
        assert found["text"] == expected["text"], clip
        assert [w["text"] for w in found["chunks"]] == [w["text"] for w in expected["chunks"]], clip
        starts += [
            abs(mine["timestamp"][0] - theirs["timestamp"][0])
            for mine, theirs in zip(found["chunks"], expected["chunks"])
        ]
    assert sum(start < 0.03 for start in starts) > 0.85 * len(starts)
