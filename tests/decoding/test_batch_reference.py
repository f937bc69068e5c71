"""Decoders and constraints in batches, compared with plain implementations."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest

from tests.decoding.test_constraints import BEGIN, EOT, N_VOCAB, NO_TIMESTAMPS
from tests.decoding.test_loop import DIMS, lively
from tests.support.decode_cases import (
    BACKEND,
    PROBE_TOKEN,
    Case,
    alone,
    random_cases,
    scores_of,
)
from tests.support.decoding import decode
from tests.support.fake_backend import FakeBackend, FakeEncoded
from tests.support.reference_rules import Reference, reference_log_softmax
from whisper_opt.core.arrays import F32
from whisper_opt.decoding import (
    Decoded,
    rank,
)


def naive_scores(case: Case, sampled: Sequence[int]) -> F32:
    """Scores after the repetition penalty, the n-gram ban and the published filters, in a loop."""
    scores = scores_of(case.audio, [*case.prompt, *sampled]).copy()
    text = [token for token in sampled if token < EOT]
    for token in set(text):
        if scores[token] > 0:
            scores[token] = scores[token] / np.float32(case.penalty)
        else:
            scores[token] = scores[token] * np.float32(case.penalty)
    if case.ngram:
        runs = {tuple(text[i : i + case.ngram]) for i in range(len(text) - case.ngram + 1)}
        latest = text[len(text) - case.ngram + 1 :]
        for token in range(EOT):
            if (*latest, token) in runs:
                scores[token] = -np.inf
    return case.reference.apply(scores, sampled)


def naive_best(case: Case, sampled: Sequence[int], k: int) -> list[tuple[int, np.float32]]:
    scores = naive_scores(case, sampled)
    logprobs = reference_log_softmax(scores)
    ranked = sorted(range(N_VOCAB), key=lambda token: (-scores[token], token))
    return [(token, logprobs[token]) for token in ranked[:k]]


def naive_beam(case: Case) -> dict[tuple[int, ...], float]:
    """Beam search by whole sequences: the candidates of the reference with their sums."""
    wanted = round(case.size * case.patience)
    live: dict[tuple[int, ...], np.float32] = {(): np.float32(0)}
    finished: dict[tuple[int, ...], float] = {}
    for _ in range(case.max_new_tokens):
        longer = {
            (*tokens, token): total + logprob
            for tokens, total in live.items()
            for token, logprob in naive_best(case, tokens, case.size + 1)
        }
        live = {}
        ended: list[tuple[int, ...]] = []
        for tokens in sorted(longer, key=lambda tokens: -longer[tokens]):
            if tokens[-1] == EOT:
                ended.append(tokens)
            else:
                live[tokens] = longer[tokens]
            if len(live) == case.size:
                break
        for tokens in ended[: wanted - len(finished)]:
            finished[tokens[:-1]] = float(longer[tokens])
        if len(finished) >= wanted:
            break
    for tokens in sorted(live, key=lambda tokens: -live[tokens]):
        if len(finished) < case.size:
            finished[tokens] = float(live[tokens])
    return finished


def naive_draw(scores: F32, temperature: float, u: float) -> int:
    """The token at which the cumulated probability passes ``u``."""
    weights = np.exp((scores.astype(np.float64) - scores.max()) / temperature)
    left = u * float(weights.sum())
    for token, weight in enumerate(weights):
        left -= weight
        if left < 0:
            return token
    return int(np.flatnonzero(weights)[-1])


def naive_samples(case: Case) -> list[tuple[tuple[int, ...], float]]:
    """Draws candidate by candidate, with the same random numbers in the same order."""
    rng = np.random.default_rng(case.seed)
    temperature = 0.0 if case.kind == "greedy" else case.temperature
    n = 1 if case.kind == "greedy" else case.size
    candidates: list[tuple[int, ...]] = [()] * n
    sums = [0.0] * n
    live = list(range(n))
    for _ in range(case.max_new_tokens):
        for i in list(live):
            scores = naive_scores(case, candidates[i])
            u = rng.random() if temperature else 0.0
            token = naive_draw(scores, temperature, u) if temperature else int(scores.argmax())
            sums[i] += float(reference_log_softmax(scores)[token])
            if token == EOT:
                live.remove(i)
            else:
                candidates[i] = (*candidates[i], token)
    return list(zip(candidates, sums))


def naive_rank(found: Sequence[tuple[tuple[int, ...], float]], alpha: float | None) -> int:
    """openai-whisper's MaximumLikelihoodRanker; an empty candidate counts as one token."""
    scores = []
    for tokens, total in found:
        length = max(len(tokens), 1) if alpha is None else ((5 + len(tokens)) / 6) ** alpha
        scores.append(total / length)
    return int(np.argmax(scores))


