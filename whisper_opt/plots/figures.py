"""Plots with matplotlib: log-mel, alignment, and what was found where in a recording."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from whisper_opt import (
    Alignment,
    BackendUnavailable,
    Transcript,
    detect_speech,
    load_audio,
    log_mel_spectrogram,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_alignment", "plot_log_mel", "plot_timeline"]

_RATE = 16_000
_FRAMES_PER_SECOND = 100
_MOST_COLUMNS = 4_000
"""Columns of a spectrogram; more than a screen shows."""
_SPEECH, _SEGMENT, _DROPPED = "tab:green", "tab:blue", "tab:red"


def _axes(axes: Axes | None, width: float, height: float) -> Axes:
    if axes is not None:
        return axes
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise BackendUnavailable(
            "matplotlib is not installed; it is needed for plots: install matplotlib, or the extra"
            " `plots` of whisper-opt"
        ) from error
    return pyplot.subplots(figsize=(width, height), layout="constrained")[1]


def plot_log_mel(audio: Any, *, n_mels: int = 80, axes: Axes | None = None) -> Axes:
    """The log-mel spectrogram of a recording, as a model hears it.

    Args:
        audio: as for :meth:`whisper_opt.Whisper.transcribe`.
        n_mels: mel bins: 80, or 128 for large-v3 and turbo.
        axes: where to draw; default: a new figure.

    Raises:
        AudioError: the recording cannot be read.
        BackendUnavailable: matplotlib is missing.
    """
    axes = _axes(axes, 10, 2.5)
    samples = load_audio(audio)
    mel = log_mel_spectrogram(samples, n_mels, padding=_RATE // _FRAMES_PER_SECOND)
    every = -(-mel.shape[1] // _MOST_COLUMNS)
    seconds = len(samples) / _RATE
    axes.imshow(
        mel[:, ::every], origin="lower", aspect="auto", extent=(0, seconds, 0, n_mels), cmap="magma"
    )
    axes.set_xlabel("seconds")
    axes.set_ylabel("mel bin")
    return axes


def plot_alignment(alignment: Alignment, *, axes: Axes | None = None) -> Axes:
    """The attention of the alignment heads, and the word boundaries found in it.

    Args:
        alignment: as :func:`whisper_opt.align_text` returns.
        axes: where to draw; default: a new figure.

    Raises:
        BackendUnavailable: matplotlib is missing.
    """
    n_tokens, n_positions = alignment.attention.shape
    axes = _axes(axes, 10, 1 + 0.2 * n_tokens)
    seconds = n_positions * alignment.seconds_per_position
    axes.imshow(alignment.attention, aspect="auto", extent=(0, seconds, n_tokens - 0.5, -0.5))
    for word in alignment.words:
        axes.axvline(word.start, color="white", linewidth=0.7)
        axes.text(word.start, -0.7, word.word.strip(), rotation=60, fontsize=8, va="bottom")
    axes.set_yticks(range(n_tokens - 1), [token.strip() for token in alignment.tokens[:-1]])
    axes.set_xlabel("seconds")
    return axes


def plot_timeline(
    transcript: Transcript, audio: Any | None = None, *, axes: Axes | None = None
) -> Axes:
    """What was found where: speech, segments with their confidence, and parts without text.

    The rows are, from the top: the recording's level and the speech that voice activity detection
    finds in it (if ``audio`` is given); the segments, per speaker if they have speakers, the darker
    the more probable; the parts that were dropped, and why.

    Args:
        transcript: what is shown.
        audio: the recording.
        axes: where to draw; default: a new figure.

    Raises:
        AudioError: the recording cannot be read.
        BackendUnavailable: matplotlib is missing.
    """
    speakers = list(dict.fromkeys(segment.speaker for segment in transcript)) or [None]
    above = ["level", "speech"] if audio is not None else []
    below = ["no text"] if transcript.dropped else []
    # by place: a speaker may have any name
    rows = [*above, *(speaker or "segments" for speaker in speakers), *below]
    axes = _axes(axes, 10, 0.8 + 0.4 * len(rows))
    top = len(rows) - 1
    if audio is not None:
        samples = load_audio(audio)
        _level(axes, samples, top)
        for span in detect_speech(samples, sample_rate=_RATE):
            start, end = span.seconds
            _bar(axes, top - 1, start, end, _SPEECH)
    for segment in transcript:
        row = top - len(above) - speakers.index(segment.speaker)
        confidence = float(np.exp(segment.avg_logprob))
        _bar(axes, row, segment.start, segment.end, _SEGMENT, 0.15 + 0.85 * confidence)
    for part in transcript.dropped:
        _bar(axes, 0, part.start, part.end, _DROPPED)
        axes.text(part.start, 0, f" {part.reason}", fontsize=8, va="center")
    axes.set_yticks(range(top, -1, -1), rows)
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_xlim(0, max(transcript.duration, 0.1))
    axes.set_xlabel("seconds")
    return axes


def _bar(axes: Axes, row: int, start: float, end: float, color: str, strength: float = 0.8) -> None:
    axes.broken_barh([(start, end - start)], (row - 0.4, 0.8), facecolors=color, alpha=strength)


def _level(axes: Axes, samples: Any, row: int) -> None:
    """The largest value of each of up to 2,000 parts."""
    n = max(1, len(samples) // 2_000)
    parts = np.abs(samples[: len(samples) // n * n]).reshape(-1, n).max(axis=1)
    if not len(parts):
        return
    height = 0.4 * parts / max(float(parts.max()), 1e-6)
    x = np.arange(len(parts)) * n / _RATE
    axes.fill_between(x, row - height, row + height, color="gray", linewidth=0)
