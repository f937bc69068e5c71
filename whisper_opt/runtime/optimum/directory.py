"""The directory that Optimum writes, read as an engine.

    config.json  generation_config.json  tokenizer.json
    encoder_model.onnx                                          log-mel to hidden states
    decoder_model_merged.onnx                                   with and without a past, or
    decoder_model.onnx  decoder_with_past_model.onnx            one graph for each
    *.onnx_data                                                 weights of graphs above 2 GB

The graphs are at the top or in ``onnx/``. A directory may have them in several precisions, told
apart by a suffix of the file names, as transformers.js does (``encoder_model_fp16.onnx``).

Everything here may come from an untrusted source: configurations are checked value by value, and
graphs may only name data files of their own directory.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Union

from whisper_opt.core.dims import CHUNK_LENGTH, N_FRAMES, ModelDims
from whisper_opt.core.errors import CheckpointError, EngineError, OptionError
from whisper_opt.core.json_files import integer, parse_json, plain_name, read_text
from whisper_opt.runtime.engine import Engine, FileEntry, Manifest
from whisper_opt.runtime.optimum.external_data import external_files

__all__ = [
    "AUTO_ORDER",
    "DIALECT",
    "SUFFIXES",
    "GraphFiles",
    "OptimumEngine",
    "graph_names",
    "is_optimum_directory",
    "read_optimum",
]

DIALECT = "optimum"
"""The dialect of these engines in :class:`whisper_opt.runtime.engine.Manifest`."""
SUFFIXES: Mapping[str, tuple[str, ...]] = {
    "fp32": ("",),
    "int8": ("_quantized", "_int8", "_uint8"),
    "fp16": ("_fp16",),
    "int4": ("_q4", "_bnb4", "_q4f16"),
}
"""Precision -> suffixes of file names, in order of preference."""
AUTO_ORDER = ("fp32", "int8", "fp16", "int4")
"""Which precision ``auto`` takes: the first that the directory has."""
_FOLDERS = ("", "onnx/")
_ENCODER, _MERGED = "encoder_model", "decoder_model_merged"
_FIRST, _NEXT = "decoder_model", "decoder_with_past_model"
_AGAIN = "export it again with Optimum, or export its checkpoint with whisper-opt export"
_FETCH = "copy or download the directory again, with all its files"
# What the configuration may say and still describe the computation of Whisper.
_FIXED = {"model_type": "whisper", "scale_embedding": False}


@dataclasses.dataclass(frozen=True)
class GraphFiles:
    """The graphs of one precision.

    Attributes:
        precision: a key of :data:`SUFFIXES`.
        encoder: log-mel to hidden states.
        decoder: the graph for the first tokens; with ``decoder_with_past`` None, for all tokens.
        decoder_with_past: the graph for later tokens; None if the graphs are merged.
    """

    precision: str
    encoder: Path
    decoder: Path
    decoder_with_past: Union[Path, None]

    @property
    def paths(self) -> tuple[Path, ...]:
        """All graphs."""
        found = (self.encoder, self.decoder, self.decoder_with_past)
        return tuple(path for path in found if path is not None)


@dataclasses.dataclass(frozen=True)
class OptimumEngine(Engine):
    """An opened directory of Optimum.

    Attributes:
        graphs: the graphs of each precision that the directory has.
    """

    graphs: Mapping[str, GraphFiles] = dataclasses.field(default_factory=dict)

    def select(self, precision: str) -> GraphFiles:
        """The graphs of a precision, or the default ones for ``auto``.

        Raises:
            OptionError: the directory has no graphs of this precision.
            EngineError: a graph names a data file that is missing or elsewhere.
        """
        if precision == "auto":
            precision = self.manifest.precision
        found = self.graphs.get(precision)
        if found is None:
            raise OptionError(
                f"precision is {precision!r}, but {self.path} has graphs in"
                f" {', '.join(self.graphs)} only; choose one of them, or leave the option out"
            )
        for path in found.paths:
            _check_external_data(path)
        return found


def is_optimum_directory(path: Path) -> bool:
    """Whether a directory has an encoder that Optimum exported, in any precision."""
    names = _graphs_in(path)
    return any(
        f"{folder}{_ENCODER}{suffix}.onnx" in names
        for folder in _FOLDERS
        for suffixes in SUFFIXES.values()
        for suffix in suffixes
    )


def read_optimum(path: Path) -> OptimumEngine:
    """Read the description of a model that Optimum exported; graphs are loaded later.

    Raises:
        EngineError: a file is missing or damaged, or the model is not a Whisper model.
    """
    graphs = _all_graphs(path)
    config = _read_json(path / "config.json")
    generation = config
    if (path / "generation_config.json").is_file():
        generation = _read_json(path / "generation_config.json")
    if not (path / "tokenizer.json").is_file():
        raise EngineError(f"{path} has no tokenizer.json; {_FETCH}")
    try:
        manifest = _manifest(path, config, generation, graphs)
    except (CheckpointError, TypeError, ValueError) as error:
        raise EngineError(
            f"the configuration of {path} does not describe a Whisper model: {error}; {_AGAIN}"
        ) from error
    return OptimumEngine(path, manifest, graphs)


def _manifest(
    path: Path,
    config: Mapping[str, Any],
    generation: Mapping[str, Any],
    graphs: Mapping[str, GraphFiles],
) -> Manifest:
    dims = _dims(config)
    files = {file for found in graphs.values() for file in found.paths}
    files.add(path / "tokenizer.json")
    return Manifest(
        dims=dims,
        precision=next(name for name in AUTO_ORDER if name in graphs),
        dialect=DIALECT,
        alignment_heads=_alignment_heads(generation, dims),
        suppress_tokens=_token_ids(generation, "suppress_tokens", dims),
        begin_suppress_tokens=_token_ids(generation, "begin_suppress_tokens", dims),
        source={"format": DIALECT, "name": path.resolve().name, "dtype": "unknown"},
        tools={},
        parity={},
        files={
            file.relative_to(path).as_posix(): FileEntry(file.stat().st_size, "")
            for file in sorted(files)
        },
        multilingual=_flag(generation, "is_multilingual"),
    )


# --- graphs -------------------------------------------------------------------------------------


def graph_names(names: Collection[str], precision: str) -> tuple[str, ...]:
    """The graphs of one precision among the files of a directory.

    Args:
        names: files, relative to the directory, with ``/``.
        precision: a key of :data:`SUFFIXES`.

    Returns:
        The encoder and one decoder, or the encoder and two decoders, as in :class:`GraphFiles`;
        empty if a graph is missing.
    """
    for suffix in SUFFIXES[precision]:
        for folder in _FOLDERS:
            encoder, merged, first, later = (
                f"{folder}{name}{suffix}.onnx" for name in (_ENCODER, _MERGED, _FIRST, _NEXT)
            )
            if encoder in names and merged in names:  # as fast as two graphs, with half the memory
                return encoder, merged
            if {encoder, first, later} <= set(names):
                return encoder, first, later
    return ()


def _graphs_in(path: Path) -> set[str]:
    """The ONNX files of a directory, relative to it."""
    files = (file for folder in _FOLDERS for file in (path / folder).glob("*.onnx"))
    return {file.relative_to(path).as_posix() for file in files if file.is_file()}


def _all_graphs(path: Path) -> dict[str, GraphFiles]:
    """The graphs of each precision, in the order of :data:`AUTO_ORDER`."""
    names = _graphs_in(path)
    found = {}
    for precision in AUTO_ORDER:
        graphs = [path / name for name in graph_names(names, precision)]
        if graphs:
            later = graphs[2] if len(graphs) > 2 else None
            found[precision] = GraphFiles(precision, graphs[0], graphs[1], later)
    if not found:
        raise EngineError(
            f"{path} has an {_ENCODER}.onnx, but no decoder beside it; expected {_MERGED}.onnx, or"
            f" {_FIRST}.onnx and {_NEXT}.onnx, with the same suffix; {_FETCH}"
        )
    return found


def _check_external_data(path: Path) -> None:
    for name in sorted(external_files(path)):
        try:
            plain_name(name)
        except ValueError as error:
            raise EngineError(
                f"{path} has its weights in {name!r:.80}, which is not in its directory; such a"
                f" graph is not loaded; {_AGAIN}"
            ) from error
        if not (path.parent / name).is_file():
            raise EngineError(f"{path} has its weights in {name}, which is missing; {_FETCH}")


# --- configuration ------------------------------------------------------------------------------


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = parse_json(read_text(path))
    except FileNotFoundError as error:
        raise EngineError(f"{path.parent} has no {path.name}; {_FETCH}") from error
    except (OSError, ValueError) as error:
        raise EngineError(f"cannot read {path}: {error}; {_FETCH}") from error
    if not isinstance(value, dict):
        raise EngineError(f"{path} holds a {type(value).__name__}; expected an object; {_FETCH}")
    return value


def _dims(config: Mapping[str, Any]) -> ModelDims:
    for key, wanted in _FIXED.items():
        if config.get(key) not in (None, wanted):
            raise ValueError(f"{key} is {config[key]!r:.80}; expected {wanted!r}")

    def number(key: str) -> int:
        return integer(config.get(key), key, low=1)

    dims = ModelDims.from_huggingface(number)
    if 2 * dims.n_audio_ctx != N_FRAMES:
        raise ValueError(
            f"max_source_positions is {dims.n_audio_ctx}; expected {N_FRAMES // 2}, a window of"
            f" {CHUNK_LENGTH} s"
        )
    return dims


def _token_ids(config: Mapping[str, Any], key: str, dims: ModelDims) -> tuple[int, ...] | None:
    """An optional list of token ids; None if absent, null or empty."""
    value = config.get(key)
    if value is None:
        return None
    if not isinstance(value, list):
        raise TypeError(f"{key} is {value!r:.80}; expected a list of token ids")
    ids = tuple(integer(item, key) for item in value)
    if ids and max(ids) >= dims.n_vocab:
        raise ValueError(f"{key} has {max(ids)}; expected ids below {dims.n_vocab}")
    return ids or None


def _alignment_heads(
    config: Mapping[str, Any], dims: ModelDims
) -> tuple[tuple[int, int], ...] | None:
    """Pairs (decoder layer, head); None if absent, or if the model lacks one of the heads."""
    value = config.get("alignment_heads")
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(p, list) and len(p) == 2 for p in value):
        raise TypeError(f"alignment_heads is {value!r:.80}; expected [layer, head] pairs")
    name = "alignment_heads"
    heads = tuple((integer(layer, name), integer(head, name)) for layer, head in value)
    known = all(layer < dims.n_text_layer and head < dims.n_text_head for layer, head in heads)
    return heads if heads and known else None  # distilled models keep the list of their teacher


def _flag(config: Mapping[str, Any], key: str) -> bool | None:
    value = config.get(key)
    if value is not None and not isinstance(value, bool):
        raise TypeError(f"{key} is {value!r:.80}; expected true or false")
    return value
