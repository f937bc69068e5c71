"""Fake run-time part of TensorRT, on the fake CUDA; graphs run in ONNX Runtime on the CPU.

A plan is the path of an ONNX file and the ranges of its profiles.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Callable

import numpy as np
import onnxruntime

from tests.support.fake_cuda import FakeCuda, ViolationError
from whisper_opt.runtime.engine import Engine
from whisper_opt.runtime.tensorrt.library import Library
from whisper_opt.runtime.tensorrt.plan_spec import PlanSpec

__all__ = ["FakeTensorrt", "fake_library", "plan_reader"]

_TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(bool)": np.bool_,
}


class _Severity(enum.Enum):
    INTERNAL_ERROR = 0
    ERROR = 1


class FakeTensorrt:
    """Replaces the run-time parts of the module ``tensorrt``."""

    __version__ = "11.4.0"

    class ILogger:
        INTERNAL_ERROR = _Severity.INTERNAL_ERROR
        ERROR = _Severity.ERROR

    class TensorIOMode(enum.Enum):
        INPUT = 1
        OUTPUT = 2

    class ExecutionContextAllocationStrategy(enum.Enum):
        USER_MANAGED = 2

    def __init__(self, cuda: FakeCuda) -> None:
        self.cuda = cuda
        self.capturable = True
        self.contexts: list[_Context] = []

    def Runtime(self, logger: Any) -> _Runtime:  # noqa: N802
        return _Runtime(self, logger)

    @staticmethod
    def nptype(dtype: Any) -> Any:
        return dtype


class _Runtime:
    def __init__(self, trt: FakeTensorrt, logger: Any) -> None:
        self._trt, self._logger = trt, logger
        self.engine_host_code_allowed = False

    def deserialize_cuda_engine(self, plan: bytes) -> _Engine | None:
        try:
            values = json.loads(plan)
        except ValueError:
            self._logger.log(_Severity.ERROR, "magic tag does not match")
            return None
        return _Engine(self._trt, self._logger, **values)


class _Engine:
    """A graph in ONNX Runtime with the ranges of its profiles."""

    def __init__(
        self, trt: FakeTensorrt, logger: Any, path: str, profiles: list[dict[str, list[int]]]
    ) -> None:
        self.trt, self.logger, self.ranges = trt, logger, profiles
        self.device = trt.cuda.current
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"]
        )
        self.inputs = {value.name: value for value in self.session.get_inputs()}
        self.outputs = {value.name: value for value in self.session.get_outputs()}
        self.values = {**self.inputs, **self.outputs}
        self.num_io_tensors = len(self.values)
        self.num_optimization_profiles = len(profiles)

    def check_current(self) -> None:
        if self.device != self.trt.cuda.current:
            raise ViolationError(f"a plan on {self.device} is used on {self.trt.cuda.current}")

    def get_tensor_name(self, index: int) -> str:
        return str(list(self.values)[index])

    def get_tensor_dtype(self, name: str) -> Any:
        return _TYPES[self.values[name].type]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        shape = self.values[name].shape
        return tuple(size if isinstance(size, int) else -1 for size in shape)

    def get_tensor_mode(self, name: str) -> Any:
        modes = FakeTensorrt.TensorIOMode
        return modes.INPUT if name in self.inputs else modes.OUTPUT

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        ranges = {**self.ranges[profile], "capacity": [448] * 3}
        found = [
            [size] * 3 if isinstance(size, int) else ranges.get(size, [1, 1, 1 << 30])
            for size in self.inputs[name].shape
        ]
        return [tuple(sizes[i] for sizes in found) for i in range(3)]

    def get_device_memory_size_for_profile_v2(self, profile: int) -> int:
        return 1000 * (profile + 1)

    def create_execution_context(self, strategy: Any) -> _Context:
        assert strategy is FakeTensorrt.ExecutionContextAllocationStrategy.USER_MANAGED
        self.check_current()
        context = _Context(self)
        self.trt.contexts.append(context)
        return context


class _Context:
    """Shapes and addresses; a launch uses their values at that moment."""

    def __init__(self, engine: _Engine) -> None:
        self.engine = engine
        self.profile: int | None = None
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.ran_with: dict[str, tuple[int, ...]] | None = None
        self.addresses: dict[str, int] = {}
        self.memory = (0, 0)

    def set_device_memory(self, address: int, size: int) -> None:
        self.memory = address, size

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        assert isinstance(stream, int)
        self.engine.check_current()
        self.profile = profile
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        if self.profile is None:
            raise ViolationError("a shape is set before a profile")
        low, _, high = self.engine.get_tensor_profile_shape(name, self.profile)
        if len(low) != len(shape) or any(
            not a <= size <= b for a, size, b in zip(low, shape, high)
        ):
            self.engine.logger.log(_Severity.ERROR, f"{name} {shape} is outside the profile")
            return False
        self.shapes[name] = tuple(shape)
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        if address % 256 or not address:
            raise ViolationError(f"{name} lies at {address}")
        self.addresses[name] = address
        return name in self.engine.values

    def execute_async_v3(self, stream: int) -> bool:
        cuda, engine = self.engine.trt.cuda, self.engine
        engine.check_current()
        capturing = cuda.streams[stream].captured is not None
        if set(self.addresses) != set(engine.values) or set(self.shapes) != set(engine.inputs):
            engine.logger.log(_Severity.ERROR, "something is not bound")
            return False
        if capturing and (self.ran_with != self.shapes or not engine.trt.capturable):
            engine.logger.log(_Severity.ERROR, "cannot be captured")
            return False
        self.ran_with = dict(self.shapes)
        assert self.profile is not None
        if self.memory[1] < engine.get_device_memory_size_for_profile_v2(self.profile):
            raise ViolationError("the working memory is too small")
        shapes, addresses, memory = dict(self.shapes), dict(self.addresses), self.memory
        cuda.enqueue(stream, lambda: self._compute(shapes, addresses, memory))
        return True

    def _compute(
        self,
        shapes: dict[str, tuple[int, ...]],
        addresses: dict[str, int],
        memory: tuple[int, int],
    ) -> None:
        engine, cuda = self.engine, self.engine.trt.cuda
        cuda.find(*memory)[:] = 0xFF  # other users of the memory must not rely on its contents
        feeds = {
            name: self._view(name, addresses[name], shape).copy() for name, shape in shapes.items()
        }
        for name, found in zip(engine.outputs, engine.session.run(list(engine.outputs), feeds)):
            self._view(name, addresses[name], found.shape)[...] = found
        in_place = {name for name in engine.outputs if name[:-4] in engine.inputs}
        in_place = {name for name in in_place if name[:5] == "self_" and "start" in engine.inputs}
        for name in in_place:
            assert addresses[name] == addresses[name[:-4]], "the cache is not in place"
        for name in set(engine.outputs) - in_place:
            if addresses[name] in (addresses[other] for other in engine.inputs):
                raise ViolationError(f"{name} is written over an input")

    def _view(self, name: str, address: int, shape: Sequence[int]) -> Any:
        dtype = np.dtype(self.engine.get_tensor_dtype(name))
        n_bytes = int(np.prod(shape)) * dtype.itemsize
        memory = self.engine.trt.cuda.find(address, n_bytes)
        return memory.view(dtype).reshape(shape)


def fake_library(cuda: FakeCuda) -> Library:
    """A real :class:`Library` on a fake TensorRT."""
    return Library("tensorrt", FakeTensorrt(cuda))


def plan_reader(engine: Engine, spec: PlanSpec) -> Callable[[str], bytes]:
    """Reads "plans" of the ONNX files of an engine, with the profiles of a real build."""
    profiles = spec.profiles(engine.manifest.dims)

    def read(graph: str) -> bytes:
        path: Path = engine.file(f"{graph}.onnx")
        ranges = [dict(profile.ranges) for profile in profiles[graph]]
        return json.dumps({"path": str(path), "profiles": ranges}).encode()

    return read
