"""ONNX Runtime on an NVIDIA GPU: the graphs of an engine, bound to device memory.

The sessions are those of every device (:mod:`whisper_opt.runtime.device.session`): caches stay on
the GPU and are written in place, tokens are chosen there, and a step copies a few bytes each way.
This module has the :class:`~whisper_opt.runtime.device.executor.Executor` of ONNX Runtime's CUDA
provider. Its TensorRT provider (TensorRT 10) can run the encoder.

CUDA graphs are not used. A captured graph allows no copies between host and device and no work on
the CPU, but ``GroupQueryAttention`` reads the total length from the host, and it changes at every
step.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from whisper_opt.core.dims import N_FRAMES, ModelDims
from whisper_opt.core.errors import BackendUnavailable, EngineError
from whisper_opt.core.remedies import install_hint
from whisper_opt.runtime.cuda.runtime import Copies, Cuda, DeviceBlock, PinnedBlock
from whisper_opt.runtime.device.backend import DeviceBackend
from whisper_opt.runtime.device.executor import GRAPHS, OPTIONAL, Buffer, GraphSequence, Tensor
from whisper_opt.runtime.device.session import DeviceSession
from whisper_opt.runtime.engine import Engine
from whisper_opt.runtime.gpus import find_gpus
from whisper_opt.runtime.head_names import APPROXIMATE, APPROXIMATE_SCORES, EXACT, HIDDEN
from whisper_opt.runtime.onnxruntime.graph import graph_tensors, import_onnxruntime, load_graph

__all__ = ["CudaBackend", "OrtExecutor", "cuda_providers"]

_log = logging.getLogger(__name__)

ENCODER_BATCH = 16
"""Largest batch of windows of the TensorRT provider's encoder."""
RESERVE = 256 << 20
"""GPU memory in bytes that is left to ONNX Runtime for intermediate tensors."""
_TWO_STAGE = (EXACT, APPROXIMATE, APPROXIMATE_SCORES, HIDDEN)
"""Inputs and outputs of the two-stage head, which is for the CPU; here all scores are exact."""


def cuda_providers(device_index: int) -> list[Any]:
    """The CUDA execution provider with its options, as ONNX Runtime takes them.

    Matrix multiplications keep the types of the graph (no TF32). There is no search for convolution
    algorithms at the first run of every shape. The arena grows by the requested size only, since
    most memory is allocated outside it.
    """
    options = {
        "device_id": str(device_index),
        "arena_extend_strategy": "kSameAsRequested",
        "cudnn_conv_algo_search": "HEURISTIC",
        "use_tf32": "0",
    }
    return [("CUDAExecutionProvider", options)]


def tensorrt_providers(engine: Engine, device_index: int) -> list[Any]:
    """The TensorRT execution provider for the encoder, with CUDA for unsupported operators.

    It has one profile, from one window to ``ENCODER_BATCH``. TensorRT engines and timings are
    cached beside the ONNX engine, in one directory per GPU architecture and ONNX Runtime version.
    """
    n_mels = engine.manifest.dims.n_mels
    shapes = {"min": 1, "opt": 1, "max": ENCODER_BATCH}
    options = {
        "device_id": str(device_index),
        "trt_fp16_enable": "True",
        "trt_layer_norm_fp32_fallback": "True",
        **{
            f"trt_profile_{end}_shapes": f"mel:{n}x{n_mels}x{N_FRAMES}" for end, n in shapes.items()
        },
    }
    cache = _cache_directory(engine, device_index)
    if cache is not None:
        for kind in ("engine", "timing"):
            options[f"trt_{kind}_cache_enable"] = "True"
            options[f"trt_{kind}_cache_path"] = str(cache)
    return [("TensorrtExecutionProvider", options), *cuda_providers(device_index)]


def _cache_directory(engine: Engine, device_index: int) -> Path | None:
    gpus = find_gpus().gpus
    gpu = "sm{}{}".format(*gpus[device_index].sm) if device_index < len(gpus) else "gpu"
    version = import_onnxruntime().__version__
    path = engine.path / "ort" / f"{gpu}-onnxruntime-{version}"
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        _log.warning("TensorRT engines of ONNX Runtime cannot be kept in %s: %s", path, error)
        return None
    if os.access(path, os.W_OK):
        return path
    _log.warning("TensorRT engines of ONNX Runtime cannot be kept in %s: not writable", path)
    return None


