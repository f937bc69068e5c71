"""Proposed tokens change the number of calls of the model and nothing else."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import pytest

from tests.decoding.test_constraints import EOT
from tests.support.decode_cases import BACKEND, FREE, Case, alone, random_cases, scores_of
from tests.support.fake_backend import FakeBackend, FakeEncoded, FakeSession
from whisper_opt.core.arrays import F32, Int
from whisper_opt.core.backend import Backend, Encoded, TokenMask, Top
from whisper_opt.core.errors import EngineError
from whisper_opt.core.logits import HostLogits
from whisper_opt.decoding import Batch, Decoded, DecodeRequest

N_VOCAB = BACKEND.dims.n_vocab


class Guesser:
    """Proposes the tokens of a known result, some of them wrong, and sometimes none."""

    def __init__(self, truth: Sequence[int], seed: int, wrong: float = 0.2) -> None:
        self.truth = truth
        self.rng = np.random.default_rng(seed)
        self.wrong = wrong

    def propose(self, sampled: Sequence[int], most: int) -> Sequence[int]:
        rest = np.array(self.truth[len(sampled) :], np.int64)[: int(self.rng.integers(0, 9))]
        changed = self.rng.random(len(rest)) < self.wrong
        rest[changed] = self.rng.integers(0, N_VOCAB, int(changed.sum()))
        return [*rest[:most].tolist()]


def drafted(case: Case, expected: Decoded, seed: int, wrong: float = 0.2) -> DecodeRequest:
    truth = expected.hypotheses[0].tokens
    return dataclasses.replace(case.request, drafter=lambda: Guesser(truth, seed, wrong))


def decoded(
    backend: Backend, cases: Sequence[Case], requests: Sequence[DecodeRequest], joined: int
) -> tuple[list[Decoded], Batch]:
    """Decode windows together; the first ``joined`` ones have begun before the others join."""
    batch = Batch(backend)
    found: dict[int, Decoded] = {}
    numbers: list[int] = []
    for part in (slice(joined), slice(joined, None)):
        if cases[part]:
            audio = FakeEncoded(tuple(case.audio for case in cases[part]))
            numbers += batch.add(audio, requests[part])
            found.update(batch.step())
    while len(batch):
        found.update(batch.step())
    return [found[number] for number in numbers], batch


def same(found: Decoded, expected: Decoded) -> None:
    assert [each.tokens for each in found.hypotheses] == [
        each.tokens for each in expected.hypotheses
    ]
    sums = [each.sum_logprob for each in expected.hypotheses]
    assert [each.sum_logprob for each in found.hypotheses] == pytest.approx(sums, abs=1e-5)
    assert found.no_speech_prob == expected.no_speech_prob


@pytest.mark.parametrize("at_once", [True, False])
def test_random_batches_with_proposals_equal_single_runs_without(at_once: bool) -> None:
    """1,000 windows of all kinds and rules, in batches that accept different numbers of tokens."""
    backend = SpyBackend(at_once)
    rng = np.random.default_rng(3)
    cases = random_cases(1000, seed=11)
    n_proposed = n_accepted = 0
    while cases:
        group, cases = cases[: (n := int(rng.integers(1, 7)))], cases[n:]
        expected = [alone(case) for case in group]
        requests = [
            drafted(case, result, int(rng.integers(1 << 30)))
            if rng.random() < 0.8
            else case.request
            for case, result in zip(group, expected)
        ]
        found, batch = decoded(backend, group, requests, int(rng.integers(len(group) + 1)))
        for mine, other in zip(found, expected):
            same(mine, other)
        n_proposed, n_accepted = n_proposed + batch.n_proposed, n_accepted + batch.n_accepted
    assert n_proposed > (300 if at_once else 100)
    assert 0.4 * n_proposed < n_accepted < 0.9 * n_proposed
    assert all(session.closed for session in backend.sessions)


def calls_of(backend: SpyBackend) -> list[int]:
    """Tokens per row of every call of the model."""
    return [n for session in backend.sessions for n in session.widths]


class SpySession(FakeSession):
    def __init__(self, backend: SpyBackend, audio: FakeEncoded) -> None:
        super().__init__(backend, audio)
        self.widths: list[int] = []
        self.closed = False

    def extend(self, tokens: Int, lengths: Int | None = None, at: Int | None = None) -> HostLogits:
        self.widths.append(tokens.shape[1])
        return super().extend(tokens, lengths, at)

    def close(self) -> None:
        self.closed = True
        super().close()


class SpyBackend(FakeBackend):
    def __init__(self, at_once: bool = True) -> None:
        super().__init__(BACKEND.dims, scores_of)
        self.extends_at_once = at_once
        self.session_type = SpySession
        self.sessions: list[SpySession] = []

    def open(self, audio: Encoded) -> SpySession:
        assert isinstance(audio, FakeEncoded)
        self.sessions.append(self.session_type(self, audio))
        return self.sessions[-1]


LONG = Case(5, (31, 8), 0, FREE, 12, "greedy")


def test_a_right_proposal_needs_one_call_after_the_prompt() -> None:
    backend = SpyBackend()
    request = dataclasses.replace(LONG.request, drafter=lambda: Always(alone(LONG)))
    (found,), batch = decoded(backend, [LONG], [request], 1)
    same(found, alone(LONG))
    assert calls_of(backend) == [2, 11]
    assert batch.n_proposed == batch.n_accepted == 10


class Always:
    """Proposes all the rest, in which some tokens are replaced."""

    def __init__(self, result: Decoded, wrong: Sequence[int] = ()) -> None:
        self.truth = [
            (token + 1) % EOT if i in wrong else token
            for i, token in enumerate(result.hypotheses[0].tokens)
        ]
        self.asked: list[tuple[int, int]] = []

    def propose(self, sampled: Sequence[int], most: int) -> Sequence[int]:
        self.asked.append((len(sampled), most))
        return self.truth[len(sampled) :]


def test_decoding_goes_on_after_a_wrong_token() -> None:
    """The token that the model has chosen instead costs no call of its own."""
    backend = SpyBackend()
    drafter = Always(alone(LONG), wrong=(5,))
    request = dataclasses.replace(LONG.request, drafter=lambda: drafter)
    (found,), batch = decoded(backend, [LONG], [request], 1)
    same(found, alone(LONG))
    assert calls_of(backend) == [2, 11, 6]
    assert drafter.asked == [(1, 10), (6, 5)]
    assert (batch.n_proposed, batch.n_accepted) == (15, 9)


def test_sessions_that_feed_tokens_one_by_one_are_opened_again() -> None:
    backend = SpyBackend(at_once=False)
    request = dataclasses.replace(LONG.request, drafter=lambda: Always(alone(LONG), wrong=(5,)))
    (found,), _ = decoded(backend, [LONG], [request], 1)
    same(found, alone(LONG))
    # the prompt; it, one token and ten proposals; it, six tokens and five proposals
    assert [session.widths for session in backend.sessions] == [[2], [13], [13]]


def test_proposals_for_beams_and_draws_are_not_asked_for() -> None:
    for kind in ("beam", "sample"):
        case = dataclasses.replace(LONG, kind=kind, size=2)
        request = dataclasses.replace(case.request, drafter=lambda: Always(alone(LONG)))
        (found,), batch = decoded(BACKEND, [case], [request], 1)
        same(found, alone(case))
        assert batch.n_proposed == 0


def test_a_proposed_end_of_text_is_left_out() -> None:
    class Ending(Always):
        def propose(self, sampled: Sequence[int], most: int) -> Sequence[int]:
            return [*self.truth[len(sampled) :][:2], EOT, *self.truth[:2]]

    request = dataclasses.replace(LONG.request, drafter=lambda: Ending(alone(LONG)))
    (found,), batch = decoded(BACKEND, [LONG], [request], 1)
    same(found, alone(LONG))
    assert batch.n_proposed == batch.n_accepted


def test_proposals_fit_the_context() -> None:
    n_ctx = BACKEND.dims.n_text_ctx
    full = dataclasses.replace(LONG, prompt=(31, 8) * 9, max_new_tokens=n_ctx + 1 - 18)
    drafter = Always(alone(full))
    request = dataclasses.replace(full.request, drafter=lambda: drafter)
    (found,), _ = decoded(BACKEND, [full], [request], 1)
    same(found, alone(full))
    assert drafter.asked == [(1, n_ctx - 19)]


def test_a_failed_verification_loses_the_windows_once() -> None:
    class Failing(SpySession):
        def truncate(self, dropped: Int) -> None:
            raise EngineError("no memory")

    backend = SpyBackend()
    backend.session_type = Failing
    batch = Batch(backend)
    request = dataclasses.replace(LONG.request, drafter=lambda: Always(alone(LONG), wrong=(5,)))
    with pytest.raises(EngineError):
        batch.add(FakeEncoded((5,)), [request])
    assert len(batch) == 0
    assert not batch.take_lost()
    assert all(session.closed for session in backend.sessions)


class ReadLogits(HostLogits):
    """Notes what is read; logits of a device copy scores each time."""

    reads: ClassVar[list[str]] = []

    def top(self, k: int, mask: TokenMask) -> Top:
        self.reads.append("top")
        return super().top(k, mask)

    def requested(self) -> F32:
        self.reads.append("requested")
        return super().requested()

    def numpy(self) -> F32:
        self.reads.append("numpy")
        return super().numpy()


@pytest.mark.parametrize(
    ("penalty", "wrong", "reads"),
    [
        (1.0, (), ["requested", "top"]),
        (1.0, (1,), ["requested"]),  # what follows refused proposals is of no use
        (1.1, (), ["numpy"]),
    ],
)
def test_scores_are_read_once(penalty: float, wrong: Sequence[int], reads: list[str]) -> None:
    class Session(SpySession):
        def extend(self, *args: Any) -> HostLogits:
            found = super().extend(*args)
            ReadLogits.reads.clear()
            return ReadLogits(found.numpy())

    backend = SpyBackend()
    backend.session_type = Session
    drafter = Always(alone(LONG), wrong)
    request = dataclasses.replace(
        LONG.request, drafter=lambda: drafter, repetition_penalty=penalty, max_new_tokens=3
    )
    batch = Batch(backend)
    batch.add(FakeEncoded((LONG.audio,)), [request])
    assert calls_of(backend) == [2, 2]
    assert ReadLogits.reads == reads
