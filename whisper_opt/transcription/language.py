"""Language detection."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from whisper_opt.audio.features import LogMel
from whisper_opt.audio.vad import SpeechDetector
from whisper_opt.core.arrays import F32, softmax
from whisper_opt.core.backend import Backend, Encoded
from whisper_opt.core.dims import HOP_LENGTH, N_FRAMES, N_SAMPLES, SAMPLE_RATE
from whisper_opt.core.errors import OptionError
from whisper_opt.core.options import TranscribeOptions
from whisper_opt.decoding import next_token_logprobs
from whisper_opt.text.vocabulary import Vocab

__all__ = ["detect_language", "language_of_recording", "language_probabilities"]

_LATE = 15 * SAMPLE_RATE
"""Samples; if speech begins later than this, the window begins shortly before the speech."""
_LEAD = SAMPLE_RATE // 5
"""Samples between the start of that window and the speech."""
_MOST = 20
"""Maximum number of windows without voice activity detection."""

_ENGLISH_ONLY = "this English-only model cannot detect languages; use a multilingual one"


def language_probabilities(
    backend: Backend, vocab: Vocab, audio: Encoded
) -> list[dict[str, float]]:
    """Probability of each language of the model in each window, most probable first.

    Raises:
        OptionError: the model knows English only.
    """
    _check_multilingual(vocab)
    return [probs for probs, _ in _probabilities(backend, vocab, audio)]


def _check_multilingual(vocab: Vocab) -> None:
    if not vocab.is_multilingual:
        raise OptionError(_ENGLISH_ONLY)


def _probabilities(
    backend: Backend, vocab: Vocab, audio: Encoded
) -> list[tuple[dict[str, float], float]]:
    """Language probabilities and no-speech probability of each window."""
    scores = next_token_logprobs(backend, audio, [vocab.sot])
    languages = softmax(scores[:, list(vocab.languages.values())])
    ranked = [_ranked(dict(zip(vocab.languages, row))) for row in languages]
    return list(zip(ranked, np.exp(scores[:, vocab.no_speech]).tolist()))


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
    """Probability of each language of the model, most probable first; empty without windows.

    Args:
        backend: the model; must be multilingual.
        vocab: its vocabulary.
        mels: windows, float32 [n_mels, 3000], as returned by :meth:`LogMel.head`. They are taken
            one by one until the mean probability of a language reaches the threshold.
        threshold: probability at which detection stops.
        windows: maximum number of windows; None for all.
        no_speech_threshold: windows with a higher no-speech probability are ignored; if all have
            one, the first window is used.

    Raises:
        OptionError: the model knows English only.
    """
    _check_multilingual(vocab)
    total: dict[str, float] = dict.fromkeys(vocab.languages, 0.0)
    found: dict[str, float] = {}
    unspoken: dict[str, float] = {}
    n = 0
    for mel in mels:
        ((probs, no_speech),) = _probabilities(backend, vocab, backend.encode(mel[None]))
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
    """Probability of each language in a recording, detected in windows with speech.

    Voice activity detection finds the windows. If it is off or finds no speech, windows are chosen
    by the no-speech probability of the model. The first window is the first 30 s, as in
    openai-whisper, if speech begins in its first half.

    Args:
        backend: the model; must be multilingual.
        vocab: its vocabulary.
        samples: the recording, float32 [n] at 16 kHz.
        mel: its log-mel spectrogram.
        options: number of windows, probability threshold, voice activity detection.

    Raises:
        OptionError: the model knows English only.
    """
    _check_multilingual(vocab)
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
    """First mel frame of each window with speech."""
    start = 0
    while start < len(samples):
        speech = detector.first_speech(samples[start:])
        if speech is None:
            return
        if speech >= _LATE:
            start += speech - _LEAD
        yield start // HOP_LENGTH
        start += N_SAMPLES
