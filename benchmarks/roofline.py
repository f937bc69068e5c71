"""Roofline of each stage of a model on this machine: operations, bytes, time.

    pip install -e '.[cpu,export]'
    python benchmarks/roofline.py engines/tiny.en engines/tiny.en-int8

One run measures in turns the peak of matrix products in fp32 and in 8 bits, memory bandwidth, and
per engine the encoder (30 s), a prompt, and a decoder call for one row and for five beams of one
window. Operations are those of the matrix products, from the dimensions; an addition and a
multiplication are two. Bytes are what a call must read (weights once, cross-attention keys and
values once per window, the cache once per row) and the logits that it writes. The *bound* is the
larger of operations over peak and bytes over bandwidth; a stage's share is bound over time. Token
selection is not included.
"""

from __future__ import annotations

import dataclasses
import statistics
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable

import numpy as np
import onnxruntime
from common import Verdict, arguments, finish, load, table
from onnx import TensorProto, helper

from whisper_opt.cli.bench.machine import busy_cores
from whisper_opt.core.dims import N_FRAMES, ModelDims
from whisper_opt.runtime.engine import PACKED, Engine, read_engine
from whisper_opt.runtime.native import kernel_library
from whisper_opt.runtime.onnxruntime.backend import OrtBackend, OrtEncoded

SIZE = 1536
"""Size of the square products that measure the peak."""
MEMORY = (64, 1024)
"""MiB that are read or copied: as much as a decoder call reads, and more than any CPU cache."""
LENGTH = 32
"""Tokens in the cache of a row when steps are timed."""
PROMPTS = (4, 224)
BEAMS = 5


@dataclasses.dataclass(frozen=True)
class Work:
    """Work of a call: operations in fp32 and in 8 bits, and bytes."""

    fp32: float
    int8: float
    bytes: float

    def bound(self, peak: Mapping[str, float]) -> float:
        """Seconds at the peak of the machine."""
        return max(self.fp32 / peak["fp32"] + self.int8 / peak["int8"], self.bytes / peak["bytes"])


class Model:
    """The work of one engine's calls."""

    def __init__(self, engine: Engine, kernels: bool) -> None:
        """``kernels``: whether encoder self-attention and cross-attention are in 8 bits too."""
        manifest = engine.manifest
        if manifest.precision not in ("fp32", "int8"):
            raise SystemExit(f"{engine.path} is {manifest.precision}; expected fp32 or int8")
        self.dims: ModelDims = manifest.dims
        self.bits8 = manifest.precision == "int8"
        self.two_stage_head = bool(manifest.tensors)
        self.width = 1 if self.bits8 else 4
        self.kernels = kernels
        self.cross_width = 1 if kernels else 4

    def _work(self, products: float, audio: float, exact: float, size: float) -> Work:
        """Operations on weights (``products``), of cross-attention (``audio``), and others
        (``exact``)."""
        if not self.bits8:
            return Work(exact + audio + products, 0.0, size)
        if not self.kernels:
            return Work(exact + audio, products, size)
        return Work(exact, products + audio, size)

    def encoder(self) -> Work:
        dims, n = self.dims, self.dims.n_audio_ctx
        d, frames = dims.n_audio_state, n * dims.frames_per_position
        weights = 12 * d * d * dims.n_audio_layer + 2 * d * dims.n_text_state * dims.n_text_layer
        convolutions = 2 * 3 * d * (dims.n_mels * frames + d * n)
        attention = 4 * n * n * d * dims.n_audio_layer
        cross = 2 * n * dims.n_text_state * dims.n_text_layer * self.cross_width
        size = weights * self.width + 4 * dims.n_mels * frames + cross
        products = 2.0 * n * weights
        return self._work(products, float(attention), float(convolutions), float(size))

    def decoder(self, rows: int, new: int, past: int, prompt: bool = False) -> Work:
        """A call for rows of one window, ``new`` tokens each on top of ``past``."""
        dims, tokens = self.dims, rows * new
        d, layers = dims.n_text_state, dims.n_text_layer
        weights = 14 * d * d * layers
        cross = 2 * dims.n_audio_ctx * d * layers
        cache = 2 * d * layers * rows * (past + new)
        head = dims.n_vocab * d
        audio, own = 2.0 * tokens * cross, 4.0 * tokens * d * layers * (past + new / 2)
        size = weights * self.width + float(self.cross_width * cross) + 4.0 * cache
        # the head of a prompt computes logits for two tokens: one exact, one as in a step
        n_scores = rows * (2 if prompt else 1)
        size += head * (1 + 4 * (prompt and self.two_stage_head)) + 4.0 * n_scores * dims.n_vocab
        found = self._work(2.0 * tokens * weights, audio, own, size)
        full = 2.0 * rows * head if prompt and self.two_stage_head else 0.0
        approximate = (
            2 * 2.0 * rows * head * (2 if prompt and not self.two_stage_head else 1)
        )  # two rows each
        return dataclasses.replace(found, fp32=found.fp32 + full, int8=found.int8 + approximate)


