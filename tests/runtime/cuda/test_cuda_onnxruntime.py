"""Executor of ONNX Runtime on a GPU, with a fake CUDA and the CPU provider.

The conformance suite also runs on it (``test_conformance.py``). CUDA itself and the CUDA provider
of ONNX Runtime are not tested.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.backend_subjects import cuda_backend
from tests.support.engines import random_engine, sharp_checkpoint
from tests.support.fake_cuda import FakeCuda
from tests.support.models import random_dims
from whisper_opt.core.arrays import F32
from whisper_opt.core.backend import TokenMask
from whisper_opt.core.errors import BackendUnavailable, EngineError
from whisper_opt.export import export
from whisper_opt.runtime.cuda import onnxruntime as ort_cuda
from whisper_opt.runtime.cuda.onnxruntime import CudaBackend, OrtDeviceBackend, OrtExecutor
from whisper_opt.runtime.cuda.runtime import Cuda
from whisper_opt.runtime.device.executor import GRAPHS, OPTIONAL, Buffer
from whisper_opt.runtime.engine import Engine
from whisper_opt.runtime.gpus import Driver, Gpu
from whisper_opt.runtime.onnxruntime.backend import OrtBackend
from whisper_opt.runtime.onnxruntime.graph import load_graph

DIMS = random_dims(n_vocab=2000)


@pytest.fixture
def cuda() -> FakeCuda:
    return FakeCuda()


@pytest.fixture(scope="module", params=["contrib", "standard"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return random_engine(tmp_path_factory.mktemp("engine") / "e", DIMS, request.param)


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """An fp16 contrib engine, as for a GPU."""
    target = tmp_path_factory.mktemp("half") / "e"
    return export(sharp_checkpoint(DIMS), target, precision="fp16", dialect="contrib")


def mels(n: int, n_frames: int = 160) -> F32:
    drawn = np.random.default_rng(n).standard_normal((n, DIMS.n_mels, n_frames), np.float32)
    scaled: F32 = drawn * np.float32(0.5)
    return scaled


def plain(n_seq: int) -> TokenMask:
    return TokenMask(
        np.zeros((n_seq, DIMS.n_vocab), np.bool_), np.full(n_seq, DIMS.n_vocab, np.int64)
    )


def steps(backend: Any, n: int = 5) -> list[F32]:
    """Greedy with fan-out and reordering: scores of every step."""
    session = backend.open(backend.encode(mels(2)))
    top = session.extend(np.array([[5, 6, 7, 8], [9, 10, 0, 0]]), np.array([4, 2])).top(1, plain(2))
    session.gather(np.array([0, 0, 1, 1]))
    tokens, scores = np.repeat(top.tokens, 2, axis=0) ^ np.array([[0], [1], [0], [1]]), []
    for _ in range(n):
        logits = session.extend(tokens)
        scores.append(logits.numpy()[:, -1].copy())
        tokens = logits.top(1, plain(4)).tokens
        session.gather(np.array([1, 0, 2, 2]))
        tokens = tokens[[1, 0, 2, 2]]
    session.close()
    return scores


# sessions


def test_scores_equal_the_cpu(engine: Engine, cuda: FakeCuda) -> None:
    backend = cuda_backend(engine, cuda)
    for found, expected in zip(steps(backend), steps(OrtBackend(engine, threads=1))):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
    backend.close()
    assert not cuda.leaks


def test_an_fp16_engine_has_all_graphs_for_a_gpu(half: Engine, cuda: FakeCuda) -> None:
    sessions = {name: load_graph(half, f"{name}.onnx", 1) for name in (*GRAPHS, *OPTIONAL)}
    executor = OrtExecutor(sessions, Cuda(0, cuda), ("cpu", 0))
    assert executor.tensors("decoder")["self_k_0"].dtype == np.float16
    backend = OrtDeviceBackend(executor, DIMS, half.manifest.dialect)
    for found, expected in zip(steps(backend), steps(OrtBackend(half, threads=1))):
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-2)
    backend.close()


def test_contrib_feeds_tokens_one_by_one_to_a_non_empty_cache(
    engine: Engine, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = cuda_backend(engine, cuda)
    widths = []
    real = ort_cuda._Bound.__init__

    def bind(bound: Any, executor: Any, stream: Any, graph: str, buffers: Any) -> None:
        if graph == "decoder":
            widths.append(buffers["tokens"].shape[1])
        real(bound, executor, stream, graph, buffers)

    monkeypatch.setattr(ort_cuda._Bound, "__init__", bind)
    session = backend.open(backend.encode(mels(1)))
    session.extend(np.array([[1, 2, 3]]))
    session.extend(np.array([[4, 5, 6]]))
    one_by_one = engine.manifest.dialect == "contrib"
    assert widths == ([3, 1] if one_by_one else [3, 3])  # a bound call of one token is run again
    session.close()
    backend.close()


# memory


def test_too_large_a_batch_names_the_largest_that_fits(engine: Engine, cuda: FakeCuda) -> None:
    backend = cuda_backend(engine, cuda)
    encoded = backend.encode(mels(1, 3000))
    backend.open(encoded).close()
    cuda.memory = cuda.used + ort_cuda.RESERVE + (100 << 20)
    with pytest.raises(EngineError, match=r"64 window\(s\) need .* would fit: lower batch_size"):
        backend.encode(mels(64, 3000))


# loading

GPUS = Driver((Gpu(0, "NVIDIA GeForce RTX 3060", (8, 6), 12 << 30),), (13, 0))


class Runtime:
    """Replaces onnxruntime-gpu: records how graphs are loaded."""

    __version__ = "1.31.1"

    def __init__(self, monkeypatch: pytest.MonkeyPatch, lacking: str = "") -> None:
        self.loaded: dict[str, list[Any]] = {}
        self._lacking, self.preloaded = lacking, False
        monkeypatch.setattr(ort_cuda, "import_onnxruntime", lambda: self)
        monkeypatch.setattr(ort_cuda, "load_graph", self.load)
        monkeypatch.setattr(ort_cuda, "find_gpus", lambda: GPUS)

    def preload_dlls(self) -> None:
        self.preloaded = True

    def load(self, engine: Engine, name: str, threads: int | None, providers: list[Any]) -> Any:
        assert self.preloaded
        self.loaded[name] = providers
        session = load_graph(engine, name, threads)
        names = [*(provider[0] for provider in providers), "CPUExecutionProvider"]
        kept = [name for name in names if name != self._lacking]

        class Session:
            get_providers = staticmethod(lambda: kept)

            def __getattr__(self, name: str) -> Any:
                return getattr(session, name)

        return Session()


def test_graphs_are_loaded_for_cuda(
    half: Engine, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = Runtime(monkeypatch)
    backend = CudaBackend(half, device_index=0, threads=1, runtime=cuda)
    assert sorted(runtime.loaded) == sorted(f"{name}.onnx" for name in (*GRAPHS, *OPTIONAL))
    for providers in runtime.loaded.values():
        ((name, options),) = providers
        assert (name, options["device_id"], options["use_tf32"]) == (
            "CUDAExecutionProvider",
            "0",
            "0",
        )
    assert isinstance(backend.executor, OrtExecutor)
    assert backend.executor.device == ("cuda", 0)
    backend.close()
    assert not cuda.leaks


def test_tensorrt_may_run_the_encoder(
    half: Engine, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = Runtime(monkeypatch)
    backend = CudaBackend(half, threads=1, tensorrt_provider=True, runtime=cuda)
    (first, options), (second, _) = runtime.loaded["encoder.onnx"]
    assert (first, second) == ("TensorrtExecutionProvider", "CUDAExecutionProvider")
    assert options["trt_profile_min_shapes"] == "mel:1x80x3000"
    assert options["trt_profile_opt_shapes"] == "mel:1x80x3000"
    assert options["trt_profile_max_shapes"] == "mel:16x80x3000"
    cache = half.path / "ort" / "sm86-onnxruntime-1.31.1"
    assert cache.is_dir()
    for kind in ("engine", "timing"):
        assert options[f"trt_{kind}_cache_enable"] == "True"
        assert options[f"trt_{kind}_cache_path"] == str(cache)
    assert [name for name, _ in runtime.loaded["decoder.onnx"]] == ["CUDAExecutionProvider"]
    fits = backend.executor.fits
    assert fits("encoder", {"mel": (16, 80, 3000)})
    assert not fits("encoder", {"mel": (17, 80, 3000)})
    assert not fits("encoder", {"mel": (1, 80, 2999)})
    assert fits("decoder", {"tokens": (99, 1)})
    backend.close()


def test_a_directory_that_cannot_be_written_caches_nothing(
    half: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    Runtime(monkeypatch)

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError("read-only file system")

    monkeypatch.setattr(Path, "mkdir", refuse)
    (_, options), _ = ort_cuda.tensorrt_providers(half, 0)
    assert not [name for name in options if "cache" in name]
    assert "read-only file system" in caplog.text


@pytest.mark.parametrize(
    ("lacking", "option", "words"),
    [
        ("CUDAExecutionProvider", False, "could not load its CUDAExecutionProvider"),
        ("TensorrtExecutionProvider", True, "libraries of TensorRT 10"),
    ],
)
def test_a_provider_that_does_not_load_is_an_error(
    half: Engine,
    cuda: FakeCuda,
    monkeypatch: pytest.MonkeyPatch,
    lacking: str,
    option: bool,
    words: str,
) -> None:
    Runtime(monkeypatch, lacking)
    with pytest.raises(BackendUnavailable, match=words):
        CudaBackend(half, tensorrt_provider=option, runtime=cuda)
    assert not cuda.leaks


def test_an_engine_without_the_small_graphs_is_refused(engine: Engine) -> None:
    files = {name: entry for name, entry in engine.manifest.files.items() if "choose" not in name}
    bare = Engine(engine.path, dataclasses.replace(engine.manifest, files=files))
    with pytest.raises(EngineError, match=r"has no choose.onnx.*--precision fp16"):
        CudaBackend(bare)


def test_an_error_of_the_runtime_is_an_engine_error(
    engine: Engine, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = cuda_backend(engine, cuda)
    executor = backend.executor
    assert isinstance(executor, OrtExecutor)
    stream = executor.open_stream(["encoder"])
    block = executor.allocate(1 << 20)
    tensors = executor.tensors("encoder")
    buffers = {name: Buffer(block, tensor.dtype, (1, 1, 1)) for name, tensor in tensors.items()}
    with pytest.raises(EngineError, match="ONNX Runtime failed on the GPU"):
        stream.run("encoder", buffers)
    block.free()
    stream.close()
    backend.close()
