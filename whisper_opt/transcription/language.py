"""Which language is spoken, as the model itself hears it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from whisper_opt.audio.features import LogMel
from whisper_opt.audio.vad import SpeechDetector
from whisper_opt.core.arrays import F32
from whisper_opt.core.backend import Backend, Encoded
from whisper_opt.core.dims import HOP_LENGTH, N_FRAMES, N_SAMPLES, SAMPLE_RATE
from whisper_opt.core.errors import OptionError
from whisper_opt.core.options import TranscribeOptions
from whisper_opt.decoding import next_token_logprobs
from whisper_opt.text.vocabulary import Vocab

__all__ = ["detect_language", "language_of_recording", "language_probabilities"]

_LATE = 15 * SAMPLE_RATE
"""Samples without speech after which a window begins where the speech does."""
_LEAD = SAMPLE_RATE // 5
"""Samples before that speech that the window begins with."""
_MOST = 20
"""Windows looked at in search of one that the model itself takes for speech."""

_ENGLISH_ONLY = "this English-only model cannot detect languages; use a multilingual one"


def language_probabilities(
    backend: Backend, vocab: Vocab, audio: Encoded
) -> list[dict[str, float]]:
    """Probability of each language of the model in each window, the likeliest first.

    Raises:
        OptionError: the model knows English only.
    """
    _check(vocab)
    return [probs for probs, _ in _at_start(backend, vocab, audio)]


def _check(vocab: Vocab) -> None:
    if not vocab.is_multilingual:
        raise OptionError(_ENGLISH_ONLY)


def _at_start(
    backend: Backend, vocab: Vocab, audio: Encoded
) -> list[tuple[dict[str, float], float]]:
    """Languages, and the no-speech probability, of each window."""
    scores = next_token_logprobs(backend, audio, [vocab.sot])
    languages = _softmax(scores[:, list(vocab.languages.values())])
    ranked = [_ranked(dict(zip(vocab.languages, row))) for row in languages]
    return list(zip(ranked, np.exp(scores[:, vocab.no_speech]).tolist()))


def _softmax(scores: F32) -> F32:
    probs = np.exp(scores - scores.max(axis=-1, keepdims=True))
    result: F32 = probs / probs.sum(axis=-1, keepdims=True)
    return result


def _ranked(probs: dict[str, float]) -> dict[str, float]:
    order = sorted(probs, key=lambda code: -probs[code])  # stable: ties keep the order of ids
    return {code: float(probs[code]) for code in order}


def detect_language(
    backend: Backend,
    vocab: Vocab,
    mels: Iterable[F32],
    threshold: float = 0.5,
    *,
    windows: int | None = None,
    no_speech_threshold: float | None = None,
) -> dict[str, float]:
    """Probability of each language of the model, the likeliest first; empty without windows.

    Args:
        backend: the model; must be multilingual.
        vocab: its vocabulary.
        mels: windows, float32 [n_mels, 3000], as :meth:`LogMel.head` gives them; they are taken one
            by one until the mean of their probabilities is sure.
        threshold: probability from which the likeliest language is sure.
        windows: windows that count at most; None: all.
        no_speech_threshold: a window with a higher no-speech probability does not count, unless
            all windows have one: then the first counts.

    Raises:
        OptionError: the model knows English only.
    """
    _check(vocab)
    total: dict[str, float] = dict.fromkeys(vocab.languages, 0.0)
    found: dict[str, float] = {}
    unspoken: dict[str, float] = {}
    n = 0
    for mel in mels:
        ((probs, no_speech),) = _at_start(backend, vocab, backend.encode(mel[None]))
        if no_speech_threshold is not None and no_speech > no_speech_threshold:
            unspoken = unspoken or probs
            continue
        n += 1
        total = {code: total[code] + p for code, p in probs.items()}
        found = _ranked({code: p / n for code, p in total.items()})
        if n == windows or next(iter(found.values())) >= threshold:
            break
    return found or unspoken


def language_of_recording(
    backend: Backend, vocab: Vocab, samples: F32, mel: LogMel, options: TranscribeOptions
) -> dict[str, float]:
    """Probability of each language in a recording, judged by windows that hold speech.

    Voice activity detection finds them; if it finds no speech, or is off, the no-speech probability
    of the model does. The first window is that of openai-whisper, the first 30 s, if speech begins
    in its first half.

    Args:
        backend: the model; must be multilingual.
        vocab: its vocabulary.
        samples: the recording, float32 [n] at 16 kHz.
        mel: its spectrogram.
        options: how many windows, when a language is sure, how to find speech.

    Raises:
        OptionError: the model knows English only.
    """
    _check(vocab)
    threshold, windows = options.language_detection_threshold, options.detection_windows
    found: dict[str, float] = {}
    if options.vad_mode != "off":
        starts = _speech_starts(samples, SpeechDetector(options.vad_options))
        heads = (mel.head(start) for start in starts)
        found = detect_language(backend, vocab, heads, threshold, windows=windows)
    if not found:
        every = range(0, max(mel.n_frames, 1), N_FRAMES)[:_MOST]
        found = detect_language(
            backend,
            vocab,
            (mel.head(start) for start in every),
            threshold,
            windows=windows,
            no_speech_threshold=options.no_speech_threshold,
        )
    return found


def _speech_starts(samples: F32, detector: SpeechDetector) -> Iterator[int]:
    """First mel frames of windows with speech, one after the other."""
    start = 0
    while start < len(samples):
        speech = detector.first_speech(samples[start:])
        if speech is None:
            return
        if speech >= _LATE:
            start += speech - _LEAD
        yield start // HOP_LENGTH
        start += N_SAMPLES
