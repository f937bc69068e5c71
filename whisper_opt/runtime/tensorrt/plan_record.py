"""``build.json``, the record beside TensorRT plans, and the target that plans are built for."""

from __future__ import annotations

import dataclasses
import json
import platform
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from whisper_opt.core.errors import WhisperOptError
from whisper_opt.core.json_files import parse_json, plain_name, text
from whisper_opt.runtime.engine import FileEntry
from whisper_opt.runtime.tensorrt.plan_spec import PlanSpec, Profile

__all__ = ["RECORD", "RECORD_VERSION", "TOKENS", "BuildRecord", "NewerRecordError", "Target"]

RECORD = "build.json"
RECORD_VERSION = 1
TOKENS = ("equal", "differ", "not checked")
"""Possible results of the comparison of a plan's tokens with those of the ONNX engine."""


def _platform() -> str:
    return f"{sys.platform}-{platform.machine()}".lower()


@dataclasses.dataclass(frozen=True)
class Target:
    """The library and GPUs that plans are built for.

    Attributes:
        library: ``tensorrt`` or ``tensorrt-rtx``.
        version: version of the library.
        gpus: compute capabilities, ``("sm_86",)``; one set of plans may serve several.
        device: name of the GPU, or None without a GPU (plans built ahead of time).
        platform: operating system and processor.
    """

    library: str
    version: str
    gpus: tuple[str, ...]
    device: str | None = None
    platform: str = dataclasses.field(default_factory=_platform)

    @property
    def directory(self) -> str:
        """Name of the directory of plans for this target."""
        gpus = "+".join(gpu.replace("_", "") for gpu in self.gpus)
        return f"{gpus}-{self.library}-{self.version}"


@dataclasses.dataclass(frozen=True)
class BuildRecord:
    """The contents of ``build.json``.

    Attributes:
        target: library and GPUs that the plans were built for.
        spec: requested shapes and flags.
        profiles: ranges of every graph's dimensions, in the order of its optimization profiles.
        source: hash of the ONNX engine (:func:`whisper_opt.runtime.tensorrt.plans.source_hash`).
        seconds: build time of each graph.
        layers: for each graph, the number of layers per type and precision, and whether they were
            counted by the engine inspector or in the network definition.
        tokens: ``status`` (one of ``TOKENS``) and details of the comparison.
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
            ValueError: it is malformed.
            NewerRecordError: a newer version of this library wrote it.
        """
        values = parse_json(content)
        try:
            version = values["record_version"]
            if type(version) is not int or version < RECORD_VERSION:
                raise ValueError(f"record version {version!r}")
            if version > RECORD_VERSION:
                raise NewerRecordError(version)
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
            source=text(values["source"], "source"),
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
    gpus = tuple(text(gpu, "gpus") for gpu in values["gpus"])
    if not gpus:
        raise ValueError("gpus: none; expected compute capabilities")
    device = values["device"]
    return Target(
        library=text(values["library"], "library"),
        version=text(values["version"], "version"),
        gpus=gpus,
        device=None if device is None else text(device, "device"),
        platform=text(values["platform"], "platform"),
    )


class NewerRecordError(ValueError):
    """A newer version of this library wrote the record."""
