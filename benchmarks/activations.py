"""Largest values in fp16 engines, compared with float16's maximum of 65504.

    pip install -e '.[cpu,export]'
    python scripts/get_model.py tiny.en base
    python benchmarks/activations.py

Every float16 value of the graphs is measured before it is rounded, and also the residual stream
(float32, the input of layer normalization). Inputs are real speech, loud, clipped and noisy audio,
silence, and artificial log-mel spectra. The decoder gets the golden tokens of a clip, or random
tokens.
"""

from __future__ import annotations

import collections
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from common import Verdict, arguments, clip_pcm, finish, log, table
from onnx import ModelProto, TensorProto, helper
from rounded import rounded

from tests.support.golden import golden
from whisper_opt.audio.features import log_mel
from whisper_opt.core.arrays import F32, Int, NDArray
from whisper_opt.core.dims import N_FRAMES, ModelDims
from whisper_opt.export import export
from whisper_opt.runtime.engine import Engine, read_engine
from whisper_opt.text.vocabulary import Vocab

LARGEST = 65504.0
ROOM = 8.0
"""Factor by which every value must stay below the largest float16."""
CLIPS = ("en-jfk", "en-ls-1998-15444-0000", "de-cheetah-test-de", "ns-music-brahms-32s")

Peaks = dict[str, float]


def measured(model: ModelProto) -> ModelProto:
    """The :func:`rounded` graph whose only outputs are the largest absolute values of its values.

    ``peak:NAME`` for every value that is float16 in ``model``, before it is rounded, and for every
    input of a layer normalization.
    """
    graph = rounded(model).graph
    names = [node.input[0] for node in graph.node if node.name.endswith("/round")]
    names += [node.input[0] for node in graph.node if node.op_type == "LayerNormalization"]
    kept = {value.name: value for value in graph.output if not value.name.startswith("self_")}
    del graph.output[:]
    for name in dict.fromkeys(names):
        size, peak = f"size:{name}", f"peak:{name}"
        graph.node.append(helper.make_node("Abs", [name], [size]))
        graph.node.append(helper.make_node("ReduceMax", [size], [peak], keepdims=0))
        graph.output.append(helper.make_tensor_value_info(peak, TensorProto.FLOAT, []))
    graph.output.extend(kept.values())
    return helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)


class Meter:
    """The measured graphs of one fp16 engine in the standard dialect."""

    def __init__(self, engine: Engine, threads: int) -> None:
        self.dims: ModelDims = engine.manifest.dims
        self.vocab = Vocab(engine.tokenizer_json(), self.dims)
        self._sessions = {
            stem: self._load(engine, stem, threads) for stem in ("encoder", "decoder")
        }

    @staticmethod
    def _load(engine: Engine, stem: str, threads: int) -> Any:
        path = engine.file(f"{stem}.onnx")
        model = measured(onnx.load(str(path), load_external_data=False))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        place = path.with_name(f".{stem}.measured.onnx")  # beside its weights, for a moment
        place.write_bytes(model.SerializeToString())
        try:
            providers = ["CPUExecutionProvider"]
            return onnxruntime.InferenceSession(str(place), options, providers=providers)
        finally:
            place.unlink()

    def run(self, mel: F32, tokens: Int) -> Peaks:
        """Peaks by name of value, for mel [n_mels, n_frames] and tokens [n]."""
        out = self._run("encoder", {"mel": mel[None]})
        shape = (1, self.dims.n_text_head, 448, 64)
        feeds: dict[str, NDArray] = {
            "tokens": tokens[None],
            "start": np.zeros(1, np.int64),
            "at": np.arange(len(tokens))[None],
            "aligned": np.arange(len(tokens)),
        }
        for name, values in out.items():
            if name.startswith("cross_"):
                feeds[name] = values
                feeds[name.replace("cross", "self")] = np.zeros(shape, np.float32)
        out.update(self._run("decoder", feeds))
        return {
            name[len("peak:") :]: float(value)
            for name, value in out.items()
            if name.startswith("peak:")
        }

    def _run(self, stem: str, feeds: Mapping[str, NDArray]) -> dict[str, NDArray]:
        session = self._sessions[stem]
        names = [value.name for value in session.get_outputs()]
        return dict(zip(names, session.run(names, dict(feeds))))


