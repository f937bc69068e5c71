"""Simulated fp16 arithmetic: a float32 engine that rounds the result of every operator.

ONNX Runtime's CPU provider has few float16 kernels. It computes other operators in float32 without
rounding between them, so an fp16 engine is more accurate there than on a device that stores every
value as float16. Here each float16 value of a graph becomes a float32 value that is rounded to
float16, as on a GPU that accumulates in float32 and stores float16, with self-attention as one
operator, as in a TensorRT plan.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper

from whisper_opt.export.tensorrt.operators import with_attention
from whisper_opt.runtime.engine import MANIFEST, Engine, read_engine, sha256

__all__ = ["rounded", "rounded_engine"]

F16, F32 = TensorProto.FLOAT16, TensorProto.FLOAT
MOVES = (
    *("Concat", "Expand", "Gather", "GatherND", "Identity", "Reshape", "Slice", "Split"),
    *("Squeeze", "TensorScatter", "Transpose", "Unsqueeze"),
)
"""Operators that only copy values, which need no rounding."""


def _types(model: ModelProto) -> dict[str, int]:
    found = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True).graph
    values = (*found.input, *found.output, *found.value_info)
    return {value.name: value.type.tensor_type.elem_type for value in values}


def _round(value: str, into: str) -> list[NodeProto]:
    half = f"{into}/half"
    return [
        helper.make_node("Cast", [value], [half], name=f"{into}/round", to=F16),
        helper.make_node("Cast", [half], [into], name=f"{into}/widen", to=F32),
    ]


def rounded(model: ModelProto) -> ModelProto:
    """The same graph (``standard`` dialect) in float32, every float16 value rounded.

    Weights stay float16 in the data file; inputs and outputs become float32.
    """
    model = with_attention(model)
    types = _types(model)
    graph = model.graph
    halves = {tensor.name for tensor in graph.initializer if tensor.data_type == F16}
    nodes = [
        helper.make_node("Cast", [name], [f"{name}/wide"], name=f"{name}/wide", to=F32)
        for name in sorted(halves)
    ]
    for old in graph.node:
        node = NodeProto()
        node.CopyFrom(old)
        for i, name in enumerate(node.input):
            if name in halves:
                node.input[i] = f"{name}/wide"
        narrow = [name for name in node.output if types[name] == F16]
        if node.op_type == "Cast" and (narrow or types.get(old.input[0], F32) == F16):
            target = next(a for a in node.attribute if a.name == "to").i
            nodes += (
                _round(node.input[0], node.output[0])
                if target == F16
                else [helper.make_node("Identity", node.input, node.output, name=node.name)]
            )
            continue
        nodes.append(node)
        if node.op_type in MOVES:
            continue
        for i, name in enumerate(node.output):
            if name in narrow:
                node.output[i] = f"{name}/exact"
                nodes += _round(f"{name}/exact", name)
    new = ModelProto()
    new.CopyFrom(model)
    del new.graph.node[:], new.graph.value_info[:]
    new.graph.node.extend(nodes)
    for value in (*new.graph.input, *new.graph.output):
        if value.type.tensor_type.elem_type == F16:
            value.type.tensor_type.elem_type = F32
    return new


def rounded_engine(engine: Engine, target: Path) -> Engine:
    """An engine directory of the :func:`rounded` graphs of an fp16 engine; data files are shared.

    Raises:
        ValueError: the engine is not fp16 in the standard dialect.
    """
    manifest = engine.manifest
    if (manifest.precision, manifest.dialect) != ("fp16", "standard"):
        raise ValueError(f"{engine.path} is {manifest.precision} {manifest.dialect}")
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    values = json.loads(manifest.to_json())
    for name, entry in values["files"].items():
        path = target / name
        if path.suffix == ".onnx":
            model = onnx.load(str(engine.file(name)), load_external_data=False)
            path.write_bytes(rounded(model).SerializeToString())
            entry.update(size=path.stat().st_size, sha256=sha256(path))
        else:
            path.hardlink_to(engine.file(name)) if hasattr(path, "hardlink_to") else shutil.copy(
                engine.file(name), path
            )
    (target / MANIFEST).write_text(json.dumps(values), encoding="utf-8")
    return read_engine(target)
