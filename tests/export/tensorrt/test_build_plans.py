"""Builds of TensorRT plans: what the library is asked, what is left on the disk, what is refused.

Most of it runs over a library that only notes what it is told. Builds by the real TensorRT for RTX
are in ``rtx_builds.py``, which the last test runs in the Python that has it.
"""

from __future__ import annotations

import _thread
import dataclasses
import importlib.util
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.engines import require
from tests.support.exports import SMALL
from tests.support.fake_tensorrt import CARD, NO_CARD, FakeTensorRT, Machine
from tests.support.models import random_checkpoint
from whisper_opt.core.errors import BackendUnavailable, EngineError, OptionError, VerificationError
from whisper_opt.export import export
from whisper_opt.export.tensorrt import build as tensorrt
from whisper_opt.export.tensorrt.build import build_plans, find_target
from whisper_opt.runtime.engine import Engine, Manifest
from whisper_opt.runtime.gpus import Driver, Gpu
from whisper_opt.runtime.tensorrt.library import Library
from whisper_opt.runtime.tensorrt.plan_record import RECORD
from whisper_opt.runtime.tensorrt.plan_spec import PlanSpec
from whisper_opt.runtime.tensorrt.plans import Plans, graphs_of, open_plans

ROOT = Path(__file__).parents[3]
GIB = 1 << 30
OF_THE_RUNTIME = (
    "tests/runtime/tensorrt/test_trt_executor.py::test_the_runtime_has_what_is_called",
    "tests/runtime/tensorrt/test_trt_executor.py::test_the_library_has_what_is_called[tensorrt_rtx]",
)
"""Tests that need its packages too."""


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    require("standard")
    target = tmp_path_factory.mktemp("engines") / "small"
    return export(random_checkpoint(SMALL), target, dialect="standard")


@pytest.fixture
def engine(exported: Engine) -> Iterator[Engine]:
    """What passes for an fp16 engine, without plans."""
    manifest = dataclasses.replace(exported.manifest, precision="fp16")
    yield Engine(exported.path, manifest)
    for folder in (exported.path / "trt").glob("*"):
        for path in [*folder.glob("*"), folder] if folder.is_dir() else [folder]:
            path.rmdir() if path.is_dir() else path.unlink()


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def left(engine: Engine) -> list[str]:
    """What lies in the directory of plans."""
    return sorted(path.name for path in (engine.path / "trt").glob("*") if path.name != ".lock")


# --- what is asked of the library -----------------------------------------------------------------


def test_every_graph_becomes_a_plan(machine: Machine, engine: Engine) -> None:
    plans = build_plans(engine)
    graphs = graphs_of(engine.manifest)
    assert plans.path == engine.path / "trt" / "sm86-tensorrt-11.4.0.106"
    files = sorted(path.name for path in plans.path.iterdir())
    assert files == sorted([*(f"{graph}.plan" for graph in graphs), RECORD])
    assert [plans.read(graph) for graph in graphs] == [
        b"plan %d" % (i + 1) for i in range(len(graphs))
    ]
    assert len(machine.trt.configs) == len(graphs)
    assert set(machine.trt.parsed) >= {"whisper_encoder", "whisper_decoder"}
    assert threading.get_ident() not in machine.trt.threads


def test_fixed_dimensions_are_constants(machine: Machine, engine: Engine) -> None:
    build_plans(engine)
    shapes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for graph in (machine.trt.parsed["whisper_encoder"], machine.trt.parsed["whisper_decoder"])
        for value in (*graph.input, *graph.output)
    }
    assert shapes["mel"] == ["n_audio", 80, 3000]
    assert shapes["self_k_0"] == shapes["self_v_0_out"] == ["n_seq", 1, 448, 64]
    assert shapes["cross_k_0"] == ["n_audio", 1, 64, 1500]
    assert shapes["tokens"] == ["n_seq", "n_new"]


def test_written_out_attention_is_one_operator_in_a_plan(machine: Machine, tmp_path: Path) -> None:
    require("standard")
    target = tmp_path / "small"
    engine = export(random_checkpoint(SMALL), target, dialect="standard", precision="fp16")
    build_plans(engine)
    for graph, softmax in (("encoder", 0), ("decoder", SMALL.n_text_layer)):
        found = [node.op_type for node in machine.trt.parsed[f"whisper_{graph}"].node]
        layers = getattr(SMALL, "n_audio_layer" if graph == "encoder" else "n_text_layer")
        assert (found.count("Attention"), found.count("Softmax")) == (layers, softmax)


