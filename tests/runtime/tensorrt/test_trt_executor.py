"""The executor for TensorRT with a strict fake: order of calls, handling of failures."""

from __future__ import annotations

import gc
import sys
import threading
from typing import Any

import numpy as np
import pytest

from tests.support.backend_subjects import DIMS, mels, trt_executor
from tests.support.engines import random_engine
from tests.support.fake_cuda import FakeCuda
from tests.support.fake_trt_runtime import FakeTensorrt, fake_library, plan_reader
from whisper_opt.core.backend import GreedyRows, TokenMask
from whisper_opt.core.errors import BackendUnavailable, EngineError
from whisper_opt.runtime.cuda.runtime import Copies, Cuda, DeviceBlock, load_runtime
from whisper_opt.runtime.device.backend import DeviceBackend
from whisper_opt.runtime.device.executor import GRAPHS, Buffer, GraphSequence
from whisper_opt.runtime.engine import Engine
from whisper_opt.runtime.tensorrt.executor import TrtExecutor, _opened
from whisper_opt.runtime.tensorrt.plan_spec import PlanSpec

I64 = np.dtype(np.int64)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return random_engine(tmp_path_factory.mktemp("trt") / "engine", DIMS, "standard")


@pytest.fixture
def cuda() -> FakeCuda:
    return FakeCuda()


@pytest.fixture
def executor(engine: Engine, cuda: FakeCuda) -> TrtExecutor:
    return trt_executor(engine, cuda, PlanSpec(max_batch=4, max_beam=3))


def names(cuda: FakeCuda) -> list[str]:
    """Calls since the last time."""
    calls, cuda.calls = cuda.calls, []
    return [call[0] for call in calls]


