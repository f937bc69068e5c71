"""8-bit weights of an OpenVINO model (OpenVINO's weight compression).

Every matrix multiplication by a constant gets unsigned 8-bit weights, with a scale and a zero point
per output and group of inputs. OpenVINO rounds the activations per position in groups of the same
size, and accumulates in 32 bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from whisper_opt.core.arrays import F32, NDArray
from whisper_opt.core.dims import HEAD_DIM

__all__ = ["GROUP", "pack", "pack_matmuls"]

GROUP = 2 * HEAD_DIM
"""Inputs that share a scale, if the widths of all matrices are multiples of it."""


def pack(weights: F32, group: int) -> tuple[NDArray, F32, NDArray]:
    """Round weights to 8 bits.

    Args:
        weights: [n_out, n_in]; n_in is a multiple of ``group``.
        group: number of inputs that share a scale.

    Returns:
        uint8 [n_out, n_groups, group], scales float32 and zero points uint8 [n_out, n_groups, 1].
        Weights equal (packed - zero point) * scale to within half a scale.
    """
    blocks = weights.reshape(len(weights), -1, group)
    low = np.minimum(blocks.min(axis=2, keepdims=True), 0)
    high = np.maximum(blocks.max(axis=2, keepdims=True), 0)
    scale = np.maximum((high - low) / np.float32(255), np.float32(1e-30))
    zero = np.rint(-low / scale)
    packed = np.clip(np.rint(blocks / scale) + zero, 0, 255)
    return packed.astype(np.uint8), scale.astype(np.float32), zero.astype(np.uint8)


def pack_matmuls(model: Any) -> int:
    """Replace the constant weight matrices of an ``openvino.Model`` in place.

    Returns:
        The group size, the same for all matrices; OpenVINO needs it as a setting.
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