def test_profiles_have_every_input(machine: Machine, engine: Engine) -> None:
    build_plans(engine, PlanSpec(max_batch=2, max_beam=3))
    encoder, decoder = machine.trt.configs[:2]
    assert [profile.shapes["mel"] for profile in encoder.profiles] == [
        ((1, 80, 3000), (1, 80, 3000), (2, 80, 3000))
    ]
    step, prefill, align = (profile.shapes for profile in decoder.profiles)
    names = {value.name for value in machine.trt.parsed["whisper_decoder"].input}
    assert set(step) == set(prefill) == set(align) == names
    assert step["tokens"] == ((1, 1), (3, 1), (6, 1))
    assert prefill["tokens"] == ((1, 1), (1, 4), (6, 224))
    assert align["aligned"] == ((1,), (64,), (448,))
    assert step["self_k_0"] == ((1, 1, 448, 64), (3, 1, 448, 64), (6, 1, 448, 64))


def test_no_flags_by_default(machine: Machine, engine: Engine) -> None:
    build_plans(engine)
    for config in machine.trt.configs:
        assert config.flags_set == []
        assert config.hardware_compatibility_level is None
        assert config.timing_cache is None
        assert config.num_compute_capabilities == 0
        assert repr(config.profiling_verbosity) == "DETAILED"


def test_flags(machine: Machine, engine: Engine) -> None:
    options: dict[str, Any] = {"version_compatible": True, "weight_streaming": True}
    build_plans(engine, PlanSpec(**options, hardware_compatibility="ampere+"))
    for config in machine.trt.configs:
        assert config.flags_set == ["VERSION_COMPATIBLE", "WEIGHT_STREAMING"]
        assert repr(config.hardware_compatibility_level) == "AMPERE_PLUS"
    build_plans(engine, PlanSpec(hardware_compatibility="same-sm"))
    assert repr(machine.trt.configs[-1].hardware_compatibility_level) == "SAME_COMPUTE_CAPABILITY"


def test_timing_cache_is_read_and_written(machine: Machine, engine: Engine, tmp_path: Path) -> None:
    cache = tmp_path / "timings"
    build_plans(engine, timing_cache=cache)
    graphs = len(graphs_of(engine.manifest))
    assert [config.timing_cache for config in machine.trt.configs] == [
        b"+measured" * i for i in range(graphs)
    ]
    assert cache.read_bytes() == b"+measured" * graphs
    assert list(tmp_path.iterdir()) == [cache]
    cache.write_bytes(b"other GPU")
    with pytest.raises(OptionError, match="timing cache is of another GPU"):
        build_plans(engine, timing_cache=cache, force=True)
    with pytest.raises(OptionError, match="cannot read the timing cache"):
        build_plans(engine, timing_cache=tmp_path, force=True)


def test_rtx_is_told_the_gpus(machine: Machine, engine: Engine) -> None:
    machine.become_rtx()
    machine.driver = NO_CARD
    plans = build_plans(engine, gpus=["12.0", "sm_86", "8.6"])
    assert plans.path.name == "sm86+sm120-tensorrt-rtx-1.7.1.116"
    for config in machine.trt.configs:
        assert config.num_compute_capabilities == 2
        assert config.capabilities == {0: "SM86", 1: "SM120"}
        assert config.flags_set == ["REQUIRE_USER_ALLOCATION"]
    build_plans(engine, PlanSpec(weight_streaming=True), gpus=["sm_86"])
    assert machine.trt.configs[-1].flags_set == ["WEIGHT_STREAMING"]


def test_rtx_decides_about_a_gpu_it_does_not_list(machine: Machine, engine: Engine) -> None:
    machine.become_rtx()
    machine.driver = Driver((Gpu(0, "NVIDIA H100", (9, 0), 80 * GIB),), (13, 0))
    assert build_plans(engine).path.name == "sm90-tensorrt-rtx-1.7.1.116"
    assert machine.trt.configs[0].capabilities == {0: "CURRENT"}


# --- for which GPU --------------------------------------------------------------------------------


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
    """It is the target, and the current one of both threads that the library works in."""
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


# --- what is refused ------------------------------------------------------------------------------


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
    assert not (engine.path / "trt").exists() or left(engine) == []
    assert machine.trt.parsed == {}


