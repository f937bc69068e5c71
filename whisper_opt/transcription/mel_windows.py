"""Decoding windows of log-mel frames directly: no recording, no seeking, no fallback."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from whisper_opt.core.arrays import F32
from whisper_opt.core.backend import Backend, Encoded
from whisper_opt.core.dims import N_FRAMES, N_SAMPLES, SAMPLE_RATE
from whisper_opt.core.errors import OptionError
from whisper_opt.core.options import TranscribeOptions
from whisper_opt.decoding import Batch, Decoded, DecodeRequest
from whisper_opt.text.results import Segment
from whisper_opt.transcription.arguments import merged
from whisper_opt.transcription.fallback import (
    FallbackDecoder,
    Window,
    WindowResult,
    last_that_fit,
)
from whisper_opt.transcription.language import language_probabilities

if TYPE_CHECKING:
    from whisper_opt.transcription.model import Whisper

__all__ = ["decode_windows", "window_languages"]

_USED = frozenset(
    {
        *("language", "task", "without_timestamps", "max_initial_timestamp", "initial_prompt"),
        *("prefix", "suppress_tokens", "suppress_blank", "max_new_tokens", "repetition_penalty"),
        *("no_repeat_ngram_size", "temperature", "beam_size", "patience", "length_penalty"),
        *("best_of", "seed", "batch_size", "token_logprobs"),
    }
)
"""Options about one window; all others are about recordings."""
_SECONDS = N_SAMPLES / SAMPLE_RATE


def decode_windows(
    model: Whisper,
    mels: F32,
    *,
    prompt_tokens: Sequence[int] = (),
    prefix_tokens: Sequence[int] = (),
    options: TranscribeOptions | None = None,
    **overrides: Any,
) -> list[Segment]:
    """Decode windows of 30 s once each, as openai-whisper's ``decode`` does.

    Args:
        model: a loaded model.
        mels: F32 [n, n_mels, 3000], as :func:`~whisper_opt.log_mel_spectrogram` computes.
        prompt_tokens: previous text as token ids; instead of ``initial_prompt``.
        prefix_tokens: text that the results continue as token ids; instead of ``prefix``.
        options: how to decode; one temperature (default 0), and nothing about recordings.
        **overrides: fields of :class:`TranscribeOptions` that replace those of ``options``.

    Returns:
        One segment per window, not divided at its timestamps: ``tokens`` has them, ``language`` is
        given or detected per window, ``start`` and ``end`` are those of the window.

    Raises:
        OptionError: the shape or an option is not one of windows, or the model does not support it.
    """
    chosen = _window_options(options, overrides)
    mels = _checked(mels, model.dims.n_mels)
    vocab = model.vocab
    language = vocab.check_language(chosen.language, chosen.task)
    chosen.check_model(is_multilingual=vocab.is_multilingual, n_audio_ctx=model.dims.n_audio_ctx)
    fallback = FallbackDecoder(model.dims, vocab, chosen, model._suppression)
    prefix = _prefix(model, chosen, prefix_tokens)
    found: list[Segment] = []
    with model._shared.use() as backend:
        for start in range(0, len(mels), chosen.batch_size):
            encoded = backend.encode(mels[start : start + chosen.batch_size])
            n = len(mels[start : start + chosen.batch_size])
            languages = [language] * n
            if language is None:
                detected = language_probabilities(backend, vocab, encoded)
                languages = [next(iter(probs)) for probs in detected]
            windows = [
                _window(model, chosen, code or "en", start + i, prompt_tokens, prefix)
                for i, code in enumerate(languages)
            ]
            requests = [fallback.request(window, 0) for window in windows]
            for window, code, decoded in zip(
                windows, languages, _decoded(backend, encoded, requests)
            ):
                result = fallback.result(window, decoded, 0)
                found.append(_segment(model, len(found), code, result))
    return found


def window_languages(model: Whisper, mels: F32) -> list[dict[str, float]]:
    """Probability of each language in each window, most probable first.

    Args:
        model: a loaded multilingual model.
        mels: F32 [n, n_mels, 3000].

    Raises:
        OptionError: the shape is not that of windows, or the model knows English only.
    """
    mels = _checked(mels, model.dims.n_mels)
    with model._shared.use() as backend:
        return [
            probs
            for mel in mels
            for probs in language_probabilities(backend, model.vocab, backend.encode(mel[None]))
        ]


def _window_options(
    options: TranscribeOptions | None, overrides: dict[str, Any]
) -> TranscribeOptions:
    if options is None:
        overrides = {"temperature": 0.0, **overrides}
    chosen = merged(TranscribeOptions, options, overrides)
    for field in dataclasses.fields(chosen):
        if field.name not in _USED and getattr(chosen, field.name) != field.default:
            raise OptionError(
                f"{field.name} is given, but it is about recordings; leave it out, or transcribe"
                " the recording"
            )
    if len(chosen.temperatures) > 1:
        raise OptionError(
            f"temperature is {list(chosen.temperatures)}, but a window is decoded only once;"
            " expected one temperature"
        )
    return chosen


def _checked(mels: F32, n_mels: int) -> F32:
    mels = np.asarray(mels, np.float32)
    if mels.ndim != 3 or mels.shape[1:] != (n_mels, N_FRAMES):
        raise OptionError(
            f"mels has shape {list(mels.shape)}; expected [n, {n_mels}, {N_FRAMES}]: windows of"
            f" 30 s with the {n_mels} mel bins of this model"
        )
    return np.ascontiguousarray(mels)


def _prefix(model: Whisper, options: TranscribeOptions, tokens: Sequence[int]) -> Sequence[int]:
    if not options.prefix:
        return tokens
    if tokens:
        raise OptionError("prefix and prefix_tokens are both given; leave one of them out")
    return model.vocab.encode(f" {options.prefix.strip()}")


def _window(
    model: Whisper,
    options: TranscribeOptions,
    language: str,
    index: int,
    previous: Sequence[int],
    prefix: Sequence[int],
) -> Window:
    vocab = model.vocab
    text = options.initial_prompt
    if text is not None and previous:
        raise OptionError("initial_prompt and prompt_tokens are both given; leave one of them out")
    history = list(previous) if text is None else vocab.encode(f" {text.strip()}")
    history = history[-(model.dims.n_text_ctx // 2 - 1) :]
    prompt = (
        *([vocab.sot_prev, *history] if history else ()),
        *vocab.start(language, options.task, timestamps=not options.without_timestamps),
        *last_that_fit(prefix, model.dims, options),
    )
    return Window(index * N_FRAMES, N_FRAMES, prompt, prompt.index(vocab.sot))


def _decoded(
    backend: Backend, encoded: Encoded, requests: Sequence[DecodeRequest]
) -> list[Decoded]:
    batch = Batch(backend)
    try:
        numbers = batch.add(encoded, requests)
        done: dict[int, Decoded] = {}
        while len(batch):
            done.update(batch.step())
        return [done[number] for number in numbers]
    finally:
        batch.close()


def _segment(model: Whisper, i: int, language: str | None, result: WindowResult) -> Segment:
    return Segment(
        id=i,
        start=i * _SECONDS,
        end=(i + 1) * _SECONDS,
        text=model.vocab.decode(result.tokens, specials=True).strip(),
        tokens=result.tokens,
        avg_logprob=result.avg_logprob,
        no_speech_prob=result.no_speech_prob,
        compression_ratio=result.compression_ratio,
        temperature=result.temperature,
        seek=i * N_FRAMES,
        language=language,
        truncated=result.truncated,
        token_logprobs=result.token_logprobs,
    )
