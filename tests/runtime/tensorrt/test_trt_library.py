"""Which TensorRT is found, and messages about libraries that do not work.

The libraries here are stub modules; the real one is in
tests/export/tensorrt/test_build_plans.py.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from whisper_opt.core.errors import BackendUnavailable, EngineError, OptionError
from whisper_opt.runtime.tensorrt import library as trt_library
from whisper_opt.runtime.tensorrt.library import Library, load_library, probe, release

WORKS = """
    __version__ = "{version}"

    class ILogger:
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    class Builder:
        pass
"""
# behaviour of the packages of that name if their libraries could not be downloaded
NO_LIBRARIES = """
    raise ImportError(
        "libnvonnxparser.so.11: cannot open shared object file: No such file or directory"
    )
"""
STUB = '__version__ = "11.4.0.106"'
BROKEN = "raise OSError(8, 'Exec format error')"
NEEDS_BINDINGS = "import tensorrt_bindings"
STUBS = "the packages of that name on PyPI are stubs, and the libraries come from NVIDIA's index"


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty directory of packages without either library."""
    modules = [kind.module for kind in trt_library.LIBRARIES.values()]
    for module in modules:
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *_without_tensorrt()])
    trt_library._loaded.cache_clear()
    yield tmp_path
    trt_library._loaded.cache_clear()
    for module in modules:
        sys.modules.pop(module, None)


def _without_tensorrt() -> list[str]:
    modules = [kind.module for kind in trt_library.LIBRARIES.values()]
    return [
        entry for entry in sys.path if not any((Path(entry) / name).exists() for name in modules)
    ]


def install(packages: Path, module: str, code: str, version: str = "") -> None:
    text = textwrap.dedent(code).replace("{version}", version)
    (packages / f"{module}.py").write_text(text, encoding="utf-8")


def test_nothing_installed(packages: Path) -> None:
    with pytest.raises(BackendUnavailable) as caught:
        load_library()
    message = str(caught.value)
    assert "tensorrt is not installed; pip install '.[tensorrt-cu13]'" in message
    assert "tensorrt-rtx is not installed; pip install '.[tensorrt-rtx]'" in message


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (STUB, "the module has no Builder"),
        (NO_LIBRARIES, "libnvonnxparser.so.11: cannot open shared object file"),
        (NEEDS_BINDINGS, "No module named 'tensorrt_bindings'"),
        (BROKEN, "Exec format error"),
    ],
)
def test_stub_of_tensorrt(code: str, reason: str, packages: Path) -> None:
    install(packages, "tensorrt", code)
    with pytest.raises(BackendUnavailable) as caught:
        load_library("tensorrt")
    message = str(caught.value)
    assert message.startswith("tensorrt is installed but does not work (")
    assert reason in message
    assert STUBS in message
    assert "--extra-index-url https://pypi.nvidia.com '.[tensorrt-cu13]'" in message


def test_broken_rtx(packages: Path) -> None:
    install(packages, "tensorrt_rtx", BROKEN)
    found = probe("tensorrt-rtx")
    assert found.version is None
    assert "pip install --force-reinstall '.[tensorrt-rtx]'" in found.problem
    assert STUBS not in found.problem


@pytest.mark.parametrize(
    ("name", "module", "version", "oldest"),
    [
        ("tensorrt", "tensorrt", "10.14.1.48.post1", "10.15"),
        ("tensorrt", "tensorrt", "8.6.1", "10.15"),
        ("tensorrt-rtx", "tensorrt_rtx", "1.4.0.76", "1.7"),
    ],
)
def test_too_old(name: str, module: str, version: str, oldest: str, packages: Path) -> None:
    install(packages, module, WORKS, version)
    with pytest.raises(BackendUnavailable, match=f"{version} is too old: {oldest} or later"):
        load_library(name)


@pytest.mark.parametrize("version", ["10.15.1.29", "10.16.1.11", "11.0.0.114", "11.4.0.106"])
def test_every_supported_tensorrt(version: str, packages: Path) -> None:
    install(packages, "tensorrt", WORKS, version)
    library = load_library()
    assert (library.name, library.version, library.is_rtx) == ("tensorrt", version, False)
    assert library.gpus == ()
    assert probe("tensorrt").problem == ""