def test_a_graph_the_parser_refuses(machine: Machine, engine: Engine) -> None:
    machine.trt.refused_node = "decoder.blocks.0/Attention_3"
    with pytest.raises(
        EngineError, match=r"cannot parse .*encoder\.onnx: In node 3 with name: dec"
    ):
        build_plans(engine)
    assert left(engine) == []


def test_a_graph_that_does_not_build(machine: Machine, engine: Engine) -> None:
    machine.trt.failure = "Attention was not supported by a dedicated kernel."
    with pytest.raises(EngineError) as caught:
        build_plans(engine)
    assert str(caught.value) == (
        f"tensorrt 11.4.0.106 cannot build {engine.path / 'encoder.onnx'}: Attention was not"
        " supported by a dedicated kernel."
    )
    assert left(engine) == []


def test_a_cache_that_would_be_copied(machine: Machine, engine: Engine) -> None:
    machine.trt.loses_cache = True
    with pytest.raises(EngineError, match="reads 0 in-place cache updates in the decoder; expect"):
        build_plans(engine)
    assert left(engine) == []


def test_an_unknown_dimension(
    machine: Machine, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt, "_fixed_sizes", lambda dims: {})
    with pytest.raises(
        EngineError, match="has a dimension 'n_frames' that profile encode does not"
    ):
        build_plans(engine)


# --- what is left on the disk ---------------------------------------------------------------------


def test_fresh_plans_are_not_built_again(machine: Machine, engine: Engine) -> None:
    built = build_plans(engine)
    n_graphs = len(machine.trt.configs)
    assert build_plans(engine) == built
    assert len(machine.trt.configs) == n_graphs
    build_plans(engine, PlanSpec(max_batch=4))  # covered by what is there
    assert len(machine.trt.configs) == n_graphs
    build_plans(engine, PlanSpec(max_batch=9))
    assert len(machine.trt.configs) == 2 * n_graphs
    build_plans(engine, PlanSpec(max_batch=9), force=True)
    assert len(machine.trt.configs) == 3 * n_graphs
    assert len(left(engine)) == 1


def test_damaged_plans_are_built_again(machine: Machine, engine: Engine) -> None:
    plans = build_plans(engine)
    plan = plans.path / "decoder.plan"
    plan.write_bytes(plan.read_bytes()[::-1])
    again = build_plans(engine)
    assert again.read("decoder").startswith(b"plan")
    assert left(engine) == [plans.path.name]


def test_foreign_plans_are_replaced_only_by_force(machine: Machine, engine: Engine) -> None:
    plans = build_plans(engine)
    machine.driver = Driver((Gpu(0, "NVIDIA A40", (8, 6), 48 * GIB),), (13, 0))
    with pytest.raises(
        EngineError, match=r"will not be replaced: built on NVIDIA GeForce.*--force"
    ):
        build_plans(engine)
    assert open_plans(engine, plans.record.target) == plans
    assert build_plans(engine, force=True).record.target.device == "NVIDIA A40"


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C is ignored in background jobs; not here."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("stage", ["build", "progress"])
def test_ctrl_c_leaves_what_was_there(stage: str, machine: Machine, engine: Engine) -> None:
    plans = build_plans(engine)
    machine.trt.seconds = 5

    def on_progress(graph: str, done: float) -> None:
        if stage == "progress":
            raise KeyboardInterrupt
        if done > 0:
            _thread.interrupt_main()

    with pytest.raises(KeyboardInterrupt):
        build_plans(engine, force=True, on_progress=on_progress)
    assert machine.trt.cancelled == 1
    assert left(engine) == [plans.path.name]
    assert open_plans(engine, plans.record.target) == plans


def test_progress_rises_to_the_end(machine: Machine, engine: Engine) -> None:
    machine.trt.seconds = 0.2
    seen: list[tuple[str, float]] = []
    build_plans(engine, on_progress=lambda graph, done: seen.append((graph, done)))
    assert list(dict.fromkeys(graph for graph, _ in seen)) == list(graphs_of(engine.manifest))
    for graph in graphs_of(engine.manifest):
        fractions = [done for name, done in seen if name == graph]
        assert fractions == sorted(fractions)
        assert fractions[-1] == 1
        assert any(0 < done < 1 for done in fractions)


