"""Export: checkpoint -> graphs -> files -> verification -> engine directory."""

from __future__ import annotations

import dataclasses
import math
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Callable, Union

import numpy as np
import onnx

from whisper_opt.core.arrays import F32
from whisper_opt.core.dims import ModelDims
from whisper_opt.core.errors import OptionError
from whisper_opt.core.version import __version__
from whisper_opt.export.checkpoints import Checkpoint, load_checkpoint
from whisper_opt.export.checkpoints.checkpoint import Tensor
from whisper_opt.export.graphs.builder import OnnxGraph
from whisper_opt.export.graphs.device_graphs import build_device_graphs
from whisper_opt.export.graphs.dialects import make_dialect
from whisper_opt.export.graphs.graph import build_decoder, build_encoder
from whisper_opt.export.graphs.groups import HEAD
from whisper_opt.export.graphs.precision import Precision, make_precision
from whisper_opt.export.quantization.activation_stats import (
    ActivationStats,
    collect_stats,
    synthetic_samples,
)
from whisper_opt.export.quantization.int4 import N_SPECIAL, dequantized
from whisper_opt.export.quantization.padding_parts import padding_parts
from whisper_opt.export.quantization.sensitivity import calibrate, find_recordings
from whisper_opt.export.verification.partitioned import PartitionedGraph, require_onnxruntime
from whisper_opt.export.verification.verify import verify, verify_packed
from whisper_opt.export.writer import directory, write_bytes, write_graph, write_text
from whisper_opt.runtime.engine import (
    MANIFEST,
    Engine,
    FileEntry,
    Manifest,
    read_engine,
)
from whisper_opt.runtime.head_bounds import HeadBounds
from whisper_opt.runtime.tensors import TensorEntry, map_tensor
from whisper_opt.text.vocabulary import Vocab

__all__ = ["KEEP", "ExportProgress", "export"]

ExportProgress = Callable[[str, float, float], None]
"""Called with (stage, done, total); stages are ``calibrate`` (passes), ``write`` (bytes) and
``verify`` (steps)."""
KEEP = 0.03
"""Relative growth of the weights allowed for what a calibration keeps more exact."""

_Parts = Mapping[str, tuple[OnnxGraph, list[str]]]
"""Graphs by name, and the values at which each can be cut: ``encoder`` and ``decoder``; with
padding compression also ``encoder.packed`` and ``decoder.packed``."""
_STEMS = ("encoder", "decoder")


def export(
    source: Any,
    target: Union[str, Path],
    *,
    precision: str = "fp32",
    dialect: str = "contrib",
    tokenizer: Any = None,
    revision: str | None = None,
    base: Any = None,
    alignment_heads: Union[str, Sequence[tuple[int, int]], None] = None,
    overwrite: bool = False,
    verified: bool = True,
    calibrate_on: Union[str, Path, None] = None,
    keep: float = KEEP,
    on_progress: ExportProgress | None = None,
) -> Engine:
    """Export a checkpoint to a verified engine directory.

    Args:
        source: a Hugging Face directory or hub id, an OpenAI ``.pt`` file, a ``ggml-*.bin`` file of
            whisper.cpp, a CTranslate2 directory, or a loaded
            :class:`~whisper_opt.export.checkpoints.Checkpoint`.
        target: directory to create.
        precision: arithmetic of the graphs, one of ``PRECISIONS``.
        dialect: ``contrib`` (ONNX Runtime) or ``standard`` (TensorRT, and ONNX Runtime >= 1.24).
        tokenizer: ``tokenizer.json`` or a directory with one, or a tokenizer or processor of
            transformers, for sources without a tokenizer.
        revision: branch, tag or commit of a hub id.
        base: base model of a LoRA adapter, if not the one that its ``adapter_config.json`` names.
        alignment_heads: (decoder layer, head) pairs for word times, or ``all`` to rank them later
            (:meth:`whisper_opt.Whisper.rank_alignment_heads`); default: those of the checkpoint,
            or all heads of the upper half of the layers.
        overwrite: replace an existing engine.
        verified: False for random weights, as in some benchmarks: the graphs are not run, and the
            manifest says so.
        calibrate_on: folder of recordings on which to measure the quantization error of each group
            of products (int8 and int4); the manifest has the results.
        keep: relative growth of the weights allowed for groups that are then kept more exact.
        on_progress: called during the work.

    Returns:
        The engine, opened.

    Raises:
        CheckpointError: the source cannot be read.
        OptionError: unknown precision or dialect, no recordings to calibrate on, or a base of
            what is no adapter.
        AudioError: a recording cannot be read.
        EngineError: the target exists or cannot be written.
        BackendUnavailable: ONNX Runtime, which verifies, is missing or too old for the dialect.
        VerificationError: the graphs do not compute what the checkpoint computes; nothing is
            written.
    """
    types = _policy(precision, dialect)
    _check_calibration(types, calibrate_on, keep)
    require_onnxruntime(dialect)
    if isinstance(source, Checkpoint) and base is not None:
        raise OptionError("base= belongs to load_checkpoint, which opened this Checkpoint")
    report = on_progress or (lambda stage, done, total: None)
    with directory(Path(target), overwrite=overwrite) as folder:
        if not isinstance(source, Checkpoint):
            source = load_checkpoint(source, tokenizer=tokenizer, revision=revision, base=base)
        checkpoint = _with_heads(source, alignment_heads)
        # raises if the tokenizer does not fit
        vocab = Vocab(checkpoint.tokenizer_json, checkpoint.dims, checkpoint.multilingual)
        types = _with_special_rows(types, checkpoint.dims.n_vocab - vocab.eot)
        types, stats, calibration = _calibrated(checkpoint, types, calibrate_on, keep, report)
        parts = _build(checkpoint, dialect, types, stats)
        files, tensors = _write(checkpoint, dialect, types, parts, folder, report)
        padding = padding_parts(checkpoint) if types.compresses_padding else None
        parity: Mapping[str, Any] = {"input": "none: not verified"}
        if verified:
            report("verify", 0, 1)
            parity = _verified(checkpoint, vocab, types, parts, folder, tensors, padding)
            report("verify", 1, 1)
        manifest = dataclasses.replace(
            _manifest(checkpoint, precision, dialect, parity, files, tensors),
            calibration=calibration,
            padding=padding,
        )
        write_text(folder / MANIFEST, manifest.to_json())
    return read_engine(target)


