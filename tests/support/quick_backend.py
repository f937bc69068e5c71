"""A fake model that says a few words in every window, and costs little."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from tests.support.fake_backend import FakeBackend
from tests.support.reference_windows import DIMS, VOCAB
from tests.support.watched_backend import engine
from whisper_opt import TranscribeOptions, Whisper
from whisper_opt.core.arrays import F32, Int
from whisper_opt.core.backend import Attention, Encoded

__all__ = ["OPTIONS", "QuickBackend", "quick_model"]

OPTIONS = TranscribeOptions(vad="off", temperature=0.0, max_new_tokens=20)


def brief(seed: int, tokens: Sequence[int]) -> F32:
    """A few words, then the end."""
    scores = np.zeros(DIMS.n_vocab, np.float32)
    scores[VOCAB.eot if len(tokens) % 5 == 4 else 300 + (seed + len(tokens)) % 50] = 20
    return scores


class QuickBackend(FakeBackend):
    """Attention without content costs little."""

    def attention(self, audio: Encoded, tokens: Int, lengths: Int) -> Attention:
        n_audio, n_tokens = tokens.shape
        shape = (n_audio, 1, n_tokens, self.dims.n_audio_ctx)
        logits = np.zeros((n_audio, n_tokens, self.dims.n_vocab), np.float32)
        return Attention(np.zeros(shape, np.float32), logits)


def quick_model() -> Whisper:
    """A model of English with room for 448 tokens."""
    dims = dataclasses.replace(DIMS, n_text_ctx=448)
    return Whisper(engine(n_text_ctx=448), QuickBackend(dims, brief))
