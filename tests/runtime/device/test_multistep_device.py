"""Multi-step decoding on a device: results, launches, limits and failures."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from tests.runtime.device.test_device_session import PROMPT, Traced, limited, step
from tests.support.backend_subjects import DIMS, N_CTX, TOLERANCE, mels, trt_executor
from tests.support.cpu_executor import CpuExecutor
from tests.support.engines import random_engine
from tests.support.fake_cuda import FakeCuda
from tests.support.programs import BEGIN, EOT
from whisper_opt.core.arrays import F32, Int
from whisper_opt.core.backend import GreedyRows, MultiStepResult, MultiStepSession, TokenMask
from whisper_opt.core.errors import EngineError
from whisper_opt.runtime.device import multistep
from whisper_opt.runtime.device.backend import DeviceBackend
from whisper_opt.runtime.device.multistep import AHEAD, RING_SIZE
from whisper_opt.runtime.device.session import DeviceSession
from whisper_opt.runtime.device.workspace import Workspace
from whisper_opt.runtime.engine import Engine
from whisper_opt.runtime.tensorrt.plan_spec import PlanSpec

N_VOCAB = DIMS.n_vocab


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return random_engine(tmp_path_factory.mktemp("run") / "engine", DIMS, "standard")


@pytest.fixture(params=["cpu", "fake gpu"])
def backend(request: pytest.FixtureRequest, engine: Engine) -> DeviceBackend:
    if request.param == "cpu":
        return DeviceBackend(CpuExecutor(engine, threads=1), DIMS)
    return Traced(engine).backend


def free(n: int, eot: Int | int = EOT) -> GreedyRows:
    """Rows without rules; a row ends when it samples ``eot``."""
    return GreedyRows(
        ban=np.zeros((n, N_VOCAB), np.bool_),
        timestamp_begin=np.full(n, N_VOCAB, np.int64),
        eot=np.broadcast_to(np.asarray(eot, np.int64), (n,)),
        previous=np.full(n, N_VOCAB, np.int64),
        latest=np.full(n, N_VOCAB - 1, np.int64),
    )


def prompted(backend: DeviceBackend, n_audio: int) -> DeviceSession:
    session = backend.open(backend.encode(mels(n_audio)))
    session.extend(np.repeat(PROMPT, n_audio, axis=0))
    return session


def by_host(backend: DeviceBackend, n_audio: int, steps: int) -> MultiStepResult:
    """Tokens of endless rows, sampled in single steps."""
    session, rows = prompted(backend, n_audio), free(n_audio)
    tokens, found = np.full((n_audio, 1), 7), []
    ban = rows.ban.copy()
    ban[:, EOT] = True
    for _ in range(steps):
        top = session.extend(tokens).top(1, TokenMask(ban, rows.timestamp_begin))
        found.append((top.tokens[:, 0], top.logprobs[:, 0]))
        tokens = top.tokens
    session.close()
    chosen, logprobs = zip(*found)
    return MultiStepResult(np.stack(chosen), np.stack(logprobs))


def endless(n: int) -> GreedyRows:
    rows = free(n)
    rows.ban[:, EOT] = True
    return rows


def same(found: MultiStepResult, expected: MultiStepResult) -> None:
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_array_equal(found.logprobs, expected.logprobs)


@pytest.mark.parametrize("n_audio", [1, 3])
def test_the_same_tokens_and_likelihoods(backend: DeviceBackend, n_audio: int) -> None:
    expected = by_host(backend, n_audio, 20)
    session = prompted(backend, n_audio)
    assert isinstance(session, MultiStepSession)
    assert session.supports_multistep
    found = session.decode_steps(np.full((n_audio, 1), 7), endless(n_audio), 20)
    same(found, expected)
    session.close()
    assert not session.supports_multistep


@pytest.mark.parametrize("ahead", [1, 2, 5])
def test_rows_that_end_keep_their_tokens(
    backend: DeviceBackend, ahead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each row ends at another step; the extra steps change nothing."""
    monkeypatch.setattr(multistep, "AHEAD", ahead)
    monkeypatch.setattr(multistep, "RING_SIZE", max(ahead + 1, 3))
    expected = by_host(backend, 3, 12)
    launched: list[int] = []
    real = Workspace.record_event

    def record_event(workspace: Workspace, number: int) -> None:
        launched.append(number)
        real(workspace, number)

    monkeypatch.setattr(Workspace, "record_event", record_event)
    for row, n in ((0, 1), (1, 4), (2, 9)):
        eot = np.full(3, EOT)
        eot[row] = expected.tokens[n - 1, row]
        if eot[row] in expected.tokens[: n - 1, row]:
            continue
        session = prompted(backend, 3)
        rows = dataclasses.replace(endless(3), eot=eot)
        launched.clear()
        found = session.decode_steps(np.full((3, 1), 7), rows, 12)
        n_steps = len(found.tokens)
        assert len(launched) == n_steps <= min(n + ahead, 12)
        others = [i for i in range(3) if i != row]
        same(
            MultiStepResult(found.tokens[:, others], found.logprobs[:, others]),
            MultiStepResult(expected.tokens[:n_steps, others], expected.logprobs[:n_steps, others]),
        )
        assert found.tokens[n - 1 :, row].tolist() == [eot[row]] * (n_steps - n + 1)
        np.testing.assert_array_equal(found.logprobs[:n, row], expected.logprobs[:n, row])
        assert not found.logprobs[n:, row].any()
        assert session._layout.length.tolist() == [
            3 + (n if i == row else n_steps) for i in range(3)
        ]
        after = step(session, np.array([1, 2, 3]))
        for i in range(3):
            fed = [*PROMPT[0], 7, *found.tokens[: (n if i == row else n_steps) - 1, i], i + 1]
            assert np.abs(after[i] - alone(backend, i, fed)).max() < TOLERANCE
        session.close()


