"""fp16 engines on real weights: the tokens of fp32, and room below the largest float16.

All clips: ``benchmarks/precision.py``; inputs that no recording has: ``benchmarks/activations.py``.
"""

from __future__ import annotations

import numpy as np
import pytest

from tests.conftest import ROOT, Engines
from tests.support.closeness import closeness
from tests.support.engines import require
from tests.support.golden import clip_pcm, golden, options
from whisper_opt import TranscribeOptions, Transcript
from whisper_opt.audio.features import log_mel
from whisper_opt.core.dims import N_FRAMES

NEAR_TIE = 0.02
"""Margin in nats below which fp16 may decide otherwise than fp32."""
SAMPLE = ("en-jfk", "en-ls-1998-15444-0000", "en-ls-2412-153948-0001", "en-ast-conf-adminmenu-18")


@pytest.mark.slow
@pytest.mark.parametrize("dialect", ["contrib", "standard"])
def test_tokens_are_those_of_fp32(dialect: str, engines: Engines) -> None:
    require(dialect)
    model, clips = engines.model("tiny.en", dialect, "fp16"), golden("tiny.en", "ts")
    chosen = TranscribeOptions(**options("ts"), vad="off")
    audios = map(clip_pcm, SAMPLE)
    differing = {}
    for i, found in model.transcribe_many(audios, options=chosen, batch_size=4):
        assert isinstance(found, Transcript)
        want = clips[SAMPLE[i]]
        if [list(s.tokens) for s in found] != [s["tokens"] for s in want["segments"]]:
            differing[SAMPLE[i]] = closeness("ts", want, found)
    assert all(margin < NEAR_TIE for margin in differing.values()), differing
    assert len(differing) <= 1, differing


@pytest.mark.slow
def test_values_stay_far_below_the_largest_float16(
    engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    require("standard")
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from activations import LARGEST, ROOM, Meter, by_block

    meter = Meter(engines.engine("tiny.en", "standard", "fp16"), threads=2)
    mel = log_mel(clip_pcm("en-jfk"), meter.dims.n_mels).window(0, N_FRAMES)
    tokens = np.array([*meter.vocab.start("en", "transcribe", timestamps=True), *range(40)])
    blocks = by_block(meter.run(mel, tokens))
    assert len([name for name in blocks if name.startswith("encoder.blocks.")]) == 4
    assert max(block["float16"] for block in blocks.values()) < LARGEST / ROOM
    # why normalization is in float32: these squares are no float16 numbers
    assert max(block["residual"] for block in blocks.values()) > 255
