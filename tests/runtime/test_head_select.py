"""The two-stage head selects the tokens that the specification selects by exact scores."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from whisper_opt.core.arrays import F32, Bool
from whisper_opt.core.backend import TokenMask
from whisper_opt.core.logits import top_k
from whisper_opt.export.checkpoints.checkpoint import Tensor
from whisper_opt.export.quantization.head8 import QuantizedHead, quantize_head
from whisper_opt.runtime import head_select
from whisper_opt.runtime.head_bounds import STEPS, HeadBounds, HeadInputs
from whisper_opt.runtime.head_select import CandidateSelector, TwoStageLogits

N_VOCAB, N_STATE, BEGIN = 3000, 128, 2400
N_ROWS = 40


@dataclasses.dataclass(frozen=True)
class Head:
    """A head in the form of the graph and of the runtime, and inputs for it."""

    bounds: HeadBounds
    approximate: F32
    hidden: F32

    def scores(self) -> F32:
        """Exact scores [N_ROWS, N_VOCAB]."""
        result: F32 = self.hidden @ self.bounds.embedding.T
        return result

    def logits(self) -> TwoStageLogits:
        nothing = np.zeros((len(self.hidden), 0, N_VOCAB), np.float32)
        return TwoStageLogits(self.bounds, self.approximate, self.hidden, nothing)


def _tensor(values: F32) -> Tensor:
    return Tensor(values.shape, values.copy)


def _approximate(quantized: QuantizedHead, hidden: F32) -> F32:
    """The scores of the graph, in float64 from the description of the method."""
    shrunk = hidden.astype(np.float64) * quantized.shrink
    step = np.abs(shrunk).max(axis=1, keepdims=True) / STEPS
    high = np.rint(shrunk / step)
    low = np.rint((shrunk / step - high) * 2 * STEPS)
    assert max(np.abs(high).max(), np.abs(low).max()) <= STEPS
    rounded = step * (high + low / (2 * STEPS))
    result: F32 = (rounded @ (quantized.weight * quantized.scale.astype(np.float64))).astype(
        np.float32
    )
    return result


def make_head(seed: int, *, flat: bool = False, half: bool = False) -> Head:
    """A head with channels of very different scale and a mean row, as in trained models."""
    rng = np.random.default_rng(seed)
    gain = np.exp(rng.normal(0, 1, N_STATE)).astype(np.float32)
    bias = rng.normal(0, 0.3, N_STATE).astype(np.float32)
    gain[rng.integers(0, N_STATE, 3)] *= 20
    rows = rng.normal(0, 0.3, (N_VOCAB, N_STATE)) / np.sqrt(gain) + rng.normal(0, 0.1, N_STATE)
    embedding = rows.astype(np.float16 if half else np.float32).astype(np.float32)
    hidden = (rng.normal(0, 1, (N_ROWS, N_STATE)) * gain + bias).astype(np.float32)
    if flat:
        hidden *= np.float32(1e-2)
    quantized = quantize_head(_tensor(embedding), _tensor(gain), _tensor(bias))
    head = HeadBounds(
        embedding, quantized.mean, quantized.shrink, quantized.error, float(quantized.norm[0])
    )
    return Head(head, _approximate(quantized, hidden), hidden)


def _masks(seed: int, scores: F32) -> TokenMask:
    """Masks of every kind: few, many, all text, all timestamps, all but two, the best, all."""
    rng = np.random.default_rng(seed)
    ban = rng.random(scores.shape) < rng.choice([0.0, 0.02, 0.5, 0.98], (len(scores), 1))
    kinds = rng.integers(0, 8, len(scores))
    ban[kinds == 0, :BEGIN] = True
    ban[kinds == 1, BEGIN:] = True
    ban[kinds == 2] = True
    ban[kinds == 2, 17] = ban[kinds == 2, BEGIN + 5] = False
    ban[np.flatnonzero(kinds == 3), scores[kinds == 3].argmax(axis=1)] = True
    ban[kinds == 4] = True
    begins = np.where(rng.random(len(scores)) < 0.7, BEGIN, N_VOCAB).astype(np.int64)
    return TokenMask(ban, begins)


def _check(head: Head, scores: F32, mask: TokenMask, k: int) -> None:
    expected, found = top_k(scores.copy(), k, mask), head.logits().top(k, mask)
    allowed = np.isfinite(expected.logprobs)
    np.testing.assert_array_equal(np.isfinite(found.logprobs), allowed)
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_allclose(found.logprobs[allowed], expected.logprobs[allowed], atol=2e-3)


@pytest.mark.parametrize("k", [1, 2, 6, 11])
@pytest.mark.parametrize("seed", range(12))
def test_the_best_tokens_are_those_of_exact_scores(seed: int, k: int) -> None:
    head = make_head(seed)
    scores = head.scores()
    _check(head, scores, _masks(seed, scores), k)


@pytest.mark.parametrize("k", [1, 6])
def test_scores_close_together_are_all_computed(k: int) -> None:
    head = make_head(5, flat=True)
    scores = head.scores()
    _check(head, scores, _masks(5, scores), k)


@pytest.mark.parametrize("k", [1, 6])
def test_too_many_candidates_take_the_whole_head(monkeypatch: pytest.MonkeyPatch, k: int) -> None:
    monkeypatch.setattr(head_select, "_MAX_CANDIDATES", 3)
    head = make_head(6)
    scores = head.scores()
    _check(head, scores, _masks(6, scores), k)


@pytest.mark.parametrize("offset", np.linspace(-0.02, 0.02, 9).tolist())
def test_timestamps_against_text_when_it_is_close(offset: float) -> None:
    head = make_head(7)
    scores = head.scores()
    ban = np.zeros(scores.shape, np.bool_)
    for row, banned in zip(scores, ban):  # mask text until the rest is about as likely
        times = float(np.log(np.exp(row[BEGIN:].astype(np.float64)).sum()))
        banned[:BEGIN] = row[:BEGIN] > times + offset
    mask = TokenMask(ban, np.full(len(scores), BEGIN, np.int64))
    _check(head, scores, mask, 6)


def test_equal_scores_go_to_the_lowest_id() -> None:
    head = make_head(8)
    best = int(head.scores()[0].argmax())
    twins = [3, 1200, 2390]
    head.bounds.embedding[twins] = head.bounds.embedding[best]
    head.approximate[:, twins] = head.approximate[:, [best]]
    head.bounds.error[twins] = head.bounds.error[best]
    mask = TokenMask(np.zeros((N_ROWS, N_VOCAB), np.bool_), np.full(N_ROWS, N_VOCAB, np.int64))
    found = head.logits().top(3, mask)
    assert found.tokens[0].tolist() == sorted([*twins, best])[:3]


def test_bounds_hold_and_are_tight() -> None:
    every = np.arange(N_VOCAB)
    ratios, counts = [], []
    for seed in range(6):
        head = make_head(seed)
        inputs = HeadInputs(head.bounds, head.hidden)
        selector = CandidateSelector(head.bounds, inputs, 1)
        for row, (approximate, exact) in enumerate(zip(head.approximate, head.scores())):
            bounds = inputs.bounds(row, every)
            assert (bounds <= inputs.max_bound[row] * (1 + 1e-6)).all()
            ordinary = np.delete(bounds, head.bounds.outliers)
            assert (ordinary <= inputs.inlier_bound[row] * (1 + 1e-6)).all()
            ratios.append(float((np.abs(approximate + inputs.shift[row] - exact) / bounds).max()))
            selector.scores[:] = approximate
            candidates = selector(row, N_VOCAB)
            assert candidates is not None
            counts.append(len(candidates.tokens))
    assert max(ratios) <= 1
    assert max(ratios) > 0.05  # not too large by orders of magnitude
    assert np.median(counts) < N_VOCAB / 4


def test_without_bounds_tokens_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cases of this file are hard enough: without bounds some tokens are wrong."""
    monkeypatch.setattr(head_select, "_DEPTH", 0.0)
    monkeypatch.setattr(head_select, "_FIRST_DEPTH", 0.0)
    wrong = 0
    for seed in range(12):
        head = make_head(seed)
        unbounded = dataclasses.replace(head.bounds, error=np.zeros(N_VOCAB, np.float32), norm=0.0)
        scores = head.scores()
        mask = _masks(seed, scores)
        found = dataclasses.replace(head, bounds=unbounded).logits().top(1, mask)
        wrong += int((found.tokens != top_k(scores, 1, mask).tokens).sum())
    assert wrong > 0


