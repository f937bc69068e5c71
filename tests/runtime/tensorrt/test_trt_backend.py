"""Plans are found for the GPU and the library that run them; their tokens are compared."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.support.backend_subjects import DIMS, PLANS, mels
from tests.support.engines import random_engine
from tests.support.fake_cuda import FakeCuda
from tests.support.fake_trt_runtime import fake_library, plan_reader
from whisper_opt.core.errors import BackendUnavailable, EngineError
from whisper_opt.core.options import LoadOptions
from whisper_opt.export.tensorrt import token_check as plan_check
from whisper_opt.export.tensorrt.token_check import token_check
from whisper_opt.runtime.devices import GPU_ENGINES, Machine, open_backend
from whisper_opt.runtime.engine import Engine
from whisper_opt.runtime.gpus import Driver, Gpu
from whisper_opt.runtime.tensorrt import backend as trt_backend
from whisper_opt.runtime.tensorrt.backend import TrtBackend, find_plans
from whisper_opt.runtime.tensorrt.plans import graphs_of

CARD = Gpu(0, "NVIDIA GeForce RTX 3060", (8, 6), 12 << 30)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return random_engine(tmp_path_factory.mktemp("engine") / "e", DIMS, "standard")


class World:
    """Libraries that are installed, and those of them that have plans."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, engine: Engine, **plans: bool) -> None:
        self.cuda, self._engine = FakeCuda(), engine
        self.plans = {name.replace("_", "-"): there for name, there in plans.items()}
        self.targets: list[Any] = []
        monkeypatch.setattr(trt_backend, "load_library", self.load)
        monkeypatch.setattr(plan_check, "load_library", self.load)
        monkeypatch.setattr(trt_backend, "open_plans", self.open)
        monkeypatch.setattr("whisper_opt.runtime.cuda.runtime.load_runtime", lambda: self.cuda)

    def load(self, name: str) -> Any:
        if name not in self.plans:
            raise BackendUnavailable(f"{name} is not installed")
        library = fake_library(self.cuda)
        library.name = name
        return library

    def open(self, engine: Engine, target: Any) -> Any:
        self.targets.append(target)
        if not self.plans[target.library]:
            raise EngineError(f"no plans for {target.directory}")
        record = SimpleNamespace(target=target, spec=PLANS)
        return SimpleNamespace(
            read=plan_reader(engine, PLANS), graphs=graphs_of(engine.manifest), record=record
        )


def test_the_first_library_with_plans_is_used(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(monkeypatch, engine, tensorrt=False, tensorrt_rtx=True)
    library, _ = find_plans(engine, CARD)
    assert library.name == "tensorrt-rtx"
    assert [target.gpus for target in world.targets] == [("sm_86",), ("sm_86",)]
    assert world.targets[0].device == CARD.name
    with pytest.raises(EngineError, match="no plans for sm86-tensorrt-"):
        find_plans(engine, CARD, "tensorrt")


def test_missing_plans_are_reported_before_missing_libraries(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    World(monkeypatch, engine, tensorrt_rtx=False)
    with pytest.raises(EngineError, match="no plans for"):
        find_plans(engine, CARD)


def test_no_library_at_all(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    World(monkeypatch, engine)
    with pytest.raises(BackendUnavailable, match=r"tensorrt is not.*; tensorrt-rtx is not"):
        find_plans(engine, CARD)


@pytest.mark.parametrize("graphs", [True, False])
def test_steps_are_replayed_unless_told_otherwise(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, graphs: bool
) -> None:
    world = World(monkeypatch, engine, tensorrt=True)
    backend = TrtBackend(engine, CARD, cuda_graphs=graphs)
    session = backend.open(backend.encode(mels(1, 3000)))
    for token in range(5):
        session.extend(np.array([[token]])).numpy()
    assert bool(world.cuda.replays) is graphs
    session.close()
    backend.close()


# at load


def fp16(engine: Engine) -> Engine:
    precision, dialect = GPU_ENGINES["tensorrt"]
    manifest = dataclasses.replace(engine.manifest, precision=precision, dialect=dialect)
    return Engine(engine.path, manifest)


def machine() -> Machine:
    found = Machine()
    found.driver = Driver((CARD,), (13, 0))
    found.tensorrt = "tensorrt"
    return found


def test_a_device_of_plans(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, engine, tensorrt=True)
    opened = open_backend(fp16(engine), LoadOptions(device="tensorrt"), machine())
    assert (opened.device, type(opened.backend)) == ("tensorrt", TrtBackend)
    assert open_backend(fp16(engine), LoadOptions(), machine()).device == "tensorrt"
    world.plans["tensorrt"] = False
    with pytest.raises(EngineError, match="no plans for"):
        open_backend(fp16(engine), LoadOptions(device="tensorrt"), machine())
    assert open_backend(fp16(engine), LoadOptions(), machine()).device == "cpu"


def test_plans_are_built_when_asked_and_missing(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(monkeypatch, engine, tensorrt=False)
    built = []

    def build(engine: Engine, gpu: Gpu, library: str | None) -> None:
        built.append((gpu.sm, library))
        world.plans["tensorrt"] = True

    options = LoadOptions(device="tensorrt", build_plans=True, tensorrt_library="tensorrt")
    for _ in range(2):
        open_backend(fp16(engine), options, machine(), build)
    assert built == [((8, 6), "tensorrt")]


def test_a_build_is_told_the_gpu_and_checks_tokens(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from whisper_opt.export.tensorrt import plan_builder

    World(monkeypatch, engine, tensorrt=True)
    told: dict[str, Any] = {}
    monkeypatch.setattr(plan_builder, "build_plans", lambda *_, **options: told.update(options))
    plan_builder.build_plans_for_gpu(engine, CARD, "tensorrt")
    assert (told["library"], told["gpus"]) == ("tensorrt", ["sm_86"])
    record = SimpleNamespace(target=SimpleNamespace(library="tensorrt"), spec=PLANS)
    plans = SimpleNamespace(
        read=plan_reader(engine, PLANS), graphs=graphs_of(engine.manifest), record=record
    )
    assert told["check_tokens"](engine, plans)["status"] == "equal"


# tokens


def test_without_a_runtime_nothing_is_compared(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(engine: Engine) -> Any:
        raise BackendUnavailable("ONNX Runtime is not installed")

    monkeypatch.setattr(plan_check, "OrtBackend", missing)
    plans: Any = None
    found = token_check()(engine, plans)
    assert found == {"status": "not checked", "detail": "ONNX Runtime is not installed"}
