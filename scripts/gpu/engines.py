"""Engines and plans of random checkpoints, and ways to run them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Callable, Union

from gpu.outcome import NotAvailableError
from gpu.sizes import SIZES, random_checkpoint
from whisper_opt.core.backend import Backend
from whisper_opt.core.errors import BackendUnavailable, EngineError
from whisper_opt.core.options import LIBRARIES, LoadOptions
from whisper_opt.export import export
from whisper_opt.export.checkpoints import Checkpoint
from whisper_opt.runtime.devices import Machine, check_device, open_backend
from whisper_opt.runtime.engine import Engine, read_engine
from whisper_opt.runtime.gpus import find_gpus
from whisper_opt.runtime.onnxruntime.backend import OrtBackend
from whisper_opt.runtime.tensorrt.plan_spec import PlanSpec
from whisper_opt.runtime.tensorrt.plans import Plans

__all__ = ["PATHS", "REFERENCE", "Setting", "Way", "engine", "opened", "plans", "reference"]

FOR_PLANS = ("fp16", "standard")
REFERENCE = ("fp32", "contrib")
"""The reference engine, run on the CPU."""
VERIFIED = ("test", "tiny")
"""Sizes whose export is verified; larger ones take minutes, and their results are checked
anyway."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """Settings of a run.

    Attributes:
        work: folder of engines, kept between runs.
        device_index: index of the GPU.
        on_cpu: there is no GPU: run on the CPU what can run there.
        models: folder of real checkpoints.
        threads: CPU threads; None: chosen by ONNX Runtime.
    """

    work: Path
    device_index: int = 0
    on_cpu: bool = False
    models: Path = Path("models")
    threads: Union[int, None] = None


@dataclasses.dataclass(frozen=True)
class Way:  # not a pathlib.Path
    """One way to run an engine.

    Attributes:
        engine: precision and dialect.
        open: makes a backend from an engine and the setting.
        batch: largest batch and beam size of its plans.
    """

    engine: tuple[str, str]
    open: Callable[[Engine, Setting], Backend]


def engine(setting: Setting, size: str, kind: tuple[str, str]) -> Engine:
    """The engine of a size in (precision, dialect), exported if it is missing.

    Raises:
        NotAvailableError: the checkpoint was not downloaded, or ONNX Runtime cannot run the engine.
    """
    target = setting.work / "engines" / "-".join((size, *kind))
    try:
        return read_engine(target)
    except EngineError:
        pass  # missing, or of another version
    checkpoint: Union[str, Checkpoint]
    real = size not in SIZES
    if real and not (setting.models / size).is_dir():
        where = setting.models / size
        raise NotAvailableError(f"no checkpoint at {where}: python scripts/get_model.py {size}")
    checkpoint = str(setting.models / size) if real else random_checkpoint(size)
    try:
        return export(
            checkpoint,
            target,
            precision=kind[0],
            dialect=kind[1],
            overwrite=True,
            verified=real or size in VERIFIED,
        )
    except BackendUnavailable as error:  # ONNX Runtime is too old for the dialect
        raise NotAvailableError(str(error)) from error


def _load(device: str, **options: Any) -> Callable[[Engine, Setting], Backend]:
    def load(found: Engine, setting: Setting) -> Backend:
        machine = Machine()
        refused = check_device(device, machine, index=setting.device_index, manifest=found.manifest)
        if isinstance(refused, BackendUnavailable):
            raise NotAvailableError(str(refused))
        on_cpu = device == "cpu"
        chosen = LoadOptions(
            device=device,
            device_index=0 if on_cpu else setting.device_index,
            threads=setting.threads if on_cpu else None,
            **options,
        )
        try:
            return open_backend(found, chosen, machine).backend
        except BackendUnavailable as error:
            raise NotAvailableError(str(error)) from error

    return load


PATHS: Mapping[str, Way] = {
    "cpu": Way(("fp32", "standard"), _load("cpu")),
    "cuda": Way(("fp16", "contrib"), _load("cuda")),
    "cuda-trt-encoder": Way(("fp16", "contrib"), _load("cuda", tensorrt_provider=True)),
    **{
        library + name: Way(FOR_PLANS, _load("tensorrt", tensorrt_library=library, **options))
        for library in LIBRARIES
        for name, options in (("", {}), ("-nographs", {"cuda_graphs": False}))
    },
}
"""Every way to run a model, by name; plans must exist."""


def plans(setting: Setting, size: str, library: str) -> Plans:
    """Plans of a size for the local GPU, built if missing; tokens are compared.

    Raises:
        NotAvailableError: no such library, or no GPU.
    """
    from whisper_opt.export.tensorrt.build import build_plans
    from whisper_opt.export.tensorrt.token_check import token_check

    gpus = find_gpus()
    if setting.device_index >= len(gpus.gpus):
        raise NotAvailableError(gpus.error or "no such GPU")
    gpu = gpus.gpus[setting.device_index]
    large = gpu.memory > 40 << 30
    try:
        return build_plans(
            engine(setting, size, FOR_PLANS),
            PlanSpec(max_batch=64 if large else 16, max_beam=5),
            library=library,
            gpus=["sm_{}{}".format(*gpu.sm)],
            device_index=gpu.index,
            check_tokens=token_check(gpu.index),
        )
    except BackendUnavailable as error:
        raise NotAvailableError(str(error)) from error


def opened(setting: Setting, size: str, path: str) -> Backend:
    """A backend of a size.

    Raises:
        NotAvailableError: a package or the GPU is missing.
    """
    way = PATHS[path]
    return way.open(engine(setting, size, way.engine), setting)


def reference(setting: Setting, size: str) -> Backend:
    """The reference backend."""
    return OrtBackend(engine(setting, size, REFERENCE), threads=setting.threads)
