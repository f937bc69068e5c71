"""Weights of an OpenVINO model in 8 bits: what OpenVINO calls weight compression.

Every product with a constant matrix gets unsigned 8-bit weights with a scale and a zero point for
each output and each group of inputs. OpenVINO then rounds what is multiplied with them in groups of
the same size, position by position, and adds up in 32 bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from whisper_opt.core.arrays import F32, NDArray
from whisper_opt.core.dims import HEAD_DIM

__all__ = ["GROUP", "pack", "pack_matmuls"]

GROUP = 2 * HEAD_DIM
"""Inputs that share a scale, where the width of all products is a multiple of it."""


def pack(weights: F32, group: int) -> tuple[NDArray, F32, NDArray]:
    """Round to 8 bits.

    Args:
        weights: [n_out, n_in], n_in a multiple of ``group``.
        group: how many inputs share a scale.

    Returns:
        uint8 [n_out, n_groups, group], scales float32 and zero points uint8 [n_out, n_groups, 1]:
        weights are about (packed - zero point) * scale, within half a scale.
    """
    blocks = weights.reshape(len(weights), -1, group)
    low = np.minimum(blocks.min(axis=2, keepdims=True), 0)
    high = np.maximum(blocks.max(axis=2, keepdims=True), 0)
    scale = np.maximum((high - low) / np.float32(255), np.float32(1e-30))
    zero = np.rint(-low / scale)
    packed = np.clip(np.rint(blocks / scale) + zero, 0, 255)
    return packed.astype(np.uint8), scale.astype(np.float32), zero.astype(np.uint8)


def pack_matmuls(model: Any) -> int:
    """Replace the constant matrices of an ``openvino.Model`` in place.

    Returns:
        The size of the groups, which OpenVINO has to be told: all products have the same.
    """
    found = [node for node in model.get_ordered_ops() if _is_matmul(node)]
    wide = all(_matrix(node).shape[1] % GROUP == 0 for node in found)
    group = GROUP if wide else HEAD_DIM
    for node in found:
        _replace(node, group)
    model.validate_nodes_and_infer_types()
    return group


def _is_matmul(node: Any) -> bool:
    if node.get_type_name() != "MatMul":
        return False
    source = node.input_value(1).get_node()
    return source.get_type_name() == "Constant" and len(source.get_output_shape(0)) == 2


def _matrix(node: Any) -> F32:
    """The weights as [n_out, n_in]."""
    weights: F32 = node.input_value(1).get_node().data
    return weights if node.get_attributes()["transpose_b"] else weights.T


def _replace(node: Any, group: int) -> None:
    from openvino import opset13 as op

    weights = np.ascontiguousarray(_matrix(node), np.float32)
    packed, scale, zero = pack(weights, group)
    whole = [op.convert(op.constant(values), np.float32) for values in (packed, zero)]
    value = op.multiply(op.subtract(*whole), op.constant(scale))
    value = op.reshape(value, op.constant(np.array(weights.shape)), False)
    product = op.matmul(node.input_value(0), value, node.get_attributes()["transpose_a"], True)
    product.set_friendly_name(node.get_friendly_name())
    node.output(0).replace(product.output(0))
