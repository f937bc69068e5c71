"""TensorRT, whichever there is: the only module that imports ``tensorrt`` or ``tensorrt_rtx``.

Supported are TensorRT 10.15 and later, TensorRT 11, and TensorRT for RTX 1.7 and later. Their
packages have one interface, but for what :class:`Library` answers differently. Nothing is imported
before :func:`load_library` or :func:`probe` is called.

:class:`Plan` and :class:`Context` are what a runtime touches of TensorRT; ``export/trt_network.py``
is what a build touches.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import importlib
import json
import logging
import re
from collections.abc import Mapping
from typing import Any, Union

import numpy as np

from whisper_opt.core.errors import BackendUnavailable, EngineError, OptionError
from whisper_opt.core.remedies import install_hint

__all__ = [
    "LIBRARIES",
    "Context",
    "Library",
    "Plan",
    "Probe",
    "TensorInfo",
    "load_library",
    "probe",
    "release",
]

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class _Kind:
    module: str
    oldest: tuple[int, int]
    extras: tuple[str, ...]


LIBRARIES: Mapping[str, _Kind] = {
    "tensorrt": _Kind("tensorrt", (10, 15), ("tensorrt-cu13", "tensorrt-cu12")),
    "tensorrt-rtx": _Kind("tensorrt_rtx", (1, 7), ("tensorrt-rtx",)),
}
"""The libraries, as options and plan directories call them; the first usable one is taken."""

_NVIDIA_INDEX = "--extra-index-url https://pypi.nvidia.com"


@dataclasses.dataclass(frozen=True)
class Probe:
    """What was found of one library.

    Attributes:
        name: one of ``LIBRARIES``.
        version: as the library tells it, or None where it does not import.
        problem: why it cannot be used and what to install; empty where it can.
    """

    name: str
    version: str | None
    problem: str


def probe(name: str) -> Probe:
    """Import one library and say what is wrong with it; never raises for one that is broken.

    Raises:
        OptionError: no such library.
    """
    if name not in LIBRARIES:
        raise OptionError(f"library is {name!r}; expected one of {', '.join(LIBRARIES)}")
    kind = LIBRARIES[name]
    install = install_hint(*kind.extras)
    try:
        module = importlib.import_module(kind.module)
    except ModuleNotFoundError as error:
        if error.name == kind.module:
            return Probe(name, None, f"{name} is not installed; {install}")
        return Probe(name, None, _broken(name, error))
    except Exception as error:  # a broken binary package may raise anything
        return Probe(name, None, _broken(name, error))
    version = str(getattr(module, "__version__", "of unknown version"))
    if not hasattr(module, "Builder"):
        return Probe(name, version, _broken(name, "the module has no Builder"))
    if release(version)[:2] < kind.oldest:
        oldest = ".".join(map(str, kind.oldest))
        return Probe(
            name, version, f"{name} {version} is too old: {oldest} or later is needed; {install}"
        )
    return Probe(name, version, "")


def _broken(name: str, reason: object) -> str:
    kind = LIBRARIES[name]
    text = f"{name} is installed but does not work ({reason})"
    again = "--force-reinstall "
    if name == "tensorrt":
        return (
            f"{text}: the packages of that name on PyPI are stubs, and the libraries come from"
            f" NVIDIA's index; {install_hint(*kind.extras, arguments=again + _NVIDIA_INDEX)}"
        )
    return f"{text}; {install_hint(*kind.extras, arguments=again)}"


def release(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: ``10.15.1.29.post1`` -> (10, 15, 1, 29)."""
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in match.group().split(".")) if match else ()


@functools.cache
def _loaded(name: str) -> Library:
    return Library(name, importlib.import_module(LIBRARIES[name].module))


def load_library(name: str | None = None) -> Library:
    """The library called ``name``, or the first usable one.

    Raises:
        BackendUnavailable: it is not installed, a stub without libraries, broken or too old.
        OptionError: no such library.
    """
    probes = [probe(known) for known in ((name,) if name else LIBRARIES)]
    for found in probes:
        if not found.problem:
            return _loaded(found.name)
    raise BackendUnavailable("; ".join(found.problem for found in probes))


