"""Engines and plans of arbitrary bytes, and fake libraries and drivers."""

from __future__ import annotations

from pathlib import Path

from tests.support.models import random_dims
from whisper_opt.runtime.engine import ENGINE_FILES, MANIFEST, Engine, FileEntry, Manifest, sha256
from whisper_opt.runtime.tensorrt.plan_record import RECORD, BuildRecord, Target
from whisper_opt.runtime.tensorrt.plan_spec import PlanSpec
from whisper_opt.runtime.tensorrt.plans import graphs_of, source_hash

__all__ = ["HERE", "RTX", "entries", "fake_engine", "fake_plans"]

HERE = Target("tensorrt", "11.4.0.106", ("sm_86",), "NVIDIA GeForce RTX 3060", "linux-x86_64")
RTX = Target("tensorrt-rtx", "1.7.1.116", ("sm_86", "sm_89"), None, "linux-x86_64")
DEVICE_GRAPHS = ("choose.onnx", "advance.onnx", "reorder.onnx")


def entries(folder: Path, names: tuple[str, ...]) -> dict[str, FileEntry]:
    return {
        name: FileEntry((folder / name).stat().st_size, sha256(folder / name)) for name in names
    }


def fake_engine(folder: Path, weights: str = "weights") -> Engine:
    """An fp16 engine of the standard dialect according to its manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    names = (*ENGINE_FILES, *DEVICE_GRAPHS)
    for name in names:
        (folder / name).write_text(f"{weights} of {name}", encoding="utf-8")
    manifest = Manifest(
        dims=random_dims(),
        precision="fp16",
        dialect="standard",
        alignment_heads=((1, 0),),
        suppress_tokens=(1,),
        begin_suppress_tokens=None,
        source={},
        tools={},
        parity={},
        files=entries(folder, names),
    )
    (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    return Engine(folder, manifest)


def fake_plans(
    engine: Engine, target: Target = HERE, spec: PlanSpec | None = None, status: str = "equal"
) -> Path:
    """Plans of a build for ``target``, according to their record."""
    folder = engine.path / "trt" / target.directory
    folder.mkdir(parents=True)
    graphs, spec = graphs_of(engine.manifest), spec or PlanSpec()
    for graph in graphs:
        (folder / f"{graph}.plan").write_text(f"kernels of {graph}", encoding="utf-8")
    record = BuildRecord(
        target=target,
        spec=spec,
        profiles=spec.profiles(engine.manifest.dims),
        source=source_hash(engine.manifest),
        seconds=dict.fromkeys(graphs, 1.5),
        layers={
            graph: {"from": "network definition", "counts": {"CAST fp16": 2}} for graph in graphs
        },
        tokens={"status": status, "detail": "24 tokens of a clip"},
        tools={"cuda": "13.0"},
        files=entries(folder, tuple(f"{graph}.plan" for graph in graphs)),
    )
    (folder / RECORD).write_text(record.to_json(), encoding="utf-8")
    return folder
