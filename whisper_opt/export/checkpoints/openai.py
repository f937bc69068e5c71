"""OpenAI's own ``.pt`` files: ``{"dims": ..., "model_state_dict": ...}``.

The file has no tokenizer, no suppression lists and no alignment heads. The tokenizer is searched
beside the file and in an installed openai-whisper.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Callable

from whisper_opt.core.dims import ModelDims
from whisper_opt.core.errors import CheckpointError
from whisper_opt.export.checkpoints.blob import Stored, make_source
from whisper_opt.export.checkpoints.checkpoint import (
    Checkpoint,
    Source,
    check_window,
    expected_shapes,
)
from whisper_opt.export.checkpoints.tokenizer import find_tokenizer
from whisper_opt.export.checkpoints.torch_pickle import read_torch
from whisper_opt.export.checkpoints.vocabulary import is_multilingual, without_padding_rows

__all__ = ["assemble", "load_openai"]

# Constants that some versions of openai-whisper save with the weights.
_IGNORED = {"decoder.mask", "alignment_heads"}


def load_openai(path: Path, *, tokenizer: Path | None = None) -> Checkpoint:
    """Open an OpenAI checkpoint; weights are read later, tensor by tensor.

    Args:
        path: the ``.pt`` file.
        tokenizer: ``tokenizer.json``, directory or ``.tiktoken`` file; by default a
            ``tokenizer.json`` beside the file, else the assets of an installed openai-whisper.

    Raises:
        CheckpointError: the file is damaged or is not such a checkpoint, or there is no tokenizer.
    """
    content = read_torch(path)
    dims = content.get("dims") if isinstance(content, dict) else None
    state = content.get("model_state_dict") if isinstance(content, dict) else None
    if not isinstance(dims, dict) or not isinstance(state, dict):
        raise CheckpointError(
            f"{path.name} has no dims and model_state_dict; expected a checkpoint in the format of"
            " openai-whisper (for a Hugging Face model, pass its directory)"
        )
    beside = path.parent / "tokenizer.json"
    if tokenizer is None and beside.is_file():
        tokenizer = beside
    return assemble(
        dims, state, tokenizer, lambda dtypes: make_source("openai", path.name, dtypes, [path])
    )


def assemble(
    dims: Mapping[str, Any],
    state: Mapping[Any, Any],
    tokenizer: Path | None,
    source: Callable[[Iterable[str]], Source],
    alignment_heads: tuple[tuple[int, int], ...] | None = None,
) -> Checkpoint:
    """The checkpoint of a model of openai-whisper.

    Args:
        dims: dimensions by name.
        state: unread tensors by name.
        tokenizer: file or directory of the tokenizer; the assets of an installed openai-whisper if
            None.
        source: makes the provenance of the storage types.
        alignment_heads: (decoder layer, head) pairs, if they are known.

    Raises:
        CheckpointError: these are not parts of one Whisper model, or there is no tokenizer.
    """
    model_dims = ModelDims.from_dict(dims)
    check_window(model_dims)
    text = find_tokenizer(tokenizer or _installed_tokenizer(model_dims), model_dims)
    model_dims, blobs = without_padding_rows(text, model_dims, _select(state, model_dims))
    return Checkpoint(
        dims=model_dims,
        tensors={name: blob.tensor() for name, blob in blobs.items()},
        tokenizer_json=text,
        alignment_heads=alignment_heads,
        suppress_tokens=None,
        begin_suppress_tokens=None,
        source=source(blob.dtype for blob in blobs.values()),
        multilingual=is_multilingual(text, None),
    )


def _select(state: Mapping[Any, Any], dims: ModelDims) -> dict[str, Stored]:
    expected = expected_shapes(dims)
    blobs: dict[str, Stored] = {}
    for name, blob in state.items():
        if name in _IGNORED:
            continue
        if not isinstance(name, str) or not hasattr(blob, "read") or name not in expected:
            raise CheckpointError(
                f"model_state_dict has {name!r}, which a Whisper model of these dimensions does"
                " not; adapters must be merged into the weights first"
            )
        blobs[name] = blob
    return blobs


def _installed_tokenizer(dims: ModelDims) -> Path:
    asset = "multilingual.tiktoken" if dims.is_multilingual else "gpt2.tiktoken"
    package = importlib.util.find_spec("whisper")
    for folder in (package.submodule_search_locations or ()) if package else ():
        candidate = Path(folder) / "assets" / asset
        if candidate.is_file():
            return candidate
    raise CheckpointError(
        "an OpenAI checkpoint holds no tokenizer, there is no tokenizer.json beside it and"
        " openai-whisper is not installed; pass tokenizer= with a tokenizer.json or OpenAI's"
        f" {asset}"
    )