class _Bound:
    """A graph and the buffers bound to it."""

    def __init__(
        self, executor: OrtExecutor, stream: _Stream, graph: str, buffers: Mapping[str, Buffer]
    ) -> None:
        self._stream, self._session = stream, executor.session(graph)
        self._io = self._session.io_binding()
        self._keep = dict(buffers)  # bound by address: must outlive the binding
        device = executor.device
        inputs = [value.name for value in self._session.get_inputs()]
        for name, buffer in buffers.items():
            bind = self._io.bind_input if name in inputs else self._io.bind_output
            bind(name, *device, buffer.dtype.type, buffer.shape, buffer.address)
        if APPROXIMATE in inputs:
            every = np.arange(buffers["at"].shape[1])
            self._io.bind_cpu_input(EXACT, every)
            self._io.bind_cpu_input(APPROXIMATE, every[:0])
            for name in (APPROXIMATE_SCORES, HIDDEN):
                self._io.bind_output(name, *device)

    def run(self) -> None:
        self._stream.synchronize()  # ONNX Runtime uses another stream
        try:
            self._session.run_with_iobinding(self._io)
            self._io.synchronize_outputs()
        except Exception as error:  # the runtime's errors share no base class
            reason = str(error).splitlines()[0][:300]
            raise EngineError(f"ONNX Runtime failed on the GPU: {reason}") from error

    def close(self) -> None:
        self._keep.clear()


class _BoundSequence:
    """Bound graphs that run one after another, followed by copies to the host."""

    def __init__(self, stream: _Stream, runs: Sequence[_Bound], sequence: GraphSequence) -> None:
        self._stream, self._runs, self._downloads = stream, runs, list(sequence.downloads)

    def run(self) -> None:
        for bound in self._runs:
            bound.run()
        for target, source in self._downloads:
            self._stream.download(target, source)

    def close(self) -> None:
        self._downloads.clear()
        for bound in self._runs:
            bound.close()


class _Stream(Copies):
    """A stream of copies, and of graph runs that wait for the copies before them."""

    def __init__(self, executor: OrtExecutor) -> None:
        super().__init__(executor.cuda)
        self._executor = executor

    def run(self, graph: str, buffers: Mapping[str, Buffer]) -> None:
        _Bound(self._executor, self, graph, buffers).run()

    def bind(self, sequence: GraphSequence) -> _BoundSequence:
        runs = [_Bound(self._executor, self, graph, buffers) for graph, buffers in sequence.runs]
        return _BoundSequence(self, runs, sequence)


class OrtExecutor:
    """Implements :class:`whisper_opt.runtime.device.executor.Executor`."""

    def __init__(
        self,
        sessions: Mapping[str, Any],
        cuda: Cuda,
        device: tuple[str, int],
        encoder_batch: int | None = None,
    ) -> None:
        """Use loaded graphs.

        Args:
            sessions: inference sessions of ``GRAPHS`` and any of ``OPTIONAL``, by name.
            cuda: the GPU.
            device: name of the device in ONNX Runtime, and its index: ``("cuda", 0)``.
            encoder_batch: largest batch of the encoder, of whole windows; None: no limit.
        """
        self._sessions, self.cuda, self.device = dict(sessions), cuda, device
        self._encoder_batch = encoder_batch
        self.graphs = tuple(sessions)
        self._tensors = {
            name: {
                value: tensor
                for value, tensor in graph_tensors(session).items()
                if value not in _TWO_STAGE
            }
            for name, session in sessions.items()
        }

    def session(self, graph: str) -> Any:
        """The inference session of a graph."""
        return self._sessions[graph]

    def tensors(self, graph: str) -> Mapping[str, Tensor]:
        return self._tensors[graph]

    def fits(self, graph: str, shapes: Mapping[str, Sequence[int]]) -> bool:
        if graph != "encoder" or self._encoder_batch is None:
            return True
        n_audio, _, n_frames = shapes["mel"]
        return n_audio <= self._encoder_batch and n_frames == N_FRAMES

    def allocate(self, n_bytes: int) -> DeviceBlock:
        return DeviceBlock(self.cuda, n_bytes)

    def pin(self, n_bytes: int) -> PinnedBlock:
        return PinnedBlock(self.cuda, n_bytes)

    def available(self) -> int:
        free, _ = self.cuda("cudaMemGetInfo")
        return max(int(free) - RESERVE, 0)

    def stream_memory(self, graphs: Sequence[str]) -> int:
        return 0

    def open_stream(self, graphs: Sequence[str]) -> _Stream:
        return _Stream(self)

    def close(self) -> None:
        self._sessions.clear()


