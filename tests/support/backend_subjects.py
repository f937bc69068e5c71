"""The backends under test, on one random model."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime

from tests.support.cpu_executor import CpuExecutor
from tests.support.engines import random_engine, sharp_checkpoint
from tests.support.fake_backend import FakeBackend
from tests.support.fake_cuda import FakeCuda
from tests.support.fake_trt_runtime import fake_library, plan_reader
from tests.support.models import random_dims
from tests.support.optimum_dirs import write_optimum
from whisper_opt.core.arrays import F32, Int, NDArray
from whisper_opt.core.backend import Backend
from whisper_opt.core.interruption import Interruption
from whisper_opt.export import export
from whisper_opt.export.graphs.device_graphs import build_advance, build_choose, build_reorder
from whisper_opt.runtime.cuda.onnxruntime import OrtDeviceBackend, OrtExecutor
from whisper_opt.runtime.cuda.runtime import Cuda
from whisper_opt.runtime.device.backend import DeviceBackend
from whisper_opt.runtime.engine import Engine
from whisper_opt.runtime.onnxruntime.backend import OrtBackend
from whisper_opt.runtime.onnxruntime.graph import load_graph
from whisper_opt.runtime.optimum.backend import OptimumBackend, OptimumEncoded
from whisper_opt.runtime.optimum.directory import read_optimum
from whisper_opt.runtime.tensorrt.executor import TrtExecutor
from whisper_opt.runtime.tensorrt.plan_spec import PlanSpec
from whisper_opt.runtime.tensorrt.plans import graphs_of

__all__ = [
    "BACKENDS",
    "DIMS",
    "N_CTX",
    "PLANS",
    "ROUNDED",
    "ROUNDED_TOLERANCE",
    "TOLERANCE",
    "cuda_backend",
    "make_backend",
    "mels",
    "pad",
    "trt_executor",
]

DIMS = random_dims(n_vocab=2000)
N_CTX = DIMS.n_text_ctx
TOLERANCE = 1e-4
BACKENDS = ("fake", "contrib", "standard", "device", "tensorrt", "cuda-contrib", "optimum")
"""``device``: the sessions of a GPU on the executor for the CPU. ``tensorrt``: also the executor of
TensorRT, on a fake CUDA and a fake TensorRT. ``cuda-contrib``: the executor of ONNX Runtime on a
GPU, on the fake CUDA and computed on the CPU. ``optimum``: a merged decoder of Optimum."""
ROUNDED = "int8"
"""Also runs random programs, with compiled kernels if possible. A difference in the last bit of
self-attention can change a rounded integer, so it has its own tolerance."""
ROUNDED_TOLERANCE = 0.05
PLANS = PlanSpec(max_batch=12, max_beam=8)


class RememberingBackend(OptimumBackend):
    """Encodes each window once: its encoder always takes 30 s, and tests repeat few windows."""

    @functools.cached_property
    def _known(self) -> dict[bytes, NDArray]:
        return {}

    def encode(self, mel: F32, interruption: Interruption | None = None) -> OptimumEncoded:
        for window in mel:
            if window.tobytes() not in self._known:
                self._known[window.tobytes()] = super().encode(window[None]).hidden
        return OptimumEncoded(np.concatenate([self._known[w.tobytes()] for w in mel]))


def make_backend(name: str, folder: Path) -> Backend:
    """One of ``BACKENDS``; skips if the installed ONNX Runtime cannot run it."""
    if name == "fake":
        return FakeBackend(DIMS)
    if name == ROUNDED:
        return OrtBackend(export(sharp_checkpoint(DIMS), folder, precision=name), threads=1)
    if name in ("device", "tensorrt"):
        engine = random_engine(folder, DIMS, "standard")
        if name == "device":
            return DeviceBackend(CpuExecutor(engine, threads=1), DIMS)
        return DeviceBackend(trt_executor(engine, FakeCuda()), DIMS)
    if name.startswith("cuda-"):
        return cuda_backend(random_engine(folder, DIMS, name[5:]), FakeCuda())
    if name == "optimum":
        write_optimum(folder, attention=True)
        return RememberingBackend(read_optimum(folder), threads=1)
    return OrtBackend(random_engine(folder, DIMS, name), threads=1)


def cuda_backend(engine: Engine, cuda: FakeCuda) -> OrtDeviceBackend:
    """ONNX Runtime on a fake GPU; small graphs that the engine lacks are built."""
    dims, dialect = engine.manifest.dims, engine.manifest.dialect
    small = {
        "choose": build_choose(dims.n_vocab, dialect=dialect),
        "advance": build_advance(dims.n_vocab, dialect),
        "reorder": build_reorder(dims, dialect=dialect),
    }
    sessions = {name: load_graph(engine, f"{name}.onnx", 1) for name in ("encoder", "decoder")}
    for name, graph in small.items():
        sessions[name] = onnxruntime.InferenceSession(
            graph.model.SerializeToString(), providers=["CPUExecutionProvider"]
        )
    return OrtDeviceBackend(OrtExecutor(sessions, Cuda(0, cuda), ("cpu", 0)), dims, dialect)


def trt_executor(engine: Engine, cuda: FakeCuda, plans: PlanSpec = PLANS) -> TrtExecutor:
    """The executor of TensorRT on fakes."""
    graphs = graphs_of(engine.manifest)
    return TrtExecutor(fake_library(cuda), plan_reader(engine, plans), graphs=graphs, runtime=cuda)


def mels(n_audio: int, n_frames: int = 160) -> F32:
    rng = np.random.default_rng(n_audio)
    drawn = rng.standard_normal((n_audio, DIMS.n_mels, n_frames), np.float32)
    scaled: F32 = drawn * np.float32(0.5)
    return scaled


def pad(sequences: Sequence[Int]) -> tuple[Int, Int]:
    """Right-padded [n_seq, n_new] and the lengths; the padding must be ignored."""
    lengths = np.array([len(sequence) for sequence in sequences], np.int64)
    tokens = np.full((len(sequences), int(lengths.max())), DIMS.n_vocab - 1, np.int64)
    for row, sequence in zip(tokens, sequences):
        row[: len(sequence)] = sequence
    return tokens, lengths
