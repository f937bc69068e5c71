"""Plan directories: which plans are used, rebuilt or refused, and why.

``KINDS`` is the table of docs/deploy.md.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from pathlib import Path
from typing import Any, Callable

import pytest

from tests.support.plan_dirs import HERE, RTX, fake_engine, fake_plans
from whisper_opt.core.errors import EngineError
from whisper_opt.runtime.engine import Engine
from whisper_opt.runtime.tensorrt.plan_record import RECORD, BuildRecord
from whisper_opt.runtime.tensorrt.plan_spec import PlanSpec
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


def test_plans_are_values(engine: Engine) -> None:
    folder = fake_plans(engine)
    verdict = inspect_plans(engine, HERE).verdict
    assert isinstance(verdict, Fresh)
    assert Plans(folder, verdict.record) == open_plans(engine, HERE)
