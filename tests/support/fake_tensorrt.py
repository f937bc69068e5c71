"""Fake TensorRT for builds: records calls and returns a few bytes as plans."""

from __future__ import annotations

import json
import threading
import time
from typing import Any, Callable

import onnx
import pytest

from whisper_opt.export.tensorrt import build as tensorrt
from whisper_opt.runtime.gpus import Driver, Gpu
from whisper_opt.runtime.tensorrt.library import Library

__all__ = ["CARD", "NO_CARD", "FakeTensorRT", "Machine"]

CARD = Driver((Gpu(0, "NVIDIA GeForce RTX 3060", (8, 6), 12 << 30),), (13, 0))
NO_CARD = Driver(error="no NVIDIA driver")


class Named:
    """An enumeration member."""

    def __init__(self, name: str, value: int) -> None:
        self.name, self.value = name, value

    def __int__(self) -> int:
        return self.value

    def __repr__(self) -> str:
        return self.name


class Names(type):
    """Members by attribute, made from ``NAMES``."""

    NAMES: tuple[str, ...]

    def __init__(cls, name: str, bases: Any, space: Any) -> None:
        super().__init__(name, bases, space)
        cls.__members__ = {
            member: Named(member, i) for i, member in enumerate(space.get("NAMES", ()))
        }
        for member, value in cls.__members__.items():
            setattr(cls, member, value)


def enumeration(*names: str) -> Any:
    return Names("Enumeration", (), {"NAMES": names})


class ILogger:
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class IProgressMonitor:
    pass


class Layer:
    def __init__(self, kind: str, precision: str) -> None:
        self.type = Named(kind, 0)
        self._output = type("Tensor", (), {"dtype": Named(precision, 0)})()

    def get_output(self, i: int) -> Any:
        return self._output


class Network:
    name = "Unnamed Network 0"

    def __init__(self, flags: int) -> None:
        self.creation_flags = flags
        self.layers: list[Layer] = []

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    def get_layer(self, i: int) -> Layer:
        return self.layers[i]


class Parser:
    def __init__(self, trt: FakeTensorRT, network: Network, logger: Any) -> None:
        self._trt, self._network, self._logger = trt, network, logger
        self.num_errors = 0

    def parse(self, model: bytes, path: str) -> bool:
        graph = onnx.load_from_string(model).graph
        if self._trt.refused_node:
            self.num_errors = 1
            return False
        self._trt.parsed[graph.name] = graph
        kinds = {"TensorScatter": "KV_CACHE_UPDATE", "LayerNormalization": "NORMALIZATION"}
        for node in graph.node:
            kind = kinds.get(node.op_type)
            if kind and not (kind.startswith("KV") and self._trt.loses_cache):
                precision = "HALF" if kind.startswith("KV") else "FLOAT"
                self._network.layers.append(Layer(kind, precision))
        return True

    def get_error(self, i: int) -> str:
        return f"In node 3 with name: {self._trt.refused_node} and operator: X"


class Profile:
    def __init__(self) -> None:
        self.shapes: dict[str, tuple[Any, ...]] = {}

    def set_shape(self, name: str, *sizes: Any) -> None:
        self.shapes[name] = sizes


class Config:
    def __init__(self, trt: FakeTensorRT) -> None:
        self._trt = trt
        self.profiles: list[Profile] = []
        self.flags_set: list[str] = []
        self.capabilities: dict[int, str] = {}
        self.num_compute_capabilities = 0
        self.progress_monitor: Any = None
        self.hardware_compatibility_level: Any = None
        self.profiling_verbosity: Any = None
        self.timing_cache: bytes | None = None

    def add_optimization_profile(self, profile: Profile) -> None:
        self.profiles.append(profile)

    def set_flag(self, flag: Named) -> None:
        self.flags_set.append(flag.name)

    def set_compute_capability(self, capability: Named, index: int) -> bool:
        self.capabilities[index] = capability.name
        return True

    def create_timing_cache(self, data: bytes) -> Any:
        return data

    def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> bool:
        self.timing_cache = cache
        return not cache.startswith(b"other GPU")

    def get_timing_cache(self) -> Any:
        data = (self.timing_cache or b"") + b"+measured"
        return type("Cache", (), {"serialize": lambda self: data})()


