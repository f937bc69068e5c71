"""Windows in a batch, which join and leave: each has the result of openai-whisper's rules."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.decoding.test_constraints import BEGIN, EOT, N_VOCAB, NO_TIMESTAMPS, constraints_of
from tests.decoding.test_loop import DIMS, SpyBackend, SpySession, job, lively
from tests.support.decoding import decode
from tests.support.fake_backend import FakeBackend, FakeEncoded
from tests.support.reference_rules import Reference, reference_log_softmax
from whisper_opt.core.arrays import F32
from whisper_opt.core.errors import EngineError
from whisper_opt.decoding import (
    Batch,
    BeamSearchDecoder,
    Decoded,
    DecodeRequest,
    GreedyDecoder,
    SamplingDecoder,
    TokenDecoder,
    rank,
)
from whisper_opt.decoding.constraints import NoRepeatNGram

PROBE_TOKEN = 36
SHARPNESS = (0.3, 1.0, 3.0)
"""Factors of the scores: nearly uniform, as from ``lively``, nearly certain."""


@functools.lru_cache(maxsize=100_000)
def _scores(seed: int, tokens: tuple[int, ...]) -> F32:
    scores: F32 = lively(seed, tokens) * np.float32(SHARPNESS[seed % len(SHARPNESS)])
    scores.flags.writeable = False
    return scores


def scores_of(seed: int, tokens: Sequence[int]) -> F32:
    """Scores of the fake model; their sharpness depends on the seed."""
    return _scores(seed, tuple(tokens))


BACKEND = FakeBackend(DIMS, scores_of)


@dataclasses.dataclass(frozen=True)
class Case:
    """Everything in which windows can differ.

    ``kind`` is greedy, beam or sample; ``size`` the number of beams or of draws.
    """

    audio: int
    prompt: tuple[int, ...]
    no_speech_position: int
    reference: Reference
    max_new_tokens: int
    kind: str = "greedy"
    size: int = 1
    patience: float = 1.0
    length_penalty: float | None = None
    temperature: float = 1.0
    penalty: float = 1.0
    ngram: int = 0
    seed: int = 0

    @property
    def request(self) -> DecodeRequest:
        constraints = constraints_of(self.reference)
        if self.ngram:
            constraints.append(NoRepeatNGram(self.ngram, range(EOT)))
        return DecodeRequest(
            prompt=self.prompt,
            no_speech_position=self.no_speech_position,
            no_speech_token=PROBE_TOKEN,
            constraints=tuple(constraints),
            timestamp_begin=BEGIN if self.reference.timestamps else None,
            max_new_tokens=self.max_new_tokens,
            decoder=self.decoder,
            repetition_penalty=self.penalty,
            text=range(EOT),
        )

    def decoder(self) -> TokenDecoder:
        if self.kind == "beam":
            return BeamSearchDecoder(EOT, self.size, self.patience)
        if self.kind == "sample":
            return SamplingDecoder(
                EOT, self.temperature, self.size, np.random.default_rng(self.seed)
            )
        return GreedyDecoder(EOT)


def random_case(rng: np.random.Generator, audio: int) -> Case:
    prompt = rng.integers(0, N_VOCAB, int(rng.integers(1, 13)))
    suppressed = rng.choice(BEGIN, int(rng.integers(0, 6)), replace=False)
    room = DIMS.n_text_ctx + 1 - len(prompt)
    return Case(
        audio=audio,
        prompt=tuple(prompt.tolist()),
        no_speech_position=int(rng.integers(len(prompt))),
        reference=Reference(
            EOT,
            NO_TIMESTAMPS,
            BEGIN,
            blank=(7, EOT) if rng.random() < 0.7 else None,
            suppress=tuple(suppressed.tolist()) if rng.random() < 0.7 else None,
            timestamps=bool(rng.random() < 0.6),
            max_initial=int(rng.integers(0, 20)) if rng.random() < 0.5 else None,
        ),
        max_new_tokens=int(rng.integers(1, min(room, 14) + 1)),
        kind=str(rng.choice(["greedy", "beam", "beam", "sample"])),
        size=int(rng.integers(1, 6)),
        patience=float(rng.choice([1.0, 1.0, 2.0, 0.6])),
        length_penalty=float(rng.choice([0.0, 0.6, 1.0])) if rng.random() < 0.5 else None,
        temperature=float(rng.choice([0.2, 1.0, 3.0])),
        penalty=float(rng.choice([0.5, 1.3, 4.0])) if rng.random() < 0.4 else 1.0,
        ngram=int(rng.integers(1, 4)) if rng.random() < 0.4 else 0,
        seed=int(rng.integers(1000)),
    )


def random_cases(n: int, seed: int) -> list[Case]:
    rng = np.random.default_rng(seed)
    cases = [random_case(rng, int(rng.integers(2**31))) for _ in range(n)]
    # best_of=0 is refused when options are read
    return [
        dataclasses.replace(case, patience=1.0) if round(case.size * case.patience) < 1 else case
        for case in cases
    ]


def alone(case: Case) -> Decoded:
    (found,) = decode(BACKEND, FakeEncoded((case.audio,)), [case.request])
    return found


# --- a batch equals single runs ------------------------------------------------------------------


def together(cases: Sequence[Case], arrivals: Sequence[int]) -> list[Decoded]:
    """Decode in one batch; case i joins after step ``arrivals[i]``, equal ones in one call."""
    batch = Batch(BACKEND)
    found: dict[int, Decoded] = {}
    places: dict[int, int] = {}
    steps = 0
    while len(places) < len(cases) or len(batch):
        joining = [i for i, arrival in enumerate(arrivals) if arrival == steps]
        if joining:
            audio = FakeEncoded(tuple(cases[i].audio for i in joining))
            numbers = batch.add(audio, [cases[i].request for i in joining])
            places.update(zip(numbers, joining))
        new = batch.step()
        assert not set(new) & set(found)
        found.update(new)
        assert len(batch) == len(places) - len(found)
        steps += 1
    return [found[number] for number in sorted(found, key=lambda number: places[number])]


@settings(derandomize=True, deadline=None, max_examples=250)
@given(
    st.lists(st.integers(0, 12), min_size=1, max_size=16),
    st.integers(0, 2**32 - 1),
)
def test_windows_that_join_and_leave_equal_single_runs(arrivals: list[int], seed: int) -> None:
    cases = random_cases(len(arrivals), seed)
    assert together(cases, arrivals) == [alone(case) for case in cases]


def test_windows_differ_in_what_they_need() -> None:
    """Makes sure that the property above is tested with windows of many kinds."""
    cases = random_cases(300, 0)
    found = [alone(case) for case in cases]
    lengths = [len(each.hypotheses[0].tokens) for each in found]
    assert len(set(lengths)) > 10
    ended = [length < case.max_new_tokens for length, case in zip(lengths, cases)]
    assert 60 < sum(ended) < 240
    assert {case.kind for case in cases} == {"greedy", "beam", "sample"}
    # each option has an effect: leaving it out changes results
    for plain in ({"penalty": 1.0}, {"ngram": 0}, {"patience": 1.0}, {"seed": 5}):
        others = [alone(dataclasses.replace(case, **plain)) for case in cases]
        assert others != found, plain


def test_the_same_window_twice_gives_the_same_answer_twice() -> None:
    cases = random_cases(8, 3)
    found = together([*cases, *cases], [0] * 16)
    assert found[:8] == found[8:]


# --- decoders and constraints against a plain implementation --------------------------------------


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


# --- the batch itself ----------------------------------------------------------------------------


FREE = Reference(EOT, NO_TIMESTAMPS, BEGIN, None, (EOT,), False, None)
"""Results that end at their limit only."""


def audio(*seeds: int) -> FakeEncoded:
    return FakeEncoded(seeds)


def open_sessions(backend: SpyBackend) -> list[SpySession]:
    return [session for session in backend.sessions if not session.closed]


class JoiningBackend(SpyBackend):
    """Spy sessions that record joining rows; joins listed in ``failing`` raise an error."""

    def __init__(self, failing: BaseException | None = None) -> None:
        super().__init__()
        backend = self
        self.failing = failing
        self.joined = 0

        class Session(SpySession):
            def append(self, other: Any) -> None:
                if backend.failing is not None:
                    raise backend.failing
                backend.joined += 1
                super().append(other)

        self._make = Session

    def open(self, audio: Any) -> SpySession:
        self.sessions.append(self._make(self, audio))
        return self.sessions[-1]


def drain(batch: Batch) -> dict[int, Decoded]:
    found: dict[int, Decoded] = {}
    while len(batch):
        found.update(batch.step())
    return found


def test_an_empty_batch() -> None:
    batch = Batch(SpyBackend())
    assert len(batch) == 0
    assert batch.step() == {}
    batch.close()
    assert batch.step() == {}


def test_numbers_are_never_used_again() -> None:
    batch = Batch(BACKEND)
    assert batch.add(audio(1, 2), [job().request] * 2) == [0, 1]
    assert batch.add(audio(3), [job().request]) == [2]
    assert set(drain(batch)) == {0, 1, 2}
    assert batch.add(audio(4), [job().request]) == [3]
    batch.close()
    assert batch.add(audio(5, 6), [job().request] * 2) == [4, 5]
    assert set(drain(batch)) == {4, 5}


def test_windows_join_the_session_that_runs() -> None:
    backend = JoiningBackend()
    batch = Batch(backend)
    long, short = job(max_new_tokens=9, timestamps=False), job(max_new_tokens=2)
    never_ends = dataclasses.replace(long.request, constraints=())
    backend._scores = lambda seed, tokens: np.arange(N_VOCAB, dtype=np.float32)[::-1]
    batch.add(audio(1), [never_ends])
    batch.step()
    batch.add(audio(2, 3), [short.request, short.request])
    assert backend.joined == 1
    assert len(open_sessions(backend)) == 1
    running, joining = backend.sessions
    assert [n for name, n in joining.calls if name == "extend"] == [2]
    assert set(batch.step()) == {1, 2}
    batch.step()
    # one row, then three, then one again: finished rows are not fed
    assert [n for name, n in running.calls if name == "extend"] == [1, 1, 3, 1]
    drain(batch)
    assert open_sessions(backend) == []


def test_a_window_that_ends_with_its_first_token() -> None:
    backend = JoiningBackend()
    batch = Batch(backend)
    one, more = job(max_new_tokens=1).request, job(max_new_tokens=9).request
    batch.add(audio(1, 2), [one, one])
    assert open_sessions(backend) == []
    assert len(batch) == 2
    assert set(batch.step()) == {0, 1}
    batch.add(audio(5), [more])
    batch.add(audio(3), [one])
    assert backend.joined == 0
    found = batch.step()
    assert 3 in found
    assert found[3] == alone_by(one, 3)
    found.update(drain(batch))
    assert found[2] == alone_by(more, 5)


def alone_by(request: DecodeRequest, seed: int) -> Decoded:
    (found,) = decode(FakeBackend(DIMS, lively), audio(seed), [request])
    return found


def test_a_session_is_closed_with_its_last_window_and_another_opened() -> None:
    backend = JoiningBackend()
    batch = Batch(backend)
    request = job(max_new_tokens=3).request
    for round_ in range(3):
        batch.add(audio(round_), [request])
        assert len(open_sessions(backend)) <= 1
        assert list(drain(batch).values()) == [alone_by(request, round_)]
        assert open_sessions(backend) == []
    assert [session.closed for session in backend.sessions] == [1, 1, 1]


def test_a_prompt_that_does_not_fit_leaves_the_others_alone() -> None:
    backend = JoiningBackend()
    batch = Batch(backend)
    request = job(max_new_tokens=9).request
    batch.add(audio(8), [request])
    batch.step()
    with pytest.raises(EngineError, match="model holds 24"):
        batch.add(audio(9, 10), [request, job([31] * 25).request])
    assert len(batch) == 1
    (number,) = batch.add(audio(11), [request])
    found = drain(batch)
    assert list(found.values()) == [alone_by(request, 8), alone_by(request, 11)]
    assert number in found
    assert open_sessions(backend) == []


@pytest.mark.parametrize("verb", ["extend", "gather"])
@pytest.mark.parametrize(("session", "call"), [("joining", 0), ("running", 0), ("running", 2)])
def test_closing_after_an_interrupt_leaves_nothing_open(session: str, call: int, verb: str) -> None:
    backend = JoiningBackend()
    batch = Batch(backend)
    beams = [Case(i, (31,), 0, FREE, 12, "beam", 3).request for i in range(3)]
    batch.add(audio(0, 1), beams[:2])
    failing = (verb, call), KeyboardInterrupt()
    if session == "joining":
        backend.fail = failing
    else:
        (running,) = backend.sessions
        running.calls.clear()
        running._fail = failing
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012 - either of the calls
        batch.add(audio(2), beams[2:])
        drain(batch)
    batch.close()
    assert open_sessions(backend) == []
    assert len(batch) == 0
    backend.fail = None
    batch.add(audio(3), [job().request])
    assert list(drain(batch).values()) == [alone_by(job().request, 3)]


def test_a_join_that_fails_leaves_nothing_open() -> None:
    backend = JoiningBackend(failing=KeyboardInterrupt())
    batch = Batch(backend)
    request = job(max_new_tokens=9).request
    batch.add(audio(8), [request])
    with pytest.raises(KeyboardInterrupt):
        batch.add(audio(9), [request])
    batch.close()
    assert open_sessions(backend) == []
