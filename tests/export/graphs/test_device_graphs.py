"""The device graphs: ``choose`` against ``top_k``, ``advance`` against token constraints and
``top_k``, ``reorder`` against numpy.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from tests.support.engines import DIALECTS, require, runs, sharp_checkpoint
from tests.support.models import random_dims
from whisper_opt.core.arrays import F32, Bool, Int, NDArray
from whisper_opt.core.backend import TokenMask, Top
from whisper_opt.core.logits import top_k
from whisper_opt.decoding.constraints import (
    NoRepeatNGram,
    SuppressAtBegin,
    SuppressTokens,
    TimestampRules,
    TokenConstraint,
)
from whisper_opt.decoding.multistep import GreedyRow, greedy_row, greedy_rows
from whisper_opt.export import export
from whisper_opt.export.graphs.device_graphs import (
    CHOICES,
    build_advance,
    build_choose,
    build_reorder,
)
from whisper_opt.runtime.engine import read_engine

N_VOCAB, BEGIN = 120, 80


def session(model: onnx.ModelProto) -> Any:
    require("standard")
    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


@pytest.fixture(scope="module")
def choose() -> Any:
    return session(build_choose(N_VOCAB).model)


def run(graph: Any, logits: F32, mask: TokenMask) -> Top:
    inputs = {"logits": logits, "ban": mask.ban, "timestamp_begin": mask.timestamp_begin}
    return Top(*graph.run(["tokens", "logprobs"], inputs))


def same(found: Top, expected: Top) -> None:
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_allclose(found.logprobs, expected.logprobs, rtol=0, atol=2e-5)


def random_logits(rng: np.random.Generator, n: int, kind: str) -> F32:
    if kind == "ties":  # few different scores, so that most are shared
        return rng.integers(-2, 3, (n, N_VOCAB)).astype(np.float32)
    if kind == "half":  # as a float16 product would give them
        drawn = rng.standard_normal((n, N_VOCAB)).astype(np.float16) * np.float16(8)
        return np.asarray(drawn, np.float32)
    scale = {"plain": 4.0, "flat": 1e-3, "huge": 1e4}[kind]
    return np.asarray(rng.standard_normal((n, N_VOCAB)) * scale, np.float32)


def random_mask(rng: np.random.Generator, n: int) -> TokenMask:
    """Rows with and without timestamps; bans of no, few, most or all tokens, or of one kind."""
    ban = rng.random((n, N_VOCAB)) < rng.choice([0.0, 0.1, 0.5, 0.97], (n, 1))
    family = rng.random(n)
    ban[family < 0.1] = True
    ban[(family >= 0.1) & (family < 0.2), :BEGIN] = True
    ban[(family >= 0.2) & (family < 0.3), BEGIN:] = True
    begin = np.where(rng.random(n) < 0.6, BEGIN, N_VOCAB).astype(np.int64)
    return TokenMask(ban, begin)


def near_tie(logits: F32, mask: TokenMask) -> Bool:
    """Rows in which all timestamps and the best text token differ by no more than rounding."""
    allowed = np.where(mask.ban, -np.inf, logits.astype(np.float64))
    text, times = allowed[:, :BEGIN].max(axis=1), allowed[:, BEGIN:]
    with np.errstate(divide="ignore", invalid="ignore"):
        peak = times.max(axis=1)
        together = peak + np.log(np.exp(times - peak[:, None]).sum(axis=1))
        near: Bool = np.abs(together - text) < 1e-6 * (1 + np.abs(text))
    ruled: Bool = near & (mask.timestamp_begin < N_VOCAB)
    return ruled


@pytest.mark.parametrize("kind", ["plain", "flat", "huge", "ties", "half"])
def test_choice_equals_the_specification_on_random_masks(choose: Any, kind: str) -> None:
    rng = np.random.default_rng(len(kind))
    logits, mask = random_logits(rng, 1200, kind), random_mask(rng, 1200)
    clear = ~near_tie(logits, mask)
    assert clear.sum() > 1100
    logits, mask = logits[clear], TokenMask(mask.ban[clear], mask.timestamp_begin[clear])
    assert mask.ban.all(axis=1).sum() > 50
    expected = top_k(logits, CHOICES, mask)
    won = (mask.timestamp_begin < N_VOCAB) & (expected.tokens[:, 0] >= BEGIN)
    assert 50 < won.sum() < 1100  # both outcomes of the timestamp rule occur
    same(run(choose, logits, mask), expected)


def test_nothing_but_equal_scores(choose: Any) -> None:
    logits = np.zeros((3, N_VOCAB), np.float32)
    ban = np.zeros((3, N_VOCAB), np.bool_)
    ban[1, :5], ban[2] = True, True
    mask = TokenMask(ban, np.full(3, N_VOCAB, np.int64))
    found = run(choose, logits, mask)
    assert found.tokens.tolist() == [list(range(11)), list(range(5, 16)), list(range(11))]
    same(found, top_k(logits, CHOICES, mask))


def test_fewer_allowed_than_wanted(choose: Any) -> None:
    """The rest is the lowest ids not chosen, or the lowest timestamps if timestamps have won."""
    rng = np.random.default_rng(3)
    logits = rng.standard_normal((4, N_VOCAB)).astype(np.float32)
    ban = np.ones((4, N_VOCAB), np.bool_)
    ban[:, [7, 3, 60]] = False
    ban[2:, 100] = False
    logits[2:, 100] = 50.0
    mask = TokenMask(ban, np.array([N_VOCAB, BEGIN, BEGIN, N_VOCAB], np.int64))
    found = run(choose, logits, mask)
    same(found, top_k(logits, CHOICES, mask))
    assert found.tokens[2].tolist() == [100, *range(BEGIN, BEGIN + 10)]
    assert np.isneginf(found.logprobs[2, 1:]).all()


def last_first(scores: F32, k: int) -> Int:
    order = np.argsort(-scores[:, ::-1], axis=1, kind="stable")[:, :k]
    return np.asarray(scores.shape[1] - 1 - order, np.int64)


class _LastFirst(OpRun):
    """``TopK`` that gives equal scores in the wrong order, as a device may."""

    op_domain = ""

    def _run(self, scores: F32, k: Int, **_: object) -> tuple[F32, Int]:
        order = last_first(scores, int(k[0]))
        return np.take_along_axis(scores, order, 1), order


_LastFirst.__name__ = "TopK"


def test_ties_do_not_depend_on_topk() -> None:
    graph = ReferenceEvaluator(build_choose(N_VOCAB).model, new_ops=[_LastFirst])
    rng = np.random.default_rng(4)
    logits = random_logits(rng, 200, "ties")
    mask = random_mask(rng, 200)
    clear = ~near_tie(logits, mask)
    logits, mask = logits[clear], TokenMask(mask.ban[clear], mask.timestamp_begin[clear])
    assert (last_first(logits, 1)[:, 0] != logits.argmax(axis=1)).any()
    same(run(graph, logits, mask), top_k(logits, CHOICES, mask))


# --- advance --------------------------------------------------------------------------------------

EOT, NO_TIMESTAMPS = 70, 79


class Hypothesis:
    """An unfinished hypothesis: the host's constraints and at least one sampled token."""

    def __init__(self, rng: np.random.Generator, n: int) -> None:
        self.timed = rng.random() < 0.7
        suppressed = rng.choice(EOT, rng.integers(0, 40), replace=False)
        specials = np.arange(EOT + 1, BEGIN)
        self.rules: list[TokenConstraint] = [SuppressAtBegin(np.array([3, EOT]))]
        if rng.random() < 0.9:
            self.rules.append(SuppressTokens(np.concatenate([suppressed, specials])))
        if self.timed:
            latest = int(rng.integers(0, 10)) if rng.random() < 0.5 else None
            self.rules.append(TimestampRules(BEGIN, EOT, NO_TIMESTAMPS, latest))
        times = rng.random(n) < rng.choice([0.0, 0.3, 0.6, 1.0])
        self.sampled = np.where(
            times, rng.integers(BEGIN, N_VOCAB, n), rng.integers(0, EOT, n)
        ).tolist()
        if rng.random() < 0.8:  # timestamps grow, as in real results
            self.sampled = [
                max(token, *(t for t in self.sampled[: i + 1])) if token >= BEGIN else token
                for i, token in enumerate(self.sampled)
            ]
        self.begin = BEGIN if self.timed else None
        self.ended = False

    def row(self) -> GreedyRow:
        found = greedy_row(self.rules, self.begin, EOT, N_VOCAB)
        assert found is not None
        return found

    def best(self, logits: F32) -> tuple[Top, Bool]:
        """The token that the host samples, and whether that does not depend on rounding."""
        ban = np.zeros((1, N_VOCAB), np.bool_)
        for rule in self.rules:
            rule(self.sampled, ban[0])
        mask = TokenMask(ban, np.full(1, BEGIN if self.timed else N_VOCAB))
        return top_k(logits[None], 1, mask), ~near_tie(logits[None], mask)


