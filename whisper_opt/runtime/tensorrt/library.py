"""Wrappers of TensorRT: the only module that imports ``tensorrt`` or ``tensorrt_rtx``.

TensorRT 10.15 and later, TensorRT 11, and TensorRT for RTX 1.7 and later are supported. Their
packages have the same interface, with differences that :class:`Library` handles. Nothing is
imported before :func:`load_library` or :func:`probe` is called.

The runtime uses TensorRT through :class:`Plan` and :class:`Context`; builds use it through
``export/tensorrt/network.py``.
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
"""The libraries by their names in options and plan directories; the first usable one is used."""

_NVIDIA_INDEX = "--extra-index-url https://pypi.nvidia.com"


@dataclasses.dataclass(frozen=True)
class Probe:
    """Whether one library is installed and usable.

    Attributes:
        name: one of ``LIBRARIES``.
        version: version that the library reports, or None if it cannot be imported.
        problem: why it cannot be used and what to install; empty if it can be used.
    """

    name: str
    version: str | None
    problem: str


def probe(name: str) -> Probe:
    """Import one library and report what is wrong with it; does not raise if it is broken.

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
        BackendUnavailable: it is missing, a stub without libraries, broken or too old.
        OptionError: no such library.
    """
    probes = [probe(known) for known in ((name,) if name else LIBRARIES)]
    for found in probes:
        if not found.problem:
            return _loaded(found.name)
    raise BackendUnavailable("; ".join(found.problem for found in probes))


class _Messages:
    """Errors that the library logged; they explain why a call returned None or False."""

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
        """Errors on one line; a missing GPU comes last, since it is rarely the reason."""
        lines = list(dict.fromkeys(" ".join(text.split()) for text in self._errors))
        lines.sort(key=lambda line: "cudaError 35" in line or "cudaErrorNoDevice" in line)
        return "; ".join(lines[:2])[:600] or "it gave no reason"


class Library:
    """One usable TensorRT.

    Attributes:
        name: one of ``LIBRARIES``.
        version: version that the library reports, ``11.4.0.106``.
        module: the Python module, for the builder.
    """

    def __init__(self, name: str, module: Any) -> None:
        """Wrap an imported module; use :func:`load_library` to create one."""
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
        """GPUs that plans can be built for without such a GPU: ``sm_86``, ...; () for TensorRT."""
        if not self.is_rtx:
            return ()
        names = self.module.ComputeCapability.__members__
        numbers = sorted(int(name[2:]) for name in names if re.fullmatch(r"SM\d+", name))
        return tuple(f"sm_{number}" for number in numbers)

    def open(self, plan: Union[bytes, memoryview], *, host_code: bool = False) -> Plan:
        """Load a serialized plan onto the current GPU.

        Args:
            plan: its bytes.
            host_code: allow the lean runtime that a version-compatible plan contains.

        Raises:
            EngineError: the library cannot load it; the message has the reason.
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
        shape: -1 for sizes with a range in the profiles.
        is_input: whether the caller writes it.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    is_input: bool


class Plan:
    """A plan on the GPU: weights and kernels, which any number of contexts share."""

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
        """Number of optimization profiles, which have the order of the build record."""
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
        """The inspector's description of each layer; only names if the build kept no details."""
        trt = self._library.module
        inspector = self._engine.create_engine_inspector()
        text = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
        layers = json.loads(text).get("Layers", [])
        return [layer if isinstance(layer, dict) else {"Name": str(layer)} for layer in layers]

    def stream_weights(self, budget: int | None = None) -> int:
        """Keep at most ``budget`` bytes of weights on the GPU (None: the library decides).

        Returns:
            The budget in effect. Contexts must be created afterwards.

        Raises:
            EngineError: the plan was built without weight streaming.
        """
        engine = self._engine
        if not engine.streamable_weights_size:
            raise EngineError(
                "the plan was built without weight streaming; build it with --weight-streaming"
            )
        chosen = engine.get_weight_streaming_automatic_budget() if budget is None else budget
        engine.weight_streaming_budget_v2 = min(chosen, engine.streamable_weights_size)
        return int(engine.weight_streaming_budget_v2)

    def context(self) -> Context:
        """A context whose working memory the caller provides (:meth:`Context.set_memory`).

        Raises:
            EngineError: the library cannot create one.
        """
        trt, messages = self._library.module, self._library.messages
        messages.clear()
        user = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if self._library.is_rtx:
            # compile before the first run: a captured graph would keep the kernels of the first run
            config = self._engine.create_runtime_config()
            config.set_execution_context_allocation_strategy(user)
            strategies = trt.DynamicShapesKernelSpecializationStrategy
            config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER
            context = self._engine.create_execution_context(config)
        else:
            context = self._engine.create_execution_context(user)
        if context is None:
            raise EngineError(
                f"{self._library.name} could not create a context: {messages.reason()}"
            )
        return Context(self._library, context, self)


class Context:
    """An execution context of a plan: profile, shapes, addresses, launch."""

    def __init__(self, library: Library, context: Any, plan: Plan) -> None:
        """Wrap an execution context; the plan is kept alive."""
        self._library, self._context, self.plan = library, context, plan

    def _require(self, done: bool, action: str) -> None:
        if not done:
            reason = self._library.messages.reason()
            raise EngineError(f"{self._library.name} refused to {action}: {reason}")

    def select(self, profile: int, stream: int) -> None:
        """Switch to a profile; ``stream`` is a CUDA stream handle."""
        self._library.messages.clear()
        done = self._context.set_optimization_profile_async(profile, stream)
        self._require(done, f"switch to profile {profile}")

    def set_memory(self, address: int, size: int) -> None:
        """Set the working memory: 256-byte aligned, at least :meth:`Plan.memory` bytes."""
        self._context.set_device_memory(address, size)

    def set_shape(self, name: str, shape: tuple[int, ...]) -> None:
        """Set the shape of an input for the following runs."""
        self._library.messages.clear()
        done = self._context.set_input_shape(name, tuple(shape))
        self._require(done, f"set the shape of {name} to {list(shape)}")

    def set_address(self, name: str, address: int) -> None:
        """Set the device address of an input or output."""
        self._library.messages.clear()
        self._require(self._context.set_tensor_address(name, address), f"bind {name}")

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of an input or output for the current input shapes."""
        return tuple(self._context.get_tensor_shape(name))

    def run(self, stream: int) -> None:
        """Enqueue one run on a CUDA stream.

        Raises:
            EngineError: an input is missing or outside of the profile; it has the reason.
        """
        self._library.messages.clear()
        self._require(self._context.execute_async_v3(stream), "run")