# ---------------------------------------------------------------- the machine


def _square(kind: str, threads: int) -> Callable[[], object]:
    """A product of square matrices in ONNX Runtime, with constant weights as in a graph."""
    rng = np.random.default_rng(0)
    if kind == "fp32":
        weight = rng.standard_normal((SIZE, SIZE)).astype(np.float32)
        value = weight.copy()
        nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
        more: dict[str, Any] = {}
    else:
        weight = rng.integers(-64, 64, (SIZE, SIZE)).astype(np.int8)
        value = rng.integers(0, 255, (SIZE, SIZE)).astype(np.uint8)
        more = {"s": np.float32(1), "t": np.ones(SIZE, np.float32), "z": np.uint8(128)}
        inputs = ["x", "w", "s", "t", "z"]
        nodes = [helper.make_node("MatMulIntegerToFloat", inputs, ["y"], domain="com.microsoft")]
    constants = {"w": weight, **more}
    types = {"fp32": TensorProto.FLOAT, "int8": TensorProto.UINT8}
    graph = helper.make_graph(
        nodes,
        "square",
        [helper.make_tensor_value_info("x", types[kind], [SIZE, SIZE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [SIZE, SIZE])],
        [
            helper.make_tensor(
                name,
                helper.np_dtype_to_tensor_dtype(np.asarray(array).dtype),
                np.asarray(array).shape,
                np.asarray(array).tobytes(),
                raw=True,
            )
            for name, array in constants.items()
        ],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return lambda: session.run(None, {"x": value})


class Memory:
    """Read and copy arrays with as many threads as the models."""

    def __init__(self, mebibytes: int, threads: int, pool: ThreadPoolExecutor) -> None:
        self.bytes = mebibytes << 20
        self._pool = pool
        source = np.ones(self.bytes // 4, np.float32)
        self._parts = np.array_split(source, threads)
        self._targets = np.array_split(np.zeros_like(source), threads)

    def read(self) -> None:
        list(self._pool.map(np.max, self._parts))

    def copy(self) -> None:
        list(self._pool.map(np.copyto, self._targets, self._parts))


# ---------------------------------------------------------------- the model


class Stages:
    """The calls of one engine during transcription."""

    def __init__(self, engine: Engine, threads: int) -> None:
        self._backend = OrtBackend(engine, threads=threads)
        packed = PACKED[1] in engine.manifest.files and kernel_library() is not None
        self.model = Model(engine, packed)
        rng = np.random.default_rng(0)
        dims = self.model.dims
        frames = dims.n_audio_ctx * dims.frames_per_position
        assert frames == N_FRAMES
        self._mel = rng.standard_normal((1, dims.n_mels, frames)).astype(np.float32)
        self._tokens = rng.integers(0, 20_000, (BEAMS, max(PROMPTS) + LENGTH))
        self._encoded: OrtEncoded = self._backend.encode(self._mel)

    def work(self) -> dict[str, Work]:
        model = self.model
        prompts = {f"prompt of {n}": model.decoder(1, n, 0, prompt=True) for n in PROMPTS}
        steps = {name: model.decoder(n, 1, LENGTH) for n, name in ((1, "step"), (BEAMS, "5 beams"))}
        return {"encoder": model.encoder(), **prompts, **steps}

    def times(self, n_steps: int) -> dict[str, list[float]]:
        """Seconds of every call, after an untimed one of each kind."""
        found = {"encoder": [_timed(lambda: self._backend.encode(self._mel))]}
        for n in PROMPTS:
            found[f"prompt of {n}"] = self._prompts(n)
        for rows, name in ((1, "step"), (BEAMS, "5 beams")):
            found[name] = self._steps(rows, n_steps)
        return found

    def _prompts(self, n: int) -> list[float]:
        def call() -> None:
            session = self._backend.open(self._encoded)
            session.extend(self._tokens[:1, :n], at=np.zeros((1, 1), np.int64))
            session.close()

        call()
        return [_timed(call) for _ in range(2)]

    def _steps(self, rows: int, n_steps: int) -> list[float]:
        session = self._backend.open(self._encoded)
        session.extend(self._tokens[:1, : LENGTH - n_steps // 2])
        session.gather(np.zeros(rows, np.int64))
        token = self._tokens[:rows, :1]
        times = [_timed(lambda: session.extend(token)) for _ in range(n_steps + 2)]
        session.close()
        return times[2:]


def _timed(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


# ---------------------------------------------------------------- the run


def measure(
    stages: Mapping[str, Stages], args: Any
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Rates of the machine (per second), and medians of every stage by engine."""
    products = {kind: _square(kind, args.threads) for kind in ("fp32", "int8")}
    rates: dict[str, list[float]] = {}
    times: dict[str, dict[str, list[float]]] = {name: {} for name in stages}
    with ThreadPoolExecutor(args.threads) as pool:
        memory = {size: Memory(size, args.threads, pool) for size in MEMORY}
        for turn in range(args.rounds + 1):  # the first one is untimed
            for kind, product in products.items():
                seconds = min(_timed(product) for _ in range(4))
                rates.setdefault(kind, []).append(2 * SIZE**3 / seconds)
            for size, one in memory.items():
                for name, call, factor in (("read", one.read, 1), ("copy", one.copy, 2)):
                    seconds = min(_timed(call) for _ in range(3))
                    rates.setdefault(f"{name} {size} MiB", []).append(factor * one.bytes / seconds)
            for name, stage in stages.items():
                time.sleep(args.pause)
                for what, found in stage.times(args.steps).items():
                    times[name].setdefault(what, []).extend(found if turn else [])
    best = {name: max(values[1:]) for name, values in rates.items()}
    medians = {
        name: {what: statistics.median(found) for what, found in every.items()}
        for name, every in times.items()
    }
    return best, medians


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("paths", metavar="ENGINE", nargs="+", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=20, help="steps a round")
    parser.add_argument("--pause", type=float, default=0.1, help="seconds before each engine")
    args = parser.parse_args()
    if args.quick:
        args.rounds = 1
    state = {"load_before": load(), "busy_cores_before": busy_cores()}
    stages = {path.name: Stages(read_engine(path), args.threads) for path in args.paths}
    rates, medians = measure(stages, args)
    rate = max(value for name, value in rates.items() if "MiB" in name)
    peak = {"fp32": rates["fp32"], "int8": rates["int8"], "bytes": rate}
    models: dict[str, Any] = {}
    rows = []
    for name, stage in stages.items():
        models[name] = {}
        for what, work in stage.work().items():
            seconds, bound = medians[name][what], work.bound(peak)
            models[name][what] = {
                "gflop_fp32": round(work.fp32 / 1e9, 4),
                "gop_int8": round(work.int8 / 1e9, 4),
                "megabytes": round(work.bytes / 1e6, 2),
                "ms": round(1e3 * seconds, 3),
                "bound_ms": round(1e3 * bound, 3),
                "share": round(bound / seconds, 3),
            }
            rows.append((name, what, *models[name][what].values()))
    rounded = {name: round(value / 1e9, 1) for name, value in rates.items()}
    header = ("engine", "stage", "GFLOP fp32", "GOP int8", "MB", "ms", "bound ms", "share")
    tables = {
        "Peaks, in 10^9 operations or bytes per second": table(("", "1e9/s"), rounded.items()),
        f"Stages, {args.threads} threads": table(header, rows),
    }
    figures = {**state, "rounds": args.rounds, "peaks_1e9": rounded, "models": models}
    verdicts: list[Verdict] = []
    return finish("roofline-cpu", args, figures, tables, verdicts)


if __name__ == "__main__":
    sys.exit(main())
