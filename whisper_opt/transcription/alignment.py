"""Word times from the cross-attention of the alignment heads.

The method is openai-whisper's (whisper/timing.py). Some heads of the decoder attend to the audio of
the next token. Their attention is standardised over the tokens, smoothed by a median filter and
averaged. Dynamic time warping (Sakoe and Chiba, 1978) then finds the best monotonic path through
it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Callable

import numpy as np

from whisper_opt.core.arrays import F32, Int, NDArray
from whisper_opt.core.backend import Backend, Encoded
from whisper_opt.core.dims import CHUNK_LENGTH, N_FRAMES
from whisper_opt.core.logits import log_softmax
from whisper_opt.text.vocabulary import Vocab

__all__ = [
    "Aligner",
    "CrossAttention",
    "WordTiming",
    "align_words",
    "aligner",
    "attention_matrix",
    "dtw",
    "median_filter",
]

MEDIAN_WIDTH = 7
"""Width of the median filter in encoder positions (0.14 s)."""
_BLOCK = 1 << 16
"""Values filtered at once; few enough for the cache of a core."""


@dataclasses.dataclass(frozen=True)
class CrossAttention:
    """Cross-attention of the alignment heads for the text of one window.

    The tokens are the start sequence (sot and, in multilingual models, language and task),
    no_timestamps, the text tokens and eot.

    Attributes:
        scores: float32 [n_heads, n_tokens, n_audio_ctx], before the softmax: query times key
            divided by sqrt(64).
        probs: float32 [n_text], probability of each text token given the tokens before it, among
            the ids that are text.
    """

    scores: F32
    probs: F32

    def __post_init__(self) -> None:
        if self.scores.ndim != 3 or self.probs.ndim != 1 or self.n_start < 1:
            raise ValueError(
                f"scores have shape {self.scores.shape} and probs {self.probs.shape}; expected"
                " [n_heads, n_start + 1 + n_text + 1, n_audio_ctx] and [n_text]"
            )

    @property
    def n_start(self) -> int:
        """Number of tokens of the start sequence, without no_timestamps."""
        return int(self.scores.shape[1]) - len(self.probs) - 2


Aligner = Callable[[Sequence[int]], CrossAttention]
"""Returns the cross-attention for the text tokens of a window."""


def aligner(backend: Backend, vocab: Vocab, audio: Encoded, start: Sequence[int]) -> Aligner:
    """A function that feeds text to the model and returns its cross-attention, for word times.

    Args:
        backend: the model.
        vocab: its vocabulary.
        audio: one encoded window.
        start: ids before the text, including no_timestamps.
    """

    def align(text: Sequence[int]) -> CrossAttention:
        tokens: Int = np.array([[*start, *text, vocab.eot]], np.int64)
        attention = backend.attention(audio, tokens, np.array([tokens.shape[1]]))
        # logits at the last token of ``start`` belong to the first text token
        first = len(start) - 1
        logits = attention.logits[0, first : first + len(text)]
        logprobs = log_softmax(vocab.text.scores(logits))
        logprobs = logprobs[np.arange(len(text)), vocab.text.columns(text)]
        return CrossAttention(attention.scores[0], np.exp(logprobs))

    return align


@dataclasses.dataclass(frozen=True)
class WordTiming:
    """One word of a window.

    Attributes:
        word: its text, including a leading space.
        tokens: its token ids.
        start: in seconds from the start of the window.
        end: likewise.
        probability: mean probability of its tokens, 0 to 1.
    """

    word: str
    tokens: tuple[int, ...]
    start: float
    end: float
    probability: float


def align_words(
    attention: CrossAttention,
    words: Sequence[str],
    word_tokens: Sequence[Sequence[int]],
    n_frames: int,
) -> list[WordTiming]:
    """Times of the words of one window.

    Args:
        attention: cross-attention for the tokens of all words.
        words: as returned by :meth:`Vocab.split_words`.
        word_tokens: tokens of each word, ``n_text`` in total.
        n_frames: mel frames of audio in the window (10 ms each).
    """
    if not words:
        return []
    n_positions = attention.scores.shape[-1]
    frames_per_position = N_FRAMES // n_positions
    # a window shorter than one position counts as one; the reference finds no words there
    matrix = attention_matrix(attention, max(1, n_frames // frames_per_position))
    text, time = dtw(-matrix)
    begins = time[np.diff(text, prepend=-1) > 0] / (n_positions / CHUNK_LENGTH)
    bounds = np.cumsum([0, *(len(tokens) for tokens in word_tokens)])
    probs = attention.probs.astype(np.float64)
    return [
        WordTiming(
            word=word,
            tokens=tuple(tokens),
            start=float(begins[first]),
            end=float(begins[last]),
            probability=float(probs[first:last].mean()),
        )
        for word, tokens, first, last in zip(words, word_tokens, bounds, bounds[1:])
    ]


def attention_matrix(attention: CrossAttention, n_positions: int) -> F32:
    """Mean filtered attention of the heads: float32 [1 + n_text, n_positions].

    Row i belongs to the token that predicts text token i, the last row to the one before eot.
    """
    rows = slice(attention.n_start, -1)
    heads = [
        median_filter(_standardised(scores[:, :n_positions])[rows], MEDIAN_WIDTH)
        for scores in attention.scores
    ]
    matrix: F32 = np.mean(heads, axis=0)
    return matrix


def _standardised(scores: F32) -> F32:
    """Attention of one head, standardised over the tokens: mean 0, deviation 1 per position.

    Positions with equal attention for all tokens become 0; the reference divides 0 by 0 there.
    """
    weights: F32 = np.exp(scores - scores.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    weights -= weights.mean(axis=0)
    # scaled to about 1 first: squares of weights below 1e-19 underflow in float32
    peak = np.maximum(weights.max(axis=0), -weights.min(axis=0))
    weights /= np.where(peak > 0, peak, 1)
    deviation = np.sqrt(np.mean(np.square(weights), axis=0))
    weights /= np.where(peak > 0, deviation, 1)
    return weights


# --- median filter ------------------------------------------------------------------------------


def median_filter(x: F32, width: int) -> F32:
    """Running median along the last axis, mirrored at both ends; float32, same shape as ``x``.

    As in the reference, rows too short to be mirrored (at most ``width // 2`` values) are returned
    unchanged. ``x`` must not contain NaN.

    Raises:
        ValueError: ``width`` is not odd and positive.
    """
    if width < 1 or width % 2 == 0:
        raise ValueError(f"median filter of width {width}; expected a positive odd number")
    reach, n = width // 2, x.shape[-1]
    if n <= reach or reach == 0 or x.size == 0:
        return x
    rows = x.reshape(-1, n)
    padded = np.pad(rows, ((0, 0), (reach, reach)), mode="reflect")
    result = np.empty_like(rows)
    step = max(1, _BLOCK // n)
    for first in range(0, len(rows), step):
        block = padded[first : first + step]
        shifted = [block[:, i : i + n] for i in range(width)]
        result[first : first + step] = _median(shifted)
    return result.reshape(x.shape)


def _median(values: list[F32]) -> F32:
    """Elementwise median of an odd number of arrays.

    By forgetful selection: neither the least nor the greatest of more than half of the values can
    be the median. Both are removed and the next value is added, until one value is left.
    """
    n_first = len(values) // 2 + 2
    kept, waiting = values[:n_first], values[n_first:]
    while len(kept) > 1:
        kept = _forget(np.maximum, _forget(np.minimum, kept))
        if waiting:
            kept.append(waiting.pop(0))
    return kept[0]


def _forget(extreme: np.ufunc, values: list[F32]) -> list[F32]:
    """``values`` without the extreme one, element by element."""
    other = np.maximum if extreme is np.minimum else np.minimum
    worst, kept = values[0], []
    for value in values[1:]:
        kept.append(other(worst, value))
        worst = extreme(worst, value)
    return kept


# --- dynamic time warping -----------------------------------------------------------------------


def dtw(cost: NDArray) -> tuple[Int, Int]:
    """The path of least cost from the first to the last cell, each step right, down or diagonal.

    Ties are resolved as in the reference: diagonal or down only if strictly cheaper than both other
    steps, else right. (If diagonal and down cost the same, the step is right even if that costs
    more.)

    Args:
        cost: finite float [n, m], cost of each cell; summed in float64.

    Returns:
        Row and column indices of the cells of the path, int64, non-decreasing.
    """
    n, m = cost.shape
    if n == 0 or m == 0:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    return _backtrace(_accumulate(np.asarray(cost, np.float64)))


def _accumulate(cost: NDArray) -> NDArray:
    """Cost of the path to every cell, by anti-diagonals: float64 [n + m + 1, n + 1].

    Entry [i + j, i] is the cost of the path to the cell at row i, column j, both counted from 1;
    entries outside the matrix are infinite. Cells of one anti-diagonal do not depend on each other.
    """
    n, m = cost.shape
    # rows of length n + m read as rows of length n + m - 1: each is shifted right by one more
    padded = np.full((n, n + m), np.inf)
    padded[:, :m] = cost
    skewed = np.ascontiguousarray(padded.ravel()[: n * (n + m - 1)].reshape(n, n + m - 1).T)
    total = np.full((n + m + 1, n + 1), np.inf)
    total[0, 0] = 0
    above, here = list(total[:, :-1]), list(total[:, 1:])
    tie = np.empty(n, np.bool_)
    for d, cells in enumerate(skewed):
        diagonal, down, right, best = above[d], above[d + 1], here[d + 1], here[d + 2]
        np.minimum(diagonal, down, out=best)
        np.equal(diagonal, down, out=tie)
        np.copyto(best, np.inf, where=tie)
        np.minimum(best, right, out=best)
        np.add(best, cells, out=best)
    return total


def _backtrace(total: NDArray) -> tuple[Int, Int]:
    n = total.shape[1] - 1
    i, j = n, total.shape[0] - 1 - n
    path = [(i, j)]
    while i > 1 or j > 1:
        d = i + j
        diagonal, down, right = total[d - 2, i - 1], total[d - 1, i - 1], total[d - 1, i]
        if diagonal < down and diagonal < right:
            i, j = i - 1, j - 1
        elif down < diagonal and down < right:
            i -= 1
        else:
            j -= 1
        path.append((i, j))
    rows, columns = np.array(path[::-1], np.int64).T - 1
    return rows, columns