def chosen(executor: TrtExecutor, n: int) -> tuple[dict[str, Buffer], Any]:
    """Buffers for ``choose`` in one block, and the block."""
    tensors = executor.tensors("choose")
    sizes = {name: (n, *tensor.shape[1:]) for name, tensor in tensors.items()}
    buffers, offset = {}, 0
    block = executor.allocate(1 << 16)
    for name, tensor in tensors.items():
        buffers[name] = Buffer(block, tensor.dtype, sizes[name], offset)
        offset += -(-buffers[name].n_bytes // 256) * 256
    return buffers, block


# --- calls of CUDA and TensorRT -------------------------------------------------------------------


def test_streams_are_separate(executor: TrtExecutor, cuda: FakeCuda) -> None:
    names(cuda)
    stream = executor.open_stream(("decoder", "choose"))
    assert names(cuda) == ["cudaMalloc", "cudaStreamCreateWithFlags"]
    assert cuda.used == executor.stream_memory(("decoder", "choose")) == 3072  # 3 profiles
    stream.close()
    stream.close()
    assert names(cuda) == ["cudaStreamSynchronize", "cudaFree", "cudaStreamDestroy"]
    assert cuda.leaks == {}


def test_copies(executor: TrtExecutor, cuda: FakeCuda) -> None:
    stream, block, host = (
        executor.open_stream(("choose",)),
        executor.allocate(512),
        executor.pin(512),
    )
    one, two = Buffer(block, I64, (4,)), Buffer(block, I64, (4,), 256)
    sent, got = host.array[:32].view(np.int64), host.array[256:288].view(np.int64)
    sent[...] = [1, 2, 3, 4]
    names(cuda)
    stream.upload(one, sent)
    stream.copy(two, one)
    stream.zero(one)
    stream.download(got, two)
    stream.copy(Buffer(block, I64, (0, 4)), Buffer(block, I64, (0, 4), 256))  # nothing
    calls = cuda.calls
    kinds = [getattr(call[-2], "name", call[-2]) for call in calls]
    assert [kind[10:] for kind in (kinds[0], kinds[1], kinds[3])] == [
        "HostToDevice",
        "DeviceToDevice",
        "DeviceToHost",
    ]
    assert calls[2] == ("cudaMemsetAsync", one.address, 0, 32, stream.handle)
    assert len(calls) == 4
    assert got.tolist() != [1, 2, 3, 4]  # nothing has happened
    stream.synchronize()
    assert got.tolist() == [1, 2, 3, 4]


def test_a_call_is_captured_the_second_time(executor: TrtExecutor, cuda: FakeCuda) -> None:
    stream = executor.open_stream(("decoder", "choose"))
    buffers, _ = chosen(executor, 2)
    stream.zero(Buffer(buffers["logits"].block, I64, (1 << 13,)))
    call = stream.bind(GraphSequence((("choose", buffers),)))
    names(cuda)
    call.run()
    assert names(cuda) == []  # launched by TensorRT
    call.run()
    assert names(cuda) == [
        "cudaStreamBeginCapture",
        "cudaStreamEndCapture",
        "cudaGraphInstantiate",
        "cudaGraphDestroy",
    ]
    for _ in range(3):
        call.run()
    assert names(cuda) == ["cudaGraphLaunch"] * 3
    stream.synchronize()
    call.close()
    call.close()
    assert names(cuda) == ["cudaStreamSynchronize", "cudaGraphExecDestroy"]


def test_replays_keep_their_own_shapes(executor: TrtExecutor, cuda: FakeCuda) -> None:
    """Two calls share a context; bindings of one do not affect replays of the other."""
    stream = executor.open_stream(("choose",))
    calls, tokens = [], []
    for n in (2, 4):
        buffers, block = chosen(executor, n)
        stream.zero(Buffer(block, I64, (1 << 13,)))
        calls.append(stream.bind(GraphSequence((("choose", buffers),))))
        tokens.append(buffers["tokens"])
    for _ in range(4):
        for call in calls:
            call.run()
    stream.synchronize()
    for buffer in tokens:
        host = executor.pin(buffer.n_bytes)
        stream.download(host.array, buffer)
        stream.synchronize()
        found = host.array.view(np.int64).reshape(buffer.shape)
        np.testing.assert_array_equal(found, np.tile(np.arange(11), (buffer.shape[0], 1)))


def test_what_cannot_be_captured_is_launched(
    executor: TrtExecutor, cuda: FakeCuda, caplog: pytest.LogCaptureFixture
) -> None:
    trt: FakeTensorrt = executor.plan("choose")._library.module
    trt.capturable = False
    stream = executor.open_stream(("choose",))
    buffers, block = chosen(executor, 1)
    stream.zero(Buffer(block, I64, (1 << 13,)))
    call = stream.bind(GraphSequence((("choose", buffers),)))
    for _ in range(5):
        call.run()
    stream.synchronize()
    assert "choose is launched without a CUDA graph" in caplog.text
    assert names(cuda).count("cudaStreamBeginCapture") == 1
    assert cuda.graphs == cuda.replays == set()


def test_the_profile_is_the_first_that_fits(executor: TrtExecutor) -> None:
    shapes = {"tokens": (2, 1), "start": (2,), "at": (2, 1), "aligned": (0,)}
    assert executor.profile("decoder", shapes) == 0
    assert executor.profile("decoder", {**shapes, "tokens": (2, 7)}) == 1
    assert executor.profile("decoder", {**shapes, "at": (2, 2)}) == 1
    assert executor.profile("decoder", {**shapes, "tokens": (2, 300), "aligned": (300,)}) == 2
    assert executor.profile("decoder", {**shapes, "tokens": (2, 300)}) is None
    assert executor.profile("decoder", {**shapes, "cross_k_0": (5,)}) is None
    assert not executor.fits("choose", {"logits": (13,)})


def test_each_profile_has_a_context_and_all_share_memory(engine: Engine, cuda: FakeCuda) -> None:
    library = fake_library(cuda)
    executor = TrtExecutor(library, plan_reader(engine, PlanSpec()), runtime=cuda)
    backend = DeviceBackend(executor, DIMS)
    session = backend.open(backend.encode(mels(1)))
    for tokens in (3, 1, 3, 1, 1):
        session.extend(np.ones((1, tokens), np.int64)).top(1, _nothing(1))
    contexts = library.module.contexts
    decoding = [context for context in contexts if "start" in context.engine.inputs]
    assert sorted(context.profile for context in decoding) == [0, 1]
    work = {context.memory for context in contexts if "mel" not in context.engine.inputs}
    assert len(work) == 1


def _nothing(n: int) -> TokenMask:
    n_vocab = DIMS.n_vocab
    return TokenMask(np.zeros((n, n_vocab), np.bool_), np.full(n, n_vocab, np.int64))


def _greedy(n: int) -> GreedyRows:
    every = np.full(n, DIMS.n_vocab)
    return GreedyRows(_nothing(n).ban, every, np.full(n, -1), every, every - 1)


# --- failures -------------------------------------------------------------------------------------


def scenario(backend: DeviceBackend) -> None:
    """Some calls of every kind."""
    encoded = backend.encode(mels(2))
    sessions = []
    try:
        sessions.append(backend.open(encoded))
        one = sessions[0]
        one.extend(np.ones((2, 3), np.int64), at=np.zeros((2, 1), np.int64)).top(2, _nothing(2))
        one.gather(np.array([0, 0, 1, 1]))
        for _ in range(4):
            one.extend(np.ones((4, 1), np.int64)).top(2, _nothing(4))
            one.gather(np.array([1, 0, 3, 2]))
        for _ in range(2):
            one.decode_steps(np.ones((4, 1), np.int64), _greedy(4), 4)
        sessions.append(backend.open(encoded.take([1])))
        sessions[1].extend(np.ones((1, 2), np.int64))
        one.append(sessions[1])
        one.extend(np.ones((5, 1), np.int64)).numpy()
    finally:
        for session in sessions:
            session.close()


FAILING = {
    "cudaMalloc": EngineError,
    "cudaHostAlloc": EngineError,
    "cudaMemGetInfo": EngineError,
    "cudaStreamCreateWithFlags": EngineError,
    "cudaMemcpyAsync": EngineError,
    "cudaMemsetAsync": EngineError,
    "cudaStreamSynchronize": EngineError,
    "cudaGraphLaunch": EngineError,
    "cudaEventCreateWithFlags": EngineError,
    "cudaEventRecord": EngineError,
    "cudaEventSynchronize": EngineError,
    "cudaStreamBeginCapture": None,
    "cudaStreamEndCapture": None,
    "cudaGraphInstantiate": None,
}
"""Calls, and the error if one of them fails; None: it continues without the CUDA graph."""


@pytest.mark.parametrize("name", FAILING)
def test_failures_release_everything(engine: Engine, name: str) -> None:
    """Every call of a kind fails once; everything is released in the end."""
    cuda = FakeCuda()
    trt_executor(engine, cuda)
    begun = cuda.count(name)
    whole = FakeCuda()
    scenario(DeviceBackend(trt_executor(engine, whole), DIMS))
    n_calls = whole.count(name)
    assert n_calls > begun
    raised = 0
    every = max((n_calls - begun) // 6, 1)
    for n in range(begun, n_calls, every):
        cuda = FakeCuda()
        backend = None
        cuda.fail[name] = n
        try:
            backend = DeviceBackend(trt_executor(engine, cuda), DIMS)
            scenario(backend)
        except EngineError as error:
            raised += 1
            assert f"{name} failed on GPU 0: cudaErrorInvalidValue" in str(error)  # noqa: PT017
        assert not cuda.fail, "it was not called that often"
        if backend is not None:
            backend.close()
        del backend
        gc.collect()
        assert cuda.leaks == {}, n
    assert (raised > 0) == (FAILING[name] is not None)


def test_out_of_gpu_memory(engine: Engine) -> None:
    cuda = FakeCuda(memory=6_000_000)
    backend = DeviceBackend(trt_executor(engine, cuda), DIMS)
    encoded = backend.encode(mels(6))
    with pytest.raises(EngineError, match=r"6 window.* would fit: lower batch_size"):
        backend.open(encoded)
    with pytest.raises(EngineError, match="the GPU is out of memory"):
        backend.executor.allocate(7_000_000)


def test_no_gpu(engine: Engine) -> None:
    cuda = FakeCuda()
    with pytest.raises(BackendUnavailable, match=r"GPU 3 .* cudaSetDevice gave cudaErrorNoDevice"):
        TrtExecutor(
            fake_library(cuda), plan_reader(engine, PlanSpec()), device_index=3, runtime=cuda
        )
    assert cuda.leaks == {}


def test_no_bindings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    monkeypatch.setitem(sys.modules, "cuda", None)
    with pytest.raises(BackendUnavailable, match="cuda-bindings cannot be imported"):
        load_runtime()


def test_a_malformed_plan(engine: Engine, cuda: FakeCuda) -> None:
    with pytest.raises(EngineError, match="cannot load the plan: magic tag does not match"):
        TrtExecutor(fake_library(cuda), lambda graph: b"not a plan", runtime=cuda)


def test_shapes_without_a_profile(executor: TrtExecutor) -> None:
    stream = executor.open_stream(("choose",))
    buffers, _ = chosen(executor, 13)
    with pytest.raises(EngineError, match=r"plan of choose has no profile for logits \[13, 2000\]"):
        stream.run("choose", buffers)


def test_two_gpus_in_one_thread() -> None:
    """Each call runs on the GPU of its object, whatever the thread did before."""
    cuda = FakeCuda(n_devices=2)
    gpus = [Cuda(index, cuda) for index in (0, 1)]
    blocks = [DeviceBlock(gpus[index], 100) for index in (0, 1, 0)]
    assert [cuda.homes[block.address] for block in blocks] == [0, 1, 0]
    copies = [Copies(gpu) for gpu in gpus]
    for stream in copies * 2:
        stream.zero(Buffer(blocks[0], I64, (4,)))
        stream.create_event().record()
    cuda.current = 1  # another library
    copies[0].synchronize()
    assert cuda.homes[DeviceBlock(gpus[0], 100).address] == 0


def test_the_device_is_selected_in_every_thread() -> None:
    cuda = FakeCuda(n_devices=2)
    gpu = Cuda(1, cuda)
    found: list[DeviceBlock] = []
    thread = threading.Thread(target=lambda: found.append(DeviceBlock(gpu, 100)))
    thread.start()
    thread.join()
    assert cuda.homes[found[0].address] == 1


def test_freeing_leaves_the_current_device_as_it_was() -> None:
    """A finalizer may run between the selection of a GPU and the call that needs it."""
    cuda = FakeCuda(n_devices=2)
    first, second = Cuda(0, cuda), Cuda(1, cuda)
    block = DeviceBlock(first, 100)
    second.select()
    del block
    assert cuda.current == 1
    assert cuda.leaks == {}


def test_two_models_on_two_gpus(engine: Engine) -> None:
    """Plans run on the GPU that they were loaded on, also if both are used alternately."""
    cuda = FakeCuda(n_devices=2)
    library, read = fake_library(cuda), plan_reader(engine, PlanSpec())
    executors = [TrtExecutor(library, read, device_index=index, runtime=cuda) for index in range(2)]
    streams = [executor.open_stream(("choose",)) for executor in executors]
    calls = []
    for executor, stream in zip(executors, streams):
        buffers, block = chosen(executor, 2)
        stream.zero(Buffer(block, I64, (1 << 13,)))
        calls.append(stream.bind(GraphSequence((("choose", buffers),))))
    for _ in range(3):  # launched, captured, replayed
        for call, stream in zip(calls, streams):
            call.run()
            stream.synchronize()
    for stream in streams:
        stream.close()


def test_memory_is_freed_with_its_object(executor: TrtExecutor, cuda: FakeCuda) -> None:
    block, host, other = executor.allocate(100), executor.pin(100), executor.allocate(100)
    assert cuda.leaks == {"device": 2, "pinned": 1}
    block.free()
    block.free()
    host.free()
    assert cuda.leaks == {"device": 1}
    del other
    assert cuda.leaks == {}


def test_a_deleted_model_releases_everything(engine: Engine) -> None:
    """Nothing has to be closed explicitly."""
    cuda = FakeCuda()
    backend = DeviceBackend(trt_executor(engine, cuda), DIMS)
    scenario(backend)
    session = backend.open(backend.encode(mels(2)))
    for _ in range(4):
        session.extend(np.ones((2, 1), np.int64)).top(1, _nothing(2))
    assert set(cuda.leaks) == {"device", "pinned", "streams", "events", "replays"}
    del backend, session
    gc.collect()
    assert cuda.leaks == {}


# --- whether the fakes have the interface of the real libraries -----------------------------------


def test_the_runtime_has_what_is_called() -> None:
    """Names and numbers of arguments, against cuda-bindings if it is installed."""
    runtime = pytest.importorskip(
        "cuda.bindings.runtime", reason="not tested: cuda-bindings is not installed"
    )
    for name in (name for name in vars(FakeCuda) if name.startswith("_cuda")):
        first = getattr(runtime, name[1:]).__doc__.splitlines()[0]
        n_args = len([arg for arg in first[first.index("(") + 1 : -1].split(",") if arg.strip()])
        assert n_args == FakeCuda.__dict__[name].__code__.co_argcount - 1, first
    for enum in ("cudaMemcpyKind", "cudaStreamCaptureMode", "cudaError_t"):
        real = getattr(runtime, enum).__members__
        for member in getattr(FakeCuda, enum):
            assert int(real[member.name]) == member.value
    assert runtime.cudaStreamNonBlocking == FakeCuda.cudaStreamNonBlocking
    assert runtime.cudaHostAllocDefault == FakeCuda.cudaHostAllocDefault
    assert runtime.cudaEventDisableTiming == FakeCuda.cudaEventDisableTiming
    assert runtime.cudaGetErrorString(runtime.cudaError_t.cudaErrorMemoryAllocation)[1] == (
        b"out of memory"
    )


@pytest.mark.parametrize("module", ["tensorrt", "tensorrt_rtx"])
def test_the_library_has_what_is_called(module: str) -> None:
    trt = pytest.importorskip(module, reason=f"not tested: {module} is not installed")
    if not hasattr(trt, "Builder"):
        pytest.skip(f"not tested: {module} is a stub")
    for name in ("execute_async_v3", "set_device_memory", "set_optimization_profile_async"):
        assert hasattr(trt.IExecutionContext, name)
    for name in ("get_device_memory_size_for_profile_v2", "get_tensor_profile_shape"):
        assert hasattr(trt.ICudaEngine, name)


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("later", [False, True])
def test_plans_are_opened_as_they_were_built(streams: bool, later: bool) -> None:
    opened: list[tuple[bytes, bool]] = []
    streamed: list[bytes] = []

    class Opened:
        def __init__(self, data: bytes) -> None:
            self.data = data

        def stream_weights(self) -> None:
            streamed.append(self.data)

    class Opener:
        def open(self, data: bytes, *, host_code: bool) -> Opened:
            opened.append((data, host_code))
            return Opened(data)

    library, spec = Opener(), PlanSpec(weight_streaming=streams, version_compatible=later)
    for graph in GRAPHS:
        _opened(library, graph, graph.encode(), spec)  # type: ignore[arg-type]
    assert opened == [(graph.encode(), later) for graph in GRAPHS]
    assert streamed == ([b"encoder", b"decoder"] if streams else [])  # the others have no weights