def alone(backend: DeviceBackend, audio: int, tokens: list[int]) -> F32:
    session = backend.open(backend.encode(mels(3)).take([audio]))
    found: F32 = session.extend(np.array([tokens])).numpy()[0, -1]
    session.close()
    return found


def test_if_all_rows_have_ended_the_host_stops_waiting(engine: Engine) -> None:
    gpu = Traced(engine)
    session = prompted(gpu.backend, 2)
    gpu.since()
    found = session.decode_steps(
        np.full((2, 1), 7), dataclasses.replace(free(2), ban=only(2, EOT)), 50
    )
    assert found.tokens.tolist() == [[EOT, EOT]]
    calls = [call[0] for call in gpu.since()]
    assert calls.count("cudaEventRecord") == 1 + AHEAD
    assert calls.count("cudaEventSynchronize") == 1
    assert session._layout.length.tolist() == [4, 4]
    session.close()
    gpu.backend.close()
    assert gpu.cuda.leaks == {}


def only(n: int, token: int) -> Any:
    ban = np.ones((n, N_VOCAB), np.bool_)
    ban[:, token] = False
    return ban


def test_a_step_is_one_launch(engine: Engine) -> None:
    """With captured graphs: one launch, one event and one wait per step, and no copies."""
    gpu = Traced(engine)
    session = prompted(gpu.backend, 2)
    session.decode_steps(np.full((2, 1), 7), endless(2), 2 * RING_SIZE)
    gpu.since()
    session.decode_steps(np.full((2, 1), 7), endless(2), 30)
    calls = [call[0] for call in gpu.since()]
    assert [calls.count(f"cuda{name}") for name in ("GraphLaunch", "EventRecord")] == [30, 30]
    assert calls.count("cudaEventSynchronize") == 30
    assert calls.count("cudaMemcpyAsync") == 3  # the rules, and the state of the rows
    assert calls.count("cudaStreamSynchronize") <= 1
    assert len(calls) < 30 * 3 + 6
    first = calls.index("cudaEventSynchronize")
    assert calls[:first].count("cudaGraphLaunch") == 1 + AHEAD


def test_the_end_of_the_context(backend: DeviceBackend) -> None:
    """Steps stop at the end of the context, and further ones are refused."""
    for left in (1, 2, 5):
        session = backend.open(backend.encode(mels(2)))
        tokens = np.random.default_rng(left).integers(0, N_VOCAB, (2, N_CTX - left))
        session.extend(tokens)
        found = session.decode_steps(np.full((2, 1), 7), endless(2), 50)
        assert len(found.tokens) == left
        assert session._layout.length.tolist() == [N_CTX] * 2
        with pytest.raises(EngineError, match=f"would grow to {N_CTX + 1} tokens"):
            session.decode_steps(found.tokens[-1:].T, endless(2), 1)
        assert session._layout.length.tolist() == [N_CTX] * 2
        session.close()


def test_timestamps_come_in_pairs_and_grow(backend: DeviceBackend) -> None:
    """The rules that depend on sampled tokens, for many steps."""
    session = prompted(backend, 3)
    rows = dataclasses.replace(
        endless(3),
        timestamp_begin=np.full(3, BEGIN),
        previous=np.array([BEGIN, 5, BEGIN + 4]),
        latest=np.array([BEGIN, BEGIN + 9, BEGIN + 4]),
    )
    rows.ban[:, EOT:BEGIN] = True
    found = session.decode_steps(np.array([[BEGIN], [BEGIN + 9], [6]]), rows, 40)
    for i, before in enumerate(([BEGIN], [5, BEGIN + 9], [BEGIN + 4, 6])):
        allowed = np.isfinite(found.logprobs[:, i])
        n_allowed = len(allowed) if allowed.all() else int(allowed.argmin())
        sampled = [*before, *found.tokens[:n_allowed, i].tolist()]
        times = [token for token in sampled if token >= BEGIN]
        assert times == sorted(times)
        for n in range(2, len(sampled)):
            if sampled[n - 1] >= BEGIN:
                opened = sampled[n - 2] < BEGIN
                assert (sampled[n] >= BEGIN) == opened
    session.close()


