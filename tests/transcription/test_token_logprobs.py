"""Log-probabilities of tokens of a real model equal those of a plain implementation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import Engines, model_dir
from tests.support.reference_rules import Reference as Rules
from tests.support.reference_rules import reference_log_softmax
from whisper_opt import Transcript, Whisper
from whisper_opt.audio.decode import load_audio
from whisper_opt.audio.features import log_mel
from whisper_opt.core.arrays import F32
from whisper_opt.core.dims import N_FRAMES
from whisper_opt.export.checkpoints.load import load_checkpoint
from whisper_opt.export.verification.reference import Reference

SPEECH = load_audio(Path(__file__).parents[2] / "examples" / "jfk.flac")
"""One window."""


@pytest.fixture(scope="module")
def plain() -> tuple[Reference, F32]:
    """The plain model, and the encoded window."""
    checkpoint = load_checkpoint(model_dir("tiny.en"))
    reference = Reference(checkpoint)
    mel = log_mel(SPEECH, checkpoint.dims.n_mels).window(0, N_FRAMES)
    return reference, reference.encode(mel)


def expected(model: Whisper, plain: tuple[Reference, F32], found: Transcript) -> list[float]:
    """Log-probabilities of the tokens of one window, teacher-forced through the plain model."""
    vocab = model.vocab
    sampled = [token for segment in found for token in segment.tokens]
    prompt = vocab.start("en", "transcribe", timestamps=True)
    reference, audio = plain
    fed = np.array([*prompt, *sampled], np.int64)
    scores: F32 = reference.logits(audio, [fed])[0][len(prompt) - 1 :]
    rules = Rules(
        vocab.eot,
        vocab.no_timestamps,
        vocab.timestamp_begin,
        vocab.blank_tokens(),
        (*vocab.non_speech_tokens(), *vocab.never_sampled()),
        timestamps=True,
        max_initial=50,
    )
    return [
        float(reference_log_softmax(rules.apply(scores[i], sampled[:i]))[token])
        for i, token in enumerate(sampled)
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    "search",
    [
        {"temperature": 0.0},
        {"temperature": 0.0, "beam_size": 3},
        {"temperature": 0.6, "best_of": 2},
        {"temperature": 0.0, "strategy": "batched", "vad": None, "clip_timestamps": (0.0, 11.0)},
    ],
    ids=["greedy", "beam", "sampling", "batched"],
)
def test_equal_the_reference(
    engines: Engines, plain: tuple[Reference, F32], search: dict[str, Any]
) -> None:
    model = engines.model("tiny.en")
    found = model.transcribe(SPEECH, token_logprobs=True, **{"vad": "off", **search})
    ours = [each for segment in found for each in segment.token_logprobs or ()]
    assert len(ours) > 20
    assert ours == pytest.approx(expected(model, plain, found), abs=2e-3)
