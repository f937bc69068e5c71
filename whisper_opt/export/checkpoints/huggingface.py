"""Hugging Face Whisper directories: ``config.json`` with safetensors, ``.bin`` or Flax weights.

Tensors have the names of transformers' ``WhisperForConditionalGeneration``. Layouts and values are
those of openai-whisper.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Callable

from whisper_opt.core.dims import ModelDims
from whisper_opt.core.errors import CheckpointError
from whisper_opt.export.checkpoints.blob import Blob, Stored, make_source, same_values
from whisper_opt.export.checkpoints.checkpoint import (
    OUTPUT_HEAD,
    Checkpoint,
    Source,
    check_window,
    expected_shapes,
)
from whisper_opt.export.checkpoints.flax_msgpack import pytorch_name, read_flax
from whisper_opt.export.checkpoints.safetensors_file import read_safetensors
from whisper_opt.export.checkpoints.sidecar import (
    alignment_heads,
    optional_bool,
    positive_int,
    read_json,
    token_ids,
    warn_of_forced_prompt,
)
from whisper_opt.export.checkpoints.tokenizer import find_tokenizer
from whisper_opt.export.checkpoints.torch_pickle import read_torch
from whisper_opt.export.checkpoints.vocabulary import is_multilingual, without_padding_rows

__all__ = [
    "HUGGINGFACE_WEIGHTS",
    "assemble",
    "huggingface_name",
    "load_huggingface",
    "read_state",
]

HUGGINGFACE_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "flax_model.msgpack",
    "flax_model.msgpack.index.json",
)
"""Weight files of a directory in order of preference."""

_EMBEDDING, _HEAD = "decoder.embed_tokens.weight", "proj_out.weight"
_WRAPPERS = ("_orig_mod.", "module.", "base_model.model.")
"""Prefixes that torch.compile, DistributedDataParallel and PEFT add to all names."""
_ADAPTER = re.compile(r"\.(lora_|adapter|base_layer\.)|^(lora_|adapter)|ia3_|modules_to_save")
# Fragments of openai-whisper's names -> those of transformers; each occurs once per name.
_FRAGMENTS = (
    (".blocks.", ".layers."),
    (".cross_attn.", ".encoder_attn."),
    (".cross_attn_ln.", ".encoder_attn_layer_norm."),
    (".attn.", ".self_attn."),
    (".attn_ln.", ".self_attn_layer_norm."),
    (".query.", ".q_proj."),
    (".key.", ".k_proj."),
    (".value.", ".v_proj."),
    (".out.", ".out_proj."),
    (".mlp.0.", ".fc1."),
    (".mlp.2.", ".fc2."),
    (".mlp_ln.", ".final_layer_norm."),
    (".ln_post.", ".layer_norm."),
    (".ln.", ".layer_norm."),
    (".positional_embedding", ".embed_positions.weight"),
    (".token_embedding.", ".embed_tokens."),
)
# What the configuration may say and still describe the reference computation.
_FIXED = {"model_type": "whisper", "activation_function": "gelu", "scale_embedding": False}


def load_huggingface(
    directory: Path, *, tokenizer: Path | None = None, name: str | None = None
) -> Checkpoint:
    """Open a Hugging Face Whisper directory; weights are read later, tensor by tensor.

    Args:
        directory: holds ``config.json``, one of :data:`HUGGINGFACE_WEIGHTS` (with its shards),
            and ``tokenizer.json`` or ``vocab.json``, ``merges.txt`` and ``added_tokens.json`` (or
            ``tokenizer_config.json``, which lists added tokens in newer ones);
            ``generation_config.json``, if present, has the token lists and alignment heads.
        tokenizer: file or directory of another tokenizer.
        name: name for the provenance; the directory's by default.

    Raises:
        CheckpointError: a file is missing or damaged, or the model is not a Whisper model.
    """
    config = read_json(directory / "config.json")
    generation = config
    if (directory / "generation_config.json").is_file():
        generation = read_json(directory / "generation_config.json")
    stored, files = _read_weights(directory)

    def source(dtypes: Iterable[str]) -> Source:
        return make_source("huggingface", name or directory.resolve().name, dtypes, files)

    return assemble(config, generation, stored, tokenizer or directory, source)


def assemble(
    config: Mapping[str, Any],
    generation: Mapping[str, Any],
    stored: Mapping[str, Stored],
    tokenizer: Path,
    source: Callable[[Iterable[str]], Source],
) -> Checkpoint:
    """The checkpoint of a model of transformers.

    Args:
        config: the model's configuration, as in ``config.json``.
        generation: its generation configuration; ``config`` if it has none.
        stored: unread tensors by transformers' names, with or without ``model.``.
        tokenizer: file or directory of the tokenizer.
        source: makes the provenance of the storage types.

    Raises:
        CheckpointError: these are not parts of one Whisper model.
    """
    dims = _dims(config)
    text = find_tokenizer(tokenizer, dims)
    multilingual = is_multilingual(text, optional_bool(generation, "is_multilingual"))
    if multilingual:
        warn_of_forced_prompt(config, generation)
    dims, blobs = without_padding_rows(text, dims, _canonical(_unwrapped(stored), dims))
    return Checkpoint(
        dims=dims,
        tensors={key: blob.tensor() for key, blob in blobs.items()},
        tokenizer_json=text,
        alignment_heads=alignment_heads(generation, dims),
        suppress_tokens=token_ids(generation, "suppress_tokens", dims.n_vocab),
        begin_suppress_tokens=token_ids(generation, "begin_suppress_tokens", dims.n_vocab),
        source=source(blob.dtype for blob in blobs.values()),
        multilingual=multilingual,
    )


def _dims(config: Mapping[str, Any]) -> ModelDims:
    for key, wanted in _FIXED.items():
        given = config.get(key)
        if given is not None and given != wanted:
            raise CheckpointError(
                f"config.json has {key} = {reprlib.repr(config[key])}; Whisper models have"
                f" {wanted!r}"
            )

    def number(key: str) -> int:
        return positive_int(config, key, "config.json")

    dims = ModelDims.from_huggingface(number)
    check_window(dims)
    return dims


def _read_weights(directory: Path) -> tuple[dict[str, Blob], list[Path]]:
    """Unread tensors by transformers' names, and their files."""
    for name in HUGGINGFACE_WEIGHTS:
        path = directory / name
        if not path.is_file():
            continue
        if name.endswith(".index.json"):
            return _read_shards(path)
        return read_state(path), [path]
    raise CheckpointError(
        f"{directory.name!r} has no weights; expected one of {', '.join(HUGGINGFACE_WEIGHTS)}"
    )


