"""Make whisper_opt/audio/vad/silero_vad.onnx from the files of the PyPI package silero-vad.

    python tools/goldens/make_vad_model.py

The weights are Silero VAD's (MIT licence, kept beside the model). The package has a graph that
processes many frames per call; this script writes the same computation as a few large matrix
products instead of many small convolutions: four to five times faster on one core, probabilities
equal within 1e-5. Frames, inputs and outputs are those of the package's graph:

    input f32 [n_frames, 576], h, c f32 [1, 1, 128] -> speech_probs f32 [n_frames], hn, cn

The wheel is pinned by version and sha256; the result is the same to the byte with the
pinned onnx of the constraints. Needs pip and onnx.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

F32 = npt.NDArray[np.float32]
ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "whisper_opt" / "audio" / "vad"
VERSION = "6.2.3"
WHEEL_SHA256 = "7b7f5436cfcb02fae583a05b512ea96467fd449fe54cb49a5e4f06c51a1e43b8"
MEMBER = "silero_vad/data/silero_vad_16k_sequence.onnx"
LICENSE = f"silero_vad-{VERSION}.dist-info/licenses/LICENSE"
FRAME, CONTEXT = 512, 64
WINDOW, HOP = 256, 128
N_WINDOWS = 4
N_BINS = WINDOW // 2 + 1


def fetch_wheel() -> zipfile.ZipFile:
    """The pinned wheel, checked."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--only-binary", ":all:", "--dest", folder, f"silero-vad=={VERSION}"]
        subprocess.run(command, check=True)
        (path,) = Path(folder).glob("*.whl")
        data = path.read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != WHEEL_SHA256:
        raise SystemExit(f"the wheel has sha256 {found}; expected {WHEEL_SHA256}")
    return zipfile.ZipFile(io.BytesIO(data))