def test_two_builders_build_once(machine: Machine, engine: Engine) -> None:
    machine.trt.seconds = 0.1
    waited: list[bool] = []
    threads = [
        threading.Thread(
            target=build_plans, args=(engine,), kwargs={"on_wait": lambda: waited.append(True)}
        )
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(machine.trt.configs) == len(graphs_of(engine.manifest))
    assert len(waited) == 2


def test_a_directory_that_cannot_be_written(machine: Machine, engine: Engine) -> None:
    (engine.path / "trt").rmdir() if (engine.path / "trt").is_dir() else None
    (engine.path / "trt").write_text("", encoding="utf-8")
    try:
        with pytest.raises(EngineError, match="cannot write plans to"):
            build_plans(engine)
    finally:
        (engine.path / "trt").unlink()


# --- what is recorded -----------------------------------------------------------------------------


def test_record(machine: Machine, engine: Engine) -> None:
    record = build_plans(engine).record
    assert record.target.device == "NVIDIA GeForce RTX 3060"
    assert record.tools["cuda"] == "13.0"
    assert set(record.tools) == {"whisper_opt", "python", "onnx", "cuda", "driver"}
    assert set(record.seconds) == set(record.layers) == set(graphs_of(engine.manifest))
    assert record.layers["encoder"] == {
        "from": "engine inspector",
        "counts": {"gemm Half": 2, "kgen": 1},
    }
    assert record.tokens == {"status": "not checked", "detail": "nobody asked for it"}


def test_record_without_a_gpu(machine: Machine, engine: Engine) -> None:
    machine.become_rtx()
    machine.driver = NO_CARD
    record = build_plans(engine, check_tokens=_unwanted).record
    assert record.layers["decoder"] == {
        "from": "network definition",
        "counts": {"KV_CACHE_UPDATE fp16": 2, "NORMALIZATION fp32": 4},
    }
    assert record.tokens == {"status": "not checked", "detail": "no GPU here that runs them"}
    assert record.tools["cuda"] == "none"


def _unwanted(engine: Engine, plans: Plans) -> dict[str, str]:
    raise AssertionError("there is no GPU to check tokens on")


def test_equal_tokens(machine: Machine, engine: Engine) -> None:
    def check(checked: Engine, plans: Plans) -> dict[str, str]:
        assert checked is engine
        assert plans.read("encoder") == b"plan 1"
        return {"status": "equal", "detail": "12 tokens"}

    plans = build_plans(engine, check_tokens=check)
    assert plans.record.tokens == {"status": "equal", "detail": "12 tokens"}
    assert open_plans(engine, plans.record.target) == plans


def test_plans_that_disagree_are_not_used(machine: Machine, engine: Engine) -> None:
    answer = {"status": "differ", "detail": "3 of 12 tokens of a clip"}
    with pytest.raises(VerificationError, match=r"other tokens than the ONNX engine \(3 of 12"):
        build_plans(engine, check_tokens=lambda engine, plans: answer)
    target = find_target(Library("tensorrt", machine.trt), None, CARD)
    with pytest.raises(EngineError, match="refused: their tokens differ from those of the ONNX"):
        open_plans(engine, target)
    with pytest.raises(EngineError, match="will not be replaced: their tokens differ"):
        build_plans(engine)
    assert build_plans(engine, force=True).record.tokens["status"] == "not checked"


def test_a_check_that_fails_leaves_nothing(machine: Machine, engine: Engine) -> None:
    def check(engine: Engine, plans: Plans) -> dict[str, str]:
        raise EngineError("cannot load the plan")

    with pytest.raises(EngineError, match="cannot load the plan"):
        build_plans(engine, check_tokens=check)
    assert left(engine) == []


# --- the real library -----------------------------------------------------------------------------


@pytest.mark.slow
def test_builds_with_tensorrt_rtx(tmp_path: Path) -> None:
    """Every test of rtx_builds.py, in the Python that has TensorRT for RTX."""
    python = os.environ.get("WHISPER_OPT_RTX")
    if not python and importlib.util.find_spec("tensorrt_rtx") is not None:
        python = sys.executable
    if not python:
        pytest.skip("not tested: WHISPER_OPT_RTX names no Python (scripts/test.sh sets it)")
    file = Path(__file__).with_name("rtx_builds.py")
    command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--basetemp={tmp_path}/rtx"]
    done = subprocess.run(
        [*command, str(file), *OF_THE_RUNTIME],
        cwd=ROOT,
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    summary = done.stdout.splitlines()[-1]
    passed = re.match(r"(\d+) passed in", summary)
    assert passed is not None, summary  # and nothing was skipped
    assert int(passed[1]) >= len(re.findall(r"^def test_", file.read_text("utf-8"), re.M)) > 0
