"""The segmentation network of pyannote.audio (PyanNet) as ONNX: who speaks in a window of 10 s.

    samples f32 [B, N] at 16 kHz -> scores f32 [B, F, classes]

``scores`` are log-probabilities of sets of speakers (the powerset of Plaquet and Bredin,
arXiv:2310.13025): nobody, then every single speaker, then every pair. F is 589 for windows of 10 s.

Architecture: pyannote.audio, models/segmentation/PyanNet.py and blocks/sincnet.py; the filters of
the first convolution are those of SincNet (Ravanelli and Bengio, arXiv:1808.00158) as in
asteroid-filterbanks, ParamSincFB. All sizes but strides are those of the tensors.
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from whisper_opt.core.arrays import F32
from whisper_opt.core.dims import SAMPLE_RATE
from whisper_opt.core.errors import CheckpointError
from whisper_opt.export.graphs.builder import GraphBuilder, OnnxGraph
from whisper_opt.export.speakers.tensors import IR_VERSION, OPSET, State, stored

__all__ = ["CLASSES", "build_segmentation", "sinc_filters"]

CLASSES = 7
"""Sets of at most two of three speakers."""
_STRIDE = 10
_POOL = 3
_LOWEST = 50.0
"""Hz: of the lowest frequency and of the width of a filter."""
_GATES = (0, 3, 1, 2)
"""Input, output, forget and cell gate (ONNX) in PyTorch's order: input, forget, cell, output."""


def sinc_filters(state: State) -> F32:
    """The band-pass filters, F32 [n_filters, 1, width]: the even ones, then the odd ones."""
    key = "sincnet.conv1d.0.filterbank"
    low_hz = state.read(f"{key}.low_hz_", -1, 1)
    band_hz = state.read(f"{key}.band_hz_", len(low_hz), 1)
    window = state.read(f"{key}.window_", -1)
    times = state.read(f"{key}.n_", 1, len(window)).astype(np.float64)
    low = _LOWEST + np.abs(low_hz.astype(np.float64))
    high = np.clip(low + _LOWEST + np.abs(band_hz), _LOWEST, SAMPLE_RATE / 2)
    below, above, band = low @ times, high @ times, high - low
    even = (np.sin(above) - np.sin(below)) / (times / 2) * window
    odd = (np.cos(below) - np.cos(above)) / (times / 2) * window
    filters = np.concatenate(
        [
            np.concatenate([even, 2 * band, even[:, ::-1]], axis=1) / (2 * band),
            np.concatenate([odd, 0 * band, -odd[:, ::-1]], axis=1) / (2 * band),
        ]
    )
    found: F32 = filters.astype(np.float32)[:, None]
    return found


def build_segmentation(state: State) -> OnnxGraph:
    """The graph of a checkpoint.

    Raises:
        CheckpointError: a tensor is missing or has another shape.
    """
    graph = GraphBuilder("segmentation")
    samples = graph.input("samples", TensorProto.FLOAT, ["B", "N"])
    x = _sincnet(graph, state, samples)
    x = _lstm(graph, state, graph.transpose(x, (2, 0, 1)))
    for i in range(state.count("linear.%d.weight")):
        x = graph.node("LeakyRelu", _dense(graph, state, f"linear.{i}", x), alpha=0.01)
    n_classes = state.shape("classifier.weight")[0]
    if n_classes != CLASSES:
        raise CheckpointError(
            f"{state.name} distinguishes {n_classes} sets of speakers; expected {CLASSES}: those of"
            " at most two out of three, as in pyannote's segmentation-3.0"
        )
    x = graph.node("LogSoftmax", _dense(graph, state, "classifier", x), axis=-1)
    scores = graph.transpose(x, (1, 0, 2))
    graph.output(scores, "scores", TensorProto.FLOAT, ["B", "F", n_classes])
    return graph.finish(OPSET, IR_VERSION)


def _sincnet(graph: GraphBuilder, state: State, samples: str) -> str:
    """[B, N] -> [B, channels, F]."""
    x = graph.node("Unsqueeze", samples, graph.constant([1]))
    x = _instance_norm(graph, state, "sincnet.wav_norm1d", x, 1)
    filters = sinc_filters(state)
    x = graph.node("Conv", x, stored(graph, "filters", filters), strides=[_STRIDE])
    x = _pooled(graph, state, 0, graph.node("Abs", x), len(filters))
    for i in range(1, state.count("sincnet.norm1d.%d.weight")):
        key = f"sincnet.conv1d.{i}"
        kernel = state.read(f"{key}.weight", -1, -1, -1)
        bias = state.read(f"{key}.bias", len(kernel))
        x = graph.node("Conv", x, stored(graph, key, kernel), stored(graph, f"{key}.bias", bias))
        x = _pooled(graph, state, i, x, len(kernel))
    return x


def _pooled(graph: GraphBuilder, state: State, i: int, x: str, channels: int) -> str:
    x = graph.node("MaxPool", x, kernel_shape=[_POOL], strides=[_POOL])
    x = _instance_norm(graph, state, f"sincnet.norm1d.{i}", x, channels)
    return graph.node("LeakyRelu", x, alpha=0.01)


def _instance_norm(graph: GraphBuilder, state: State, key: str, x: str, channels: int) -> str:
    factor = stored(graph, f"{key}.weight", state.read(f"{key}.weight", channels))
    summand = stored(graph, f"{key}.bias", state.read(f"{key}.bias", channels))
    return graph.node("InstanceNormalization", x, factor, summand, epsilon=1e-5)


def _gates(values: F32) -> F32:
    """The rows of four gates in the order of ONNX."""
    return np.concatenate([np.split(values, 4)[i] for i in _GATES])


def _lstm(graph: GraphBuilder, state: State, x: str) -> str:
    """[F, B, channels] -> [F, B, 2 * hidden]: layers in both directions."""
    for layer in range(state.count("lstm.weight_ih_l%d")):
        suffixes = (f"l{layer}", f"l{layer}_reverse")
        hidden = state.shape(f"lstm.weight_hh_l{layer}")[1]
        parts = [_lstm_weights(state, suffix, hidden) for suffix in suffixes]
        key = f"lstm.{layer}"
        y = graph.nodes(
            "LSTM",
            [
                x,
                *(
                    stored(graph, f"{key}.{i}", np.stack(both))
                    for i, both in enumerate(zip(*parts))
                ),
            ],
            1,
            hidden_size=hidden,
            direction="bidirectional",
        )[0]
        x = graph.reshape(graph.transpose(y, (0, 2, 1, 3)), (0, 0, 2 * hidden))
    return x


def _lstm_weights(state: State, suffix: str, hidden: int) -> tuple[F32, F32, F32]:
    """Input weights, recurrent weights and biases of one layer in one direction."""
    rows = 4 * hidden
    return (
        _gates(state.read(f"lstm.weight_ih_{suffix}", rows, -1)),
        _gates(state.read(f"lstm.weight_hh_{suffix}", rows, hidden)),
        np.concatenate(
            [_gates(state.read(f"lstm.bias_{kind}_{suffix}", rows)) for kind in ("ih", "hh")]
        ),
    )


def _dense(graph: GraphBuilder, state: State, key: str, x: str) -> str:
    weight = state.read(f"{key}.weight", -1, -1)
    bias = state.read(f"{key}.bias", len(weight))
    product = graph.node("MatMul", x, stored(graph, f"{key}.weight", weight.T.copy()))
    return graph.node("Add", product, stored(graph, f"{key}.bias", bias))
