"""Replacement of operators in graphs of the ``standard`` dialect before TensorRT reads them.

Attention in single operators (``Precision.fused`` is false) becomes one ``Attention``, for which
TensorRT has a fused kernel with float32 scores and softmax. Every build does this.
"""

from __future__ import annotations

from collections.abc import Mapping

from onnx import ModelProto, NodeProto, helper

from whisper_opt.core.errors import EngineError

__all__ = ["with_attention"]


def with_attention(model: ModelProto) -> ModelProto:
    """A copy in which self-attention in single operators is one ``Attention``.

    Raises:
        EngineError: a float16 softmax of float32 scores is not part of self-attention.
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
    """Whether a node has the first type, the producer of its first input the second, and so on."""
    first, *others = ops
    if node.op_type != first:
        return False
    before = made.get(node.input[0])
    return not others or (before is not None and _reads(made, before, *others))


def _attention(made: Mapping[str, NodeProto], mix: NodeProto) -> tuple[NodeProto, list[NodeProto]]:
    """The ``Attention`` for a product with softmaxed scores, and the nodes that it replaces."""
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
