"""Plans: serialized TensorRT engines beside the ONNX engine they were built from.

    ENGINE/trt/sm86-tensorrt-11.4.0.106/    encoder.plan decoder.plan choose.plan
                                            advance.plan reorder.plan build.json

A plan runs on one kind of GPU, under one version of one library, for the shapes of its profiles.
``build.json`` (:class:`BuildRecord`) says which; :func:`check` compares it with what is wanted and
answers that the plans are fresh, stale (to be rebuilt) or foreign (made for something else: never
run, and never replaced unasked). Nothing here needs TensorRT.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Union

from whisper_opt.core.errors import EngineError, WhisperOptError
from whisper_opt.core.json_files import parse_json, plain_name, read_text, string
from whisper_opt.runtime.engine import Engine, FileEntry, Manifest, sha256
from whisper_opt.runtime.tensorrt.plan_spec import PlanSpec, Profile, covers

__all__ = [
    "GRAPHS",
    "RECORD",
    "BuildRecord",
    "Foreign",
    "Fresh",
    "Look",
    "Plans",
    "Stale",
    "Target",
    "Verdict",
    "check",
    "graphs_of",
    "look",
    "open_plans",
    "source_hash",
]

RECORD = "build.json"
RECORD_VERSION = 1
GRAPHS = ("encoder", "decoder", "choose", "advance", "reorder")
"""Graphs of an engine that become plans, those of them that it has."""
TOKENS = ("equal", "differ", "not checked")
"""What a comparison of a plan's tokens with the ONNX engine's may have found."""


def _platform() -> str:
    return f"{sys.platform}-{platform.machine()}".lower()


@dataclasses.dataclass(frozen=True)
class Target:
    """What plans are to run on.

    Attributes:
        library: ``tensorrt`` or ``tensorrt-rtx``.
        version: of the library.
        gpus: compute capabilities, ``("sm_86",)``; several are served by one set of plans.
        device: name of the GPU, or None where there is none (plans built ahead of time).
        platform: operating system and processor.
    """

    library: str
    version: str
    gpus: tuple[str, ...]
    device: str | None = None
    platform: str = dataclasses.field(default_factory=_platform)

    @property
    def directory(self) -> str:
        """Name of the directory that plans for this target are built in."""
        gpus = "+".join(gpu.replace("_", "") for gpu in self.gpus)
        return f"{gpus}-{self.library}-{self.version}"


@dataclasses.dataclass(frozen=True)
class BuildRecord:
    """What ``build.json`` says about the plans beside it.

    Attributes:
        target: what they were built for, and with.
        spec: what was asked for.
        profiles: ranges of every graph's dimensions, in the order of its optimization profiles.
        source: :func:`source_hash` of the ONNX engine.
        seconds: how long each graph took to build.
        layers: for each graph, how many layers there are of each type and precision, and whether
            the engine inspector or the network definition was asked.
        tokens: ``status`` (one of ``TOKENS``) and what was compared.
        tools: versions of the CUDA runtime, driver, Python and this library.
        files: size and sha256 of every plan.
    """

    target: Target
    spec: PlanSpec
    profiles: Mapping[str, tuple[Profile, ...]]
    source: str
    seconds: Mapping[str, float]
    layers: Mapping[str, Mapping[str, Any]]
    tokens: Mapping[str, Any]
    tools: Mapping[str, str]
    files: Mapping[str, FileEntry]

    def to_json(self) -> str:
        """The text of ``build.json``."""
        values = {"record_version": RECORD_VERSION, **dataclasses.asdict(self)}
        text = json.dumps(values, indent=2)
        return re.sub(r"\[[^\[\]{}]*\]", lambda found: " ".join(found[0].split()), text) + "\n"

    @classmethod
    def from_json(cls, content: str) -> BuildRecord:
        """Parse ``build.json``.

        Raises:
            ValueError: it is malformed; ``_NewerError`` where a newer version wrote it.
        """
        values = parse_json(content)
        try:
            version = values["record_version"]
            if type(version) is not int or version < RECORD_VERSION:
                raise ValueError(f"record version {version!r}")
            if version > RECORD_VERSION:
                raise _NewerError(version)
            return cls._from_values(values)
        except (AttributeError, KeyError, OverflowError, TypeError, WhisperOptError) as error:
            raise ValueError(f"{type(error).__name__}: {error}") from error

    @classmethod
    def _from_values(cls, values: Mapping[str, Any]) -> BuildRecord:
        if values["tokens"]["status"] not in TOKENS:
            raise ValueError(f"token status {values['tokens']['status']!r}")
        unnamed = [name for name in values["files"] if Path(name).stem not in values["profiles"]]
        if unnamed:
            raise ValueError(f"no profiles of {unnamed[0]}")
        return cls(
            target=_target(values["target"]),
            spec=PlanSpec(**values["spec"]),
            profiles={
                graph: tuple(Profile.from_values(value) for value in listed)
                for graph, listed in values["profiles"].items()
            },
            source=string(values["source"], "source"),
            seconds=dict(values["seconds"]),
            layers=dict(values["layers"]),
            tokens=dict(values["tokens"]),
            tools=dict(values["tools"]),
            files={
                plain_name(name): FileEntry.from_dict(entry)
                for name, entry in values["files"].items()
            },
        )


def _target(values: Mapping[str, Any]) -> Target:
    gpus = tuple(string(gpu, "gpus") for gpu in values["gpus"])
    if not gpus:
        raise ValueError("gpus: none; expected the compute capabilities that plans are for")
    device = values["device"]
    return Target(
        library=string(values["library"], "library"),
        version=string(values["version"], "version"),
        gpus=gpus,
        device=None if device is None else string(device, "device"),
        platform=string(values["platform"], "platform"),
    )


class _NewerError(ValueError):
    """A record that a newer version of this library wrote."""


def source_hash(manifest: Manifest) -> str:
    """One sha256 over those of the engine's graphs and weights."""
    names = sorted(name for name in manifest.files if name.endswith((".onnx", ".data")))
    lines = [f"{name} {manifest.files[name].size} {manifest.files[name].sha256}" for name in names]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def graphs_of(manifest: Manifest) -> tuple[str, ...]:
    """Those of ``GRAPHS`` that an engine has."""
    return tuple(graph for graph in GRAPHS if f"{graph}.onnx" in manifest.files)


