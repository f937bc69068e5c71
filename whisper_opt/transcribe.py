"""Recordings of any length: windows, prompts between them, and segments out of them.

The method is openai-whisper's sequential one (whisper/transcribe.py): decode 30 s, cut the answer
into segments at its timestamps, continue where the last finished segment ended.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Callable

import numpy as np

from whisper_opt.answers import Suppression, WindowDecoder
from whisper_opt.arrays import F32
from whisper_opt.decode import next_token_logprobs
from whisper_opt.dims import FRAMES_PER_SECOND
from whisper_opt.errors import OptionError
from whisper_opt.features import LogMel
from whisper_opt.options import TranscribeOptions
from whisper_opt.protocol import Backend
from whisper_opt.results import Segment
from whisper_opt.sequential import Sequential
from whisper_opt.tokens import Vocab

__all__ = ["Progress", "detect_language", "transcribe"]

Progress = Callable[[float, float], None]
"""Called with (seconds done, seconds in all) whenever a window is finished."""


def detect_language(backend: Backend, vocab: Vocab, mel: F32) -> dict[str, float]:
    """Probability of each language of the model, the likeliest first.

    Args:
        backend: the model; must be multilingual.
        vocab: its vocabulary.
        mel: float32 [n_mels, 3000]; the first 30 s as :meth:`LogMel.head` gives them.

    Raises:
        OptionError: the model knows English only.
    """
    if not vocab.is_multilingual:
        raise OptionError("this English-only model cannot detect languages; use a multilingual one")
    logprobs = next_token_logprobs(backend, backend.encode(mel[None]), [vocab.sot])[0]
    codes = list(vocab.languages)
    scores = logprobs[list(vocab.languages.values())]
    probs = np.exp(scores - scores.max())
    probs = probs / probs.sum()
    order = np.argsort(-probs, kind="stable")
    return {codes[i]: float(probs[i]) for i in order}


def transcribe(
    backend: Backend,
    vocab: Vocab,
    mel: LogMel,
    *,
    options: TranscribeOptions,
    language: str,
    suppression: Suppression,
    on_progress: Progress | None = None,
) -> Iterator[Segment]:
    """Transcribe one recording; segments come as soon as their window is decoded.

    Args:
        backend: the model.
        vocab: its vocabulary.
        mel: the recording.
        options: how to transcribe.
        language: language code (``options.language``, or what was detected).
        suppression: token lists of the checkpoint.
        on_progress: called after every window.

    Raises:
        OptionError: the prompt of a window does not fit the model.
    """
    decoder = WindowDecoder(backend, vocab, options, suppression)
    state = Sequential(mel.n_frames, vocab, backend.dims, options, language)
    total = mel.n_frames / FRAMES_PER_SECOND
    while (window := state.next_window()) is not None:
        (result,) = decoder([window], mel.window(window.seek, window.size)[None])
        yield from state.accept(window, result)
        if on_progress is not None:
            on_progress(state.seek / FRAMES_PER_SECOND, total)
