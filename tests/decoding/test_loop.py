"""The decode loop compared with single sequences, on a backend without a model."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Sequence
from typing import Any, Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.decoding.test_constraints import BEGIN, EOT, N_VOCAB, NO_TIMESTAMPS, constraints_of
from tests.support.decoding import decode
from tests.support.fake_backend import FakeBackend, FakeEncoded, FakeSession
from tests.support.models import random_dims
from tests.support.reference_rules import Reference, reference_log_softmax
from whisper_opt.core.arrays import F32, Int
from whisper_opt.core.backend import BannedTokens, Encoded, TokenMask, Top
from whisper_opt.core.errors import EngineError
from whisper_opt.core.logits import HostLogits
from whisper_opt.decoding import (
    DecodeRequest,
    GreedyDecoder,
    Hypothesis,
    TokenDecoder,
    next_token_logprobs,
)

DIMS = random_dims(n_vocab=N_VOCAB, n_text_ctx=24, n_audio_ctx=N_VOCAB - BEGIN - 1)


def lively(seed: int, tokens: Sequence[int]) -> F32:
    """Random scores with an end of text after about eight tokens."""
    state = zlib.crc32(np.array(tokens, np.int64).tobytes(), seed)
    scores: F32 = np.random.default_rng(state).standard_normal(N_VOCAB, np.float32)
    scores *= np.float32(2)
    scores[EOT] += 3
    return scores


@dataclasses.dataclass(frozen=True)
class Job:
    """A request and the filters it stands for."""

    reference: Reference
    prompt: tuple[int, ...]
    no_speech_position: int
    max_new_tokens: int
    decoder: Callable[[], TokenDecoder] = lambda: GreedyDecoder(EOT)

    @property
    def request(self) -> DecodeRequest:
        return DecodeRequest(
            prompt=self.prompt,
            no_speech_position=self.no_speech_position,
            no_speech_token=36,
            constraints=tuple(constraints_of(self.reference)),
            timestamp_begin=BEGIN if self.reference.timestamps else None,
            max_new_tokens=self.max_new_tokens,
            decoder=self.decoder,
        )


def job(
    prompt: Sequence[int] = (31, 32),
    no_speech_position: int = 0,
    max_new_tokens: int = 12,
    timestamps: bool = True,
    decoder: Callable[[], TokenDecoder] = lambda: GreedyDecoder(EOT),
) -> Job:
    reference = Reference(EOT, NO_TIMESTAMPS, BEGIN, (7, EOT), (1, 2), timestamps, 10)
    return Job(reference, tuple(prompt), no_speech_position, max_new_tokens, decoder)


def naive(backend: FakeBackend, seed: int, job: Job) -> tuple[list[int], float, float]:
    """Tokens, their sum of log-probabilities and no-speech probability, computed plainly."""
    sampled: list[int] = []
    total = 0.0
    for _ in range(job.max_new_tokens):
        scores = backend.scores(seed, [*job.prompt, *sampled])
        token, logprob = job.reference.best(scores, sampled)
        total += logprob
        if token == EOT:
            break
        sampled.append(token)
    probed = reference_log_softmax(backend.scores(seed, job.prompt[: job.no_speech_position + 1]))
    return sampled, total, float(np.exp(probed[36]))


def jobs(n: int) -> st.SearchStrategy[list[Job]]:
    reference = st.builds(
        Reference,
        st.just(EOT),
        st.just(NO_TIMESTAMPS),
        st.just(BEGIN),
        st.sampled_from([None, (7, EOT)]),
        st.none() | st.lists(st.integers(0, BEGIN - 1), max_size=5).map(tuple),
        st.booleans(),
        st.none() | st.integers(0, 20),
    )
    prompts = st.lists(st.integers(0, N_VOCAB - 1), min_size=1, max_size=12).map(tuple)
    one = prompts.flatmap(
        lambda prompt: st.builds(
            Job,
            reference,
            st.just(prompt),
            st.integers(0, len(prompt) - 1),
            st.integers(1, DIMS.n_text_ctx + 1 - len(prompt)),
            st.sampled_from([lambda: GreedyDecoder(EOT), TwoBranches]),
        )
    )
    return st.lists(one, min_size=n, max_size=4)


class TwoBranches:
    """The two best first tokens, each continued greedily: rows of one audio fork and finish."""

    width = 2
    temperature = 0.0
    generator: np.random.Generator | None = None

    def __init__(self) -> None:
        self._live: list[tuple[list[int], float]] = [([], 0.0)]
        self._done: list[Hypothesis] = []

    @property
    def rows(self) -> list[list[int]]:
        return [tokens for tokens, _ in self._live]

    def step(self, top: Top) -> list[int]:
        width = 2 if self._live[0][0] == [] else 1
        live, parents = [], []
        for row, (tokens, total) in enumerate(self._live):
            for i in range(width):
                token, score = int(top.tokens[row, i]), total + float(top.logprobs[row, i])
                if token == EOT:
                    self._done.append(Hypothesis(tuple(tokens), score))
                else:
                    live.append(([*tokens, token], score))
                    parents.append(row)
        self._live = live
        return parents

    def results(self) -> list[Hypothesis]:
        return [*self._done, *(Hypothesis(tuple(t), score) for t, score in self._live)]


class SpySession(FakeSession):
    """Records every call; ``fail`` is the name of the call that raises, and the error."""

    def __init__(self, backend: SpyBackend, audio: FakeEncoded) -> None:
        super().__init__(backend, audio)
        self.calls: list[tuple[str, int]] = []
        self.closed = 0
        self._fail = backend.fail

    def _note(self, name: str, n: int) -> None:
        if self._fail is not None and self._fail[0] == (name, self._count(name)):
            raise self._fail[1]
        self.calls.append((name, n))

    def _count(self, name: str) -> int:
        return sum(each == name for each, _ in self.calls)

    def extend(self, tokens: Int, lengths: Int | None = None, at: Int | None = None) -> HostLogits:
        self._note("extend", len(tokens))
        return super().extend(tokens, lengths, at)

    def gather(self, rows: Int) -> None:
        self._note("gather", len(rows))
        super().gather(rows)

    def close(self) -> None:
        self.closed += 1
        super().close()


class SpyBackend(FakeBackend):
    """Keeps its sessions for inspection."""

    def __init__(self, fail: tuple[tuple[str, int], BaseException] | None = None) -> None:
        super().__init__(DIMS, lively)
        self.fail = fail
        self.sessions: list[SpySession] = []

    def open(self, audio: Encoded) -> SpySession:
        assert isinstance(audio, FakeEncoded)
        self.sessions.append(SpySession(self, audio))
        return self.sessions[-1]


@settings(derandomize=True, deadline=None, max_examples=100)
@given(jobs(1), st.integers(0, 2**31))
def test_greedy_equals_one_sequence_at_a_time(batch: list[Job], first_seed: int) -> None:
    batch = [dataclasses.replace(each, decoder=lambda: GreedyDecoder(EOT)) for each in batch]
    backend = FakeBackend(DIMS, lively)
    audio = FakeEncoded(tuple(first_seed + i for i in range(len(batch))))
    found = decode(backend, audio, [each.request for each in batch])
    assert len(found) == len(batch)
    for decoded, each, seed in zip(found, batch, audio.seeds):
        tokens, total, probed = naive(backend, seed, each)
        (hypothesis,) = decoded.hypotheses
        assert list(hypothesis.tokens) == tokens
        assert hypothesis.sum_logprob == pytest.approx(total, abs=1e-4)
        assert decoded.no_speech_prob == pytest.approx(probed, rel=1e-5)


@settings(derandomize=True, deadline=None, max_examples=100)
@given(jobs(2), st.integers(0, 2**31), st.booleans())
def test_a_batch_equals_single_runs(batch: list[Job], seed: int, same_audio: bool) -> None:
    backend = FakeBackend(DIMS, lively)
    seeds = tuple(seed if same_audio else seed + i for i in range(len(batch)))
    together = decode(backend, FakeEncoded(seeds), [each.request for each in batch])
    for decoded, each, audio in zip(together, batch, seeds):
        assert decode(backend, FakeEncoded((audio,)), [each.request]) == [decoded]


def test_both_ways_to_end_are_met() -> None:
    """Makes sure that the properties above are tested with results of many kinds."""
    backend = FakeBackend(DIMS, lively)
    lengths = [len(naive(backend, seed, job())[0]) for seed in range(40)]
    assert min(lengths) < 5
    assert lengths.count(12) > 0
    assert len(set(lengths)) > 5


def test_finished_rows_leave() -> None:
    backend = SpyBackend()
    batch = [job(max_new_tokens=n) for n in (1, 9, 3, 9)]
    found = decode(backend, FakeEncoded((0, 1, 2, 3)), [each.request for each in batch])
    lengths = []
    for decoded, each in zip(found, batch):
        ended = len(decoded.hypotheses[0].tokens) < each.max_new_tokens
        lengths.append(len(decoded.hypotheses[0].tokens) + ended)
    expected = [sum(length > step for length in lengths) for step in range(max(lengths))]
    (session,) = backend.sessions
    assert [n for name, n in session.calls if name == "extend"] == expected
    assert len(set(expected)) > 2


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_max_new_tokens(limit: int) -> None:
    backend = FakeBackend(DIMS, lambda seed, tokens: np.arange(N_VOCAB, dtype=np.float32)[::-1])
    each = job(max_new_tokens=limit, timestamps=False)
    (decoded,) = decode(backend, FakeEncoded((0,)), [each.request])
    assert decoded.hypotheses[0].tokens == (0,) * limit


@pytest.mark.parametrize("n_prompt", [1, 10, 23, 24])
def test_prompt_and_answer_fill_the_context_and_one_more(n_prompt: int) -> None:
    """The last token needs no position: it is sampled, but never fed."""
    room = DIMS.n_text_ctx + 1 - n_prompt
    backend = SpyBackend()
    backend._scores = lambda seed, tokens: np.arange(N_VOCAB, dtype=np.float32)[::-1]
    full = job(range(40, 40 + n_prompt), max_new_tokens=room, timestamps=False)
    (decoded,) = decode(backend, FakeEncoded((0,)), [full.request])
    assert len(decoded.hypotheses[0].tokens) == room
    beyond = dataclasses.replace(full, max_new_tokens=room + 1)
    with pytest.raises(EngineError, match="model holds 24"):
        decode(backend, FakeEncoded((0,)), [beyond.request])
    assert [session.closed for session in backend.sessions] == [1, 1]


def test_a_prompt_longer_than_the_context_is_refused() -> None:
    backend = SpyBackend()
    with pytest.raises(EngineError, match="model holds 24"):
        decode(backend, FakeEncoded((0,)), [job([31] * 25).request])
    assert backend.sessions[0].closed == 1


@pytest.mark.parametrize("no_speech_position", range(5))
def test_the_probe_reads_after_its_own_token(no_speech_position: int) -> None:
    """Prompts of several lengths in a batch, so that padding would show."""
    backend = FakeBackend(DIMS, lively)
    long, short = job((33, 4, 31, 5, 32), no_speech_position), job((31,), 0)
    found = decode(backend, FakeEncoded((8, 9)), [long.request, short.request])
    for decoded, each, seed in zip(found, (long, short), (8, 9)):
        row = reference_log_softmax(lively(seed, each.prompt[: each.no_speech_position + 1]))
        assert decoded.no_speech_prob == pytest.approx(float(np.exp(row[36])), rel=1e-5)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError(), EngineError("device lost")])
@pytest.mark.parametrize("call", [("extend", 0), ("extend", 3), ("gather", 0), ("gather", 2)])
def test_the_session_is_closed_whatever_happens(
    call: tuple[str, int], error: BaseException
) -> None:
    backend = SpyBackend(fail=(call, error))
    requests = [job(max_new_tokens=9).request] * 3
    with pytest.raises(type(error)) as raised:
        decode(backend, FakeEncoded((0, 1, 2)), requests)
    assert raised.value is error
    assert backend.sessions[0].closed == 1
    backend.fail = None
    again = decode(backend, FakeEncoded((0, 1, 2)), requests)
    assert again == decode(FakeBackend(DIMS, lively), FakeEncoded((0, 1, 2)), requests)
    assert backend.sessions[1].closed == 1


@pytest.mark.parametrize("where", ["constraint", "decoder"])
def test_the_session_is_closed_when_host_code_fails(where: str) -> None:
    def stop() -> Any:
        raise KeyboardInterrupt

    def constraint(sampled: Sequence[int], banned: BannedTokens) -> None:
        if len(sampled) == 1:
            stop()

    class Stopping(GreedyDecoder):
        def step(self, top: Top) -> list[int]:
            return stop() if len(self.rows[0]) == 1 else super().step(top)

    backend = SpyBackend()
    request = job(timestamps=False).request
    if where == "constraint":
        request = dataclasses.replace(request, constraints=(*request.constraints, constraint))
    else:
        request = dataclasses.replace(request, decoder=lambda: Stopping(EOT))
    with pytest.raises(KeyboardInterrupt):
        decode(backend, FakeEncoded((0,)), [request])
    assert backend.sessions[0].closed == 1


def test_the_session_is_closed_once_at_the_end() -> None:
    backend = SpyBackend()
    decode(backend, FakeEncoded((0, 1)), [job().request, job().request])
    next_token_logprobs(backend, FakeEncoded((0, 1)), [31])
    assert [session.closed for session in backend.sessions] == [1, 1]


def test_next_token_logprobs() -> None:
    backend = SpyBackend()
    found = next_token_logprobs(backend, FakeEncoded((4, 5)), [31, 32])
    assert found.shape == (2, N_VOCAB)
    assert found.dtype == np.float32
    expected = [reference_log_softmax(lively(seed, [31, 32])) for seed in (4, 5)]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_next_token_logprobs_closes_on_errors() -> None:
    backend = SpyBackend(fail=(("extend", 0), KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        next_token_logprobs(backend, FakeEncoded((4,)), [31])
    assert backend.sessions[0].closed == 1


def test_greedy_adds_up_what_it_takes() -> None:
    decoder = GreedyDecoder(EOT)
    assert decoder.rows == [[]]
    for token, logprob in ((4, -0.5), (5, -0.25)):
        top = Top(np.array([[token]], np.int64), np.array([[logprob]], np.float32))
        assert decoder.step(top) == [0]
    assert decoder.rows == [[4, 5]]
    assert decoder.results() == [Hypothesis((4, 5), -0.75, (-0.5, -0.25))]
    assert decoder.step(Top(np.array([[EOT]], np.int64), np.array([[-1.0]], np.float32))) == []
    assert decoder.rows == []
    assert decoder.results() == [Hypothesis((4, 5), -1.75, (-0.5, -0.25))]


def test_the_fake_backend_keeps_what_a_cache_keeps() -> None:
    backend = FakeBackend(DIMS, lively)
    session = backend.open(FakeEncoded((1, 2)))
    session.extend(np.array([[31, 32, 4], [31, 0, 0]], np.int64), np.array([3, 1], np.int64))
    session.gather(np.array([1, 0, 1], np.int64))
    scores = session.extend(np.array([[5], [6], [7]], np.int64)).numpy()
    expected = [lively(2, [31, 5]), lively(1, [31, 32, 4, 6]), lively(2, [31, 7])]
    np.testing.assert_array_equal(scores[:, -1], expected)
    free = TokenMask(np.zeros((3, N_VOCAB), np.bool_), np.full(3, N_VOCAB, np.int64))
    assert HostLogits(scores).top(1, free).tokens.shape == (3, 1)
    other: Any = object()
    with pytest.raises(EngineError, match="another backend"):
        backend.open(other)