class Rows:
    """The same hypotheses on the device: inputs and outputs of ``advance``."""

    def __init__(self, hypotheses: list[Hypothesis], start: Int) -> None:
        rows = greedy_rows(
            [hypothesis.row() for hypothesis in hypotheses], [a.sampled for a in hypotheses]
        )
        self.fixed: dict[str, Any] = {
            "ban": rows.ban,
            "timestamp_begin": rows.timestamp_begin,
            "eot": rows.eot,
        }
        self.tokens = np.array([[hypothesis.sampled[-1]] for hypothesis in hypotheses])
        self.previous, self.latest, self.start = rows.previous[:, None], rows.latest, start

    def step(self, graph: Any, logits: F32) -> F32:
        state = {
            "tokens": self.tokens,
            "previous": self.previous,
            "latest": self.latest,
            "start": self.start,
        }
        self.previous = self.tokens
        names = ["tokens_out", "latest_out", "start_out", "logprobs"]
        found = graph.run(names, {"logits": logits, **self.fixed, **state})
        self.tokens, self.latest, self.start, logprobs = found
        return np.asarray(logprobs)


@pytest.mark.parametrize("kind", ["plain", "flat", "ties", "half"])
def test_steps_equal_the_constraints_of_the_host(kind: str) -> None:
    """Hundreds of windows of 1 to 12 tokens, each decoded for ten more."""
    graph = session(build_advance(N_VOCAB).model)
    rng = np.random.default_rng([len(kind), 7])
    hypotheses = [Hypothesis(rng, int(rng.integers(1, 13))) for _ in range(300)]
    start = rng.integers(1, 400, len(hypotheses))
    rows = Rows(hypotheses, start)
    n_kinds: dict[str, int] = dict.fromkeys(("text", "time", "end", "banned"), 0)
    for _ in range(10):
        logits = random_logits(rng, len(hypotheses), kind)
        logits[rng.random(len(hypotheses)) < 0.05, EOT] = 1e4
        logprobs, moved = rows.step(graph, logits), rows.start - start
        start = rows.start
        for i, hypothesis in enumerate(hypotheses):
            token = int(rows.tokens[i, 0])
            assert moved[i] == (0 if hypothesis.ended else 1)
            if hypothesis.ended:
                assert (token, logprobs[i]) == (EOT, 0.0)
                continue
            best, clear = hypothesis.best(logits[i])
            if clear.all():
                assert token == best.tokens[0, 0], (hypothesis.sampled, token)
                np.testing.assert_allclose(logprobs[i], best.logprobs[0, 0], rtol=0, atol=2e-5)
            hypothesis.ended = token == EOT
            hypothesis.sampled.append(token)
            outcome = "end" if token == EOT else "time" if token >= BEGIN else "text"
            n_kinds["banned" if np.isneginf(logprobs[i]) else outcome] += 1
    assert min(n_kinds[name] for name in ("text", "time", "end")) > 50, n_kinds