# --- fallback to single steps ---------------------------------------------------------------------


def test_an_older_engine_uses_single_steps(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    manifest = engine.manifest
    files = {name: entry for name, entry in manifest.files.items() if name != "advance.onnx"}
    old = Engine(engine.path, dataclasses.replace(manifest, files=files))
    cuda = FakeCuda()
    for executor in (CpuExecutor(old, threads=1), trt_executor(old, cuda)):
        assert "advance" not in executor.graphs
        backend = DeviceBackend(executor, DIMS)
        session = prompted(backend, 2)
        assert not session.supports_multistep
        step(session, np.array([1, 2]))
        session.close()
    assert caplog.text.count("the engine has no advance.onnx") == 2


def test_plans_for_fewer_rows(engine: Engine) -> None:
    gpu = Traced(engine, PlanSpec(max_batch=3, max_beam=2, profile="advance.n_seq=1:1:2"))
    assert prompted(gpu.backend, 2).supports_multistep
    assert not prompted(gpu.backend, 3).supports_multistep


def test_without_memory_for_the_ring_there_are_single_steps(engine: Engine) -> None:
    backend, executor = limited(engine, 1 << 30)
    session = prompted(backend, 2)
    step(session, np.array([1, 2]))
    supported = [session.supports_multistep]
    executor._memory = executor.used + 1000
    supported.append(session.supports_multistep)
    assert supported == [True, False]
    step(session, np.array([1, 2]))


# --- failures -------------------------------------------------------------------------------------


FAILING = (
    "cudaMalloc",
    "cudaHostAlloc",
    "cudaMemcpyAsync",
    "cudaStreamSynchronize",
    "cudaGraphLaunch",
    "cudaEventCreateWithFlags",
    "cudaEventRecord",
    "cudaEventSynchronize",
)


@pytest.mark.parametrize("name", FAILING)
def test_failures_leave_the_rows_unchanged(engine: Engine, name: str) -> None:
    """For a failure of each CUDA call; the next run gives the expected tokens."""
    expected = by_host(DeviceBackend(CpuExecutor(engine, threads=1), DIMS), 2, 14)
    failed = 0
    for n in (0, 2, 7, 19):
        gpu = Traced(engine)
        session = prompted(gpu.backend, 2)
        gpu.cuda.fail[name] = n
        try:
            session.decode_steps(np.full((2, 1), 7), endless(2), 14)
        except EngineError as error:
            failed += 1
            assert f"{name} failed" in str(error)  # noqa: PT017
            assert session._layout.length.tolist() == [3, 3]
            found = session.decode_steps(np.full((2, 1), 7), endless(2), 14)
            np.testing.assert_array_equal(found.tokens, expected.tokens)
            np.testing.assert_allclose(found.logprobs, expected.logprobs, rtol=0, atol=TOLERANCE)
        gpu.cuda.fail.clear()
        session.close()
        gpu.backend.close()
        assert gpu.cuda.leaks == {}, n
    assert failed


@pytest.mark.parametrize("after", [0, 1, 4])
def test_an_interrupt_leaves_the_rows_unchanged(
    backend: DeviceBackend, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = by_host(backend, 2, 10)
    session = prompted(backend, 2)
    real, waits = Workspace.wait_event, []

    def wait(workspace: Workspace, number: int) -> None:
        waits.append(number)
        if len(waits) == after + 1:
            raise KeyboardInterrupt
        real(workspace, number)

    monkeypatch.setattr(Workspace, "wait_event", wait)
    with pytest.raises(KeyboardInterrupt):
        session.decode_steps(np.full((2, 1), 7), endless(2), 10)
    assert session._layout.length.tolist() == [3, 3]
    found = session.decode_steps(np.full((2, 1), 7), endless(2), 10)
    same(found, expected)
    session.close()


def test_sequences_that_cannot_be_captured_are_launched(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    gpu = Traced(engine)
    expected = by_host(gpu.backend, 1, 12)
    executor: Any = gpu.backend.executor
    executor.plan("advance")._library.module.capturable = False
    session = prompted(gpu.backend, 1)
    found = session.decode_steps(np.full((1, 1), 7), endless(1), 12)
    same(found, expected)
    assert "decoder and advance is launched without a CUDA graph" in caplog.text
    session.close()
