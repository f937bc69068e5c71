"""The encoder in OpenVINO, for CPUs that multiply bfloat16 or 8-bit numbers faster than float32.

It reads the encoder of an fp32 engine, in either dialect, as it lies on disk. ``bf16`` is
OpenVINO's own rounding of weights and activations. ``int8`` packs the weights of all products when
the engine is loaded (``openvino_int8.py``) and lets OpenVINO round the activations, of every
position and in groups of neighbouring channels, so that one loud channel does not cost the others
their precision. Attention, normalization and convolutions stay float32 in ``int8``.
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
from whisper_opt.runtime.engine import Engine
from whisper_opt.runtime.openvino.int8 import pack_matmuls

__all__ = ["OpenVinoEncoder", "capabilities", "compiled", "import_openvino"]

HINTS: Mapping[str, str] = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}
"""What OpenVINO is told of the arithmetic of everything that is not packed."""


def import_openvino() -> Any:
    """OpenVINO; raises BackendUnavailable where it does not import."""
    try:
        import openvino
    except ImportError as error:
        raise BackendUnavailable(
            f"OpenVINO does not import ({error}), and it is what computes an encoder in bf16 or"
            " int8; pip install 'whisper-opt[openvino]' (Python 3.10 or later)"
        ) from error
    return openvino


def capabilities(core: Any) -> tuple[str, ...]:
    """Arithmetic that OpenVINO says this CPU has, such as ``BF16`` and ``INT8``."""
    return tuple(core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"))


def compiled(core: Any, model: Any, precision: str, threads: int | None) -> Any:
    """An inference request for a model on the CPU.

    Args:
        core: ``openvino.Core``.
        model: ``openvino.Model`` in float32; its products are packed in place for ``int8``.
        precision: ``fp32``, ``bf16`` or ``int8``.
        threads: how many; None leaves the choice to OpenVINO (one a physical core).
    """
    settings: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": HINTS[precision],
        "PERFORMANCE_HINT": "LATENCY",
        # pinned, several processes would crowd the same cores; alone it changes nothing
        "ENABLE_CPU_PINNING": False,
    }
    if threads is not None:
        settings["INFERENCE_NUM_THREADS"] = threads
    if precision == "int8":
        settings["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = pack_matmuls(model)
    return core.compile_model(model, "CPU", settings).create_infer_request()


class OpenVinoEncoder:
    """The encoder of one engine; called as ONNX Runtime calls its sessions (:meth:`run`)."""

    def __init__(self, engine: Engine, precision: str, *, threads: int | None = None) -> None:
        """Read and compile the graph.

        Args:
            engine: an opened fp32 engine.
            precision: ``bf16`` or ``int8``; ``fp32`` to compare with.
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
                f"this engine is {manifest.precision}; an encoder is computed in {precision} from"
                " fp32 weights: whisper-opt export SOURCE DIR --precision fp32"
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
        except Exception as error:  # OpenVINO's errors are RuntimeError, and not only that
            raise _load_error(runtime.__version__, path, error) from error
        self._tensor = runtime.Tensor
        self._lock = threading.Lock()

    def run(self, names: Sequence[str], feeds: Mapping[str, NDArray]) -> list[F32]:
        """Keys and values of new arrays.

        Args:
            names: outputs, of those that the graph has.
            feeds: ``mel``, float32 [n_audio, n_mels, n_frames].

        Raises:
            EngineError: OpenVINO failed.
        """
        mel = feeds["mel"]
        outputs = [np.empty(self._shape(name, mel), np.float32) for name in names]
        with self._lock:
            try:
                # OpenVINO writes where the result shall be: base's 37 MB a window are not copied
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
    """What to raise for a graph that does not load."""
    reason = _first_line(error)
    if any(words in str(error) for words in ("does not support the following", "No conversion")):
        return BackendUnavailable(
            f"OpenVINO {version} is too old for {path} ({reason}); pip install --upgrade"
            " 'whisper-opt[openvino]' (Python 3.10 or later)"
        )
    return EngineError(f"OpenVINO {version} cannot load {path}: {reason}")


def _first_line(error: Exception) -> str:
    """The line of an OpenVINO error that says most: the first ones name source files."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    said = [line for line in lines if not line.startswith(("Exception from", "Check '"))]
    said.sort(key=lambda line: "operations:" not in line)  # the others stay in order
    return (said or lines or [type(error).__name__])[0][:300]
