"""The convolutions of the encoder with 16-bit weights, as functions (``operators.py``).

A convolution of three frames is a product: row t of the left matrix is frames t - 1, t and t + 1.
The kernel rounds each of these rows to 12 bits (2,047 steps of either sign), and weights have up to
16 bits, so that sums fit 32 bits and are exact: the same bits on every processor, unlike ONNX
Runtime's convolutions, and a fraction of the rounding errors of 8 bits. The functions do not round
inputs.

Weights [n_out, n_channels, 3] are stored as int16 [n_out / 16, 3 * n_channels / 2, 16, 2]: panels
of 16 columns, in which two rows of a column lie together.
"""

from __future__ import annotations

import numpy as np

from whisper_opt.core.arrays import F32, NDArray
from whisper_opt.export.checkpoints.checkpoint import Tensor
from whisper_opt.export.graphs.builder import MICROSOFT, GraphBuilder, Together
from whisper_opt.export.graphs.linear import Linear
from whisper_opt.export.graphs.operators import Operator

__all__ = [
    "CHANNELS",
    "COLUMN_LIMIT",
    "INPUT_STEPS",
    "conv_gelu",
    "pack_columns",
    "round_columns",
    "stem",
]

INPUT_STEPS = 2047
"""The largest magnitude of a rounded input."""
COLUMN_LIMIT = 1 << 20
"""What the magnitudes of a column's weights may add up to: times INPUT_STEPS, it fits 32 bits."""
CHANNELS = 16
"""The number of channels must be a multiple of it."""
_PANEL = 16
_LARGEST = 32_767


def round_columns(weight: F32) -> tuple[NDArray, F32]:
    """Integer weights i16 [n_in, n_out] of float ones, and their scales f32 [n_out]."""
    sums = np.abs(weight).sum(axis=0, dtype=np.float64)
    # rounding adds at most a half to each
    scale = np.maximum(sums / (COLUMN_LIMIT - len(weight)), np.abs(weight).max(axis=0) / _LARGEST)
    scale = np.maximum(scale, 1e-30).astype(np.float32)
    return np.rint(weight / scale).astype(np.int16), scale


def pack_columns(weight: NDArray) -> NDArray:
    """Weights i16 [n_in, n_out] in the order in which the kernel reads them."""
    n_in, n_out = weight.shape
    pairs = weight.reshape(n_in // 2, 2, n_out // _PANEL, _PANEL)
    return np.ascontiguousarray(pairs.transpose(2, 0, 3, 1))


def conv_gelu(n_channels: int, stride: int) -> Operator:
    """GELU of a convolution of three frames: x [A, F, n_channels] -> [A, ceil(F / stride), n_out].

    Frames before the first and after the last are zeros. Inputs ``weight`` (:func:`pack_columns`),
    ``scale`` and ``bias`` [n_out].
    """

    def body(builder: GraphBuilder) -> list[str]:
        whole = builder.cast("weight", np.int16, np.float32)
        columns = builder.transpose(whole, [0, 2, 1, 3])  # [n_out / 16, 16, n_in / 2, 2]
        taps = builder.reshape(columns, [-1, 3, n_channels])
        scale = builder.node("Unsqueeze", "scale", builder.constant([1, 2]))
        weight = builder.transpose(builder.node("Mul", taps, scale), [0, 2, 1])
        found = builder.node(
            "Conv", builder.transpose("x", [0, 2, 1]), weight, "bias",
            kernel_shape=[3], pads=[1, 1], strides=[stride],
        )  # fmt: skip
        found = builder.node("Gelu", found, domain=MICROSOFT)
        return [builder.transpose(found, [0, 2, 1])]

    name = "Conv16Gelu" if stride == 1 else f"Conv16GeluStride{stride}"
    return Operator(name, ("x", "weight", "scale", "bias"), body)


def stem(builder: GraphBuilder, linear: Linear, value: str, stride: int) -> str:
    """Both convolutions: mel [A, n_mels, F] -> [A, F / stride, n_state]; that of the second one."""
    value = builder.transpose(value, [0, 2, 1])
    for name, step in (("encoder.conv1", 1), ("encoder.conv2", stride)):
        builder.scope(name)
        tensor = linear.tensors[f"{name}.weight"]
        n_out, n_channels, _ = tensor.shape

        def columns(tensor: Tensor = tensor) -> tuple[NDArray, F32]:
            taps = np.ascontiguousarray(tensor.read().transpose(2, 1, 0))
            return round_columns(taps.reshape(-1, taps.shape[-1]))

        rounded = Together(columns)
        integers = rounded.part("weight", lambda found: pack_columns(found[0]))
        scale = rounded.part("scale", lambda found: found[1])
        shape = (n_out // _PANEL, 3 * n_channels // 2, _PANEL, 2)
        weights = (
            builder.weight(f"{name}.weight", shape, integers, np.int16),
            builder.weight(f"{name}.scale", (n_out,), scale),
            linear.vector(f"{name}.bias"),
        )
        value = conv_gelu(n_channels, step)(builder, value, *weights)
    return value
