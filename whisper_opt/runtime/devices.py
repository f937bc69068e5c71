"""Selection of the device: what is installed here, what the engine was exported for.

``auto`` takes the first of tensorrt, cuda and cpu that the engine was exported for and that opens
without error. A device that is requested by name is opened, or refused with the reason and the fix.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.util
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Callable, Union

from whisper_opt.core.backend import Backend
from whisper_opt.core.errors import BackendUnavailable, EngineError, OptionError, WhisperOptError
from whisper_opt.core.options import LoadOptions
from whisper_opt.core.remedies import install_hint
from whisper_opt.core.version import installed_version
from whisper_opt.runtime.encoder_choice import EncoderChoice, choose_encoder
from whisper_opt.runtime.engine import Engine, Manifest
from whisper_opt.runtime.gpus import Driver, Gpu, find_gpus

if TYPE_CHECKING:
    from whisper_opt.runtime.onnxruntime.backend import Graph

__all__ = ["Machine", "OpenedBackend", "PlanBuilder", "check_device", "open_backend"]

PlanBuilder = Callable[[Engine, Gpu, Union[str, None]], None]
"""Builds the TensorRT plans of an engine for a GPU, with the named library or the first found."""

_log = logging.getLogger(__name__)

CUDA_EXTRAS = (
    "pip uninstall onnxruntime onnxruntime-gpu, then"
    f" {install_hint('cuda13', 'cuda12')}; cuda13 needs Python 3.11 or later"
)
TENSORRT_EXTRAS = (
    f"{install_hint('tensorrt-cu13', 'tensorrt-cu12', 'tensorrt-rtx')}; tensorrt-rtx is for desktop"
    " RTX cards"
)
GPU_ENGINES: Mapping[str, tuple[str, str]] = {
    "cuda": ("fp16", "contrib"),
    "tensorrt": ("fp16", "standard"),
}
"""Precision and dialect of engines for GPUs; the CPU runs all engines."""
_WHY: Mapping[str, str] = {
    "cuda": "ONNX Runtime's attention over a cache has 16-bit kernels only on CUDA",
    "tensorrt": "TensorRT reads standard operators and has 16-bit kernels only for the attention",
}


class Machine:
    """What is installed here; every property is looked up once, on first use."""

    @functools.cached_property
    def driver(self) -> Driver:
        """GPUs, or the reason that there are none."""
        return find_gpus()

    @functools.cached_property
    def builds(self) -> dict[str, str]:
        """Installed distributions of ONNX Runtime, with their versions."""
        found = {name: installed_version(name) for name in ("onnxruntime", "onnxruntime-gpu")}
        return {name: version for name, version in found.items() if version is not None}

    @functools.cached_property
    def providers(self) -> tuple[str, ...]:
        """Execution providers of the installed ONNX Runtime."""
        try:
            return tuple(importlib.import_module("onnxruntime").get_available_providers())
        except Exception:  # a broken binary package may raise anything
            return ()

    @functools.cached_property
    def tensorrt(self) -> Union[str, None]:
        """Name of the installed TensorRT module, if any; it may not work."""
        for name in ("tensorrt", "tensorrt_rtx"):
            if importlib.util.find_spec(name) is not None:
                return name
        return None

    @functools.cached_property
    def openvino(self) -> Union[str, None]:
        """Version of OpenVINO, if it is installed."""
        return installed_version("openvino")

    @functools.cached_property
    def products(self) -> dict[str, float]:
        """Measured seconds of a matrix product in each precision of OpenVINO; takes 0.2 s.

        Raises:
            BackendUnavailable: OpenVINO is missing.
        """
        from whisper_opt.runtime.openvino.probe import matmul_times

        return matmul_times()


def _no_gpu(device: str, index: int, machine: Machine) -> Union[WhisperOptError, None]:
    gpus = machine.driver.gpus
    if not gpus:
        return BackendUnavailable(
            f"device {device!r} needs an NVIDIA GPU: {machine.driver.error}; install the driver, or"
            " use device='cpu'"
        )
    if index >= len(gpus):
        return OptionError(
            f"device_index is {index}; this machine has {len(gpus)} GPU(s), counted from 0"
        )
    return None


def _no_cuda(machine: Machine) -> Union[WhisperOptError, None]:
    if "CUDAExecutionProvider" in machine.providers:
        return None
    if len(machine.builds) > 1:
        return BackendUnavailable(
            "onnxruntime and onnxruntime-gpu are both installed, overwrite each other's files, and"
            f" the CPU build won: no CUDAExecutionProvider; {CUDA_EXTRAS}"
        )
    return BackendUnavailable(
        f"this ONNX Runtime ({_builds(machine)}) has no CUDAExecutionProvider; {CUDA_EXTRAS}"
    )


def _builds(machine: Machine) -> str:
    found = [f"{name} {version}" for name, version in machine.builds.items()]
    return ", ".join(found) or "not installed"


def _no_tensorrt(machine: Machine) -> Union[WhisperOptError, None]:
    if machine.tensorrt is not None:
        return None
    return BackendUnavailable(f"TensorRT is not installed; {TENSORRT_EXTRAS}")


def _unsuited(device: str, manifest: Manifest) -> Union[WhisperOptError, None]:
    wanted = GPU_ENGINES.get(device)
    if wanted is None or wanted == (manifest.precision, manifest.dialect):
        return None
    precision, dialect = wanted
    if manifest.dialect == "optimum":
        return EngineError(
            f"models that Optimum exported run on the CPU only; device {device!r} runs {precision}"
            f" {dialect} engines: whisper-opt export CHECKPOINT DIR --precision {precision}"
            f" --dialect {dialect}"
        )
    return EngineError(
        f"this engine is {manifest.precision} {manifest.dialect}; device {device!r} runs"
        f" {precision} {dialect} ones ({_WHY[device]}): whisper-opt export SOURCE DIR --precision"
        f" {precision} --dialect {dialect}"
    )


def check_device(
    device: str, machine: Machine, *, index: int = 0, manifest: Union[Manifest, None] = None
) -> Union[WhisperOptError, None]:
    """Why a device cannot be used, as the error to raise; None if it can.

    Args:
        device: ``cpu``, ``cuda`` or ``tensorrt``.
        machine: what is installed.
        index: index of the GPU.
        manifest: manifest of the engine to run; None: check the machine only.
    """
    if device == "cpu":
        return None
    installed: Callable[[Machine], Union[WhisperOptError, None]]
    installed = _no_cuda if device == "cuda" else _no_tensorrt
    return (
        (None if manifest is None else _unsuited(device, manifest))
        or _no_gpu(device, index, machine)
        or installed(machine)
    )


@dataclasses.dataclass(frozen=True)
class OpenedBackend:
    """A backend and how it was chosen.

    Attributes:
        backend: ready to encode.
        device: ``cpu``, ``cuda`` or ``tensorrt``.
        reason: why this device was chosen, one line.
        encoder_precision: ``engine``, or the precision of the encoder on the CPU.
        kernels: whether compiled kernels run operators of the engine.
    """

    backend: Backend
    device: str
    reason: str
    encoder_precision: str = "engine"
    kernels: bool = False


def open_backend(
    engine: Engine,
    options: LoadOptions,
    machine: Union[Machine, None] = None,
    build_plans: Union[PlanBuilder, None] = None,
) -> OpenedBackend:
    """Load an engine on the device that the options name, or on the best one for ``auto``.

    Args:
        engine: the engine.
        options: device and other options.
        machine: what is installed; default: look it up.
        build_plans: builds missing plans if ``options.build_plans`` asks for it (a parameter,
            because the runtime does not import the export packages).

    Raises:
        BackendUnavailable: a package, the GPU or the compiled kernels are missing.
        EngineError: the engine was not exported for the device, or cannot be loaded.
        OptionError: there is no GPU of that index, or ``kernels`` is ``native`` and the engine has
            no operators for them.
    """
    machine = machine or Machine()
    _check_options(engine.manifest, options)
    if options.device != "auto":
        refused = check_device(
            options.device, machine, index=options.device_index, manifest=engine.manifest
        )
        if refused is not None:
            raise refused
        return _opened(engine, options, options.device, "as requested", machine, build_plans)
    passed = _only_cpu(options)
    for device in () if passed else ("tensorrt", "cuda"):
        refused = check_device(
            device, machine, index=options.device_index, manifest=engine.manifest
        )
        if refused is None:
            try:
                reason = "; ".join(passed) or "the best"
                return _opened(engine, options, device, reason, machine, build_plans)
            except (BackendUnavailable, EngineError) as error:
                refused = error
                _log.warning("auto: %s cannot be used: %s", device, str(error))
        elif isinstance(refused, OptionError):
            raise refused
        passed.append(f"not {device}: {refused}")
    if options.device_index and not machine.driver.gpus:
        raise BackendUnavailable(
            f"device_index is {options.device_index}, but there is no GPU:"
            f" {machine.driver.error}; leave it out"
        )
    if options.device_index:
        raise OptionError(
            f"device_index is {options.device_index}, but no GPU can be used for this engine"
            f" ({'; '.join(passed)}); leave it out"
        )
    return _opened(engine, options, "cpu", "; ".join(passed), machine, build_plans)


def _check_options(manifest: Manifest, options: LoadOptions) -> None:
    """Refuse options that contradict the engine."""
    found = manifest.precision
    if options.padding == "whole" and manifest.padding is None:
        raise OptionError(
            f"padding is 'whole', but this {found} engine never compresses it; leave the option"
            " out (it is for int8 and int4 engines)"
        )
    if options.precision not in ("auto", found) and manifest.dialect != "optimum":
        raise OptionError(
            f"precision is {options.precision!r}, but this engine is {found}; leave it out, or"
            f" whisper-opt export SOURCE DIR --precision {options.precision}"
        )


def _only_cpu(options: LoadOptions) -> list[str]:
    """Reasons to use the CPU: options that only it supports."""
    found = []
    if options.encoder_precision in ("bf16", "int8"):
        found.append(f"encoder_precision {options.encoder_precision} runs on the CPU only")
    if options.kernels == "native":
        found.append("native kernels run on the CPU only")
    return found


def _opened(
    engine: Engine,
    options: LoadOptions,
    device: str,
    reason: str,
    machine: Machine,
    build_plans: Union[PlanBuilder, None],
) -> OpenedBackend:
    if device == "cuda" and len(machine.builds) > 1:
        _log.warning("onnxruntime and onnxruntime-gpu are both installed; %s", CUDA_EXTRAS)
    if device == "cpu":
        return _opened_cpu(engine, options, reason, machine)
    backend = _LOADERS[device](engine, options, machine, build_plans)
    place = f"{device} ({_gpu(machine, options.device_index)})"
    _log.info("%s runs on %s: %s", engine.path, place, reason)
    return OpenedBackend(backend, device, reason)


def _gpu(machine: Machine, index: int) -> str:
    gpus = machine.driver.gpus
    return gpus[index].name if index < len(gpus) else f"GPU {index}"


def _opened_cpu(
    engine: Engine, options: LoadOptions, reason: str, machine: Machine
) -> OpenedBackend:
    if engine.manifest.dialect == "optimum":
        from whisper_opt.runtime.optimum.backend import open_optimum

        return OpenedBackend(open_optimum(engine, options), "cpu", reason)
    from whisper_opt.runtime.onnxruntime.backend import OrtBackend

    if engine.manifest.precision == "fp16":
        _log.warning("%s is fp16, which is slow on a CPU; export it as fp32", engine.path)
    kernels = _kernels(engine, options.kernels)
    choice, encoder = _cpu_encoder(engine, options, machine)
    backend = OrtBackend(
        engine,
        threads=options.threads,
        encoder=encoder,
        whole_padding=options.padding == "whole",
        kernels=kernels,
    )
    _log.info("%s runs on cpu: %s", engine.path, reason)
    if options.encoder_precision != "engine":
        _log.info("%s: encoder in %s: %s", engine.path, choice.precision, choice.reason)
    return OpenedBackend(backend, "cpu", reason, choice.precision, kernels)


def _kernels(engine: Engine, requested: str) -> bool:
    """Whether compiled kernels run operators of this engine; raises if required but impossible."""
    fitting = b"whisper_opt" in engine.file("encoder.onnx").read_bytes()  # the operators' domain
    if requested == "native" and not fitting:
        raise OptionError(
            f"kernels is 'native', but this {engine.manifest.precision} engine has no operators"
            " for them; leave it out, or whisper-opt export SOURCE DIR --precision int8"
        )
    if requested == "off" or not fitting:
        return False
    from whisper_opt.runtime.native import LIBRARY, check_choice, why_no_kernels

    problem = why_no_kernels()
    if problem is None:
        return True
    if requested == "native":
        raise BackendUnavailable(
            f"kernels is 'native', but they cannot be used: {problem}; or leave kernels out"
        )
    check_choice()
    level = logging.WARNING if LIBRARY.exists() else logging.INFO
    _log.log(level, "%s: 8-bit operators without compiled kernels: %s", engine.path, problem)
    return False


def _cpu_encoder(
    engine: Engine, options: LoadOptions, machine: Machine
) -> tuple[EncoderChoice, Union[Graph, None]]:
    """The chosen precision and its encoder; None: ONNX Runtime."""
    choice = choose_encoder(
        options.encoder_precision, engine.manifest.precision, lambda: machine.products
    )
    if choice.precision == "engine":
        return choice, None
    from whisper_opt.runtime.openvino.encoder import OpenVinoEncoder

    try:
        encoder = OpenVinoEncoder(engine, choice.precision, threads=options.threads)
    except WhisperOptError as error:
        if options.encoder_precision != "auto":
            raise
        _log.warning("auto: the encoder cannot be computed in %s: %s", choice.precision, str(error))
        return EncoderChoice("engine", str(error)), None
    return choice, encoder


def _cuda(
    engine: Engine, options: LoadOptions, machine: Machine, _: Union[PlanBuilder, None]
) -> Backend:
    from whisper_opt.runtime.cuda.onnxruntime import CudaBackend

    return CudaBackend(
        engine,
        device_index=options.device_index,
        threads=options.threads,
        tensorrt_provider=options.tensorrt_provider,
    )


def _tensorrt(
    engine: Engine, options: LoadOptions, machine: Machine, build_plans: Union[PlanBuilder, None]
) -> Backend:
    from whisper_opt.runtime.tensorrt.backend import TrtBackend, find_plans

    gpu, library = machine.driver.gpus[options.device_index], options.tensorrt_library
    if options.build_plans:
        if build_plans is None:
            raise TypeError("options.build_plans is on, but open_backend was given no build_plans")
        try:
            find_plans(engine, gpu, library)
        except EngineError as error:
            _log.info("building plans: %s", str(error))
            build_plans(engine, gpu, library)
    graphs = options.cuda_graphs is not False
    return TrtBackend(engine, gpu, library=library, cuda_graphs=graphs)


_LOADERS: dict[str, Callable[[Engine, LoadOptions, Machine, Union[PlanBuilder, None]], Backend]] = {
    "cuda": _cuda,
    "tensorrt": _tensorrt,
}
