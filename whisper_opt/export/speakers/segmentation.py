"""The segmentation network of pyannote.audio (PyanNet) as ONNX: who speaks in a window of 10 s.

    samples f32 [B, N] at 16 kHz -> scores f32 [B, F, classes]

``scores`` are log-probabilities of sets of speakers (the powerset of Plaquet and Bredin,
arXiv:2310.13025): nobody, then every single speaker, then every pair. F is 589 for windows of 10 s.

Architecture: pyannote.audio, models/segmentation/PyanNet.py and blocks/sincnet.py; the filters of
the first convolution are those of SincNet (Ravanelli and Bengio, arXiv:1808.00158) as in
asteroid-filterbanks, ParamSincFB. All sizes but strides are those of the tensors.

Two steps are computed in another way, because float32 would round them too much (docs/speakers.md):

- The first normalization of pyannote's checkpoint adds 4.6 standard deviations to the samples, and
  the filters remove most of it again. Here the filters' response to that constant is added after
  them.
- The means and variances of normalizations are computed in double precision. In float32, equal
  values, such as those of a silence, are all rounded in the same direction when they are summed.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from onnx import TensorProto

from whisper_opt.core.arrays import F32
from whisper_opt.core.dims import SAMPLE_RATE
from whisper_opt.core.errors import CheckpointError
from whisper_opt.export.graphs.builder import GraphBuilder, OnnxGraph
from whisper_opt.export.speakers.tensors import EPSILON, IR_VERSION, OPSET, State, stored

__all__ = ["CLASSES", "build_segmentation", "sinc_filters"]

CLASSES = 7
"""Sets of at most two of three speakers."""
_STRIDE = 10
_POOL = 3
_LOWEST = 50.0
"""Hz: of the lowest frequency and of the width of a filter."""
_GATES = (0, 3, 1, 2)
"""Input, output, forget and cell gate (ONNX) in PyTorch's order: input, forget, cell, output."""


def sinc_filters(state: State) -> npt.NDArray[np.float64]:
    """The band-pass filters, float64 [n_filters, width]: the even ones, then the odd ones."""
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
    filters: npt.NDArray[np.float64] = np.concatenate(
        [
            np.concatenate([even, 2 * band, even[:, ::-1]], axis=1) / (2 * band),
            np.concatenate([odd, 0 * band, -odd[:, ::-1]], axis=1) / (2 * band),
        ]
    )
    return filters


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
    x = _standardized(graph, state, "sincnet.wav_norm1d", x, 1)
    filters = sinc_filters(state)
    response = state.read("sincnet.wav_norm1d.bias", 1) * filters.sum(axis=1)
    x = graph.node(
        "Conv",
        x,
        stored(graph, "filters", filters.astype(np.float32)[:, None]),
        stored(graph, "filters.bias", response.astype(np.float32)),
        strides=[_STRIDE],
    )
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
    key = f"sincnet.norm1d.{i}"
    x = _standardized(graph, state, key, x, channels)
    summand = stored(graph, f"{key}.bias", state.read(f"{key}.bias", channels)[:, None])
    return graph.node("LeakyRelu", graph.node("Add", x, summand), alpha=0.01)


def _standardized(graph: GraphBuilder, state: State, key: str, x: str, channels: int) -> str:
    """[B, channels, n] normalized over n, times the weight of the normalization.

    The mean is subtracted first, so that equal values give exactly 0. Their variance may be
    rounded to less than 0.
    """
    wide = graph.cast(x, np.float32, np.float64)
    mean = _mean(graph, wide)
    squares = _mean(graph, graph.node("Mul", wide, wide))
    variance = graph.node("Sub", squares, graph.node("Mul", mean, mean))
    variance = graph.node("Max", variance, graph.constant(np.array(0.0)))
    raised = graph.node("Add", variance, graph.constant(np.array(EPSILON)))
    deviation = graph.cast(graph.node("Sqrt", raised), np.float64, np.float32)
    weight = stored(graph, f"{key}.weight", state.read(f"{key}.weight", channels)[:, None])
    centred = graph.node("Sub", x, graph.cast(mean, np.float64, np.float32))
    return graph.node("Mul", centred, graph.node("Div", weight, deviation))


def _mean(graph: GraphBuilder, x: str) -> str:
    """[B, channels, n] -> [B, channels, 1]."""
    return graph.node("ReduceMean", x, axes=[2], keepdims=1)


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
