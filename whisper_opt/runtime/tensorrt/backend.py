"""The TensorRT backend: finds, loads and runs the plans of an engine."""

from __future__ import annotations

from whisper_opt.core.errors import BackendUnavailable, EngineError
from whisper_opt.runtime.device.backend import DeviceBackend
from whisper_opt.runtime.engine import Engine
from whisper_opt.runtime.gpus import Gpu
from whisper_opt.runtime.tensorrt.executor import TrtExecutor
from whisper_opt.runtime.tensorrt.library import LIBRARIES, Library, load_library
from whisper_opt.runtime.tensorrt.plan_record import Target
from whisper_opt.runtime.tensorrt.plans import Plans, open_plans

__all__ = ["TrtBackend", "find_plans", "target_of"]


def target_of(library: Library, gpu: Gpu) -> Target:
    """The target of plans that run on a GPU of this machine."""
    return Target(library.name, library.version, ("sm_{}{}".format(*gpu.sm),), gpu.name)


def find_plans(engine: Engine, gpu: Gpu, name: str | None = None) -> tuple[Library, Plans]:
    """Find usable plans and the library that runs them.

    Args:
        engine: an opened fp16 engine of the ``standard`` dialect.
        gpu: the GPU to run them on.
        name: ``tensorrt`` or ``tensorrt-rtx``; None: the first that works and has plans.

    Raises:
        BackendUnavailable: no usable library.
        EngineError: no usable plans; the message has the reason and the command that builds them.
    """
    problems: list[BackendUnavailable | EngineError] = []
    for known in (name,) if name else LIBRARIES:
        found = _plans(engine, gpu, known)
        if not isinstance(found, Exception):
            return found
        problems.append(found)
    plans_missing = [problem for problem in problems if isinstance(problem, EngineError)]
    if plans_missing:
        raise plans_missing[0]
    raise BackendUnavailable("; ".join(map(str, problems)))


def _plans(
    engine: Engine, gpu: Gpu, name: str
) -> tuple[Library, Plans] | BackendUnavailable | EngineError:
    try:
        library = load_library(name)
        return library, open_plans(engine, target_of(library, gpu))
    except (BackendUnavailable, EngineError) as error:
        return error


class TrtBackend(DeviceBackend):
    """Runs the TensorRT plans of an engine on an NVIDIA GPU."""

    def __init__(
        self,
        engine: Engine,
        gpu: Gpu,
        *,
        library: str | None = None,
        cuda_graphs: bool = True,
    ) -> None:
        """Load the plans.

        Args:
            engine: an opened fp16 engine of the ``standard`` dialect, with plans for this GPU.
            gpu: the GPU.
            library: ``tensorrt`` or ``tensorrt-rtx``; None: the first that works and has plans.
            cuda_graphs: replay decoding steps as CUDA graphs.

        Raises:
            BackendUnavailable: TensorRT, cuda-bindings or the GPU is missing.
            EngineError: there are no usable plans, or the library cannot load one.
        """
        found, plans = find_plans(engine, gpu, library)
        executor = TrtExecutor(
            found,
            plans.read,
            graphs=plans.graphs,
            device_index=gpu.index,
            cuda_graphs=cuda_graphs,
            spec=plans.record.spec,
        )
        super().__init__(executor, engine.manifest.dims)
