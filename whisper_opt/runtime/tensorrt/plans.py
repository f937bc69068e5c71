"""Plans: serialized TensorRT engines beside the ONNX engine they were built from.

    ENGINE/trt/sm86-tensorrt-11.4.0.106/    encoder.plan decoder.plan choose.plan
                                            advance.plan reorder.plan build.json

A plan runs on one kind of GPU, with one version of one library, for the shapes of its profiles.
``build.json`` (:mod:`whisper_opt.runtime.tensorrt.plan_record`) lists them. :func:`check` compares
it with the requested target and returns whether the plans are fresh, stale (to be rebuilt) or
foreign (built for another target: never run, and replaced only on request). Nothing here needs
TensorRT.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Union

from whisper_opt.core.errors import EngineError
from whisper_opt.core.json_files import read_text
from whisper_opt.runtime.engine import Engine, FileEntry, Manifest, sha256
from whisper_opt.runtime.tensorrt.plan_record import RECORD, BuildRecord, NewerRecordError, Target
from whisper_opt.runtime.tensorrt.plan_spec import PlanSpec, covers

__all__ = [
    "GRAPHS",
    "Foreign",
    "Fresh",
    "Inspection",
    "Plans",
    "Stale",
    "Verdict",
    "check",
    "graphs_of",
    "inspect_plans",
    "open_plans",
    "source_hash",
]

GRAPHS = ("encoder", "decoder", "choose", "advance", "reorder")
"""Graphs that are built as plans, if the engine has them."""


def source_hash(manifest: Manifest) -> str:
    """sha256 over the hashes of the engine's graphs and weights."""
    names = sorted(name for name in manifest.files if name.endswith((".onnx", ".data")))
    lines = [f"{name} {manifest.files[name].size} {manifest.files[name].sha256}" for name in names]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def graphs_of(manifest: Manifest) -> tuple[str, ...]:
    """The graphs in ``GRAPHS`` that an engine has."""
    return tuple(graph for graph in GRAPHS if f"{graph}.onnx" in manifest.files)


@dataclasses.dataclass(frozen=True)
class Fresh:
    """Usable plans."""

    record: BuildRecord


@dataclasses.dataclass(frozen=True)
class Stale:
    """Plans that are missing, or that a build replaces."""

    reason: str


@dataclasses.dataclass(frozen=True)
class Foreign:
    """Plans that are never run, and replaced only if a build is forced."""

    reason: str


Verdict = Union[Fresh, Stale, Foreign]


def check(
    record: BuildRecord, manifest: Manifest, target: Target, spec: PlanSpec | None = None
) -> Verdict:
    """Compare a record with a target.

    Args:
        record: record of the existing plans.
        manifest: manifest of their engine.
        target: library and GPU to run the plans with.
        spec: required shapes and flags; None: any.
    """
    foreign = _other_target(record, target) or _other_tokens(record)
    if foreign:
        return Foreign(foreign)
    if record.source != source_hash(manifest):
        return Stale("the engine's graphs or weights have changed since the build")
    missing = [graph for graph in graphs_of(manifest) if f"{graph}.plan" not in record.files]
    if missing:
        return Stale(f"there is no plan of the graph {missing[0]}")
    stale = _other_spec(record, manifest, spec)
    return Stale(stale) if stale else Fresh(record)


def _other_target(record: BuildRecord, target: Target) -> str | None:
    built = record.target
    if built.library != target.library:
        return f"built with {built.library}; this is {target.library}"
    if built.platform != target.platform:
        return f"built on {built.platform}; this is {target.platform}"
    if built.version != target.version and not _newer_runs(record, target):
        return f"built with {built.library} {built.version}; this is {target.version}"
    anywhere = record.spec.hardware_compatibility == "ampere+"
    lacking = [gpu for gpu in target.gpus if gpu not in built.gpus]
    if lacking and not (anywhere and min(map(_number, (*built.gpus, *target.gpus))) >= 80):
        return f"built for {', '.join(built.gpus)}; this is {', '.join(lacking)}"
    # TensorRT compiles for one model of GPU; TensorRT for RTX compiles where it runs
    other = target.device and built.device and target.device != built.device
    if other and built.library == "tensorrt" and not record.spec.hardware_compatibility:
        return (
            f"built on {built.device}; this is {target.device} (hardware_compatibility 'same-sm'"
            " makes plans for every GPU of one compute capability)"
        )
    return None


def _number(gpu: str) -> int:
    return int(re.sub(r"\D", "", gpu) or 0)


def _newer_runs(record: BuildRecord, target: Target) -> bool:
    """Whether the plans also run with later releases, and the target has one of them."""
    if not record.spec.version_compatible:
        return False
    built, here = (
        tuple(int(part) for part in re.findall(r"\d+", version)[:3])
        for version in (record.target.version, target.version)
    )
    return built[:1] == here[:1] and built <= here


