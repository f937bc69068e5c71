"""Sessions on a device: memory, transfers, reuse of workspaces, plan shapes and threads."""

from __future__ import annotations

import gc
import re
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.backend_subjects import DIMS, TOLERANCE, mels, trt_executor
from tests.support.cpu_executor import CpuExecutor
from tests.support.engines import random_engine
from tests.support.fake_cuda import FakeCuda
from tests.support.program_runs import ExpectedScores, check_top, mismatch, run
from tests.support.programs import BEGIN, N_AUDIO, program
from whisper_opt.core.arrays import F32, Int
from whisper_opt.core.backend import TokenMask
from whisper_opt.core.errors import EngineError
from whisper_opt.core.logits import top_k
from whisper_opt.runtime.device import backend as device_backend
from whisper_opt.runtime.device.backend import DeviceBackend
from whisper_opt.runtime.device.session import DeviceSession
from whisper_opt.runtime.engine import Engine
from whisper_opt.runtime.onnxruntime.backend import OrtBackend
from whisper_opt.runtime.tensorrt.plan_spec import PlanSpec

N_VOCAB = DIMS.n_vocab
PROMPT = np.array([[5, 9, 2]])


def limited(engine: Engine, memory: int) -> tuple[DeviceBackend, CpuExecutor]:
    executor = CpuExecutor(engine, threads=1, memory=memory)
    return DeviceBackend(executor, DIMS), executor


def nothing(n: int) -> TokenMask:
    return TokenMask(np.zeros((n, N_VOCAB), np.bool_), np.full(n, N_VOCAB, np.int64))


def prompted(backend: DeviceBackend, n_audio: int) -> DeviceSession:
    session = backend.open(backend.encode(mels(n_audio)))
    session.extend(np.repeat(PROMPT, n_audio, axis=0))
    return session


def step(session: DeviceSession, tokens: Int) -> F32:
    found: F32 = session.extend(tokens[:, None]).numpy()[:, -1]
    return found


# --- memory --------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", [4_000_000, 7_000_000, 10_500_000])
def test_too_many_windows_are_refused_before_allocation(engine: Engine, memory: int) -> None:
    """The number in the message fits, and one more does not."""
    backend, executor = limited(engine, memory)
    encoded = backend.encode(mels(9))
    used = executor.used
    with pytest.raises(EngineError, match=r"9 window.* more device memory") as refused:
        backend.open(encoded)
    assert executor.used == used
    found = re.search(r"(\d+) would fit: lower batch_size", str(refused.value))
    fitting = int(found[1]) if found else 0
    for n in range(1, 9):
        if n <= fitting:
            session = backend.open(encoded.take(range(n)))
            session.extend(np.repeat(PROMPT, n, axis=0))
            session.extend(np.ones((n, 1), np.int64)).top(1, nothing(n))
            session.close()
        else:
            with pytest.raises(EngineError, match="more device memory"):
                backend.open(encoded.take(range(n)))
    assert 1 <= fitting < 9


def test_a_single_window_that_does_not_fit(engine: Engine) -> None:
    backend, executor = limited(engine, 400_000)
    encoded = backend.encode(mels(1))
    with pytest.raises(EngineError, match="not even one fits, or lower beam_size"):
        backend.open(encoded)
    backend, executor = limited(engine, 10_000)
    with pytest.raises(EngineError, match=r"1 window.* need 0\.\d MiB"):
        backend.encode(mels(1))
    assert executor.used == 0


def test_a_beam_that_does_not_fit_leaves_the_session_as_it_was(
    engine: Engine, reference: ExpectedScores
) -> None:
    backend, executor = limited(engine, 9_000_000)
    session = prompted(backend, 2)
    used = executor.used
    with pytest.raises(EngineError, match=r"2 window.* 1 would fit: lower batch_size"):
        session.gather(np.repeat([0, 1], 6))
    assert executor.used == used
    found = step(session, np.array([7, 8]))
    session.gather(np.repeat([0, 1], 2))
    assert np.abs(found - step_alone(engine, [7, 8])).max() < TOLERANCE
    assert step(session, np.array([1, 1, 1, 1])).shape == (4, N_VOCAB)


def step_alone(engine: Engine, tokens: list[int]) -> F32:
    backend = OrtBackend(engine, threads=1)
    session = backend.open(backend.encode(mels(len(tokens))))
    fed = np.concatenate([np.repeat(PROMPT, len(tokens), 0), np.array(tokens)[:, None]], axis=1)
    found: F32 = session.extend(fed).numpy()[:, -1]
    return found


def test_a_window_that_does_not_fit_leaves_both_sessions_as_they_were(engine: Engine) -> None:
    backend, _ = limited(engine, 8_000_000)
    encoded = backend.encode(mels(2))
    one = backend.open(encoded)
    one.extend(np.repeat(PROMPT, 2, axis=0))
    two = backend.open(encoded.take([0]))
    two.extend(PROMPT)
    two.gather(np.zeros(3, np.int64))
    with pytest.raises(EngineError, match="more device memory"):
        one.append(two)
    expected = step_alone(engine, [7, 8])
    assert np.abs(step(one, np.array([7, 8])) - expected).max() < TOLERANCE
    assert np.abs(step(two, np.array([1, 1, 1]))[2] - step_alone(engine, [1, 1])[0]).max() < (
        TOLERANCE
    )