class Graph:
    """Nodes and weights with generated names."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, onnx.TensorProto] = {}

    def weight(self, name: str, array: Any) -> str:
        self.weights[name] = numpy_helper.from_array(np.ascontiguousarray(array), name)
        return name

    def integers(self, *values: int) -> str:
        name = "int_" + "_".join(map(str, values))
        return self.weight(name, np.array(values, np.int64))

    def add(self, op: str, *inputs: str, out: str | None = None, **attributes: Any) -> str:
        out = out or f"{op.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [out], **attributes))
        return out

    def slice(self, x: str, start: int, stop: int, axis: int = 1) -> str:
        return self.add("Slice", x, self.integers(start), self.integers(stop), self.integers(axis))

    def reshape(self, x: str, *shape: int) -> str:
        return self.add("Reshape", x, self.integers(*shape))

    def dense(self, x: str, name: str, weight: F32, bias: F32) -> str:
        """Relu(x @ weight + bias)."""
        product = self.add("Gemm", x, self.weight(name, weight), self.weight(f"{name}_bias", bias))
        return self.add("Relu", product)


def taps(weight: F32, *which: int) -> F32:
    """Some taps of a convolution [n_out, n_in, 3] as a matrix [taps * n_in, n_out]."""
    return np.concatenate([weight[:, :, tap].T for tap in which])


def spectrum(graph: Graph, basis: F32) -> str:
    """Magnitudes [4 * n_frames, 129] of four windows per frame, mirrored at its end."""
    padded = graph.add("Pad", "input", graph.integers(0, 0, 0, CONTEXT), mode="reflect")
    windows = [graph.slice(padded, HOP * i, HOP * i + WINDOW) for i in range(N_WINDOWS)]
    stacked = graph.reshape(graph.add("Concat", *windows, axis=1), -1, WINDOW)
    both = graph.add("MatMul", stacked, graph.weight("stft", basis[:, 0].T))
    real, imaginary = graph.slice(both, 0, N_BINS), graph.slice(both, N_BINS, 2 * N_BINS)
    squares = (graph.add("Mul", part, part) for part in (real, imaginary))
    return graph.add("Sqrt", graph.add("Add", *squares))


def encoder(graph: Graph, x: str, weights: dict[str, F32]) -> str:
    """Four convolutions over the four windows of each frame as products: [n_frames, 128].

    The strides leave one of the four positions, so that only the taps of the last two kernels that
    are not on padding count.
    """
    kernels = [weights[f"encoder.{i}.weight"] for i in range(4)]
    biases = [weights[f"encoder.{i}.bias"] for i in range(4)]
    x = graph.reshape(x, -1, N_WINDOWS, N_BINS)
    x = graph.add("Pad", x, graph.integers(0, 1, 0, 0, 1, 0))
    shifted = [graph.slice(x, tap, tap + N_WINDOWS) for tap in range(3)]
    x = graph.reshape(graph.add("Concat", *shifted, axis=2), -1, 3 * N_BINS)
    x = graph.reshape(graph.dense(x, "conv_0", taps(kernels[0], 0, 1, 2), biases[0]), -1, 4 * 128)
    x = graph.add("Pad", x, graph.integers(0, 128, 0, 0))  # stride 2: positions -1 0 1 and 1 2 3
    pair = graph.add("Concat", graph.slice(x, 0, 384), graph.slice(x, 256, 640), axis=1)
    x = graph.reshape(pair, -1, 3 * 128)
    x = graph.dense(x, "conv_1", taps(kernels[1], 0, 1, 2), biases[1])
    x = graph.dense(graph.reshape(x, -1, 2 * 64), "conv_2", taps(kernels[2], 1, 2), biases[2])
    return graph.dense(x, "conv_3", taps(kernels[3], 1), biases[3])


def recurrence(graph: Graph, x: str, source: onnx.ModelProto, weights: dict[str, F32]) -> None:
    """The LSTM over the frames and the last layer: ``speech_probs``, ``hn``, ``cn``."""
    (lstm,) = (node for node in source.graph.node if node.op_type == "LSTM")
    names = [
        graph.weight(name, weights[old])
        for name, old in zip(("lstm_w", "lstm_r", "lstm_b"), lstm.input[1:4])
    ]
    x = graph.add("Unsqueeze", x, graph.integers(1))
    node = helper.make_node(
        "LSTM", [x, *names, "", "h", "c"], ["lstm", "hn", "cn"], hidden_size=128
    )
    graph.nodes.append(node)
    x = graph.add("Relu", graph.reshape("lstm", -1, 128))
    last = graph.weight("last", weights["output.weight"][0])
    x = graph.add("Gemm", x, last, graph.weight("last_bias", weights["output.bias"]))
    graph.add("Reshape", graph.add("Sigmoid", x), graph.integers(-1), out="speech_probs")


def rewrite(source: onnx.ModelProto) -> onnx.ModelProto:
    """The same network in the form described above."""
    weights: dict[str, F32] = {
        tensor.name: numpy_helper.to_array(tensor) for tensor in source.graph.initializer
    }
    graph = Graph()
    x = spectrum(graph, weights["stft.forward_basis_buffer"])
    recurrence(graph, encoder(graph, x, weights), source, weights)

    def value(name: str, *shape: int | str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)

    state = [1, 1, 128]
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "silero_vad",
            [value("input", "n_frames", CONTEXT + FRAME), value("h", *state), value("c", *state)],
            [value("speech_probs", "n_frames"), value("hn", *state), value("cn", *state)],
            list(graph.weights.values()),
        ),
        ir_version=8,
        opset_imports=[helper.make_opsetid("", 16)],
        producer_name="whisper_opt",
    )
    origin = f"silero-vad {VERSION}, {MEMBER}, Silero Team, MIT licence"
    helper.set_model_props(model, {"origin": origin})
    onnx.checker.check_model(model, full_check=True)
    return model


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    wheel = fetch_wheel()
    model = rewrite(onnx.load_model_from_string(wheel.read(MEMBER))).SerializeToString(
        deterministic=True
    )
    DATA.mkdir(exist_ok=True)
    (DATA / "LICENSE.silero-vad").write_bytes(wheel.read(LICENSE))
    (DATA / "silero_vad.onnx").write_bytes(model)
    print(f"silero_vad.onnx: {len(model)} bytes, sha256 {hashlib.sha256(model).hexdigest()}")


if __name__ == "__main__":
    main()