class _Messages:
    """What the library logged: its errors explain the None or False that its calls return."""

    def __init__(self, trt: Any) -> None:
        self._errors: collections.deque[str] = collections.deque(maxlen=50)
        errors, severities = self._errors, trt.ILogger
        serious = (severities.INTERNAL_ERROR, severities.ERROR)

        class Logger(trt.ILogger):  # type: ignore[misc]  # the library has no types
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, text: str) -> None:
                if severity in serious:
                    errors.append(text)
                _log.debug("%s: %s", severity, text)

        self.logger = Logger()

    def clear(self) -> None:
        self._errors.clear()

    def reason(self) -> str:
        """The last errors on one line; that there is no GPU is said last, as it rarely matters."""
        lines = list(dict.fromkeys(" ".join(text.split()) for text in self._errors))
        lines.sort(key=lambda line: "cudaError 35" in line or "cudaErrorNoDevice" in line)
        return "; ".join(lines[:2])[:600] or "it gave no reason"


class Library:
    """One usable TensorRT.

    Attributes:
        name: one of ``LIBRARIES``.
        version: as the library tells it, ``11.4.0.106``.
        module: the Python module itself, for the builder.
    """

    def __init__(self, name: str, module: Any) -> None:
        """Wrap an imported module; :func:`load_library` is the way to get one."""
        self.name = name
        self.module: Any = module
        self.version = str(module.__version__)
        self.messages = _Messages(module)

    @property
    def is_rtx(self) -> bool:
        """TensorRT for RTX: kernels are compiled where the plan runs, so a build needs no GPU."""
        return self.name == "tensorrt-rtx"

    @property
    def gpus(self) -> tuple[str, ...]:
        """What plans can be built for without that GPU at hand: ``sm_86``, ...; () for TensorRT."""
        if not self.is_rtx:
            return ()
        names = self.module.ComputeCapability.__members__
        numbers = sorted(int(name[2:]) for name in names if re.fullmatch(r"SM\d+", name))
        return tuple(f"sm_{number}" for number in numbers)

    def open(self, plan: Union[bytes, memoryview], *, host_code: bool = False) -> Plan:
        """Load a serialized plan onto the current GPU.

        Args:
            plan: its bytes.
            host_code: let it run the lean runtime that a version-compatible plan brings along.

        Raises:
            EngineError: the library refuses it; the message has its reason.
        """
        self.messages.clear()
        runtime = self.module.Runtime(self.messages.logger)
        runtime.engine_host_code_allowed = host_code
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise EngineError(
                f"{self.name} {self.version} cannot load the plan: {self.messages.reason()}"
            )
        return Plan(self, engine, runtime)


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """One input or output of a plan.

    Attributes:
        name: as in the ONNX graph.
        dtype: numpy type.
        shape: -1 where a profile says the range.
        is_input: whether the caller writes it.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    is_input: bool


class Plan:
    """A plan on the GPU: weights and kernels, shared by any number of contexts."""

    def __init__(self, library: Library, engine: Any, runtime: Any) -> None:
        """Wrap a deserialized engine; the runtime that made it is kept alive."""
        self._library, self._engine, self._runtime = library, engine, runtime
        trt = library.module
        names = (engine.get_tensor_name(i) for i in range(engine.num_io_tensors))
        self.tensors: Mapping[str, TensorInfo] = {
            name: TensorInfo(
                name,
                np.dtype(trt.nptype(engine.get_tensor_dtype(name))),
                tuple(engine.get_tensor_shape(name)),
                engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT,
            )
            for name in names
        }

    @property
    def n_profiles(self) -> int:
        """How many optimization profiles there are, in the order of the build record."""
        return int(self._engine.num_optimization_profiles)

    def memory(self, profile: int) -> int:
        """Bytes of working memory that a context needs under one profile."""
        return int(self._engine.get_device_memory_size_for_profile_v2(profile))

    def alias(self, name: str) -> str | None:
        """The input whose buffer the output ``name`` must share, if any."""
        alias = self._engine.get_aliased_input_tensor(name)
        return str(alias) if alias else None

    def limits(self, name: str, profile: int) -> tuple[tuple[int, ...], ...]:
        """Smallest, typical and largest shape of an input under one profile."""
        return tuple(tuple(dims) for dims in self._engine.get_tensor_profile_shape(name, profile))

    def layers(self) -> list[dict[str, Any]]:
        """What the inspector tells about each layer; names alone where the build kept no more."""
        trt = self._library.module
        inspector = self._engine.create_engine_inspector()
        text = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
        layers = json.loads(text).get("Layers", [])
        return [layer if isinstance(layer, dict) else {"Name": str(layer)} for layer in layers]

    def stream_weights(self, budget: int | None = None) -> int:
        """Keep at most ``budget`` bytes of weights on the GPU (None: the library decides).

        Returns:
            The budget that is in force. Contexts must be made afterwards.

        Raises:
            EngineError: the plan was not built for it.
        """
        engine = self._engine
        if not engine.streamable_weights_size:
            raise EngineError("the plan was built without weight streaming; build it with it")
        chosen = engine.get_weight_streaming_automatic_budget() if budget is None else budget
        engine.weight_streaming_budget_v2 = min(chosen, engine.streamable_weights_size)
        return int(engine.weight_streaming_budget_v2)

    def context(self) -> Context:
        """A context whose working memory the caller provides (:meth:`Context.set_memory`).

        Raises:
            EngineError: the library cannot make one.
        """
        trt, messages = self._library.module, self._library.messages
        messages.clear()
        user = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if self._library.is_rtx:
            # compiled before the first run, not beside it: a captured graph keeps what it captured
            config = self._engine.create_runtime_config()
            config.set_execution_context_allocation_strategy(user)
            strategies = trt.DynamicShapesKernelSpecializationStrategy
            config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER
            context = self._engine.create_execution_context(config)
        else:
            context = self._engine.create_execution_context(user)
        if context is None:
            raise EngineError(f"{self._library.name} made no context: {messages.reason()}")
        return Context(self._library, context, self)


class Context:
    """One user of a plan: a profile, shapes, addresses, and the launch."""

    def __init__(self, library: Library, context: Any, plan: Plan) -> None:
        """Wrap an execution context; the plan is kept alive."""
        self._library, self._context, self.plan = library, context, plan

    def _require(self, done: bool, what: str) -> None:
        if not done:
            reason = self._library.messages.reason()
            raise EngineError(f"{self._library.name} refused to {what}: {reason}")

    def select(self, profile: int, stream: int) -> None:
        """Switch to a profile; ``stream`` is a CUDA stream handle."""
        self._library.messages.clear()
        done = self._context.set_optimization_profile_async(profile, stream)
        self._require(done, f"switch to profile {profile}")

    def set_memory(self, address: int, size: int) -> None:
        """Working memory on the device: 256-byte aligned, :meth:`Plan.memory` bytes or more."""
        self._context.set_device_memory(address, size)

    def set_shape(self, name: str, shape: tuple[int, ...]) -> None:
        """The shape of an input in the runs that follow."""
        self._library.messages.clear()
        done = self._context.set_input_shape(name, tuple(shape))
        self._require(done, f"give {name} the shape {list(shape)}")

    def set_address(self, name: str, address: int) -> None:
        """Where an input or output lies on the device."""
        self._library.messages.clear()
        self._require(self._context.set_tensor_address(name, address), f"bind {name}")

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of an input or output under the shapes that were set."""
        return tuple(self._context.get_tensor_shape(name))

    def run(self, stream: int) -> None:
        """Enqueue one run on a CUDA stream.

        Raises:
            EngineError: an input is missing or does not fit the profile; has the library's reason.
        """
        self._library.messages.clear()
        self._require(self._context.execute_async_v3(stream), "run")