# what a record is worth


@dataclasses.dataclass(frozen=True)
class Fresh:
    """Usable plans."""

    record: BuildRecord


@dataclasses.dataclass(frozen=True)
class Stale:
    """Plans that a build replaces, or that are not there."""

    reason: str


@dataclasses.dataclass(frozen=True)
class Foreign:
    """Plans that are neither run nor replaced unless a build is told to."""

    reason: str


Verdict = Union[Fresh, Stale, Foreign]


def check(
    record: BuildRecord, manifest: Manifest, target: Target, spec: PlanSpec | None = None
) -> Verdict:
    """Compare a record with what is wanted.

    Args:
        record: of the plans that are there.
        manifest: of the engine they stand beside.
        target: what they are to run on.
        spec: shapes and flags they must have; None: any they were built with.
    """
    foreign = _other_target(record, target) or _other_tokens(record)
    if foreign:
        return Foreign(foreign)
    if record.source != source_hash(manifest):
        return Stale("the engine's graphs or weights have changed since")
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
    """Whether the plans were built to run under later releases, and the target's is one."""
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
    return f"their tokens are not those of the ONNX engine ({record.tokens.get('detail', '')})"


def _other_spec(record: BuildRecord, manifest: Manifest, spec: PlanSpec | None) -> str | None:
    capacity = manifest.dims.n_text_ctx
    if record.spec.capacity != capacity:
        return f"built for {record.spec.capacity} positions; this engine has {capacity}"
    if spec is None:
        return None
    for name in PlanSpec.FLAGS:
        found, wanted = getattr(record.spec, name), getattr(spec, name)
        if found != wanted:
            return f"built with {name} {found}; wanted is {wanted}"
    return covers(record.profiles, spec.profiles(manifest.dims))


# what lies on disk


@dataclasses.dataclass(frozen=True)
class Look:
    """Where plans are, or would be, and what they are worth."""

    path: Path
    verdict: Verdict


def look(
    engine: Engine, target: Target, spec: PlanSpec | None = None, *, verify: bool = False
) -> Look:
    """Find plans beside an engine: the target's own directory first, then any that serve it.

    Args:
        engine: the ONNX engine.
        target: what the plans are to run on.
        spec: what they must have been built with; None: anything.
        verify: read every plan and compare its sha256, not only its size.
    """
    home = engine.path / "trt"
    own = home / target.directory
    verdict = _look_at(own, engine, target, spec, verify) if own.is_dir() else None
    if isinstance(verdict, Fresh):
        return Look(own, verdict)
    others = sorted(path for path in home.glob("[!.]*") if path.is_dir() and path != own)
    for path in others:
        other = _look_at(path, engine, target, spec, verify)
        if isinstance(other, Fresh):
            return Look(path, other)
    if verdict is None:
        beside = f"; there are {', '.join(path.name for path in others)}" if others else ""
        verdict = Stale(f"none have been built for {target.directory}{beside}")
    return Look(own, verdict)


def _look_at(
    path: Path, engine: Engine, target: Target, spec: PlanSpec | None, verify: bool
) -> Verdict:
    try:
        record = BuildRecord.from_json(read_text(path / RECORD))
    except _NewerError as error:
        return Foreign(f"a newer whisper-opt built them ({RECORD} has version {error})")
    except FileNotFoundError:
        return Stale(f"they have no {RECORD}")
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
        """The graphs that there are plans of."""
        return tuple(graph for graph in GRAPHS if f"{graph}.plan" in self.record.files)

    def read(self, graph: str) -> bytes:
        """The bytes of one plan, those that were built.

        Raises:
            EngineError: there is no such plan, or it is damaged.
        """
        name = f"{graph}.plan"
        entry = self.record.files.get(name)
        if entry is None:
            raise EngineError(f"{self.path} holds no {name}; build the engine again")
        try:
            data = (self.path / name).read_bytes()
        except OSError as error:
            raise EngineError(f"cannot read {self.path / name}: {error.strerror}") from error
        if len(data) != entry.size or hashlib.sha256(data).hexdigest() != entry.sha256:
            raise EngineError(
                f"{self.path / name} is not what was built: it is damaged or was changed;"
                " build it again: whisper-opt build ENGINE --force"
            )
        return data

    def index(self, graph: str, profile: str) -> int:
        """The number of a profile of a graph, as TensorRT counts them."""
        return [found.name for found in self.record.profiles[graph]].index(profile)


def open_plans(engine: Engine, target: Target, spec: PlanSpec | None = None) -> Plans:
    """Fresh plans of an engine for a target.

    Raises:
        EngineError: there are none; the message has the reason and the command that makes them.
    """
    found = look(engine, target, spec)
    if isinstance(found.verdict, Fresh):
        return Plans(found.path, found.verdict.record)
    force = " --force" if isinstance(found.verdict, Foreign) else ""
    kind = "refused" if force else "missing or stale"
    raise EngineError(
        f"TensorRT plans of {engine.path} {kind}: {found.verdict.reason};"
        f" build them: whisper-opt build {engine.path}{force}"
    )
