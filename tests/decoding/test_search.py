"""Beam search and sampling in the loop, compared with plain implementations for one window."""

from __future__ import annotations

import dataclasses
import functools
from typing import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.decoding.test_constraints import BEGIN, EOT, N_VOCAB
from tests.decoding.test_loop import DIMS, Job, job, jobs, lively
from tests.support.decoding import decode
from tests.support.fake_backend import FakeBackend, FakeEncoded
from whisper_opt.core.backend import Top
from whisper_opt.decoding import (
    BeamSearchDecoder,
    GreedyDecoder,
    Hypothesis,
    SamplingDecoder,
    TokenDecoder,
    rank,
)


def extensions(
    seed: int, one: Job, beams: list[tuple[int, ...]], sums: list[np.float32]
) -> dict[tuple[int, ...], np.float32]:
    """Every beam continued by its best tokens; equal sequences fall together."""
    scored: dict[tuple[int, ...], np.float32] = {}
    for tokens, total in zip(beams, sums):
        scores = lively(seed, [*one.prompt, *tokens])
        for token, logprob in one.reference.order(scores, tokens, len(beams) + 1):
            longer = (*tokens, token)
            scored[longer] = total + np.float32(logprob)
    return scored


def naive_beam(
    seed: int, one: Job, beam_size: int, patience: float, begin: tuple[int, ...] = ()
) -> dict[tuple[int, ...], float]:
    """openai-whisper's beam search on one audio: whole sequences, recomputed every step."""
    wanted = round(beam_size * patience)
    beams: list[tuple[int, ...]] = [begin] * beam_size
    sums = [np.float32(0)] * beam_size
    finished: dict[tuple[int, ...], float] = {}
    for _ in range(one.max_new_tokens):
        scored = extensions(seed, one, beams, sums)
        best = sorted(scored, key=lambda tokens: scored[tokens], reverse=True)
        going = [tokens for tokens in best if tokens[-1] != EOT][:beam_size]
        ended = [tokens for tokens in best[: best.index(going[-1])] if tokens[-1] == EOT]
        beams, sums = going, [scored[tokens] for tokens in going]
        for tokens in ended[: max(wanted - len(finished), 0)]:
            finished[tokens[:-1]] = float(scored[tokens])
        if len(finished) >= wanted:
            break
    missing = max(beam_size - len(finished), 0)
    for i in sorted(range(len(beams)), key=lambda i: -sums[i])[:missing]:
        finished[beams[i]] = float(sums[i])
    return finished


def with_beam(one: Job, beam_size: int, patience: float) -> Job:
    return dataclasses.replace(one, decoder=lambda: BeamSearchDecoder(EOT, beam_size, patience))


@settings(deadline=None, max_examples=250)
@given(data=st.data(), size=st.integers(1, 5), patience=st.sampled_from([1.0, 2.0, 0.6]))
def test_beam_search_is_the_references(data: st.DataObject, size: int, patience: float) -> None:
    batch = data.draw(jobs(1))
    if round(size * patience) < 1:
        return
    seeds = tuple(data.draw(st.integers(0, 2**31)) for _ in batch)
    backend = FakeBackend(DIMS, lively)
    requests = [with_beam(one, size, patience).request for one in batch]
    found = decode(backend, FakeEncoded(seeds), requests)
    for seed, one, decoded in zip(seeds, batch, found):
        sums = naive_beam(seed, one, size, patience)
        # banned continuations fill a beam when too few are allowed; which of them is unspecified
        possible = [h for h in decoded.hypotheses if h.sum_logprob > -np.inf]
        expected = [tokens for tokens in sums if sums[tokens] > -np.inf]
        assert [hypothesis.tokens for hypothesis in possible] == expected
        for hypothesis in possible:
            assert hypothesis.sum_logprob == pytest.approx(sums[hypothesis.tokens], abs=1e-3)


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_mixed_decoders_in_a_batch_equal_single_runs(data: st.DataObject) -> None:
    """Greedy, beams of several sizes and samples in one session do not affect each other."""
    batch = []
    for one in data.draw(jobs(1)):
        kind = data.draw(st.sampled_from(["greedy", "beam", "sample"]))
        size = data.draw(st.integers(1, 4))
        if kind == "beam":
            one = with_beam(one, size, 1.0)
        elif kind == "sample":
            one = dataclasses.replace(one, decoder=functools.partial(sampler, size, 0.7, 11))
        batch.append(one)
    seeds = tuple(range(len(batch)))
    backend = FakeBackend(DIMS, lively)
    together = decode(backend, FakeEncoded(seeds), [one.request for one in batch])
    for seed, one, found in zip(seeds, batch, together):
        assert decode(backend, FakeEncoded((seed,)), [one.request]) == [found]