def test_idle_workspaces_are_freed_if_memory_is_needed(engine: Engine) -> None:
    backend, executor = limited(engine, 11_000_000)
    encoded = backend.encode(mels(5))
    first = backend.open(encoded.take([0, 1, 2]))
    second = backend.open(encoded.take([0]))
    first.close()
    second.close()
    held = executor.used
    session = backend.open(encoded)  # reuses the workspace of one, and frees that of the other
    session.extend(np.repeat(PROMPT, 5, axis=0))
    session.extend(np.ones((5, 1), np.int64)).top(1, nothing(5))
    assert held < executor.used <= 11_000_000


def test_all_memory_is_freed(engine: Engine) -> None:
    backend, executor = limited(engine, 1 << 30)
    encoded = backend.encode(mels(3))
    sessions = [backend.open(encoded.take([i, 1])) for i in range(3)]
    for session in sessions:
        session.extend(np.repeat(PROMPT, 2, axis=0))
        session.gather(np.array([1, 1, 0]))
    for session in sessions:
        session.close()
    assert len(executor.streams) == 1 + device_backend.N_IDLE
    part = encoded.take([2])
    del encoded, session, sessions
    assert executor.used > 0
    before = executor.used
    del part  # the last reference to the encoded audio
    assert executor.used < before
    backend.close()
    assert (executor.used, executor.streams) == (0, [])


def test_a_greedy_batch_needs_no_second_cache(engine: Engine) -> None:
    """When windows finish and others join, a few rows move in place."""
    backend, _ = limited(engine, 1 << 30)
    session = prompted(backend, 4)
    one = session._open._workspace
    for rows in ([0, 1, 3], [0, 2], [1]):
        session.gather(np.array(rows))
        step(session, np.ones(len(rows), np.int64))
        session.append(prompted(backend, 1))
        step(session, np.ones(len(rows) + 1, np.int64))
    assert one.capacity("self_a") > 0
    assert one.capacity("self_b") == 0
    session.gather(np.array([0, 0, 1, 1]))
    session.gather(np.array([1, 0, 3, 2]))  # these swap slots
    assert one.capacity("self_b") > 0


# --- transfers ------------------------------------------------------------------------------------


class Traced:
    """A backend on a fake GPU, and the CUDA calls since the last :meth:`since`."""

    def __init__(self, engine: Engine, plans: PlanSpec | None = None) -> None:
        self.cuda = FakeCuda()
        plans = plans or PlanSpec(max_batch=8, max_beam=5)
        self.backend = DeviceBackend(trt_executor(engine, self.cuda, plans), DIMS)

    def since(self) -> list[tuple[Any, ...]]:
        calls, self.cuda.calls = self.cuda.calls, []
        return calls


def copied(calls: list[tuple[Any, ...]], kind: str) -> int:
    return sum(call[3] for call in calls if call[0] == "cudaMemcpyAsync" and call[4].name == kind)


def test_a_step_downloads_a_few_tokens(engine: Engine) -> None:
    gpu = Traced(engine)
    session = prompted(gpu.backend, 2)
    session.gather(np.repeat([0, 1], 5))
    for n in range(5):
        gpu.since()
        logits = session.extend(np.ones((10, 1), np.int64))
        assert copied(gpu.since(), "cudaMemcpyDeviceToHost") == 0
        top = logits.top(6, nothing(10))
        calls = gpu.since()
        assert 10 * 11 * 12 <= copied(calls, "cudaMemcpyDeviceToHost") < 2000
        assert copied(calls, "cudaMemcpyHostToDevice") < 10 * N_VOCAB + 1000
        assert copied(calls, "cudaMemcpyDeviceToDevice") == 0
        if n > 2:  # inputs are uploaded, and one graph is launched
            assert [call[0] for call in calls].count("cudaGraphLaunch") == 1
            assert not any(call[0] in ("cudaMalloc", "cudaHostAlloc") for call in calls)
        expected = top_k(logits.numpy()[:, -1], 6, nothing(10))
        np.testing.assert_array_equal(top.tokens, expected.tokens)
        assert copied(gpu.since(), "cudaMemcpyDeviceToHost") == 10 * N_VOCAB * 4


def test_an_identity_costs_nothing_and_a_beam_one_graph(engine: Engine) -> None:
    gpu = Traced(engine)
    session = prompted(gpu.backend, 1)
    session.gather(np.zeros(5, np.int64))
    step(session, np.arange(5))
    gpu.since()
    session.gather(np.arange(5))
    assert gpu.since() == []
    for n in range(7):
        session.gather(np.array([1, 0, 2, 4, 4]))
        calls = [call[0] for call in gpu.since()]
        if n > 4:
            assert calls == ["cudaMemcpyAsync", "cudaGraphLaunch"]
        session.extend(np.ones((5, 1), np.int64)).top(6, nothing(5))
        gpu.since()
    session.gather(np.array([0, 1, 1, 3, 4]))  # one row moves: copied as it is
    assert {call[0] for call in gpu.since()} == {"cudaMemcpyAsync"}


