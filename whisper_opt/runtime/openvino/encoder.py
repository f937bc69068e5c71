"""The encoder in OpenVINO, for CPUs that multiply bfloat16 or 8-bit numbers faster than float32.

It loads the encoder graph of an fp32 engine, in either dialect. In ``bf16``, OpenVINO rounds
weights and activations. In ``int8``, the weights of all matrix multiplications are packed when the
engine is loaded (:mod:`whisper_opt.runtime.openvino.int8`), and OpenVINO rounds the activations. It
does so per position and per group of adjacent channels, so that outliers in one channel do not
reduce the precision of the others. Attention, normalization and convolutions stay float32.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from whisper_opt.core.arrays import F32, NDArray
from whisper_opt.core.dims import HEAD_DIM, ModelDims
from whisper_opt.core.errors import BackendUnavailable, EngineError, WhisperOptError
from whisper_opt.core.remedies import install_hint
from whisper_opt.runtime.engine import Engine
from whisper_opt.runtime.openvino.int8 import pack_matmuls

__all__ = ["OpenVinoEncoder", "capabilities", "compiled", "import_openvino"]

HINTS: Mapping[str, str] = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}
"""OpenVINO's precision hint for operators that are not packed."""


def import_openvino() -> Any:
    """Import OpenVINO; raises BackendUnavailable if that fails."""
    try:
        import openvino
    except ImportError as error:
        raise BackendUnavailable(
            f"OpenVINO cannot be imported ({error}); it is needed for an encoder in bf16 or int8;"
            f" {install_hint('openvino')} (Python 3.10 or later)"
        ) from error
    return openvino


def capabilities(core: Any) -> tuple[str, ...]:
    """Arithmetic that OpenVINO finds on this CPU, such as ``BF16`` and ``INT8``."""
    return tuple(core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"))


def compiled(core: Any, model: Any, precision: str, threads: int | None) -> Any:
    """Compile a model for the CPU and return an inference request.

    Args:
        core: ``openvino.Core``.
        model: ``openvino.Model`` in float32; for ``int8`` its weights are packed in place.
        precision: ``fp32``, ``bf16`` or ``int8``.
        threads: number of threads; None: OpenVINO's default (one per physical core).
    """
    settings: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": HINTS[precision],
        "PERFORMANCE_HINT": "LATENCY",
        # with pinning, several processes would share the same cores; one process gains nothing
        "ENABLE_CPU_PINNING": False,
    }
    if threads is not None:
        settings["INFERENCE_NUM_THREADS"] = threads
    if precision == "int8":
        settings["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = pack_matmuls(model)
    return core.compile_model(model, "CPU", settings).create_infer_request()


class OpenVinoEncoder:
    """The encoder of one engine, called like a session of ONNX Runtime (:meth:`run`)."""

    def __init__(self, engine: Engine, precision: str, *, threads: int | None = None) -> None:
        """Read and compile the graph.

        Args:
            engine: an opened fp32 engine.
            precision: ``bf16`` or ``int8``; ``fp32`` for comparison.
            threads: as for :func:`compiled`.

        Raises:
            BackendUnavailable: OpenVINO is missing or too old, or this CPU has no bfloat16
                arithmetic.
            EngineError: the engine is not fp32, or OpenVINO cannot load the graph.
        """
        runtime = import_openvino()
        manifest = engine.manifest
        if manifest.precision != "fp32":
            raise EngineError(
                f"this engine is {manifest.precision}; an encoder in {precision} needs fp32"
                " weights: whisper-opt export SOURCE DIR --precision fp32"
            )
        core = runtime.Core()
        self._dims: ModelDims = manifest.dims
        found = capabilities(core)
        if precision == "bf16" and "BF16" not in found:
            raise BackendUnavailable(
                f"this CPU has no bfloat16 arithmetic (OpenVINO finds {', '.join(found)}); use int8"
                " or the engine's own precision"
            )
        path = engine.file("encoder.onnx")
        try:
            self._request = compiled(core, core.read_model(path), precision, threads)
        except Exception as error:  # not all of OpenVINO's errors are RuntimeError
            raise _load_error(runtime.__version__, path, error) from error
        self._tensor = runtime.Tensor
        self._lock = threading.Lock()

    def run(self, names: Sequence[str], feeds: Mapping[str, NDArray]) -> list[F32]:
        """Encode log-mel windows into new arrays.

        Args:
            names: names of the outputs to return.
            feeds: ``mel``, float32 [n_audio, n_mels, n_frames].

        Raises:
            EngineError: OpenVINO failed.
        """
        mel = feeds["mel"]
        outputs = [np.empty(self._shape(name, mel), np.float32) for name in names]
        with self._lock:
            try:
                # OpenVINO writes into these arrays, so base's 37 MB per window are not copied
                for name, array in zip(names, outputs):
                    self._request.set_tensor(name, self._tensor(array, shared_memory=True))
                self._request.infer({"mel": mel}, share_inputs=True, share_outputs=True)
            except Exception as error:
                raise EngineError(f"OpenVINO failed: {_first_line(error)}") from error
        return outputs

    def _shape(self, name: str, mel: NDArray) -> tuple[int, ...]:
        n_ctx = -(-mel.shape[2] // self._dims.frames_per_position)
        tail = (HEAD_DIM, n_ctx) if name.startswith("cross_k") else (n_ctx, HEAD_DIM)
        return (len(mel), self._dims.n_text_head, *tail)


def _load_error(version: str, path: Path, error: Exception) -> WhisperOptError:
    """The error for a graph that does not load."""
    reason = _first_line(error)
    if any(words in str(error) for words in ("does not support the following", "No conversion")):
        return BackendUnavailable(
            f"OpenVINO {version} is too old for {path} ({reason});"
            f" {install_hint('openvino', arguments='--upgrade')} (Python 3.10 or later)"
        )
    return EngineError(f"OpenVINO {version} cannot load {path}: {reason}")


def _first_line(error: Exception) -> str:
    """The most informative line of an OpenVINO error; the first lines name source files."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    useful = [line for line in lines if not line.startswith(("Exception from", "Check '"))]
    useful.sort(key=lambda line: "operations:" not in line)  # the sort is stable
    return (useful or lines or [type(error).__name__])[0][:300]
