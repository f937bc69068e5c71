"""Every clip, word for word what openai-whisper writes: tokens, times, languages.

The goldens are made by ``scripts/make_golden.py``; both sides get the same samples. A clip may
differ only after a near-tie (margin below 1e-3 nats at the first difference), and at most one clip
in 50 may.
"""

from __future__ import annotations

import pytest

from tests.conftest import Engines
from tests.golden import CONFIGS, MODELS, GoldenClip, clip_pcm, golden, margin
from whisper_opt import TranscribeOptions, Transcript

NEAR_TIE = 1e-3


def _options(config: str) -> TranscribeOptions:
    return TranscribeOptions(
        temperature=0.0,
        without_timestamps=config.startswith("nots"),
        condition_on_previous_text=not config.endswith("nocond"),
    )


def _first_margin(want: GoldenClip, found: Transcript) -> float:
    """The reference's margin at the first token where the transcripts part."""
    heard: dict[int, list[int]] = {segment.seek: [] for segment in found}
    for segment in found:
        heard[segment.seek].extend(segment.tokens)
    for window in want["windows"]:
        ours = heard.get(window["seek"], [])
        theirs = window["tokens"]
        if ours[: len(theirs)] != theirs[: len(ours)] or len(ours) != len(theirs):
            same = next(
                (i for i, (a, b) in enumerate(zip(ours, theirs)) if a != b),
                min(len(ours), len(theirs)),
            )
            return margin(window, same)
    return float("inf")


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("name", MODELS)
def test_equals_openai_whisper(name: str, config: str, engines: Engines) -> None:
    model = engines.model(name)
    wanted = golden(name, config)
    differing: dict[str, float] = {}
    for clip_id, want in wanted.items():
        found = model.transcribe(clip_pcm(clip_id), options=_options(config))
        assert found.language == want["language"], clip_id
        if [s.tokens for s in found] != [tuple(s["tokens"]) for s in want["segments"]]:
            differing[clip_id] = _first_margin(want, found)
            continue
        assert found.text == want["text"], clip_id
        for ours, theirs in zip(found, want["segments"]):
            where = (clip_id, ours.id)
            assert (ours.id, ours.seek, ours.text) == (
                theirs["id"],
                theirs["seek"],
                theirs["text"],
            ), where
            times = (theirs["start"], theirs["end"])
            assert (ours.start, ours.end) == pytest.approx(times, abs=1e-6), where
            figures = (ours.avg_logprob, ours.no_speech_prob, ours.compression_ratio)
            assert figures == pytest.approx(
                (theirs["avg_logprob"], theirs["no_speech_prob"], theirs["compression_ratio"]),
                abs=1e-3,
            ), where
    print(f"{name} {config}: {len(wanted) - len(differing)} of {len(wanted)} clips equal")  # noqa: T201
    assert all(gap < NEAR_TIE for gap in differing.values()), differing
    assert len(differing) * 50 <= len(wanted), differing
