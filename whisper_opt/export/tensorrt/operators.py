"""What TensorRT is given in place of what a graph of the ``standard`` dialect says.

Attention that is written out (``Precision.fused``) becomes the one operator that computes it: a
fused kernel, whose scores and softmax are float32. That is part of every build.

TensorRT's parser reads ``TensorScatter`` and ``Attention``, and rewrites them as layers of its own.
From 11.0 on it also reads those layers directly, as nodes of the default domain that no other
runtime knows: ``TRT_KVCacheUpdate(cache, update, write_indices)``, which writes in place, and
``TRT_Attention(q, k, v, mask)``, which does not scale, so that the query is scaled before it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, helper, numpy_helper

from whisper_opt.core.dims import HEAD_DIM
from whisper_opt.core.errors import EngineError

__all__ = ["with_attention", "with_tensorrt_ops"]

_SCALE = "tensorrt_query_scale"


def with_attention(model: ModelProto) -> ModelProto:
    """A copy in which written-out self-attention is one ``Attention``.

    Raises:
        EngineError: a float16 softmax of scores in float32 is not part of what is written out for
            self-attention.
    """
    copy = ModelProto()
    copy.CopyFrom(model)
    made = {output: node for node in copy.graph.node for output in node.output}
    last = {}
    for node in copy.graph.node:
        cast = made.get(node.input[0]) if node.op_type == "MatMul" else None
        if cast is not None and _reads(made, cast, "Cast", "Softmax"):
            last[node.name] = _attention(made, node)
    gone = {inner.name for _, inside in last.values() for inner in inside}
    nodes = [
        last[node.name][0] if node.name in last else node
        for node in copy.graph.node
        if node.name not in gone
    ]
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    return copy


def _reads(made: Mapping[str, NodeProto], node: NodeProto, *ops: str) -> bool:
    """Whether a node is of the first kind, its first input made by one of the second, and so on."""
    first, *others = ops
    if node.op_type != first:
        return False
    before = made.get(node.input[0])
    return not others or (before is not None and _reads(made, before, *others))


def _attention(made: Mapping[str, NodeProto], mix: NodeProto) -> tuple[NodeProto, list[NodeProto]]:
    """The ``Attention`` in place of a product with softmaxed scores, and what it takes in."""
    inside, mask = [made[mix.input[0]]], []
    inside.append(made[inside[-1].input[0]])  # Softmax
    before = made[inside[-1].input[0]]
    if before.op_type == "Where":
        mask = [before.input[0]]
        inside.append(before)
        before = made[before.input[1]]
    if not _reads(made, before, "Cast", "MatMul", "Mul"):
        raise EngineError(
            f"the softmax before {mix.name} is not one of self-attention as this version writes it;"
            " export the engine again"
        )
    product = made[before.input[0]]
    query, keys = (made[name] for name in product.input)
    inside += [before, product, query, keys]
    inputs = [query.input[0], keys.input[0], mix.input[1], *mask]
    return helper.make_node("Attention", inputs, mix.output, name=mix.name), inside


def with_tensorrt_ops(model: ModelProto) -> ModelProto:
    """A copy with ``TRT_KVCacheUpdate`` and ``TRT_Attention`` nodes; weights stay where they are.

    Raises:
        EngineError: the graph is not of the ``standard`` dialect, or an operator says something
            that its counterpart cannot.
    """
    copy = with_attention(model)
    types = _types(copy)
    nodes = [new for node in copy.graph.node for new in _rewritten(node)]
    scaled = {types[node.input[0]] for node in copy.graph.node if node.op_type == "Attention"}
    if not scaled:
        raise EngineError(
            f"graph {copy.graph.name} has no Attention of the ONNX standard;"
            " export with --dialect standard"
        )
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    dtype = helper.tensor_dtype_to_np_dtype(scaled.pop())
    scale = np.array(HEAD_DIM**-0.5, dtype)  # a power of two: exact in every type
    copy.graph.initializer.append(numpy_helper.from_array(scale, _SCALE))
    return copy


def _types(model: ModelProto) -> dict[str, int]:
    graph = onnx.shape_inference.infer_shapes(model).graph
    return {
        value.name: value.type.tensor_type.elem_type
        for value in (*graph.input, *graph.output, *graph.value_info)
    }


def _rewritten(node: NodeProto) -> Iterator[NodeProto]:
    if node.op_type == "TensorScatter":
        _expect(node, 3, axis=-2)
        yield helper.make_node("TRT_KVCacheUpdate", node.input, node.output, name=node.name)
    elif node.op_type == "Attention":
        _expect(node, 4)
        query, *others = node.input
        scaled = f"{node.name}/scaled"
        yield helper.make_node("Mul", [query, _SCALE], [scaled], name=scaled)
        yield helper.make_node("TRT_Attention", [scaled, *others], node.output, name=node.name)
    else:
        yield node


def _expect(node: NodeProto, n_inputs: int, **attributes: int) -> None:
    found = {attribute.name: attribute.i for attribute in node.attribute}
    if len(node.input) > n_inputs or len(node.output) != 1 or found != attributes:
        raise EngineError(
            f"node {node.name} ({node.op_type}) has {len(node.input)} inputs,"
            f" {len(node.output)} outputs and attributes {sorted(found)}; TensorRT's operator takes"
            f" up to {n_inputs} inputs, one output and attributes {sorted(attributes)}: report it"
        )
