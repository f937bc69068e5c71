"""The embedding network CAM++ as ONNX: whose voice it is.

    features f32 [B, T, n_mels] -> embedding f32 [B, 192]

``features`` are log-mel filter banks (Kaldi's, see ``whisper_opt.audio.speakers.fbank``) minus
their mean over T.

Architecture: Wang et al. 2023 (arXiv:2303.00332) and 3D-Speaker, models/campplus. Batch
normalizations after a convolution are folded into it. All sizes but strides and dilations are those
of the tensors.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto

from whisper_opt.export.graphs.builder import GraphBuilder, OnnxGraph
from whisper_opt.export.speakers.tensors import IR_VERSION, OPSET, State, folded, stored

__all__ = ["build_embedding"]

_DILATIONS = (1, 2, 2)
"""Of the blocks of dense layers."""
_CONTEXT = 100
"""Frames over which the local context of a layer is averaged."""


def build_embedding(state: State) -> OnnxGraph:
    """The graph of a checkpoint.

    Raises:
        CheckpointError: a tensor is missing or has another shape.
    """
    graph = GraphBuilder("embedding")
    channels, n_last = (
        state.shape("head.conv2.weight")[0],
        state.shape("xvector.tdnn.linear.weight")[1],
    )
    n_mels = 8 * n_last // channels
    features = graph.input("features", TensorProto.FLOAT, ["B", "T", n_mels])
    x = _head(graph, state, graph.transpose(features, (0, 2, 1)), n_last)
    x = _convolution(graph, state, "xvector.tdnn", x, strides=[2], pads=[2, 2])
    counts = _counts(graph, x)
    for i, dilation in enumerate(_DILATIONS, 1):
        for layer in range(1, 1 + state.count(f"xvector.block{i}.tdnnd%d.linear1.weight", 1)):
            key = f"xvector.block{i}.tdnnd{layer}"
            x = graph.node(
                "Concat", x, _dense_layer(graph, state, key, x, dilation, counts), axis=1
            )
        key = f"xvector.transit{i}"
        x = _activated(graph, state, f"{key}.nonlinear.batchnorm", x)
        kernel = state.read(f"{key}.linear.weight", -1, -1, 1)
        x = graph.node("Conv", x, stored(graph, key, kernel))
    x = _activated(graph, state, "xvector.out_nonlinear.batchnorm", x)
    kernel, bias = folded(state, "xvector.dense.linear", "xvector.dense.nonlinear.batchnorm")
    matrix = stored(graph, "xvector.dense", kernel[:, :, 0].T.copy())
    x = graph.node("MatMul", _statistics(graph, x), matrix)
    x = graph.node("Add", x, stored(graph, "xvector.dense.bias", bias))
    graph.output(x, "embedding", TensorProto.FLOAT, ["B", len(bias)])
    return graph.finish(OPSET, IR_VERSION)


# two-dimensional convolutions


def _head(graph: GraphBuilder, state: State, x: str, n_last: int) -> str:
    """[B, n_mels, T] -> [B, n_last, T]."""
    x = graph.node("Unsqueeze", x, graph.constant([1]))
    x = graph.node("Relu", _plane(graph, state, "head.conv1", "head.bn1", x, 1))
    for name in ("layer1", "layer2"):
        for block in range(state.count(f"head.{name}.%d.conv1.weight")):
            x = _residual(graph, state, f"head.{name}.{block}", x, 2 if block == 0 else 1)
    x = graph.node("Relu", _plane(graph, state, "head.conv2", "head.bn2", x, 2))
    return graph.node("Reshape", x, graph.constant([0, n_last, -1]))


def _residual(graph: GraphBuilder, state: State, key: str, x: str, stride: int) -> str:
    y = graph.node("Relu", _plane(graph, state, f"{key}.conv1", f"{key}.bn1", x, stride))
    y = _plane(graph, state, f"{key}.conv2", f"{key}.bn2", y, 1)
    if f"{key}.shortcut.0.weight" in state:
        x = _plane(graph, state, f"{key}.shortcut.0", f"{key}.shortcut.1", x, stride)
    return graph.node("Relu", graph.node("Add", y, x))


def _plane(
    graph: GraphBuilder, state: State, convolution: str, norm: str, x: str, stride: int
) -> str:
    """A convolution over mel bands and time; ``stride`` in mel bands."""
    kernel, bias = folded(state, convolution, norm)
    pad = kernel.shape[-1] // 2
    weights = stored(graph, convolution, kernel), stored(graph, f"{convolution}.bias", bias)
    return graph.node("Conv", x, *weights, strides=[stride, 1], pads=[pad] * 4)


# one-dimensional convolutions


def _convolution(graph: GraphBuilder, state: State, key: str, x: str, **attributes: Any) -> str:
    kernel, bias = folded(state, f"{key}.linear", f"{key}.nonlinear.batchnorm")
    weights = stored(graph, key, kernel), stored(graph, f"{key}.bias", bias)
    return graph.node("Relu", graph.node("Conv", x, *weights, **attributes))


def _activated(graph: GraphBuilder, state: State, norm: str, x: str) -> str:
    """Batch normalization and ReLU of what no convolution precedes."""
    size = state.shape(f"{norm}.running_mean")[0]
    factor, summand = state.affine(norm, size)
    zeros, ones = np.zeros(size, np.float32), np.full(size, 1 - 1e-5, np.float32)
    inputs = [
        stored(graph, f"{norm}.factor", factor),
        stored(graph, f"{norm}.summand", summand),
        stored(graph, f"zeros.{size}", zeros),
        stored(graph, f"ones.{size}", ones),
    ]
    return graph.node("Relu", graph.node("BatchNormalization", x, *inputs, epsilon=1e-5))


def _counts(graph: GraphBuilder, x: str) -> tuple[str, str]:
    """The padding of [B, C, n] to whole contexts, and the frames in each: [1, 1, contexts, 1]."""
    n = graph.dim(x, 2)
    size = graph.constant([_CONTEXT])
    missing = graph.node("Mod", graph.node("Neg", n), size)  # of the sign of the divisor
    pads = graph.node("Concat", graph.constant([0, 0, 0, 0, 0]), missing, axis=0)
    ones = graph.node("Expand", graph.constant(np.ones((1, 1, 1), np.float32)),
                      graph.node("Concat", graph.constant([1, 1]), n, axis=0))  # fmt: skip
    return pads, _sums(graph, ones, pads)


def _sums(graph: GraphBuilder, x: str, pads: str) -> str:
    """Sums over the contexts of [B, C, n]: [B, C, contexts, 1]."""
    parts = graph.reshape(graph.node("Pad", x, pads), (0, 0, -1, _CONTEXT))
    return graph.node("ReduceSum", parts, graph.constant([3]))


def _dense_layer(
    graph: GraphBuilder, state: State, key: str, x: str, dilation: int, counts: tuple[str, str]
) -> str:
    """[B, C, n] -> [B, growth, n]: a local convolution, weighted by its context."""
    x = _activated(graph, state, f"{key}.nonlinear1.batchnorm", x)
    kernel, bias = folded(state, f"{key}.linear1", f"{key}.nonlinear2.batchnorm")
    x = graph.node(
        "Conv", x, stored(graph, f"{key}.linear1", kernel), stored(graph, f"{key}.bias1", bias)
    )
    x = graph.node("Relu", x)
    local = state.read(f"{key}.cam_layer.linear_local.weight", -1, len(bias), -1)
    pad = local.shape[2] // 2 * dilation
    weight = stored(graph, f"{key}.local", local)
    y = graph.node("Conv", x, weight, pads=[pad, pad], dilations=[dilation])
    return graph.node("Mul", y, _gate(graph, state, f"{key}.cam_layer", x, len(local), counts))


def _gate(
    graph: GraphBuilder, state: State, key: str, x: str, growth: int, counts: tuple[str, str]
) -> str:
    """Weights [B, growth, n] from the mean of all frames and of the context."""
    pads, n_in_context = counts
    means = graph.node("Div", _sums(graph, x, pads), n_in_context)
    whole = graph.node("ReduceMean", x, axes=[2], keepdims=1)
    context = graph.node("Add", graph.node("Squeeze", means, graph.constant([3])), whole)
    for name, activation in (("linear1", "Relu"), ("linear2", "Sigmoid")):
        kernel = state.read(f"{key}.{name}.weight", -1, -1, 1)
        bias = state.read(f"{key}.{name}.bias", len(kernel))
        weights = stored(graph, f"{key}.{name}", kernel), stored(graph, f"{key}.{name}.b", bias)
        context = graph.node(activation, graph.node("Conv", context, *weights))
    spread = graph.node(
        "Expand",
        graph.node("Unsqueeze", context, graph.constant([3])),
        graph.constant([1, 1, 1, _CONTEXT]),
    )
    flat = graph.node("Reshape", spread, graph.constant([0, growth, -1]))
    return graph.node("Slice", flat, graph.constant([0]), graph.dim(x, 2), graph.constant([2]))


def _statistics(graph: GraphBuilder, x: str) -> str:
    """Mean and standard deviation over time: [B, 2 * C]."""
    mean = graph.node("ReduceMean", x, axes=[2], keepdims=1)
    apart = graph.node("Sub", x, mean)
    squares = graph.node("ReduceSum", graph.node("Mul", apart, apart), graph.constant([2]))
    n = graph.cast(graph.dim(x, 2), np.int64, np.float32)
    one = graph.constant(np.array([1], np.float32))
    squeezed = graph.node("Squeeze", squares, graph.constant([2]))
    variance = graph.node("Div", squeezed, graph.node("Sub", n, one))
    first = graph.node("Squeeze", mean, graph.constant([2]))
    return graph.node("Concat", first, graph.node("Sqrt", variance), axis=1)
