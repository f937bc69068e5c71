"""The screened head chooses exactly what the specification chooses on exact scores."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from whisper_opt.core.arrays import F32, Bool
from whisper_opt.core.backend import TokenMask
from whisper_opt.core.logits import top_k
from whisper_opt.export.checkpoints.checkpoint import Tensor
from whisper_opt.export.quantization.head8 import QuantizedHead, quantize_head
from whisper_opt.runtime import head_select as screened
from whisper_opt.runtime.head_bounds import STEPS, Inputs, Screen
from whisper_opt.runtime.head_select import ScreenedLogits, Surveyor

N_VOCAB, N_STATE, BEGIN = 3000, 128, 2400
N_ROWS = 40


@dataclasses.dataclass(frozen=True)
class Head:
    """A head as the graph and the runtime see it, and inputs for it."""

    screen: Screen
    rough: F32
    hidden: F32

    def scores(self) -> F32:
        """Exact scores [N_ROWS, N_VOCAB]."""
        result: F32 = self.hidden @ self.screen.embedding.T
        return result

    def logits(self) -> ScreenedLogits:
        nothing = np.zeros((len(self.hidden), 0, N_VOCAB), np.float32)
        return ScreenedLogits(self.screen, self.rough, self.hidden, nothing)


def _tensor(values: F32) -> Tensor:
    return Tensor(values.shape, values.copy)


def _rough(quantized: QuantizedHead, hidden: F32) -> F32:
    """What the graph computes, in float64 from the description of the method."""
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
    """Channels of very different size and a mean row, as trained models have them."""
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
    screen = Screen(
        embedding, quantized.mean, quantized.shrink, quantized.error, float(quantized.norm[0])
    )
    return Head(screen, _rough(quantized, hidden), hidden)


def _masks(seed: int, scores: F32) -> TokenMask:
    """Bans of every kind: few, many, all text, all timestamps, all but two, the best, all."""
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
    monkeypatch.setattr(screened, "_MOST", 3)
    head = make_head(6)
    scores = head.scores()
    _check(head, scores, _masks(6, scores), k)


@pytest.mark.parametrize("offset", np.linspace(-0.02, 0.02, 9).tolist())
def test_timestamps_against_text_when_it_is_close(offset: float) -> None:
    head = make_head(7)
    scores = head.scores()
    ban = np.zeros(scores.shape, np.bool_)
    for row, banned in zip(scores, ban):  # ban text until what is left is about as likely
        times = float(np.log(np.exp(row[BEGIN:].astype(np.float64)).sum()))
        banned[:BEGIN] = row[:BEGIN] > times + offset
    mask = TokenMask(ban, np.full(len(scores), BEGIN, np.int64))
    _check(head, scores, mask, 6)


def test_equal_scores_go_to_the_lowest_id() -> None:
    head = make_head(8)
    best = int(head.scores()[0].argmax())
    twins = [3, 1200, 2390]
    head.screen.embedding[twins] = head.screen.embedding[best]
    head.rough[:, twins] = head.rough[:, [best]]
    head.screen.error[twins] = head.screen.error[best]
    mask = TokenMask(np.zeros((N_ROWS, N_VOCAB), np.bool_), np.full(N_ROWS, N_VOCAB, np.int64))
    found = head.logits().top(3, mask)
    assert found.tokens[0].tolist() == sorted([*twins, best])[:3]


def test_bounds_hold_and_are_worth_having() -> None:
    everything = np.arange(N_VOCAB)
    shares, counts = [], []
    for seed in range(6):
        head = make_head(seed)
        inputs = Inputs(head.screen, head.hidden)
        surveyor = Surveyor(head.screen, inputs, 1)
        for row, (rough, exact) in enumerate(zip(head.rough, head.scores())):
            bounds = inputs.bounds(row, everything)
            assert (bounds <= inputs.widest[row] * (1 + 1e-6)).all()
            ordinary = np.delete(bounds, head.screen.unusual)
            assert (ordinary <= inputs.usual[row] * (1 + 1e-6)).all()
            shares.append(float((np.abs(rough + inputs.shift[row] - exact) / bounds).max()))
            surveyor.scores[:] = rough
            survey = surveyor(row, N_VOCAB)
            assert survey is not None
            counts.append(len(survey.tokens))
    assert max(shares) <= 1
    assert max(shares) > 0.05  # not wider than they need be by orders of magnitude
    assert np.median(counts) < N_VOCAB / 4


def test_without_the_bounds_it_would_be_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cases of this file are hard enough that trusting rough scores shows."""
    monkeypatch.setattr(screened, "_DEPTH", 0.0)
    monkeypatch.setattr(screened, "_WIDER", 0.0)
    wrong = 0
    for seed in range(12):
        head = make_head(seed)
        careless = dataclasses.replace(head.screen, error=np.zeros(N_VOCAB, np.float32), norm=0.0)
        scores = head.scores()
        mask = _masks(seed, scores)
        found = dataclasses.replace(head, screen=careless).logits().top(1, mask)
        wrong += int((found.tokens != top_k(scores, 1, mask).tokens).sum())
    assert wrong > 0


def test_a_penalty_is_weighed_on_exact_scores() -> None:
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
    """The bounds are about the rounded values; what is chosen is what these give."""
    wide = make_head(3, half=True)
    half = wide.screen.embedding.astype(np.float16)
    head = dataclasses.replace(wide, screen=dataclasses.replace(wide.screen, embedding=half))
    scores = wide.scores()
    _check(head, scores, _masks(3, scores), k)
    np.testing.assert_allclose(head.logits().numpy()[:, -1], scores, rtol=1e-5, atol=1e-4)


def test_all_scores_can_be_had() -> None:
    head = make_head(10)
    asked = np.ones((N_ROWS, 2, N_VOCAB), np.float32)
    logits = ScreenedLogits(head.screen, head.rough, head.hidden, asked)
    assert logits.requested() is asked
    every = logits.numpy()
    np.testing.assert_array_equal(every[:, :2], asked)
    np.testing.assert_allclose(every[:, 2], head.scores(), rtol=1e-5, atol=1e-5)
