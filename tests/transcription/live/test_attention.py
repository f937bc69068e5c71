"""AlignAtt from one pass equals AlignAtt step by step."""

from __future__ import annotations

import numpy as np
import pytest

from whisper_opt.core.arrays import F32
from whisper_opt.transcription.alignment import CrossAttention
from whisper_opt.transcription.live.attention import attended


def step_by_step(scores: F32, n_start: int, n_text: int, n_positions: int) -> list[int]:
    """As Simul-Whisper does it: all of it again for each token, with the rows so far."""
    found = []
    for t in range(n_start, n_start + n_text):
        rows = scores[:, : t + 1].astype(np.float64)
        weights = np.exp(rows - rows.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        mean, deviation = weights.mean(axis=1), weights.std(axis=1)
        safe = np.where(deviation > 1e-12 * weights.max(), deviation, 1)
        last = np.where(deviation > 1e-12 * weights.max(), (weights[:, -1] - mean) / safe, 0)
        padded = np.pad(last, ((0, 0), (3, 3)), mode="reflect")
        windows = np.lib.stride_tricks.sliding_window_view(padded, 7, axis=-1)
        smooth = np.median(windows, axis=-1).mean(axis=0)
        found.append(int(smooth[:n_positions].argmax()))
    return found


@pytest.mark.parametrize("n_positions", [1, 5, 60, 199, 200])
@pytest.mark.parametrize("sharpness", [0.5, 8.0])
def test_one_pass_equals_growing_prefixes(n_positions: int, sharpness: float) -> None:
    rng = np.random.default_rng(n_positions)
    n_start, n_text = 3, 20
    n_rows = n_start + n_text + 2
    scores = rng.standard_normal((4, n_rows, 200)) * sharpness
    for row in range(n_rows):  # a diagonal, as of speech
        scores[:, row, row * 200 // n_rows] += 6
    given = CrossAttention(scores.astype(np.float32), np.full(n_text, 0.5, np.float32))
    assert given.n_start == n_start
    found = attended(given, n_positions).tolist()
    assert found == step_by_step(given.scores, n_start, n_text, n_positions)


def test_a_token_does_not_depend_on_those_after_it() -> None:
    rng = np.random.default_rng(1)
    scores = rng.standard_normal((2, 12, 100)).astype(np.float32)
    whole = attended(CrossAttention(scores, np.ones(8, np.float32)), 100)
    scores[:, 7:] = rng.standard_normal((2, 5, 100))
    other = attended(CrossAttention(scores, np.ones(8, np.float32)), 100)
    assert other[:5].tolist() == whole[:5].tolist()
    assert other.tolist() != whole.tolist()


def test_equal_attention_is_no_position() -> None:
    given = CrossAttention(np.zeros((2, 6, 50), np.float32), np.ones(3, np.float32))
    assert attended(given, 50).tolist() == [0, 0, 0]