def sampler(best_of: int, temperature: float, seed: int) -> SamplingDecoder:
    return SamplingDecoder(EOT, temperature, best_of, np.random.default_rng(seed))


def continuing(one: Job, decoder: Callable[[], TokenDecoder], begin: tuple[int, ...]) -> Job:
    return dataclasses.replace(one, prompt=(*one.prompt, *begin), decoder=decoder)


@pytest.mark.parametrize("begin", [(5, 9), (BEGIN, 5, 9)], ids=["text", "timestamp"])
@pytest.mark.parametrize("size", [1, 3])
def test_a_result_continues_the_ids_it_begins_with(size: int, begin: tuple[int, ...]) -> None:
    """As if they had been sampled with probability 1."""
    one = job(timestamps=begin[0] == BEGIN)
    backend = FakeBackend(DIMS, lively)

    def decoder() -> TokenDecoder:
        if size == 1:
            return GreedyDecoder(EOT, begin)
        return BeamSearchDecoder(EOT, size, begin=begin)

    for seed in range(30):
        request = continuing(one, decoder, begin).request
        (found,) = decode(backend, FakeEncoded((seed,)), [request])
        expected = naive_beam(seed, one, size, 1.0, begin)
        assert [hypothesis.tokens for hypothesis in found.hypotheses] == list(expected)
        for hypothesis in found.hypotheses:
            assert hypothesis.tokens[: len(begin)] == begin
            total = pytest.approx(expected[hypothesis.tokens], abs=1e-3)
            assert hypothesis.sum_logprob == total


def _tops(*rows: dict[int, float]) -> Top:
    """The three best tokens of each row, from log-probabilities by token."""
    best = [sorted(row.items(), key=lambda item: -item[1])[:3] for row in rows]
    tokens, logprobs = ([[pair[i] for pair in row] for row in best] for i in (0, 1))
    return Top(np.array(tokens, np.int64), np.array(logprobs, np.float32))


@pytest.mark.parametrize("optimal", [False, True])
def test_hypotheses_that_end_one_token_early(optimal: bool) -> None:
    """As at the end of a live update: "of the character", and the same with a word left out."""
    of, the, character, mark = 1, 2, 3, 4
    search = BeamSearchDecoder(EOT, 2, optimal=optimal)
    search.step(_tops({of: -0.01, the: -6.0, mark: -9.0}))
    search.step(
        _tops({the: -0.01, character: -6.0, mark: -9.0}, {character: -0.01, of: -9.0, 5: -9})
    )
    assert search.rows == [[of, the], [of, character]]
    ends = {EOT: -0.1, mark: -3.0, 5: -9.0}
    search.step(_tops({character: -0.01, EOT: -4.0, mark: -6.5}, ends))
    assert bool(search.rows) == optimal
    while search.rows:
        search.step(_tops(*[ends] * len(search.rows)))
    found = rank(search.results(), None)
    assert found.tokens == ((of, the, character) if optimal else (of, the))


@settings(deadline=None, max_examples=100)
@given(data=st.data(), size=st.integers(1, 5))
def test_an_optimal_search_finds_nothing_worse(data: st.DataObject, size: int) -> None:
    """Its best result is as probable as that of the search of the reference, or more."""
    (one,) = data.draw(jobs(1))[:1]
    audio = FakeEncoded((data.draw(st.integers(0, 2**31)),))
    best = []
    for optimal in (False, True):
        decoder = functools.partial(BeamSearchDecoder, EOT, size, optimal=optimal)
        request = dataclasses.replace(one, decoder=decoder).request
        (found,) = decode(FakeBackend(DIMS, lively), audio, [request])
        best.append(max(hypothesis.sum_logprob for hypothesis in found.hypotheses))
    assert best[1] >= best[0]