def _policy(precision: str, dialect: str) -> Precision:
    """The types of ``precision``; OptionError if the dialect has no operators for them."""
    types = make_precision(precision)
    make_dialect(dialect)
    if types.bits is not None and dialect != "contrib":
        raise OptionError(
            f"precision {precision} is for CPUs and the contrib dialect; the dialect is {dialect!r}"
        )
    return types


def _with_special_rows(types: Precision, n_rows: int) -> Precision:
    """The precision, with an 8-bit head if 4 bits would round rows of special tokens.

    That happens if many tokens were added after them. ``n_rows``: rows from the end of text on.
    """
    if types.bits != 4 or n_rows <= N_SPECIAL:
        return types
    return dataclasses.replace(types, kept=types.kept | {HEAD})


def _check_calibration(types: Precision, folder: Union[str, Path, None], keep: float) -> None:
    if not 0 <= keep <= 1:
        raise OptionError(f"keep is {keep}; expected a fraction of the size, from 0 to 1")
    if folder is None:
        return
    if types.bits is None:
        raise OptionError(
            f"--calibrate measures quantization to integers; precision is {types.name!r}, expected"
            " int8 or int4"
        )
    find_recordings(Path(folder))  # raises before the checkpoint is read


def _calibrated(
    checkpoint: Checkpoint,
    types: Precision,
    folder: Union[str, Path, None],
    keep: float,
    report: ExportProgress,
) -> tuple[Precision, Mapping[str, ActivationStats] | None, Mapping[str, Any]]:
    """The precision, statistics of the inputs of products, and the entry of the manifest."""
    if types.bits is None:
        return types, None, {}
    if folder is None:
        return types, collect_stats(checkpoint, synthetic_samples(checkpoint)), {}
    weights = sum(math.prod(tensor.shape) for tensor in checkpoint.tensors.values())
    budget = round(keep * weights * types.bits / 8)
    found = calibrate(
        checkpoint,
        types,
        Path(folder),
        budget,
        lambda done, total: report("calibrate", done, total),
    )
    return found.precision, found.stats, found.report


def _build(
    checkpoint: Checkpoint,
    dialect: str,
    types: Precision,
    stats: Mapping[str, ActivationStats] | None,
) -> _Parts:
    dims, tensors = checkpoint.dims, checkpoint.tensors
    if types.storage is not None and types.bits is None:
        # the bounds of the two-stage head hold for the stored values
        tensors = {name: _rounded(tensor, types.storage) for name, tensor in tensors.items()}
    found: dict[str, tuple[OnnxGraph, list[str]]] = {}
    for suffix in ("", ".packed") if types.compresses_padding else ("",):
        packed = bool(suffix)
        found[f"encoder{suffix}"] = build_encoder(
            dims, tensors, make_dialect(dialect), types, stats, packed=packed
        )
        found[f"decoder{suffix}"] = build_decoder(
            dims, tensors, make_dialect(dialect), checkpoint.heads, types, stats, packed=packed
        )
    return found


def _rounded(tensor: Tensor, dtype: np.dtype[Any]) -> Tensor:
    """A matrix rounded to a narrower type; vectors are unchanged."""
    if len(tensor.shape) == 1:
        return tensor

    def read() -> F32:
        values = tensor.read()
        with np.errstate(over="ignore"):
            narrow = values.astype(dtype)
        # the writer refuses values out of range
        return narrow.astype(np.float32) if np.isfinite(narrow).all() else values

    return Tensor(tensor.shape, read)