def test_the_next_window_reuses_everything(engine: Engine) -> None:
    """Only its audio is allocated, and all its steps use captured graphs."""
    gpu = Traced(engine)

    def window() -> list[tuple[Any, ...]]:
        gpu.since()
        encoded = gpu.backend.encode(mels(1))
        session = gpu.backend.open(encoded)
        session.extend(PROMPT, at=np.array([[0]])).top(1, nothing(1))
        for n in range(4):
            session.extend(np.full((1, 1), n)).top(1, nothing(1))
        session.close()
        del encoded
        return gpu.since()

    window()
    window()
    calls = [call[0] for call in window()]
    assert calls.count("cudaMalloc") == 1
    assert calls.count("cudaFree") == 1
    assert "cudaHostAlloc" not in calls
    assert "cudaStreamCreateWithFlags" not in calls
    assert "cudaStreamBeginCapture" not in calls
    assert calls.count("cudaGraphLaunch") == 4 + 5  # four steps, five choices


@pytest.mark.parametrize("k", [1, 11, 12, 40])
@pytest.mark.parametrize("n_at", [0, 2])
def test_choice_on_the_device_and_on_the_host(
    backend: DeviceBackend, k: int, n_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = backend.open(backend.encode(mels(3)))
    at = np.array([[0, 1]] * 3)[:, :n_at]
    tokens, lengths = np.array([[4, 5, 6], [7, 8, 0], [9, 0, 0]]), np.array([3, 2, 1])
    logits = session.extend(tokens, lengths, np.minimum(at, lengths[:, None] - 1))
    rng = np.random.default_rng(k)
    for penalty in (False, True):
        ban = rng.random((3, N_VOCAB)) < 0.3
        seen = rng.random((3, N_VOCAB)) < 0.5 if penalty else None
        by = np.array([1.5, 1.0, 2.0], np.float32) if penalty else None
        mask = TokenMask(ban, np.array([BEGIN, N_VOCAB, BEGIN]), seen, by)
        check_top(logits.top(k, mask), logits.numpy()[:, -1].copy(), k, mask)
    chosen = []
    monkeypatch.setattr(DeviceSession, "choose", lambda *_: chosen.append(1))
    logits.top(k, nothing(3))
    assert bool(chosen) == (k <= 11)


def test_overwritten_scores_are_refused(backend: DeviceBackend) -> None:
    session = prompted(backend, 2)
    logits = session.extend(np.array([[1], [2]]))
    session.gather(np.array([1, 0]))
    for use in (logits.numpy, lambda: logits.top(1, nothing(2))):
        with pytest.raises(EngineError, match="these scores were overwritten"):
            use()
    logits = session.extend(np.array([[1], [2]]))
    session.extend(np.array([[1], [2]]))
    with pytest.raises(EngineError, match="these scores were overwritten"):
        logits.numpy()
    logits = session.extend(np.array([[1], [2]]))
    session.close()
    with pytest.raises(EngineError, match="session was closed"):
        logits.numpy()


# --- threads -------------------------------------------------------------------------------------


@pytest.mark.parametrize("fake_gpu", [False, True])
def test_sessions_of_several_threads(
    engine: Engine, reference: ExpectedScores, fake_gpu: bool
) -> None:
    gpu = Traced(engine, PlanSpec(max_batch=12, max_beam=8))
    backend = gpu.backend if fake_gpu else DeviceBackend(CpuExecutor(engine, threads=1), DIMS)
    found: dict[int, Any] = {}

    def work(number: int) -> None:
        try:
            encoded = backend.encode(mels(N_AUDIO))
            found[number] = [run(backend, encoded, program(seed)) for seed in (number, number + 50)]
        except BaseException as error:
            found[number] = error

    threads = [threading.Thread(target=work, args=(number,)) for number in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for results in found.values():
        assert isinstance(results, list), results
        expected = reference.of([result for part in results for result in part])
        for result in (result for part in results for result in part):
            error = mismatch(result, expected[result.audio, result.tokens])
            assert error < TOLERANCE
    backend.close()
    if fake_gpu:
        gc.collect()
        assert gpu.cuda.leaks == {}


# --- the executor on the CPU --------------------------------------------------------------------


def test_an_engine_without_the_graphs_is_refused(tmp_path: Path) -> None:
    engine = random_engine(tmp_path / "engine", DIMS, "contrib")
    with pytest.raises(EngineError, match=r"dialect contrib and lacks choose, reorder; .*standard"):
        CpuExecutor(engine)


def test_use_of_freed_memory_is_an_error(engine: Engine) -> None:
    backend, executor = limited(engine, 1 << 30)
    encoded = backend.encode(mels(1))
    encoded.cross.arena.block.free()
    with pytest.raises(EngineError, match="after it was freed"):
        backend.open(encoded)
    assert executor.streams