class _OneByOne(DeviceSession):
    """A session that feeds several tokens at once only to an empty cache, otherwise one by one.

    ``GroupQueryAttention`` of ONNX Runtime 1.19 is wrong for several tokens on a non-empty cache.
    """

    extends_at_once = False

    def _tokens_per_call(self, n_new: int, n_at: int, *, aligned: bool) -> int:
        return 1 if self._layout.length.any() else n_new


class OrtDeviceBackend(DeviceBackend):
    """A model over an :class:`OrtExecutor`."""

    def __init__(self, executor: OrtExecutor, dims: ModelDims, dialect: str) -> None:
        """``dialect``: dialect of the decoder graph."""
        super().__init__(executor, dims)
        if dialect == "contrib":
            self.session_type = _OneByOne


class CudaBackend(OrtDeviceBackend):
    """Runs an fp16 engine on an NVIDIA GPU with ONNX Runtime."""

    def __init__(
        self,
        engine: Engine,
        *,
        device_index: int = 0,
        threads: int | None = None,
        tensorrt_provider: bool = False,
        runtime: Any = None,
    ) -> None:
        """Load the graphs.

        Args:
            engine: an opened engine directory, fp16.
            device_index: index of the GPU.
            threads: threads for operators on the CPU; None: ONNX Runtime's default.
            tensorrt_provider: let ONNX Runtime's TensorRT provider run the encoder.
            runtime: replaces ``cuda.bindings.runtime`` in tests.

        Raises:
            BackendUnavailable: ONNX Runtime cannot use CUDA, or TensorRT, on this machine.
            EngineError: a graph is missing or cannot be loaded.
        """
        lacking = [name for name in GRAPHS if f"{name}.onnx" not in engine.manifest.files]
        if lacking:
            raise EngineError(
                f"{engine.path} has no {lacking[0]}.onnx, which a GPU needs; export it again with"
                " --precision fp16"
            )
        onnxruntime = import_onnxruntime()
        if hasattr(onnxruntime, "preload_dlls"):  # 1.21 and later: CUDA from its Python packages
            onnxruntime.preload_dlls()
        on_cuda = cuda_providers(device_index)
        sessions = {}
        more = (name for name in OPTIONAL if f"{name}.onnx" in engine.manifest.files)
        for name in (*GRAPHS, *more):
            with_tensorrt = tensorrt_provider and name == "encoder"
            providers = tensorrt_providers(engine, device_index) if with_tensorrt else on_cuda
            sessions[name] = load_graph(engine, f"{name}.onnx", threads, providers)
            _check_provider(sessions[name], providers)
        executor = OrtExecutor(
            sessions,
            Cuda(device_index, runtime),
            ("cuda", device_index),
            ENCODER_BATCH if tensorrt_provider else None,
        )
        super().__init__(executor, engine.manifest.dims, engine.manifest.dialect)


def _check_provider(session: Any, providers: Sequence[Any]) -> None:
    """Raise if a provider was dropped: ONNX Runtime only writes a line to standard error."""
    wanted, found = providers[0][0], session.get_providers()
    if wanted in found:
        return
    libraries = "TensorRT 10" if wanted.startswith("Tensorrt") else "CUDA and cuDNN"
    raise BackendUnavailable(
        f"ONNX Runtime could not load its {wanted} (it has {', '.join(found)}); it needs the"
        f" libraries of {libraries} that it was built for: {install_hint('cuda13', 'cuda12')}, and"
        " see what it wrote to standard error"
    )