def _with_heads(
    checkpoint: Checkpoint, heads: Union[str, Sequence[tuple[int, int]], None]
) -> Checkpoint:
    if heads is None:
        return checkpoint
    dims = checkpoint.dims
    if heads == "all":
        layers, width = range(dims.n_text_layer), range(dims.n_text_head)
        heads = [(layer, head) for layer in layers for head in width]
    if isinstance(heads, str) or not heads:
        raise OptionError(f"alignment_heads is {heads!r}; expected (layer, head) pairs, or 'all'")
    return dataclasses.replace(checkpoint, alignment_heads=tuple(sorted(heads)))


def _manifest(
    checkpoint: Checkpoint,
    precision: str,
    dialect: str,
    parity: Mapping[str, Any],
    files: Mapping[str, FileEntry],
    tensors: Mapping[str, TensorEntry],
) -> Manifest:
    source = {
        **dataclasses.asdict(checkpoint.source),
        "sha256": dict(checkpoint.source.sha256),
    }
    return Manifest(
        dims=checkpoint.dims,
        precision=precision,
        dialect=dialect,
        alignment_heads=checkpoint.alignment_heads,
        suppress_tokens=checkpoint.suppress_tokens,
        begin_suppress_tokens=checkpoint.begin_suppress_tokens,
        source=source,
        tools=_tools(),
        parity=parity,
        files=files,
        tensors=tensors,
        multilingual=checkpoint.multilingual,
    )


def _write(
    checkpoint: Checkpoint,
    dialect: str,
    types: Precision,
    parts: _Parts,
    folder: Path,
    report: ExportProgress,
) -> tuple[dict[str, FileEntry], dict[str, TensorEntry]]:
    """Write all files except the manifest.

    Returns:
        Files by name, and locations of the tensors that the runtime reads itself.
    """
    total = sum(weight.nbytes for stem in _STEMS for weight in parts[stem][0].stored)
    done = 0

    def advance(n: int) -> None:
        nonlocal done
        done += n
        report("write", done, total)

    files = {"tokenizer.json": write_text(folder / "tokenizer.json", checkpoint.tokenizer_json)}
    tensors: dict[str, TensorEntry] = {}
    for stem in _STEMS:
        packed = f"{stem}.packed"
        variants = {packed: parts[packed][0]} if packed in parts else {}
        written, located = write_graph(parts[stem][0], folder, stem, advance, variants)
        files.update(written)
        tensors.update(located)
    if dialect == "standard" or types.name == "fp16":  # for GPUs
        decoder = parts["decoder"][0]
        files.update(_write_device_graphs(folder, checkpoint.dims, decoder, dialect))
    return files, tensors


def _write_device_graphs(
    folder: Path, dims: ModelDims, decoder: OnnxGraph, dialect: str
) -> dict[str, FileEntry]:
    graphs = build_device_graphs(dims, decoder, dialect)
    return {
        f"{stem}.onnx": write_bytes(folder / f"{stem}.onnx", graph.model.SerializeToString())
        for stem, graph in graphs.items()
    }


def _verified(
    checkpoint: Checkpoint,
    vocab: Vocab,
    types: Precision,
    parts: _Parts,
    folder: Path,
    tensors: Mapping[str, TensorEntry],
    padding: tuple[int, ...] | None,
) -> Mapping[str, Any]:
    """The verification's entry of the manifest: errors against the checkpoint."""
    graphs = {stem: _runnable(*part, folder, stem) for stem, part in parts.items()}
    encoder, decoder = (graphs[stem] for stem in _STEMS)
    head = None
    if tensors:
        head = HeadBounds.from_tensors(lambda name: map_tensor(folder, tensors[name]), tensors)
    expected = checkpoint
    note: dict[str, Any] = {}
    if types.bits == 4:  # the error of 4 bits is not an error of the graphs
        tensors_4bit = dequantized(checkpoint.tensors, types.kept)
        expected = dataclasses.replace(checkpoint, tensors=tensors_4bit)
        note = {"reference": "numpy fp32, decoder weights as rounded to 4 bits"}
    parity = verify(expected, encoder, decoder, head, vocab=vocab, precision=types, parts=padding)
    if padding is not None:
        packed = (graphs["encoder.packed"], graphs["decoder.packed"])
        note["packed"] = verify_packed(checkpoint.dims, (encoder, decoder), packed, padding)
    return {**parity.to_dict(), **note}


def _runnable(graph: OnnxGraph, cuts: list[str], folder: Path, stem: str) -> PartitionedGraph:
    """A written graph. Encoders run a few times only, so that partitions cost them little."""
    return PartitionedGraph(graph, cuts, folder, stem, whole=1 if "encoder" in stem else 4)


def _tools() -> dict[str, str]:
    return {
        "whisper_opt": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "onnx": onnx.__version__,
        "onnxruntime": require_onnxruntime().__version__,
    }
