"""``whisper.decoding``: windows of 30 s, given as log-mel frames."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Union

import numpy as np

import whisper_opt
from whisper_opt.compat.whisper.arrays import as_array

if TYPE_CHECKING:
    from whisper_opt.compat.whisper.model import Whisper

__all__ = ["DecodingOptions", "DecodingResult", "decode", "detect_language", "option_values"]


@dataclasses.dataclass(frozen=True)
class DecodingOptions:
    """Options of :func:`decode`, with openai-whisper's names and defaults.

    Attributes:
        task: ``transcribe``, ``translate`` to English, or ``lang_id``.
        language: code or English name; None: detected per window.
        temperature: sampling temperature; at 0 the most likely token is taken.
        sample_len: maximum number of tokens.
        best_of: number of samples at a temperature above 0.
        beam_size: number of hypotheses at temperature 0.
        patience: beam search ends when ``beam_size * patience`` hypotheses are complete.
        length_penalty: exponent of the length penalty; None: divide by the length.
        prompt: previous text, or its ids.
        prefix: text that the result continues, or its ids.
        suppress_tokens: ids that are never sampled, also as text; -1: symbols that are not spoken.
        suppress_blank: no blank first.
        without_timestamps: text only.
        max_initial_timestamp: latest start, in seconds; 0 or None: no limit.
        fp16: no effect: the precision was chosen when the model was loaded.
    """

    task: str = "transcribe"
    language: Union[str, None] = None
    temperature: float = 0.0
    sample_len: Union[int, None] = None
    best_of: Union[int, None] = None
    beam_size: Union[int, None] = None
    patience: Union[float, None] = None
    length_penalty: Union[float, None] = None
    prompt: Union[str, list[int], None] = None
    prefix: Union[str, list[int], None] = None
    suppress_tokens: Union[str, Iterable[int], None] = "-1"
    suppress_blank: bool = True
    without_timestamps: bool = False
    max_initial_timestamp: Union[float, None] = 1.0
    fp16: bool = True


@dataclasses.dataclass(frozen=True)
class DecodingResult:
    """Result of one window.

    Attributes:
        audio_features: None: the encoder's output stays in the engine.
        language: code of the language.
        language_probs: probability of each language, with the task ``lang_id``; else None.
        tokens: ids of text and timestamps.
        text: the text.
        avg_logprob: mean log-probability of the tokens.
        no_speech_prob: probability of no speech.
        temperature: the sampling temperature.
        compression_ratio: bytes of the text over their compressed size.
    """

    audio_features: Any
    language: str
    language_probs: Union[dict[str, float], None] = None
    tokens: list[int] = dataclasses.field(default_factory=list)
    text: str = ""
    avg_logprob: float = math.nan
    no_speech_prob: float = math.nan
    temperature: float = math.nan
    compression_ratio: float = math.nan


def option_values(options: DecodingOptions) -> dict[str, Any]:
    """The values of :class:`whisper_opt.TranscribeOptions` that ``options`` mean.

    Without ``prompt``, which callers handle, and ``fp16``, which has no effect. ``prefix`` is None
    if it is a list of ids.
    """
    values = dataclasses.asdict(options)
    for name in ("prompt", "fp16"):
        del values[name]
    values["prefix"] = _text(options.prefix)
    suppressed = options.suppress_tokens
    if isinstance(suppressed, str):
        values["suppress_tokens"] = tuple(int(part) for part in suppressed.split(",") if part)
    values["max_new_tokens"] = values.pop("sample_len") or None
    return values


def decode(
    model: Whisper, mel: Any, options: DecodingOptions | None = None, **kwargs: Any
) -> DecodingResult | list[DecodingResult]:
    """Decode windows of 30 s.

    Args:
        model: a loaded model.
        mel: [n_mels, 3000] or [n, n_mels, 3000], as an array or a tensor.
        options: how to decode.
        **kwargs: fields that replace those of ``options``.

    Returns:
        A result, or a list for several windows.

    Raises:
        OptionError: the shape is another (encoded audio, which the original accepts too, is
            refused), or an option is not supported.
    """
    chosen = dataclasses.replace(options or DecodingOptions(), **kwargs)
    mels, is_single = _windows(mel)
    if chosen.task == "lang_id":
        results = [DecodingResult(None, _best(p), p) for p in _languages(model, mels)]
    else:
        results = _decoded(model, mels, chosen)
    return results[0] if is_single else results


def _decoded(model: Whisper, mels: Any, options: DecodingOptions) -> list[DecodingResult]:
    values = option_values(options)
    if not model.is_multilingual:
        values.update(language=None, task="transcribe")
    segments = whisper_opt.decode_windows(
        model.model,
        mels,
        prompt_tokens=_ids(options.prompt),
        prefix_tokens=_ids(options.prefix),
        options=whisper_opt.TranscribeOptions.tolerant(
            **values, initial_prompt=_text(options.prompt)
        ),
    )
    return [
        DecodingResult(
            audio_features=None,
            language=segment.language or "en",
            tokens=list(segment.tokens),
            text=segment.text,
            avg_logprob=segment.avg_logprob,
            no_speech_prob=segment.no_speech_prob,
            temperature=options.temperature,
            compression_ratio=segment.compression_ratio,
        )
        for segment in segments
    ]


def _text(given: str | Iterable[int] | None) -> str | None:
    """A prompt that is given as text; None if it is empty, or given as ids."""
    return given if isinstance(given, str) and given else None


def _ids(given: str | Iterable[int] | None) -> list[int]:
    """A prompt that is given as ids; empty if it is text."""
    return [] if isinstance(given, (str, type(None))) else list(given)


def detect_language(model: Whisper, mel: Any, tokenizer: Any = None) -> tuple[Any, Any]:
    """Language tokens and probabilities of windows of 30 s.

    Args:
        model: a loaded multilingual model.
        mel: [n_mels, 3000] or [n, n_mels, 3000], as an array or a tensor.
        tokenizer: no effect: the vocabulary is that of the model.

    Returns:
        The id of the most probable language (an array for several windows) and a dictionary from
        code to probability (a list).

    Raises:
        OptionError: the model knows English only, or the shape is another.
    """
    mels, is_single = _windows(mel)
    found = _languages(model, mels)
    ids = model.model.vocab.languages
    tokens = np.array([ids[_best(probs)] for probs in found])
    return (tokens[0], found[0]) if is_single else (tokens, found)


def _best(probs: dict[str, float]) -> str:
    return max(probs, key=probs.__getitem__)


def _windows(mel: Any) -> tuple[Any, bool]:
    """Windows [n, n_mels, 3000], and whether there was only one."""
    mels = as_array(mel)
    return (mels[None], True) if mels.ndim == 2 else (mels, False)


def _languages(model: Whisper, mels: Any) -> list[dict[str, float]]:
    """Probabilities of each window, in the order of the languages' tokens."""
    codes = model.model.vocab.languages
    found = whisper_opt.window_languages(model.model, mels)
    return [{code: probs[code] for code in codes} for probs in found]
