"""Graphs of an engine, loaded into ONNX Runtime."""

from __future__ import annotations

import functools
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from whisper_opt.core.cpu import cpu_info
from whisper_opt.core.errors import BackendUnavailable, EngineError
from whisper_opt.core.remedies import install_hint
from whisper_opt.runtime.device.executor import Tensor
from whisper_opt.runtime.engine import Engine
from whisper_opt.runtime.native import copies_panels, has_vnni, kernel_library
from whisper_opt.runtime.onnxruntime.fork import keep_after_fork
from whisper_opt.runtime.onnxruntime.mapped import release_pages

__all__ = [
    "failed_run",
    "graph_tensors",
    "import_onnxruntime",
    "load_graph",
    "session_options",
    "sums_overflow",
]


def import_onnxruntime() -> Any:
    """The module ``onnxruntime``; raises BackendUnavailable if it cannot be imported."""
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendUnavailable(
            f"ONNX Runtime is not installed; it is needed to run engines; {install_hint('cpu')}"
        ) from error
    return onnxruntime


@functools.lru_cache(maxsize=1)
def sums_overflow() -> bool:
    """Whether products of 8-bit integers may overflow 16-bit sums here: x86 processors before VNNI.

    ONNX Runtime has exact kernels for them, at about three quarters of the speed. They must be
    enabled explicitly, and would then be used on every x86 processor. The compiled kernels ask the
    processor; without them, the system may list its instruction sets. Exact kernels are enabled if
    both are missing.
    """
    if platform.machine().lower() not in ("x86_64", "amd64", "i386", "i686"):
        return False
    vnni = has_vnni()
    if vnni is not None:
        return not vnni
    flags = cpu_info().flags
    return "avx512_vnni" not in flags and "avx_vnni" not in flags


def session_options(threads: int | None = None) -> Any:
    """Options of every inference session; ``threads`` within an operator, default: ONNX Runtime's.

    Raises:
        BackendUnavailable: ONNX Runtime is missing.
    """
    options = import_onnxruntime().SessionOptions()
    options.log_severity_level = 3
    options.inter_op_num_threads = 1
    if threads is not None:
        options.intra_op_num_threads = threads
    # the graphs alternate: threads that keep spinning after a run would slow the other graph
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if sums_overflow():
        options.add_session_config_entry("session.x64quantprecision", "1")
    return options


def load_graph(
    engine: Engine,
    name: str,
    threads: int | None = None,
    providers: Sequence[Any] = ("CPUExecutionProvider",),
    *,
    kernels: bool = False,
) -> Any:
    """An inference session for one graph of an engine.

    Args:
        engine: an opened engine directory.
        name: file of the graph.
        threads: threads within an operator; default: ONNX Runtime's choice.
        providers: execution providers; operators that the first does not support run on the next
            one, finally on the CPU.
        kernels: use compiled kernels (:mod:`whisper_opt.runtime.native`), if possible.

    Raises:
        BackendUnavailable: ONNX Runtime is missing, too old for the engine's dialect, or cannot
            load the kernels.
        EngineError: the graph cannot be loaded.
    """
    runtime = import_onnxruntime()
    options = session_options(threads)
    library = kernel_library() if kernels else None
    if library is not None:
        _register(runtime, options, library)
    try:
        session = runtime.InferenceSession(
            str(engine.file(name)), options, providers=list(providers)
        )
    except Exception as error:  # the runtime's errors share no base class
        reason = str(error).splitlines()[0][:300]
        too_new = any(word in str(error).lower() for word in ("opset", "ir version"))
        if engine.manifest.dialect == "standard" and too_new:
            raise BackendUnavailable(
                f"ONNX Runtime {runtime.__version__} cannot run the standard dialect of"
                f" {engine.path} (opset 24); it needs 1.24 or later, or an engine exported"
                " with --dialect contrib"
            ) from error
        raise EngineError(
            f"ONNX Runtime {runtime.__version__} cannot load {engine.file(name)}: {reason}"
        ) from error
    if library is not None and _copies_weights(engine, name):
        release_pages([engine.file(f"{name.partition('.')[0]}.data")])
    _check_dims(session, engine, name)
    keep_after_fork(session)
    return session


def _copies_weights(engine: Engine, name: str) -> bool:
    """Whether kernels copy most weights of a graph: every variant copies those of 4 bits."""
    has_4_bits = engine.manifest.precision == "int4" and name.startswith("decoder")
    return has_4_bits or copies_panels()


def failed_run(error: Exception) -> EngineError:
    """The exception to raise for an error of ONNX Runtime while it runs a graph."""
    lines = str(error).splitlines() or [type(error).__name__]
    return EngineError(f"ONNX Runtime failed: {lines[0][:300]}")


def _register(runtime: Any, options: Any, library: Path) -> None:
    """Register the compiled kernels with a session."""
    try:
        options.register_custom_ops_library(str(library))
    except Exception as error:  # the runtime's errors share no base class
        reason = (str(error).splitlines() or [type(error).__name__])[0][:300]
        raise BackendUnavailable(
            f"ONNX Runtime {runtime.__version__} cannot load the compiled kernels {library}:"
            f" {reason}; compile them again (python hatch_build.py), or load with kernels='off'"
        ) from error


def _check_dims(session: Any, engine: Engine, name: str) -> None:
    """Raise EngineError if the sizes of a graph differ from the manifest."""
    dims = engine.manifest.dims
    inputs = {value.name: value.shape for value in session.get_inputs()}
    outputs = {value.name: value.shape for value in session.get_outputs()}
    for side in (inputs, outputs):
        for prefix in ("cross_k_", "self_k_"):
            n_layers = sum(key.startswith(prefix) and key[-1].isdigit() for key in side)
            if n_layers not in (0, dims.n_text_layer):
                raise _other_size(engine, name, "n_text_layer", n_layers)
    if "mel" in inputs and inputs["mel"][1] != dims.n_mels:
        raise _other_size(engine, name, "n_mels", inputs["mel"][1])
    if "logits" in outputs and outputs["logits"][-1] != dims.n_vocab:
        raise _other_size(engine, name, "n_vocab", outputs["logits"][-1])


def _other_size(engine: Engine, name: str, dimension: str, found: object) -> EngineError:
    expected = getattr(engine.manifest.dims, dimension)
    return EngineError(
        f"{engine.file(name)} has {dimension} {found}; the manifest says {expected}: they belong"
        " to different models; export the engine again"
    )


_TYPES: Mapping[str, type[np.generic]] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_,
}


def graph_tensors(session: Any) -> dict[str, Tensor]:
    """Inputs and outputs of a graph by name."""
    found = {}
    for value in [*session.get_inputs(), *session.get_outputs()]:
        shape = tuple(size if isinstance(size, int) else -1 for size in value.shape)
        found[value.name] = Tensor(np.dtype(_TYPES[value.type]), shape)
    return found
