"""Check of new plans: their tokens against those of the ONNX engine.

A compiler may build without errors and compute something else, so plans are run before use.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, Callable

from whisper_opt.core.errors import BackendUnavailable
from whisper_opt.runtime.device.backend import DeviceBackend
from whisper_opt.runtime.engine import Engine
from whisper_opt.runtime.onnxruntime.backend import OrtBackend
from whisper_opt.runtime.tensorrt.executor import TrtExecutor
from whisper_opt.runtime.tensorrt.library import load_library
from whisper_opt.runtime.tensorrt.plans import Plans
from whisper_opt.text.vocabulary import Vocab

__all__ = ["token_check"]


def token_check(device_index: int = 0) -> Callable[[Engine, Plans], Mapping[str, Any]]:
    """A function that compares plans on a GPU with their engine in ONNX Runtime on the CPU.

    Args:
        device_index: the GPU that runs the plans.

    Returns:
        A function of an engine and its plans, for ``build_plans``. It raises EngineError if the
        plans cannot be run, and returns the status ``not checked`` if a package is missing.
    """
    return functools.partial(_check_tokens, device_index=device_index)


def _check_tokens(engine: Engine, plans: Plans, *, device_index: int) -> Mapping[str, Any]:
    from whisper_opt.export.verification.compare import compare_backends  # needs onnx

    try:
        reference = OrtBackend(engine)
        library = load_library(plans.record.target.library)
        spec = plans.record.spec
        executor = TrtExecutor(
            library, plans.read, graphs=plans.graphs, device_index=device_index, spec=spec
        )
    except BackendUnavailable as error:
        return {"status": "not checked", "detail": str(error)}
    dims = engine.manifest.dims
    vocab = Vocab(engine.tokenizer_json(), dims, engine.manifest.is_multilingual)
    ours = DeviceBackend(executor, dims)
    try:
        return compare_backends(reference, ours, vocab)
    finally:
        ours.close()