def test_every_draw_continues_the_ids_it_begins_with() -> None:
    begin = (BEGIN, 5, 9)
    generator = np.random.default_rng(1)
    request = continuing(
        job(), lambda: SamplingDecoder(EOT, 1.0, 4, generator, begin=begin), begin
    ).request
    (found,) = decode(FakeBackend(DIMS, lively), FakeEncoded((3,)), [request])
    assert {hypothesis.tokens[:3] for hypothesis in found.hypotheses} == {begin}
    assert len({hypothesis.tokens for hypothesis in found.hypotheses}) > 1


def test_a_beam_of_one_is_greedy() -> None:
    backend = FakeBackend(DIMS, lively)
    for seed in range(50):
        (greedy,) = decode(backend, FakeEncoded((seed,)), [job().request])
        (beam,) = decode(backend, FakeEncoded((seed,)), [with_beam(job(), 1, 1.0).request])
        assert beam.hypotheses[0].tokens == greedy.hypotheses[0].tokens


def test_draws_follow_the_probabilities() -> None:
    """10,000 first tokens at temperature 0.7: as frequent as the filtered scores over 0.7 say."""
    scores = lively(3, job().prompt)
    allowed = job().reference.apply(scores.copy(), []).astype(np.float64) / 0.7
    expected = np.exp(allowed - allowed.max())
    expected /= expected.sum()
    drawing = job(max_new_tokens=1, decoder=lambda: sampler(10_000, 0.7, 5))
    (found,) = decode(FakeBackend(DIMS, lively), FakeEncoded((3,)), [drawing.request])
    counts = np.zeros(len(expected))
    for hypothesis in found.hypotheses:
        counts[hypothesis.tokens[0] if hypothesis.tokens else EOT] += 1
    deviation = np.sqrt(expected * (1 - expected) / 10_000)
    assert (np.abs(counts / 10_000 - expected) <= 5 * deviation + 1e-9).all()
    assert (counts[expected == 0] == 0).all()


def test_a_draws_logprob_is_that_of_temperature_one() -> None:
    drawing = job(max_new_tokens=1, decoder=lambda: sampler(50, 1.5, 5))
    (found,) = decode(FakeBackend(DIMS, lively), FakeEncoded((3,)), [drawing.request])
    scores = lively(3, job().prompt)
    known = dict(job().reference.order(scores, [], N_VOCAB))
    for hypothesis in found.hypotheses:
        token = hypothesis.tokens[0] if hypothesis.tokens else EOT
        assert hypothesis.sum_logprob == pytest.approx(known[token], abs=1e-4)


def test_sampling_repeats_with_its_seed_only() -> None:
    backend = FakeBackend(DIMS, lively)

    def draws(seed: int) -> list[Hypothesis]:
        drawing = job(decoder=lambda: sampler(4, 1.0, seed))
        return decode(backend, FakeEncoded((3,)), [drawing.request])[0].hypotheses

    assert draws(1) == draws(1)
    assert draws(1) != draws(2)


def test_rank() -> None:
    short, long = Hypothesis((5,), -1.0), Hypothesis((5, 6, 7, 8), -2.0)
    assert rank([short, long], None) == long  # -1.0 against -0.5 per token
    assert rank([short, long], 0.0) == short  # no penalty: the sum itself
    assert rank([short, long], 1.0) == short  # -1 / (6/6) = -1.0 against -2 / (9/6) = -1.33
    assert rank([short, Hypothesis((9,), -1.0)], None) == short  # ties: the first
    assert rank([Hypothesis((), -1.0)], None).tokens == ()


def test_given_tokens_do_not_count_in_the_rank() -> None:
    short, long = Hypothesis((5, 6, 7), -1.0), Hypothesis((5, 6, 7, 8), -1.4)
    assert rank([short, long], None) == short  # -0.33 against -0.35 per token
    assert rank([short, long], None, 2) == long  # -1.0 against -0.7
    assert rank([Hypothesis((5, 6), -1.0), long], None, 2) == long