def _other_tokens(record: BuildRecord) -> str | None:
    if record.tokens["status"] != "differ":
        return None
    return f"their tokens differ from those of the ONNX engine ({record.tokens.get('detail', '')})"


def _other_spec(record: BuildRecord, manifest: Manifest, spec: PlanSpec | None) -> str | None:
    capacity = manifest.dims.n_text_ctx
    if record.spec.capacity != capacity:
        return f"built for {record.spec.capacity} positions; this engine has {capacity}"
    if spec is None:
        return None
    for name in PlanSpec.FLAGS:
        found, wanted = getattr(record.spec, name), getattr(spec, name)
        if found != wanted:
            return f"built with {name} {found}; {wanted} is required"
    return covers(record.profiles, spec.profiles(manifest.dims))


@dataclasses.dataclass(frozen=True)
class Inspection:
    """The directory of plans, which may not exist yet, and whether they can be used."""

    path: Path
    verdict: Verdict


def inspect_plans(
    engine: Engine, target: Target, spec: PlanSpec | None = None, *, verify: bool = False
) -> Inspection:
    """Find plans beside an engine: in the target's own directory first, then any that fit.

    Args:
        engine: the ONNX engine.
        target: library and GPU to run the plans with.
        spec: required shapes and flags; None: any.
        verify: read every plan and compare its sha256, not only its size.
    """
    home = engine.path / "trt"
    own = home / target.directory
    verdict = _inspect(own, engine, target, spec, verify) if own.is_dir() else None
    if isinstance(verdict, Fresh):
        return Inspection(own, verdict)
    others = sorted(path for path in home.glob("[!.]*") if path.is_dir() and path != own)
    for path in others:
        other = _inspect(path, engine, target, spec, verify)
        if isinstance(other, Fresh):
            return Inspection(path, other)
    if verdict is None:
        beside = f"; there are {', '.join(path.name for path in others)}" if others else ""
        verdict = Stale(f"none have been built for {target.directory}{beside}")
    return Inspection(own, verdict)


def _inspect(
    path: Path, engine: Engine, target: Target, spec: PlanSpec | None, verify: bool
) -> Verdict:
    try:
        record = BuildRecord.from_json(read_text(path / RECORD))
    except NewerRecordError as error:
        return Foreign(f"a newer whisper-opt built them ({RECORD} has version {error})")
    except FileNotFoundError:
        return Stale(f"there is no {RECORD} with the plans")
    except (OSError, ValueError) as error:
        return Stale(f"{RECORD} is malformed ({error})")
    verdict = check(record, engine.manifest, target, spec)
    if isinstance(verdict, Fresh):
        damaged = _damaged(path, record.files, verify)
        return Stale(damaged) if damaged else verdict
    return verdict


def _damaged(path: Path, files: Mapping[str, FileEntry], verify: bool) -> str | None:
    for name, entry in files.items():
        plan = path / name
        if not plan.is_file():
            return f"{name} is missing"
        size = plan.stat().st_size
        if size != entry.size:
            return f"{name} has {size} bytes; {RECORD} says {entry.size}"
        if verify and sha256(plan) != entry.sha256:
            return f"{name} has changed since it was built"
    return None


@dataclasses.dataclass(frozen=True)
class Plans:
    """Fresh plans."""

    path: Path
    record: BuildRecord

    @property
    def graphs(self) -> tuple[str, ...]:
        """The graphs that have plans."""
        return tuple(graph for graph in GRAPHS if f"{graph}.plan" in self.record.files)

    def read(self, graph: str) -> bytes:
        """The bytes of one plan, checked against the record.

        Raises:
            EngineError: there is no such plan, or it is damaged.
        """
        name = f"{graph}.plan"
        entry = self.record.files.get(name)
        if entry is None:
            raise EngineError(f"{self.path} has no {name}; build the engine again")
        try:
            data = (self.path / name).read_bytes()
        except OSError as error:
            raise EngineError(f"cannot read {self.path / name}: {error.strerror}") from error
        if len(data) != entry.size or hashlib.sha256(data).hexdigest() != entry.sha256:
            raise EngineError(
                f"{self.path / name} is damaged or was changed since it was built;"
                " build it again: whisper-opt build ENGINE --force"
            )
        return data

    def index(self, graph: str, profile: str) -> int:
        """The index of a profile of a graph in TensorRT."""
        return [found.name for found in self.record.profiles[graph]].index(profile)


def open_plans(engine: Engine, target: Target, spec: PlanSpec | None = None) -> Plans:
    """Fresh plans of an engine for a target.

    Raises:
        EngineError: there are none; the message has the reason and the command that builds them.
    """
    found = inspect_plans(engine, target, spec)
    if isinstance(found.verdict, Fresh):
        return Plans(found.path, found.verdict.record)
    force = " --force" if isinstance(found.verdict, Foreign) else ""
    kind = "refused" if force else "missing or stale"
    raise EngineError(
        f"TensorRT plans of {engine.path} {kind}: {found.verdict.reason};"
        f" build them: whisper-opt build {engine.path}{force}"
    )