def test_a_penalty_uses_exact_scores() -> None:
    head = make_head(9)
    scores = head.scores()
    seen: Bool = np.zeros(scores.shape, np.bool_)
    seen[np.arange(N_ROWS), scores.argmax(axis=1)] = True
    plain = _masks(9, scores)
    penalty = np.full(N_ROWS, 1.3, np.float32)
    mask = TokenMask(plain.ban, plain.timestamp_begin, seen, penalty)
    _check(head, scores, mask, 2)


@pytest.mark.parametrize("k", [1, 6])
def test_an_embedding_that_is_stored_in_float16(k: int) -> None:
    """The bounds and the selected tokens are those of the float16 values."""
    wide = make_head(3, half=True)
    half = wide.bounds.embedding.astype(np.float16)
    head = dataclasses.replace(wide, bounds=dataclasses.replace(wide.bounds, embedding=half))
    scores = wide.scores()
    _check(head, scores, _masks(3, scores), k)
    np.testing.assert_allclose(head.logits().numpy()[:, -1], scores, rtol=1e-5, atol=1e-4)


def test_all_scores_can_be_read() -> None:
    head = make_head(10)
    requested = np.ones((N_ROWS, 2, N_VOCAB), np.float32)
    logits = TwoStageLogits(head.bounds, head.approximate, head.hidden, requested)
    assert logits.requested() is requested
    every = logits.numpy()
    np.testing.assert_array_equal(every[:, :2], requested)
    np.testing.assert_allclose(every[:, 2], head.scores(), rtol=1e-5, atol=1e-5)
