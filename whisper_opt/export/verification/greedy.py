"""Greedy decoding of a few tokens with the prompt of a transcription.

With it a verification covers the ids of the vocabulary: those of the prompt, of timestamps and of
text.
"""

from __future__ import annotations

from typing import Callable

import numpy as np

from whisper_opt.core.arrays import F32, Int
from whisper_opt.text.vocabulary import Vocab

__all__ = ["greedy_tokens"]


def greedy_tokens(next_scores: Callable[[Int], F32], vocab: Vocab, n_tokens: int) -> Int:
    """The prompt, the first timestamp, and the most probable tokens of text that follow.

    Args:
        next_scores: scores [n_vocab] of the token after a sequence.
        vocab: vocabulary of the model.
        n_tokens: number of tokens after the timestamp; fewer if the text ends before.
    """
    tokens = [*_prompt(vocab), vocab.timestamp_begin]
    for _ in range(n_tokens):
        scores = next_scores(np.array(tokens, np.int64))
        allowed = np.full(len(scores), -np.inf, np.float32)
        ids = [*range(vocab.eot + 1), *vocab.text.added]
        allowed[ids] = scores[ids]
        tokens.append(int(allowed.argmax()))
        if tokens[-1] == vocab.eot:
            break
    return np.array(tokens, np.int64)


def _prompt(vocab: Vocab) -> list[int]:
    language = vocab.default_language
    if vocab.is_multilingual and language not in vocab.languages:
        language = next(iter(vocab.languages))
    return vocab.start(language, "transcribe", timestamps=True)
