"""Which language is spoken, as the model itself hears it."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from whisper_opt.core.arrays import F32
from whisper_opt.core.backend import Backend, Encoded
from whisper_opt.core.errors import OptionError
from whisper_opt.decoding import next_token_logprobs
from whisper_opt.text.vocabulary import Vocab

__all__ = ["detect_language", "language_probabilities"]

_ENGLISH_ONLY = "this English-only model cannot detect languages; use a multilingual one"


def language_probabilities(
    backend: Backend, vocab: Vocab, audio: Encoded
) -> list[dict[str, float]]:
    """Probability of each language of the model in each window, the likeliest first.

    Raises:
        OptionError: the model knows English only.
    """
    if not vocab.is_multilingual:
        raise OptionError(_ENGLISH_ONLY)
    scores = next_token_logprobs(backend, audio, [vocab.sot])[:, list(vocab.languages.values())]
    return [_ranked(dict(zip(vocab.languages, row))) for row in _softmax(scores)]


def _softmax(scores: F32) -> F32:
    probs = np.exp(scores - scores.max(axis=-1, keepdims=True))
    result: F32 = probs / probs.sum(axis=-1, keepdims=True)
    return result


def _ranked(probs: dict[str, float]) -> dict[str, float]:
    order = sorted(probs, key=lambda code: -probs[code])  # stable: ties keep the order of ids
    return {code: float(probs[code]) for code in order}


def detect_language(
    backend: Backend, vocab: Vocab, mels: Iterable[F32], threshold: float = 0.5
) -> dict[str, float]:
    """Probability of each language of the model, the likeliest first.

    Args:
        backend: the model; must be multilingual.
        vocab: its vocabulary.
        mels: windows to listen to, float32 [n_mels, 3000], as :meth:`LogMel.head` gives them; they
            are taken one by one until the mean of their probabilities is sure.
        threshold: probability from which the likeliest language is sure.

    Raises:
        OptionError: the model knows English only.
    """
    if not vocab.is_multilingual:  # said before anything is encoded
        raise OptionError(_ENGLISH_ONLY)
    total: dict[str, float] = dict.fromkeys(vocab.languages, 0.0)
    found: dict[str, float] = {}
    for n, mel in enumerate(mels, 1):
        (probs,) = language_probabilities(backend, vocab, backend.encode(mel[None]))
        total = {code: total[code] + p for code, p in probs.items()}
        found = _ranked({code: p / n for code, p in total.items()})
        if next(iter(found.values())) >= threshold:
            break
    return found