def test_a_step_without_anything_allowed() -> None:
    """The lowest id, with log-probability -inf."""
    graph = session(build_advance(N_VOCAB).model)
    rows = Rows([Hypothesis(np.random.default_rng(seed), 1) for seed in range(8)], np.arange(8))
    rows.fixed["ban"][...] = True
    logprobs = rows.step(graph, random_logits(np.random.default_rng(0), 8, "plain"))
    assert rows.tokens.ravel().tolist() == [0] * 8
    assert np.isneginf(logprobs).all()


def test_likeliest_tokens_are_those_of_choose(choose: Any) -> None:
    """Bit-identical: results do not depend on multi-step decoding."""
    graph = session(build_advance(N_VOCAB).model)
    rng = np.random.default_rng(11)
    hypotheses = [Hypothesis(rng, 3) for _ in range(300)]
    rows, logits = Rows(hypotheses, np.arange(300)), random_logits(rng, 300, "plain")
    ban = np.zeros((300, N_VOCAB), np.bool_)
    for banned, hypothesis in zip(ban, hypotheses):
        for rule in hypothesis.rules:
            rule(hypothesis.sampled, banned)
    found = run(choose, logits, TokenMask(ban, rows.fixed["timestamp_begin"]))
    logprobs = rows.step(graph, logits)
    np.testing.assert_array_equal(rows.tokens[:, 0], found.tokens[:, 0])
    np.testing.assert_array_equal(logprobs, found.logprobs[:, 0])


