"""Plan directories: which plans are used, rebuilt or refused, and why.

``KINDS`` is the table of docs/deploy.md.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any, Callable

import pytest

from tests.support.models import random_dims
from tests.support.plan_dirs import HERE, RTX, fake_engine, fake_plans
from whisper_opt.core.errors import EngineError, OptionError
from whisper_opt.runtime.engine import Engine
from whisper_opt.runtime.tensorrt.plan_files import locked, replacing
from whisper_opt.runtime.tensorrt.plan_record import RECORD, BuildRecord, Target
from whisper_opt.runtime.tensorrt.plan_spec import PlanSpec, covers, parse_gpu
from whisper_opt.runtime.tensorrt.plans import (
    GRAPHS,
    Foreign,
    Fresh,
    Plans,
    Stale,
    inspect_plans,
    open_plans,
    source_hash,
)

Spoil = Callable[[Path], Any]
ROOT = Path(__file__).parents[3]


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return fake_engine(tmp_path / "engine")


def edit(folder: Path, *keys: str, value: Any) -> None:
    """Change one entry of a record."""
    record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    inner = record
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    (folder / RECORD).write_text(json.dumps(record), encoding="utf-8")


def swap(folder: Path) -> None:
    """Replace the contents by other bytes of the same length."""
    plan = folder / "decoder.plan"
    plan.write_bytes(plan.read_bytes()[::-1])


# --- the table ------------------------------------------------------------------------------------

# name -> (how to damage good plans, the verdict then, part of the reason)
KINDS: dict[str, tuple[Spoil, type[object], str]] = {
    "other GPU": (
        lambda folder: edit(folder, "target", "gpus", value=["sm_90"]),
        Foreign,
        "built for sm_90; this is sm_86",
    ),
    "other GPU model": (
        lambda folder: edit(folder, "target", "device", value="NVIDIA A40"),
        Foreign,
        "built on NVIDIA A40; this is NVIDIA GeForce RTX 3060",
    ),
    "other version": (
        lambda folder: edit(folder, "target", "version", value="11.3.0.99"),
        Foreign,
        "built with tensorrt 11.3.0.99; this is 11.4.0.106",
    ),
    "other library": (
        lambda folder: edit(folder, "target", "library", value="tensorrt-rtx"),
        Foreign,
        "built with tensorrt-rtx; this is tensorrt",
    ),
    "other platform": (
        lambda folder: edit(folder, "target", "platform", value="win32-amd64"),
        Foreign,
        "built on win32-amd64; this is linux-x86_64",
    ),
    "other tokens": (
        lambda folder: edit(folder, "tokens", "status", value="differ"),
        Foreign,
        "their tokens differ from those of the ONNX engine (24 tokens of a clip)",
    ),
    "newer record": (
        lambda folder: edit(folder, "record_version", value=2),
        Foreign,
        "a newer whisper-opt built them",
    ),
    "other weights": (
        lambda folder: edit(folder, "source", value="0" * 64),
        Stale,
        "the engine's graphs or weights have changed since the build",
    ),
    "other profile": (
        lambda folder: edit(folder, "profiles", "decoder", value=_narrow(folder)),
        Stale,
        "built with step.n_seq 1 to 4; 1 to 40 is required",
    ),
    "other flags": (
        lambda folder: edit(folder, "spec", "weight_streaming", value=True),
        Stale,
        "built with weight_streaming True; False is required",
    ),
    "wrong capacity": (
        lambda folder: edit(folder, "spec", "capacity", value=114),
        Stale,
        "built for 114 positions; this engine has 448",
    ),
    "graph without a plan": (
        lambda folder: edit(folder, "files", value=_without(folder, "choose.plan")),
        Stale,
        "there is no plan of the graph choose",
    ),
    "truncated plan": (
        lambda folder: os.truncate(folder / "decoder.plan", 3),
        Stale,
        "decoder.plan has 3 bytes; build.json says 18",
    ),
    "missing plan": (
        lambda folder: (folder / "encoder.plan").unlink(),
        Stale,
        "encoder.plan is missing",
    ),
    "changed plan": (swap, Stale, "decoder.plan has changed since it was built"),
    "missing record": (
        lambda folder: (folder / RECORD).unlink(),
        Stale,
        "there is no build.json with the plans",
    ),
    "malformed record": (
        lambda folder: os.truncate(folder / RECORD, 100),
        Stale,
        "build.json is malformed",
    ),
    "half-written plans": (
        lambda folder: folder.rename(folder.with_name(f".{folder.name}.partial-77")),
        Stale,
        "none have been built for sm86-tensorrt-11.4.0.106",
    ),
}


def _narrow(folder: Path) -> Any:
    profiles = json.loads((folder / RECORD).read_text(encoding="utf-8"))["profiles"]["decoder"]
    profiles[0]["ranges"]["n_seq"] = [1, 4, 4]
    return profiles


def _without(folder: Path, name: str) -> Any:
    files = json.loads((folder / RECORD).read_text(encoding="utf-8"))["files"]
    del files[name]
    return files


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_plans_are_rebuilt_or_refused(kind: str, engine: Engine) -> None:
    folder = fake_plans(engine)
    spec = PlanSpec()
    assert isinstance(inspect_plans(engine, HERE, spec, verify=True).verdict, Fresh)
    spoil, verdict, reason = KINDS[kind]
    spoil(folder)
    found = inspect_plans(engine, HERE, spec, verify=True)
    assert found.path == folder
    assert isinstance(found.verdict, verdict)
    assert not isinstance(found.verdict, Fresh)
    assert reason in found.verdict.reason


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_plans_are_not_opened(kind: str, engine: Engine) -> None:
    folder = fake_plans(engine)
    spoil, verdict, reason = KINDS[kind]
    spoil(folder)
    with pytest.raises(EngineError) as caught:
        open_plans(engine, HERE, PlanSpec()).read("decoder")
    message = str(caught.value)
    assert "whisper-opt build" in message
    if kind == "changed plan":  # found when it is read
        assert "was changed since it was built" in message
        return
    assert reason in message
    assert ("--force" in message) is (verdict is Foreign)


def test_the_table_is_documented() -> None:
    text = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([^|]+?) \| (rebuilt|refused) \|", text, re.M)
    words: dict[type[object], str] = {Stale: "rebuilt", Foreign: "refused"}
    assert dict(rows) == {kind: words[verdict] for kind, (_, verdict, _) in KINDS.items()}


# --- usable plans ---------------------------------------------------------------------------------


def test_fresh_plans_give_their_bytes(engine: Engine) -> None:
    folder = fake_plans(engine)
    plans = open_plans(engine, HERE)
    assert plans.path == folder
    assert [plans.read(graph) for graph in GRAPHS] == [
        f"kernels of {graph}".encode() for graph in GRAPHS
    ]
    assert [plans.index("decoder", name) for name in ("step", "prefill", "align")] == [0, 1, 2]
    with pytest.raises(EngineError, match=r"has no vad\.plan"):
        plans.read("vad")


def test_without_a_spec_any_shapes_serve(engine: Engine) -> None:
    fake_plans(engine, spec=PlanSpec(max_batch=1, max_beam=1, weight_streaming=True))
    assert open_plans(engine, HERE).record.spec.max_batch == 1
    with pytest.raises(EngineError, match="built with weight_streaming True; False is required"):
        open_plans(engine, HERE, PlanSpec(max_batch=1, max_beam=1))


def test_larger_plans_cover_smaller_specs(engine: Engine) -> None:
    fake_plans(engine, spec=PlanSpec(max_batch=16))
    assert open_plans(engine, HERE, PlanSpec(max_batch=8)).record.spec.max_batch == 16
    with pytest.raises(EngineError, match=r"encode\.n_audio 1 to 16; 1 to 17 is required"):
        open_plans(engine, HERE, PlanSpec(max_batch=17))


def test_plans_of_another_directory_serve_where_they_can(engine: Engine) -> None:
    """One set for several GPUs, found by each of them."""
    both = fake_plans(engine, RTX)
    for gpu in RTX.gpus:
        target = dataclasses.replace(RTX, gpus=(gpu,), device="some card")
        assert inspect_plans(engine, target).path == both
    other = inspect_plans(engine, dataclasses.replace(RTX, gpus=("sm_120",)))
    assert isinstance(other.verdict, Stale)
    assert "none have been built for sm120-tensorrt-rtx-1.7.1.116; there are sm86+sm89" in (
        other.verdict.reason
    )


@pytest.mark.parametrize(
    ("built", "here", "serves"),
    [
        ("10.15.1.29", "10.16.1.11", True),
        ("10.16.1.11", "10.16.1.11", True),
        ("10.16.1.11", "10.15.1.29", False),
        ("10.16.1.11", "11.0.0.114", False),
    ],
)
def test_version_compatible_plans_serve_later_releases(
    built: str, here: str, serves: bool, engine: Engine
) -> None:
    at = dataclasses.replace(HERE, version=built)
    fake_plans(engine, at, PlanSpec(version_compatible=True))
    found = inspect_plans(engine, dataclasses.replace(HERE, version=here))
    assert isinstance(found.verdict, Fresh) is serves


@pytest.mark.parametrize(
    ("level", "gpu", "serves"),
    [
        ("ampere+", "sm_89", True),
        ("ampere+", "sm_75", False),
        ("same-sm", "sm_89", False),
        ("same-sm", "sm_86", True),
    ],
)
def test_hardware_compatible_plans_serve_other_gpus(
    level: str, gpu: str, serves: bool, engine: Engine
) -> None:
    fake_plans(engine, HERE, PlanSpec(hardware_compatibility=level))
    target = dataclasses.replace(HERE, gpus=(gpu,), device="another card")
    assert isinstance(inspect_plans(engine, target).verdict, Fresh) is serves


def test_source_hash_is_of_graphs_and_weights(tmp_path: Path) -> None:
    one, two = fake_engine(tmp_path / "a"), fake_engine(tmp_path / "b", "others")
    assert source_hash(one.manifest) != source_hash(two.manifest)
    files = {**one.manifest.files, "tokenizer.json": two.manifest.files["tokenizer.json"]}
    manifest = dataclasses.replace(one.manifest, files=files)
    assert source_hash(manifest) == source_hash(one.manifest)


# --- the record -----------------------------------------------------------------------------------


def test_record_round_trip(engine: Engine) -> None:
    folder = fake_plans(engine, spec=PlanSpec(profile="prefill.n_new=1:8:64"))
    text = (folder / RECORD).read_text(encoding="utf-8")
    record = BuildRecord.from_json(text)
    assert record.to_json() == text
    assert record.target == HERE
    assert record.profiles["decoder"][1].ranges["n_new"] == (1, 8, 64)
    assert '"n_new": [ 1, 8, 64 ]' in text


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record.pop("files"),
        lambda record: record["spec"].update(max_batch=0),
        lambda record: record["spec"].update(unknown=1),
        lambda record: record["target"].pop("gpus"),
        lambda record: record["tokens"].update(status="fine"),
        lambda record: record["profiles"].pop("decoder"),
        lambda record: record["profiles"]["encoder"][0]["ranges"].update(n_audio=[1, 2]),
        lambda record: record["profiles"]["encoder"][0]["ranges"].update(n_audio=[1, "2", 3]),
        lambda record: record.update(record_version=True),
        lambda record: record.update(record_version=0),
        lambda record: record.update(profiles=[]),
        lambda record: record["files"].update({"encoder.plan": 7}),
        lambda record: record["files"]["encoder.plan"].update(size=-1),
        lambda record: record["files"]["encoder.plan"].update(sha256=None),
        lambda record: record["files"].update({"../encoder.plan": record["files"]["encoder.plan"]}),
        lambda record: record["files"].update({"/tmp/encoder.plan": {"size": 1, "sha256": ""}}),
        lambda record: record["target"].update(version=10),
        lambda record: record["target"].update(gpus=[]),
        lambda record: record["target"].update(gpus=[86]),
        lambda record: record["target"].update(device=7),
        lambda record: record.update(source=None),
    ],
)
def test_malformed_records(change: Callable[[Any], Any], engine: Engine) -> None:
    folder = fake_plans(engine)
    record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    change(record)
    (folder / RECORD).write_text(json.dumps(record), encoding="utf-8")
    verdict = inspect_plans(engine, HERE).verdict
    assert isinstance(verdict, Stale)
    assert "build.json is malformed" in verdict.reason


@pytest.mark.parametrize("text", ["", "[]", "null", "7", "{" * 3000, '"x"', "\0", "NaN"])
def test_text_that_is_no_record(text: str, engine: Engine) -> None:
    folder = fake_plans(engine)
    (folder / RECORD).write_text(text, encoding="utf-8")
    assert isinstance(inspect_plans(engine, HERE).verdict, Stale)


# --- specifications -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_batch": 0}, "max_batch is 0; expected a positive integer"),
        ({"max_batch": True}, "max_batch is True"),
        ({"max_beam": -1}, "max_beam is -1; expected a positive integer"),
        ({"version_compatible": 1}, "version_compatible is 1; expected True or False"),
        ({"hardware_compatibility": "all"}, "hardware_compatibility is 'all'; expected one of"),
        ({"profile": "prefill"}, "profile has 'prefill'; expected PROFILE.DIMENSION="),
        ({"profile": "a.b=1:2"}, r"profile has 'a\.b=1:2'"),
    ],
)
def test_bad_specs(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        PlanSpec(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"capacity": 449}, "capacity is 449; this model decodes 448 positions"),
        ({"capacity": 114}, "capacity is 114; this model decodes 448 positions"),
        ({"profile": "prefill.n_new=1:4:449"}, r"is 1:4:449; expected at most 448, the positions"),
        ({"profile": "prefill.n_new=4:1:9"}, r"is 4:1:9; expected 1 <= MIN <= TYPICAL <= MAX"),
        ({"profile": "step.n_audio=0:1:1"}, r"step.n_audio is 0:1:1; expected 1 <= MIN"),
        ({"profile": "step.n_audio=1:1:9"}, r"expected at most 8, max_batch$"),
        ({"profile": "step.n_seq=1:5:41"}, r"expected at most 40, max_batch times max_beam"),
        ({"profile": "warmup.n_seq=1:1:1"}, "profile names 'warmup'; expected one of advance, al"),
        ({"profile": "step.n_mels=1:1:1"}, "profile 'step' has no dimension 'n_mels'; expected"),
    ],
)
def test_specs_beyond_the_model(options: dict[str, Any], message: str) -> None:
    spec = PlanSpec(**options)
    with pytest.raises(OptionError, match=message):
        spec.profiles(random_dims())


def test_profiles_cover_the_shapes_of_sessions() -> None:
    found = PlanSpec(max_batch=4, max_beam=3).profiles(random_dims())
    assert set(found) == set(GRAPHS)
    ranges = {profile.name: dict(profile.ranges) for group in found.values() for profile in group}
    assert ranges["encode"] == {"n_audio": (1, 1, 4)}
    assert ranges["step"]["n_new"] == (1, 1, 1)
    assert ranges["step"]["n_seq"] == (1, 3, 12)
    assert ranges["prefill"]["n_new"] == (1, 4, 224)
    assert ranges["align"]["n_aligned"] == (1, 64, 448)
    assert ranges["step"]["n_aligned"] == (0, 0, 0)
    changed = PlanSpec(profile=" prefill.n_new=1:3:9 , step.n_seq=1:2:2").profiles(random_dims())
    assert changed["decoder"][1].ranges["n_new"] == (1, 3, 9)
    assert changed["decoder"][0].ranges["n_seq"] == (1, 2, 2)


def test_covers_is_about_every_dimension() -> None:
    dims = random_dims()
    wide, narrow = PlanSpec().profiles(dims), PlanSpec(max_beam=2).profiles(dims)
    assert covers(wide, wide) is None
    assert covers(wide, narrow) is None
    assert covers(narrow, wide) == "built with step.n_seq 1 to 16; 1 to 40 is required"


@pytest.mark.parametrize("text", ["sm_86", "sm86", "8.6", "86", " SM_86 "])
def test_gpu_names(text: str) -> None:
    assert parse_gpu(text) == "sm_86"
    assert parse_gpu("12.1") == parse_gpu("sm_121") == "sm_121"


@pytest.mark.parametrize("text", ["", "rtx3060", "sm_", "8", "8.6.1", "-86"])
def test_bad_gpu_names(text: str) -> None:
    with pytest.raises(OptionError, match="expected a compute capability such as sm_86"):
        parse_gpu(text)


def test_directory_names() -> None:
    assert HERE.directory == "sm86-tensorrt-11.4.0.106"
    assert RTX.directory == "sm86+sm89-tensorrt-rtx-1.7.1.116"
    assert Target("tensorrt", "11.4", ("sm_90",)).platform.startswith(sys.platform)


# --- writing --------------------------------------------------------------------------------------


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _interrupted(target: Path, error: type[BaseException]) -> None:
    with replacing(target) as folder:
        (folder / "a.plan").write_text("three", encoding="utf-8")
        raise error(28, "No space left on device")


def test_replacing_is_all_or_nothing(tmp_path: Path) -> None:
    target = tmp_path / "plans"
    for text in ("one", "two"):
        with replacing(target) as folder:
            (folder / "a.plan").write_text(text, encoding="utf-8")
        assert names(tmp_path) == ["plans"]
        assert (target / "a.plan").read_text(encoding="utf-8") == text
    for error in (KeyboardInterrupt, RuntimeError):
        with pytest.raises(error):
            _interrupted(target, error)
        assert names(tmp_path) == ["plans"]
        assert (target / "a.plan").read_text(encoding="utf-8") == "two"


def test_leftovers_are_removed(tmp_path: Path) -> None:
    for name in (".plans.partial-123", ".plans.partial-123.old", ".others.partial-9"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_text("", encoding="utf-8")
    with replacing(tmp_path / "plans"):
        pass
    assert names(tmp_path) == ["plans"]


def test_a_full_disk_is_reported(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="No space left on device; nothing was left there"):
        _interrupted(tmp_path / "plans", OSError)
    assert names(tmp_path) == []


def test_a_home_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "trt").write_text("a file", encoding="utf-8")
    with pytest.raises(EngineError, match="cannot write plans to"), locked(tmp_path / "trt"):
        pass


def test_threads_take_turns(tmp_path: Path) -> None:
    log: list[str] = []
    waited: list[bool] = []

    def work(name: str) -> None:
        with locked(tmp_path, lambda: waited.append(True)):
            log.append(f"{name} in")
            time.sleep(0.15)
            log.append(f"{name} out")

    threads = [threading.Thread(target=work, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [line[0] for line in log[::2]] == [line[0] for line in log[1::2]]
    assert waited


def _hold(home: Path, ready: Any) -> None:
    with locked(home):
        ready.set()
        time.sleep(60)


def test_a_killed_process_releases_the_lock(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=_hold, args=(tmp_path, ready))
    process.start()
    assert ready.wait(30)
    busy = r"another process has been building plans in .* 0 s"
    with pytest.raises(EngineError, match=busy), locked(tmp_path, timeout=0):
        pass
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL if sys.platform != "win32" else signal.SIGTERM)
    process.join()
    with locked(tmp_path, timeout=10):
        pass


def test_plans_are_values(engine: Engine) -> None:
    folder = fake_plans(engine)
    verdict = inspect_plans(engine, HERE).verdict
    assert isinstance(verdict, Fresh)
    assert Plans(folder, verdict.record) == open_plans(engine, HERE)