def inputs(meter: Meter, model: str) -> Iterator[tuple[str, F32, Int]]:
    """Name, log-mel window and tokens of every input."""
    dims, rng = meter.dims, np.random.default_rng(0)
    start = meter.vocab.start("en", "transcribe", timestamps=True)
    drawn = np.array([*start, *rng.integers(0, dims.n_vocab, 200)], np.int64)

    def mel_of(samples: F32) -> F32:
        mel: F32 = log_mel(samples, dims.n_mels).window(0, N_FRAMES)
        return mel

    for name in CLIPS:
        pcm, want = clip_pcm(name), golden(model, "ts")[name]
        written = want["windows"][0]["tokens"] if want["windows"] else []
        tokens = np.array([*start, *written], np.int64)[: dims.n_text_ctx]
        yield name, mel_of(pcm), tokens
        yield f"{name} 40 dB louder, clipped", mel_of(np.clip(pcm * 100, -1, 1)), tokens
    n = 30 * 16000
    noise = rng.standard_normal(n).astype(np.float32)
    yield "white noise at full scale", mel_of(np.clip(noise, -1, 1)), drawn
    yield (
        "square wave at full scale",
        mel_of(np.sign(np.sin(np.arange(n) * 0.2)).astype("f4")),
        drawn,
    )
    yield "silence", mel_of(np.zeros(n, np.float32)), drawn
    shape = (dims.n_mels, N_FRAMES)
    yield "log-mel noise, sigma 1", rng.standard_normal(shape, np.float32), drawn
    for value in (-1.5, 2.0, 10.0):
        yield f"log-mel {value} throughout", np.full(shape, value, np.float32), drawn
    board = np.indices(shape).sum(axis=0) % 2 * np.float32(3.5) - np.float32(1.5)
    yield "log-mel of a checkerboard", board.astype(np.float32), drawn
    yield "log-mel noise, sigma 10", rng.standard_normal(shape, np.float32) * 10, drawn


def by_block(peaks: Peaks) -> dict[str, dict[str, float]]:
    """Peaks of each block of layers: of the residual stream and of float16 values."""
    blocks: dict[str, dict[str, float]] = collections.defaultdict(
        lambda: {"residual": 0.0, "float16": 0.0}
    )
    for name, peak in peaks.items():
        scope, _, rest = name.rpartition("/")
        kind = "float16" if rest == "exact" else "residual"
        scope = scope.rpartition("/")[0] if rest == "exact" else scope
        block = blocks[scope or "inputs"]
        block[kind] = max(block[kind], peak)
    return dict(blocks)


def measure(name: str, engine: Engine, threads: int) -> dict[str, Any]:
    """Peaks of one model: by block over all inputs, and the highest of each input."""
    meter = Meter(engine, threads)
    worst: Peaks = collections.defaultdict(float)
    lines: dict[str, Any] = {}
    for what, mel, tokens in inputs(meter, name):
        log.info("%s: %s", name, what)
        peaks = meter.run(mel, tokens)
        blocks = by_block(peaks)
        where = max((n for n in peaks if n.endswith("/exact")), key=peaks.__getitem__)
        lines[what] = {
            "residual": max(block["residual"] for block in blocks.values()),
            "float16": peaks[where],
            "where": where[: -len("/exact")],
        }
        for key, peak in peaks.items():
            worst[key] = max(worst[key], peak)
    return {"inputs": lines, "blocks": by_block(worst)}


def _figure(peak: float) -> str:
    return f"{peak:.1f}" if peak else ""


def _engine(name: str, folder: Path, checkpoint: Path) -> Engine:
    target = folder / f"{name}-standard-fp16"
    if (target / "manifest.json").is_file():
        return read_engine(target)
    return export(checkpoint, target, precision="fp16", dialect="standard")


def main() -> int:
    args = arguments(__doc__).parse_args()
    found = {
        name: measure(name, _engine(name, args.engines, args.models_dir / name), args.threads)
        for name in args.models
    }
    peaks = {name: max(i["float16"] for i in f["inputs"].values()) for name, f in found.items()}
    streams = {name: max(i["residual"] for i in f["inputs"].values()) for name, f in found.items()}
    verdict = Verdict(
        bar=f"every float16 value below {LARGEST:.0f} / {ROOM:.0f}",
        passed=max(peaks.values()) < LARGEST / ROOM,
        figures=", ".join(
            f"{name} {peaks[name]:.0f} (residual stream {streams[name]:.0f})" for name in found
        ),
    )
    tables = {
        f"{name}: {part}": table(
            (part, "residual stream", "float16"),
            [(key, _figure(e["residual"]), _figure(e["float16"])) for key, e in f[part].items()],
        )
        for name, f in found.items()
        for part in ("inputs", "blocks")
    }
    return finish("activations-fp16", args, {"models": found}, tables, [verdict])


if __name__ == "__main__":
    sys.exit(main())