def test_constraints_that_need_the_host() -> None:
    fixed: list[TokenConstraint] = [SuppressTokens(np.array([1]))]
    timed = TimestampRules(BEGIN, EOT, NO_TIMESTAMPS, 5)
    assert greedy_row(fixed, None, EOT, N_VOCAB) is not None
    assert greedy_row([*fixed, timed], BEGIN, EOT, N_VOCAB) is not None
    for rules, begin, eot in (
        ([*fixed, NoRepeatNGram(3, range(EOT))], None, EOT),
        ([*fixed, timed], None, EOT),  # bans without the comparison
        (fixed, BEGIN, EOT),  # the comparison without bans
        ([timed], BEGIN, EOT + 1),
        ([timed], BEGIN + 1, EOT),
        ([timed, timed], BEGIN, EOT),
    ):
        assert greedy_row(rules, begin, eot, N_VOCAB) is None


# --- reorder --------------------------------------------------------------------------------------


@pytest.mark.parametrize("half", [False, True])
def test_reorder_copies_drops_and_permutes(half: bool) -> None:
    dims = random_dims(n_vocab=2000)
    onnx_type = TensorProto.FLOAT16 if half else TensorProto.FLOAT
    dtype = np.float16 if half else np.float32
    graph = session(build_reorder(dims, onnx_type).model)
    rng = np.random.default_rng(0)
    shape = (3, dims.n_text_head, dims.n_text_ctx, 64)
    caches: dict[str, NDArray] = {
        f"self_{kind}_{i}": rng.standard_normal(shape, np.float32).astype(dtype)
        for i in range(dims.n_text_layer)
        for kind in ("k", "v")
    }
    for rows in ([2, 0, 1], [1], [0, 0, 2, 2, 1]):
        names = [f"{name}_out" for name in caches]
        found = graph.run(names, {"rows": np.array(rows), **caches})
        for name, taken in zip(caches, found):
            np.testing.assert_array_equal(taken, caches[name][rows])


@pytest.mark.parametrize("dialect", DIALECTS)
def test_engines_of_the_standard_dialect_contain_them(tmp_path: Path, dialect: str) -> None:
    if not runs(dialect):
        pytest.skip("not tested: this ONNX Runtime does not run the standard dialect")
    dims = random_dims(n_vocab=2000)
    engine = export(sharp_checkpoint(dims), tmp_path / "engine", dialect=dialect)
    read_engine(engine.path, verify=True)
    names = {"choose.onnx", "advance.onnx", "reorder.onnx"}
    assert names & set(engine.manifest.files) == (names if dialect == "standard" else set())
    for name in names & set(engine.manifest.files):
        model = onnx.load(engine.file(name))
        assert not any(value.external_data for value in model.graph.initializer)
        assert engine.file(name).stat().st_size < 1 << 16