class Builder:
    def __init__(self, trt: FakeTensorRT, logger: Any) -> None:
        self._trt, self._logger = trt, logger

    def create_network(self, flags: int) -> Network:
        return Network(flags)

    def create_builder_config(self) -> Config:
        return Config(self._trt)

    def create_optimization_profile(self) -> Profile:
        return Profile()

    def build_serialized_network(self, network: Network, config: Config) -> bytes | None:
        trt, monitor = self._trt, config.progress_monitor
        trt.configs.append(config)
        trt.threads.append(threading.get_ident())
        if trt.failure:
            self._logger.log(ILogger.ERROR, trt.failure)
            return None
        monitor.phase_start("Building engine", None, 2)
        monitor.phase_start("Optimizing graph", "Building engine", 4)
        for step in range(4):
            time.sleep(trt.seconds / 4)
            if not monitor.step_complete("Optimizing graph", step):
                self._logger.log(ILogger.ERROR, "Build canceled by user")
                trt.cancelled += 1
                return None
        monitor.phase_finish("Optimizing graph")
        monitor.step_complete("Building engine", 0)
        trt.on_build()
        monitor.phase_finish("Building engine")
        return b"plan %d" % len(trt.configs)


class Engine:
    num_io_tensors = 0

    def create_engine_inspector(self) -> Any:
        layers = [
            {"LayerType": "gemm", "Outputs": [{"Format/Datatype": "Half"}]},
            {"LayerType": "gemm", "Outputs": [{"Format/Datatype": "Half"}]},
            {"LayerType": "kgen", "Outputs": []},
        ]
        text = json.dumps({"Layers": layers})
        return type("Inspector", (), {"get_engine_information": lambda self, form: text})()


class Runtime:
    engine_host_code_allowed = False

    def deserialize_cuda_engine(self, plan: bytes) -> Any:
        return Engine()


class FakeTensorRT:
    """The module. What tests set: ``failure``, ``seconds``, ``refused_node``, ``loses_cache``.

    What they read: ``configs`` (one per build), ``parsed`` (graphs by name), ``threads``.
    """

    ILogger = ILogger
    IProgressMonitor = IProgressMonitor
    NetworkDefinitionCreationFlag = enumeration("EXPLICIT_BATCH", "STRONGLY_TYPED")
    ProfilingVerbosity = enumeration("LAYER_NAMES_ONLY", "NONE", "DETAILED")
    HardwareCompatibilityLevel = enumeration("NONE", "AMPERE_PLUS", "SAME_COMPUTE_CAPABILITY")
    LayerInformationFormat = enumeration("ONELINE", "JSON")
    BuilderFlag = enumeration("VERSION_COMPATIBLE", "WEIGHT_STREAMING")

    def __init__(self, version: str = "11.4.0.106", *, rtx: bool = False) -> None:
        self.__version__ = version
        self.configs: list[Config] = []
        self.parsed: dict[str, Any] = {}
        self.threads: list[int] = []
        self.failure = self.refused_node = ""
        self.seconds, self.cancelled, self.loses_cache = 0.0, 0, False
        self.on_build: Callable[[], object] = lambda: None
        if rtx:
            self.BuilderFlag = enumeration("WEIGHT_STREAMING", "REQUIRE_USER_ALLOCATION")
            self.ComputeCapability = enumeration("NONE", "CURRENT", "SM75", "SM86", "SM120")

    def Builder(self, logger: Any) -> Builder:  # noqa: N802 - the library's name
        return Builder(self, logger)

    def OnnxParser(self, network: Network, logger: Any) -> Parser:  # noqa: N802
        return Parser(self, network, logger)

    def Runtime(self, logger: Any) -> Runtime:  # noqa: N802
        return Runtime()


class Machine:
    """The library and the driver for a build."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.trt, self.driver, self.name = FakeTensorRT(), CARD, "tensorrt"
        monkeypatch.setattr(tensorrt, "load_library", self._load)
        monkeypatch.setattr(tensorrt, "find_gpus", lambda: self.driver)

    def _load(self, name: str | None) -> Library:
        return Library(self.name, self.trt)

    def become_rtx(self) -> None:
        self.trt, self.name = FakeTensorRT("1.7.1.116", rtx=True), "tensorrt-rtx"