def read_state(path: Path) -> dict[str, Blob]:
    """Unread tensors of one weight file (safetensors, PyTorch or Flax) by the file's names.

    Raises:
        CheckpointError: it is damaged, or is something else.
    """
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    if path.suffix == ".msgpack":
        return read_flax(path)
    state = read_torch(path)
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise CheckpointError(f"{path.name} is not a state_dict: expected tensors by name")
    for name, blob in state.items():
        if not isinstance(blob, Blob):
            raise CheckpointError(f"{path.name} has a {type(blob).__name__} as tensor {name!r}")
    return state


def _read_shards(index: Path) -> tuple[dict[str, Blob], list[Path]]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(map(_is_plain_name, weight_map.values())):
        raise CheckpointError(f"{index.name} has no weight_map of tensor names to shard files")
    files = [index.parent / name for name in sorted(set(weight_map.values()))]
    shards = {path.name: read_state(path) for path in files}
    blobs: dict[str, Blob] = {}
    for name, file in weight_map.items():
        if Path(file).suffix == ".msgpack":
            name = pytorch_name(name)
        if name not in shards[file]:
            raise CheckpointError(
                f"{file} lacks tensor {name!r}, which {index.name} places there; the shards belong"
                " to different versions: fetch them again"
            )
        blobs[name] = shards[file][name]
    return blobs, files


def _is_plain_name(value: Any) -> bool:
    return isinstance(value, str) and Path(value).name == value


def _unwrapped(stored: Mapping[str, Stored]) -> Mapping[str, Stored]:
    """Tensors with :data:`_WRAPPERS` that all names share removed."""
    names = list(stored)
    while names:
        shared = [p for p in _WRAPPERS if all(name.startswith(p) for name in names)]
        if not shared:
            break
        names = [name[len(shared[0]) :] for name in names]
    return dict(zip(names, stored.values()))


def _canonical(stored: Mapping[str, Stored], dims: ModelDims) -> dict[str, Stored]:
    """Rename tensors; refuse those that would be lost silently."""
    rest = {name[6:] if name.startswith("model.") else name: b for name, b in stored.items()}
    blobs: dict[str, Stored] = {}
    for name in expected_shapes(dims):
        theirs = huggingface_name(name)
        if theirs in rest:
            blobs[name] = rest[theirs]
    embedding = rest.get(_EMBEDDING)
    known = {huggingface_name(name) for name in blobs}
    for theirs in rest.keys() - known:
        blob = rest[theirs]
        if theirs == _HEAD:
            if embedding is not None and not same_values(blob, embedding):
                blobs[OUTPUT_HEAD] = blob
        elif theirs.endswith(".k_proj.bias"):
            if blob.read().any():
                raise CheckpointError(
                    f"{theirs!r} is not zero; Whisper's key projection has no bias, so this model"
                    " computes something else"
                )
        elif _ADAPTER.search(theirs):
            raise CheckpointError(
                f"the checkpoint has tensor {theirs!r} of an adapter; it must be merged into the"
                " weights first (PEFT: merge_and_unload, then save_pretrained)"
            )
        else:
            raise CheckpointError(
                f"the checkpoint has tensor {theirs!r}, which a Whisper model of config.json's"
                " dimensions does not have; the files belong to different models, or the model is"
                " no plain Whisper"
            )
    return blobs


def huggingface_name(name: str) -> str:
    """Transformers' name of a canonical tensor, without ``model.``."""
    for ours, theirs in _FRAGMENTS:
        name = name.replace(ours, theirs)
    return name