@pytest.mark.parametrize("part", range(10))
def test_search_and_rules_over_random_scores(part: int) -> None:
    """100 windows per part in batches of eight with mixed options: no candidate differs."""
    cases = random_cases(100, 1000 + part)
    found: list[Decoded] = []
    for first in range(0, 100, 8):
        some = cases[first : first + 8]
        audio = FakeEncoded(tuple(case.audio for case in some))
        found += decode(BACKEND, audio, [case.request for case in some])
    for case, decoded in zip(cases, found):
        expected = list(naive_beam(case).items()) if case.kind == "beam" else naive_samples(case)
        # where fewer tokens are allowed than beams wanted, which banned ones fill up is unspecified
        hypotheses = [h for h in decoded.hypotheses if h.sum_logprob > -np.inf]
        expected = [(tokens, total) for tokens, total in expected if total > -np.inf]
        assert [h.tokens for h in hypotheses] == [tokens for tokens, _ in expected], case
        for hypothesis, (_, total) in zip(hypotheses, expected):
            assert hypothesis.sum_logprob == pytest.approx(total, abs=1e-3)
        if hypotheses:
            best = rank(hypotheses, case.length_penalty)
            assert best.tokens == expected[naive_rank(expected, case.length_penalty)][0]
        probed = scores_of(case.audio, case.prompt[: case.no_speech_position + 1])
        silence = float(np.exp(reference_log_softmax(probed)[PROBE_TOKEN]))
        assert decoded.no_speech_prob == pytest.approx(silence, rel=1e-4)


def test_the_thousand_windows_are_of_all_kinds() -> None:
    """Kinds of windows in the comparison above, and their number."""
    cases = [case for part in range(10) for case in random_cases(100, 1000 + part)]
    beams = [case for case in cases if case.kind == "beam" and case.size > 1]
    assert len(cases) == 1000
    assert len(beams) > 300
    assert sum(case.patience == 2 for case in beams) > 50
    assert sum(case.length_penalty is not None for case in beams) > 100
    assert sum(case.penalty != 1 for case in beams) > 100
    assert sum(case.ngram > 0 for case in beams) > 100
    assert sum(case.reference.timestamps for case in beams) > 150
    ranked = [
        naive_rank(list(naive_beam(case).items()), alpha)
        for case in beams[:100]
        for alpha in (None, 0.0, 1.0)
    ]
    assert len(set(ranked)) > 2


def babble(seed: int, tokens: Sequence[int]) -> F32:
    """Scores that favour four words, and times a little."""
    scores = lively(seed, tokens)
    scores[3:7] += np.float32(5)
    scores[BEGIN:] += np.float32(1)
    scores[EOT] -= np.float32(6)
    return scores


@pytest.mark.parametrize("timestamps", [False, True])
@pytest.mark.parametrize("kind", ["greedy", "beam", "sample"])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_no_ngram_occurs_twice(kind: str, n: int, timestamps: bool) -> None:
    backend = FakeBackend(DIMS, babble)
    repeated = 0
    for seed in range(12):
        reference = Reference(EOT, NO_TIMESTAMPS, BEGIN, (7, EOT), None, timestamps, None)
        case = Case(seed, (31,), 0, reference, 20, kind, 3, seed=seed)
        for ngram in (n, 0):
            request = dataclasses.replace(case, ngram=ngram).request
            (found,) = decode(backend, FakeEncoded((seed,)), [request])
            for hypothesis in found.hypotheses:
                assert hypothesis.sum_logprob > -np.inf
                text = [token for token in hypothesis.tokens if token < EOT]
                runs = [tuple(text[i : i + n]) for i in range(len(text) - n + 1)]
                if ngram:
                    assert len(set(runs)) == len(runs)
                repeated += len(set(runs)) != len(runs)
    assert repeated > 3  # without the option


@pytest.mark.parametrize("kind", ["greedy", "beam", "sample"])
def test_the_repetition_penalty(kind: str) -> None:
    """Repeated text is rarer above 1 and commoner below; timestamps and the end do not count."""
    shares = []
    for penalty in (0.5, 1.0, 3.0):
        new = old = 0
        for seed in range(60):
            (case,) = random_cases(1, seed)
            case = dataclasses.replace(case, kind=kind, ngram=0, prompt=(31,), no_speech_position=0)
            case = dataclasses.replace(case, max_new_tokens=16, penalty=penalty)
            text = [token for token in alone(case).hypotheses[0].tokens if token < EOT]
            new += len(set(text))
            old += len(text) - len(set(text))
        shares.append(old / (old + new))
    assert shares[0] > shares[1] > shares[2]


def test_log_probabilities_of_tokens() -> None:
    """Every sampled token has that of the log-softmax after the published filters."""
    cases = random_cases(60, 77)
    assert {case.kind for case in cases} == {"greedy", "beam", "sample"}
    audio = FakeEncoded(tuple(case.audio for case in cases))
    n_tokens = 0
    for case, decoded in zip(cases, decode(BACKEND, audio, [case.request for case in cases])):
        for hypothesis in decoded.hypotheses:
            if hypothesis.sum_logprob == -np.inf:
                continue
            tokens = hypothesis.tokens
            expected = [
                float(reference_log_softmax(naive_scores(case, tokens[:i]))[token])
                for i, token in enumerate(tokens)
            ]
            assert hypothesis.logprobs == pytest.approx(expected, abs=1e-5)
            n_tokens += len(tokens)
    assert n_tokens > 200
