"""Plans of one engine for one GPU, as ``Whisper.load(build_plans=True)`` builds them."""

from __future__ import annotations

from typing import Union

from whisper_opt.export.tensorrt.build import build_plans
from whisper_opt.export.tensorrt.token_check import token_check
from whisper_opt.runtime.engine import Engine
from whisper_opt.runtime.gpus import Gpu

__all__ = ["build_plans_for_gpu"]


def build_plans_for_gpu(engine: Engine, gpu: Gpu, library: Union[str, None]) -> None:
    """Build plans and compare their tokens with those of the ONNX engine.

    Args:
        engine: an fp16 engine of the ``standard`` dialect.
        gpu: the GPU that builds the plans and runs them.
        library: ``tensorrt`` or ``tensorrt-rtx``; None: the first that is installed.

    Raises:
        BackendUnavailable: no TensorRT is installed.
        EngineError: the plans cannot be built, or give other tokens.
    """
    build_plans(
        engine,
        library=library,
        gpus=["sm_{}{}".format(*gpu.sm)],
        device_index=gpu.index,
        check_tokens=token_check(gpu.index),
    )
