"""Target GPUs of TensorRT plans, and refusals before and during a build."""

from __future__ import annotations

import dataclasses
import threading
from typing import Any

import pytest

from tests.export.tensorrt.conftest import plan_names
from tests.support.fake_tensorrt import CARD, NO_CARD, FakeTensorRT, Machine
from whisper_opt.core.errors import BackendUnavailable, EngineError, OptionError
from whisper_opt.export.tensorrt import build as tensorrt
from whisper_opt.export.tensorrt.build import build_plans, find_target
from whisper_opt.runtime.engine import Engine, Manifest
from whisper_opt.runtime.gpus import Driver, Gpu
from whisper_opt.runtime.tensorrt.library import Library
from whisper_opt.runtime.tensorrt.plan_spec import PlanSpec

GIB = 1 << 30

# --- target GPUs ----------------------------------------------------------------------------------


def test_targets() -> None:
    full = Library("tensorrt", FakeTensorRT())
    rtx = Library("tensorrt-rtx", FakeTensorRT("1.7.1.116", rtx=True))
    assert find_target(full, None, CARD).gpus == ("sm_86",)
    assert find_target(full, ["8.6"], CARD).device == "NVIDIA GeForce RTX 3060"
    assert find_target(rtx, None, CARD).gpus == ("sm_86",)
    assert find_target(rtx, None, NO_CARD).gpus == ("sm_75", "sm_86", "sm_120")
    assert find_target(rtx, ["sm_75", "sm_86"], CARD).device is None


def test_another_gpu_than_the_first(
    engine: Engine, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the target, and current in both threads that call the library."""
    second = Gpu(1, "NVIDIA L4", (8, 9), 24 << 30)
    two = Driver((*CARD.gpus, second), CARD.cuda)
    full = Library("tensorrt", FakeTensorRT())
    found = find_target(full, None, two, 1)
    assert (found.gpus, found.device) == (("sm_89",), "NVIDIA L4")
    assert find_target(full, None, two).gpus == ("sm_86",)
    with pytest.raises(OptionError, match=r"sm_86; expected sm_89, the GPU here"):
        find_target(full, ["sm_86"], two, 1)
    with pytest.raises(OptionError, match=r"device_index is 2; this machine has 2 GPU\(s\)"):
        find_target(full, None, two, 2)
    chosen: list[tuple[int, int]] = []

    class Cuda:
        def __init__(self, index: int) -> None:
            self.index = index

        def select(self) -> None:
            chosen.append((self.index, threading.get_ident()))

    monkeypatch.setattr(tensorrt, "Cuda", Cuda)
    machine.driver = two
    for index in (1, 0):  # the first may not be the current one either
        chosen.clear()
        build_plans(engine, device_index=index, force=True)
        assert {index for index, _ in chosen} == {index}
        assert len({thread for _, thread in chosen}) > 1


@pytest.mark.parametrize("gpu", ["sm_90", "sm_89"])
def test_unknown_gpus(gpu: str) -> None:
    rtx = Library("tensorrt-rtx", FakeTensorRT("1.7.1.116", rtx=True))
    with pytest.raises(OptionError) as caught:
        find_target(rtx, [gpu], NO_CARD)
    assert str(caught.value) == (
        f"tensorrt-rtx 1.7.1.116 builds no plans for {gpu}; expected sm_75, sm_86, sm_120"
    )


def test_tensorrt_builds_for_the_gpu_here_only() -> None:
    full = Library("tensorrt", FakeTensorRT())
    with pytest.raises(OptionError, match="no plans for sm_89; expected sm_86, the GPU here"):
        find_target(full, ["sm_89"], CARD)
    with pytest.raises(BackendUnavailable, match=r"there is none: no NVIDIA driver\. TensorRT for"):
        find_target(full, None, NO_CARD)


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"spec": PlanSpec(version_compatible=True)}, "version_compatible is not in tensorrt-rtx"),
        (
            {"spec": PlanSpec(hardware_compatibility="same-sm")},
            "hardware_compatibility is not in tensorrt-rtx; name every GPU with --gpu",
        ),
        ({"timing_cache": "t"}, "timing_cache is not in tensorrt-rtx; its builds measure nothing"),
    ],
)
def test_options_that_rtx_does_not_have(
    option: dict[str, Any], message: str, machine: Machine, engine: Engine
) -> None:
    machine.become_rtx()
    with pytest.raises(OptionError, match=message):
        build_plans(engine, **option)
    assert machine.trt.configs == []


@pytest.mark.parametrize("change", [{"precision": "fp32"}, {"dialect": "contrib"}])
def test_other_engines(change: dict[str, str], machine: Machine, engine: Engine) -> None:
    manifest: Manifest = dataclasses.replace(engine.manifest, **change)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="TensorRT needs fp16 and standard: whisper-opt export"):
        build_plans(Engine(engine.path, manifest))


def test_bad_shapes_before_any_work(machine: Machine, engine: Engine) -> None:
    with pytest.raises(OptionError, match="at most 448"):
        build_plans(engine, PlanSpec(profile="align.n_new=1:64:449"))
    assert not (engine.path / "trt").exists() or plan_names(engine) == []
    assert machine.trt.parsed == {}


def test_a_graph_the_parser_refuses(machine: Machine, engine: Engine) -> None:
    machine.trt.refused_node = "decoder.blocks.0/Attention_3"
    with pytest.raises(
        EngineError, match=r"cannot parse .*encoder\.onnx: In node 3 with name: dec"
    ):
        build_plans(engine)
    assert plan_names(engine) == []


def test_a_graph_that_does_not_build(machine: Machine, engine: Engine) -> None:
    machine.trt.failure = "Attention was not supported by a dedicated kernel."
    with pytest.raises(EngineError) as caught:
        build_plans(engine)
    assert str(caught.value) == (
        f"tensorrt 11.4.0.106 cannot build {engine.path / 'encoder.onnx'}: Attention was not"
        " supported by a dedicated kernel."
    )
    assert plan_names(engine) == []


def test_a_cache_that_would_be_copied(machine: Machine, engine: Engine) -> None:
    machine.trt.loses_cache = True
    with pytest.raises(EngineError, match="reads 0 in-place cache updates in the decoder; expect"):
        build_plans(engine)
    assert plan_names(engine) == []


def test_an_unknown_dimension(
    machine: Machine, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt, "_fixed_sizes", lambda dims: {})
    with pytest.raises(
        EngineError, match="has a dimension 'n_frames' that profile encode does not"
    ):
        build_plans(engine)