def test_rtx_stands_in_for_a_stub(packages: Path) -> None:
    install(packages, "tensorrt", NO_LIBRARIES)
    install(packages, "tensorrt_rtx", WORKS, "1.7.1.116")
    library = load_library()
    assert (library.name, library.is_rtx) == ("tensorrt-rtx", True)
    with pytest.raises(BackendUnavailable, match="tensorrt is installed but does not work"):
        load_library("tensorrt")


def test_tensorrt_goes_first(packages: Path) -> None:
    install(packages, "tensorrt", WORKS, "11.4.0.106")
    install(packages, "tensorrt_rtx", WORKS, "1.7.1.116")
    assert load_library().name == "tensorrt"
    assert load_library("tensorrt-rtx").name == "tensorrt-rtx"


def test_unknown_library() -> None:
    with pytest.raises(OptionError, match="expected one of tensorrt, tensorrt-rtx"):
        load_library("openvino")


@pytest.mark.parametrize(
    ("version", "numbers"),
    [("10.14.1.48.post1", (10, 14, 1, 48)), ("11.4", (11, 4)), ("of unknown version", ())],
)
def test_release(version: str, numbers: tuple[int, ...]) -> None:
    assert release(version) == numbers


def test_tensorrt_is_imported_only_on_request() -> None:
    code = (
        "import sys, whisper_opt.cli.main\n"
        "import whisper_opt.runtime.tensorrt.library, whisper_opt.runtime.tensorrt.plans\n"
        "assert not {'tensorrt', 'tensorrt_rtx', 'onnx'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- plans and contexts, with a library that only records calls -----------------------------------


class Recorder:
    """Any object of the library: records calls, returns the configured values."""

    def __init__(self, **recorded: Any) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.recorded = recorded

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        result = self.recorded.get(name)
        if name in self.recorded and not callable(result):
            return result

        def call(*arguments: Any) -> Any:
            self.calls.append((name, *arguments))
            return result(*arguments) if result else True

        return call


class FakeTrt:
    """A module with the names that plans and contexts use."""

    __version__ = "11.4.0.106"

    class ILogger:
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    class TensorIOMode:
        INPUT, OUTPUT = "in", "out"

    class ExecutionContextAllocationStrategy:
        USER_MANAGED = "user"

    class DynamicShapesKernelSpecializationStrategy:
        EAGER = "eager"

    class LayerInformationFormat:
        JSON = "json"

    @staticmethod
    def nptype(kind: str) -> str:
        return kind

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self.runtimes: list[Any] = []

    def Runtime(self, logger: Any) -> Any:  # noqa: N802 - the library's name
        def load(plan: bytes) -> Any:
            if self.engine is None:
                logger.log(self.ILogger.ERROR, "The engine plan file is\nnot compatible")
                logger.log(self.ILogger.ERROR, "cudaError 35: driver")
                logger.log(self.ILogger.INFO, "chatter")
            return self.engine

        runtime = Recorder(deserialize_cuda_engine=load)
        self.runtimes.append(runtime)
        return runtime


def fake_engine(**recorded: Any) -> Recorder:
    tensors = {"tokens": ("int64", (-1, 1), "in"), "logits": ("float32", (-1, 1, 51865), "out")}
    names = list(tensors)
    known = {
        "num_io_tensors": 2,
        "num_optimization_profiles": 3,
        "get_tensor_name": lambda i: names[i],
        "get_tensor_dtype": lambda name: tensors[name][0],
        "get_tensor_shape": lambda name: tensors[name][1],
        "get_tensor_mode": lambda name: tensors[name][2],
        "get_device_memory_size_for_profile_v2": lambda profile: 1000 + profile,
        "get_aliased_input_tensor": lambda name: {"self_k_0_out": "self_k_0"}.get(name),
        "get_tensor_profile_shape": lambda name, profile: [[1, 1], [5, 1], [40, 1]],
        "streamable_weights_size": 0,
    }
    return Recorder(**{**known, **recorded})


def test_plan_describes_itself() -> None:
    plan = Library("tensorrt", FakeTrt(fake_engine())).open(b"plan")
    tokens, logits = plan.tensors["tokens"], plan.tensors["logits"]
    assert (tokens.dtype, tokens.shape, tokens.is_input) == (np.dtype(np.int64), (-1, 1), True)
    assert (logits.dtype, logits.is_input) == (np.dtype(np.float32), False)
    assert plan.n_profiles == 3
    assert [plan.memory(i) for i in range(3)] == [1000, 1001, 1002]
    assert plan.alias("self_k_0_out") == "self_k_0"
    assert plan.alias("logits") is None
    assert plan.limits("tokens", 0) == ((1, 1), (5, 1), (40, 1))


def test_plan_that_does_not_load() -> None:
    library = Library("tensorrt", FakeTrt(None))
    with pytest.raises(EngineError) as caught:
        library.open(b"plan")
    assert str(caught.value) == (
        "tensorrt 11.4.0.106 cannot load the plan: The engine plan file is not compatible;"
        " cudaError 35: driver"
    )


@pytest.mark.parametrize("host_code", [False, True])
def test_host_code_of_a_plan_runs_only_where_allowed(host_code: bool) -> None:
    trt = FakeTrt(fake_engine())
    Library("tensorrt", trt).open(b"plan", host_code=host_code)
    assert trt.runtimes[0].engine_host_code_allowed is host_code


def test_layers() -> None:
    text = '{"Layers": [{"Name": "a", "LayerType": "gemm"}, "b"]}'
    inspector = Recorder(get_engine_information=lambda form: text)
    engine = fake_engine(create_engine_inspector=lambda: inspector)
    plan = Library("tensorrt", FakeTrt(engine)).open(b"plan")
    assert plan.layers() == [{"Name": "a", "LayerType": "gemm"}, {"Name": "b"}]


def test_context_allocates_nothing() -> None:
    context = Recorder()
    engine = fake_engine(create_execution_context=lambda strategy: context)
    made = Library("tensorrt", FakeTrt(engine)).open(b"plan").context()
    assert ("create_execution_context", "user") in engine.calls
    made.select(1, 77)
    made.set_memory(4096, 1001)
    made.set_shape("tokens", (5, 1))
    made.set_address("tokens", 8192)
    made.run(77)
    assert context.calls == [
        ("set_optimization_profile_async", 1, 77),
        ("set_device_memory", 4096, 1001),
        ("set_input_shape", "tokens", (5, 1)),
        ("set_tensor_address", "tokens", 8192),
        ("execute_async_v3", 77),
    ]


def test_rtx_compiles_kernels_before_they_run() -> None:
    config, context = Recorder(), Recorder()
    engine = fake_engine(
        create_runtime_config=lambda: config, create_execution_context=lambda found: context
    )
    Library("tensorrt-rtx", FakeTrt(engine)).open(b"plan").context()
    assert ("set_execution_context_allocation_strategy", "user") in config.calls
    assert config.dynamic_shapes_kernel_specialization_strategy == "eager"
    assert ("create_execution_context", config) in engine.calls


@pytest.mark.parametrize(
    ("method", "arguments", "message"),
    [
        ("select", (3, 0), "refused to switch to profile 3"),
        ("set_shape", ("tokens", (41, 1)), r"refused to set the shape of tokens to \[41, 1\]"),
        ("set_address", ("token", 4), "refused to bind token"),
        ("run", (0,), "refused to run"),
    ],
)
def test_errors_have_the_reason(method: str, arguments: tuple[Any, ...], message: str) -> None:
    library = Library("tensorrt", FakeTrt(fake_engine()))
    logger = library.messages.logger

    def refuse(*arguments: Any) -> bool:
        logger.log(FakeTrt.ILogger.ERROR, "because")
        return False

    names = ("set_optimization_profile_async", "set_input_shape", "set_tensor_address")
    context = Recorder(**dict.fromkeys((*names, "execute_async_v3"), refuse))
    plan = library.open(b"plan")
    made = trt_library.Context(library, context, plan)
    with pytest.raises(EngineError, match=f"tensorrt {message}: because"):
        getattr(made, method)(*arguments)


def test_no_context() -> None:
    engine = fake_engine(create_execution_context=lambda strategy: None)
    with pytest.raises(EngineError, match="tensorrt could not create a context: it gave no reason"):
        Library("tensorrt", FakeTrt(engine)).open(b"plan").context()


def test_weight_streaming() -> None:
    engine = fake_engine(
        streamable_weights_size=900, get_weight_streaming_automatic_budget=lambda: 600
    )
    plan = Library("tensorrt", FakeTrt(engine)).open(b"plan")
    assert plan.stream_weights() == 600
    assert plan.stream_weights(300) == 300
    assert plan.stream_weights(5000) == 900
    whole = Library("tensorrt", FakeTrt(fake_engine())).open(b"plan")
    with pytest.raises(EngineError, match="was built without weight streaming"):
        whole.stream_weights()
