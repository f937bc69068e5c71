"""Lower bounds of a step and of the encoder: bytes, operations and measured rates."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from typing import Any, Callable

import numpy as np

from gpu.outcome import NotAvailableError
from whisper_opt.core.dims import ModelDims

__all__ = ["RATES", "Work", "encoder_work", "lower_bound", "step_work"]


@dataclasses.dataclass(frozen=True)
class Work:
    """Minimum bytes read, and floating-point operations."""

    bytes: int
    flop: int


def step_work(
    dims: ModelDims, n_audio: int, n_beam: int, n_past: int = 100, width: int = 2
) -> Work:
    """One decoding step of ``n_audio * n_beam`` rows after ``n_past`` tokens each.

    Weights are read once, cross-attention keys and values once per window, the self-attention
    cache once per row; ``width`` is the bytes per number.
    """
    state, layers, rows = dims.n_text_state, dims.n_text_layer, n_audio * n_beam
    weights = layers * 14 * state**2 + dims.n_vocab * state
    cross = 2 * layers * dims.n_audio_ctx * state
    past = 2 * layers * n_past * state
    return Work(
        width * (weights + n_audio * cross + rows * past), 2 * rows * (weights + cross + past)
    )


def encoder_work(dims: ModelDims, n_audio: int, width: int = 2) -> Work:
    """Encoding ``n_audio`` windows, and their cross-attention keys and values."""
    state, n_ctx = dims.n_audio_state, dims.n_audio_ctx
    blocks = dims.n_audio_layer * 12 * state**2
    cross = dims.n_text_layer * 2 * state**2
    convolutions = 3 * (2 * dims.n_mels * state + state**2)
    attention = dims.n_audio_layer * 2 * n_ctx**2 * state
    flop = 2 * n_audio * (n_ctx * (blocks + cross + convolutions) + attention)
    out = n_audio * dims.n_text_layer * 2 * n_ctx * state
    weights = blocks + cross + convolutions - 3 * dims.n_mels * state
    return Work(width * (weights + out), flop)


def lower_bound(work: Work, bytes_per_second: float, flop_per_second: float) -> float:
    """Minimum seconds of the work: the slower of reading and computing."""
    return max(work.bytes / bytes_per_second, work.flop / flop_per_second)


# ---------------------------------------------------------------- rates


def _best(run: Callable[[], float], rounds: int = 5) -> float:
    """The minimum of the seconds that ``run`` reports, after a warm-up."""
    run()
    return min(run() for _ in range(rounds))


def _rates(copied: int, copy: float, edge: int, product: float) -> dict[str, Any]:
    """A copy reads and writes every byte."""
    return {
        "bytes_per_second": 2 * copied / copy,
        "flop_per_second": 2 * edge**3 / product,
        "copied_bytes": copied,
        "product_edge": edge,
    }


def numpy_rates(index: int) -> dict[str, Any]:
    """Rates of the CPU in fp32, with numpy's threads, if there is no GPU."""
    source, edge = np.ones(1 << 24, np.float32), 1024
    target, matrix = np.empty_like(source), np.ones((edge, edge), np.float32)

    def timed(run: Callable[[], object]) -> float:
        begin = time.perf_counter()
        run()
        return time.perf_counter() - begin

    return _rates(
        source.nbytes,
        _best(lambda: timed(lambda: np.copyto(target, source))),
        edge,
        _best(lambda: timed(lambda: matrix @ matrix)),
    )


def torch_rates(index: int) -> dict[str, Any]:
    """Rates of a GPU by torch: a copy of 1 GiB, an fp16 product of size 8192."""
    try:
        import torch
    except ImportError as error:
        raise NotAvailableError(f"torch does not import: {error}") from error
    if not torch.cuda.is_available():
        raise NotAvailableError("torch finds no GPU")
    device, edge, n_bytes = torch.device("cuda", index), 8192, 1 << 30
    source = torch.empty(n_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    matrix = torch.randn(edge, edge, dtype=torch.float16, device=device)

    def timed(run: Callable[[], object], times: int = 10) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(times):
            run()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3 / times

    with torch.cuda.device(device):
        return _rates(
            n_bytes,
            _best(lambda: timed(lambda: target.copy_(source))),
            edge,
            _best(lambda: timed(lambda: torch.matmul(matrix, matrix))),
        )


def bindings_rates(index: int) -> dict[str, Any]:
    """Rates of a GPU: the copy by cuda-bindings, the product by ONNX Runtime's MatMul."""
    n_bytes, edge = 1 << 30, 8192
    return _rates(n_bytes, _copy_seconds(index, n_bytes), edge, _product_seconds(index, edge))


def _copy_seconds(index: int, n_bytes: int) -> float:
    try:
        from cuda.bindings import runtime as cuda
    except ImportError as error:
        raise NotAvailableError(f"neither torch nor cuda-bindings imports: {error}") from error

    def checked(result: Any) -> Any:
        status, *values = result
        if int(status):
            raise RuntimeError(f"CUDA error {int(status)}")
        return values[0] if values else None

    checked(cuda.cudaSetDevice(index))
    source, target = (checked(cuda.cudaMalloc(n_bytes)) for _ in range(2))
    begin, end = (checked(cuda.cudaEventCreate()) for _ in range(2))
    kind = cuda.cudaMemcpyKind.cudaMemcpyDeviceToDevice

    def timed(times: int = 10) -> float:
        checked(cuda.cudaEventRecord(begin, 0))
        for _ in range(times):
            checked(cuda.cudaMemcpyAsync(target, source, n_bytes, kind, 0))
        checked(cuda.cudaEventRecord(end, 0))
        checked(cuda.cudaEventSynchronize(end))
        return float(checked(cuda.cudaEventElapsedTime(begin, end))) / 1e3 / times

    try:
        return _best(timed)
    finally:
        for pointer in (source, target):
            cuda.cudaFree(pointer)


def _product_seconds(index: int, edge: int) -> float:
    """Chained products, so that the overhead of a call is small."""
    import onnxruntime
    from onnx import TensorProto, helper

    chain, half = 16, TensorProto.FLOAT16
    names = ["a", *(f"v{i}" for i in range(chain - 1)), "out"]
    nodes = [helper.make_node("MatMul", [x, "b"], [y]) for x, y in zip(names, names[1:])]
    values = [helper.make_tensor_value_info(name, half, [edge, edge]) for name in ("a", "b", "out")]
    graph = helper.make_graph(nodes, "products", values[:2], values[2:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    if hasattr(onnxruntime, "preload_dlls"):  # CUDA from its Python packages
        onnxruntime.preload_dlls()
    session = onnxruntime.InferenceSession(
        model.SerializeToString(),
        providers=[("CUDAExecutionProvider", {"device_id": str(index)})],
    )
    if "CUDAExecutionProvider" not in session.get_providers():
        raise NotAvailableError("ONNX Runtime does not run on CUDA here")
    matrix = onnxruntime.OrtValue.ortvalue_from_numpy(
        np.full((edge, edge), edge**-0.5, np.float16), "cuda", index
    )
    binding = session.io_binding()
    for name in ("a", "b"):
        binding.bind_ortvalue_input(name, matrix)
    binding.bind_output("out", "cuda", index)

    def timed() -> float:
        begin = time.perf_counter()
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        return (time.perf_counter() - begin) / chain

    return _best(timed)


def _each() -> Iterator[tuple[str, Callable[[int], dict[str, Any]]]]:
    yield "torch", torch_rates
    yield "bindings", bindings_rates
    yield "numpy", numpy_rates


RATES = dict(_each())
"""Functions of a device index that measure its rates, by name."""
