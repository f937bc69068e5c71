"""Fetch a Whisper checkpoint from the Hugging Face hub."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

from whisper_opt.core.errors import BackendUnavailable, CheckpointError
from whisper_opt.core.remedies import install_hint

__all__ = ["download", "download_tokenizer", "resolve_revision"]

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SIDECARS = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "tokenizer_config.json",
    "adapter_config.json",
]
# Tried in turn, so that only one of the variants in a repository is fetched.
_WEIGHTS = (
    ["model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors"],
    ["pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*-of-*.bin"],
    ["model.bin"],
    ["adapter_model.safetensors"],
    ["adapter_model.bin"],
    ["flax_model.msgpack", "flax_model.msgpack.index.json", "flax_model-*-of-*.msgpack"],
)


def download(name: str, revision: str | None = None, *, local_files_only: bool = False) -> Path:
    """Fetch the files of a model, or find them in the local cache.

    Args:
        name: hub id, e.g. ``openai/whisper-tiny.en``.
        revision: branch, tag or commit; the default branch if None.
        local_files_only: use the local cache of the client, and no network.

    Returns:
        The directory of the snapshot.

    Raises:
        BackendUnavailable: huggingface_hub is not installed.
        CheckpointError: there is no such model, no network, or no weights in a known format.
    """
    for patterns in _WEIGHTS:
        path = _fetch(name, revision, [*_SIDECARS, *patterns], local_files_only)
        if any(next(path.glob(pattern), None) for pattern in patterns):
            return path
    expected = ", ".join(patterns[0] for patterns in _WEIGHTS)
    raise CheckpointError(
        f"the hub's {name!r} has no weights of a known format; expected one of {expected}"
    )


def download_tokenizer(name: str, revision: str | None = None) -> Path:
    """Fetch the configuration and the tokenizer of a model, without its weights.

    Args, returned directory and errors are those of :func:`download`.
    """
    return _fetch(name, revision, _SIDECARS)


def resolve_revision(
    name: str, revision: str | None = None, *, local_files_only: bool = False
) -> str:
    """The commit of a revision of a model; a full commit is returned as it is.

    Args:
        name: hub id.
        revision: branch, tag or commit; the default branch if None.
        local_files_only: find it in the local cache of the client, and use no network.

    Raises:
        BackendUnavailable: huggingface_hub is not installed.
        CheckpointError: there is no such model or revision, or no network.
    """
    if revision is not None and _COMMIT.fullmatch(revision):
        return revision
    if local_files_only:
        return download(name, revision, local_files_only=True).name
    try:
        return str(_client(name).HfApi().model_info(name, revision=revision).sha)
    except BackendUnavailable:
        raise
    except Exception as error:  # includes errors of the client's HTTP library
        raise CheckpointError(_explain(name, revision, error)) from error


def _client(name: str) -> Any:
    try:
        return importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise BackendUnavailable(
            f"{name!r} is not a local path, and fetching it from the Hugging Face hub needs"
            f" huggingface_hub: {install_hint('hf')}"
        ) from error


def _fetch(
    name: str, revision: str | None, patterns: list[str], local_files_only: bool = False
) -> Path:
    client = _client(name)
    options = {"local_files_only": True} if local_files_only else {}
    try:
        return Path(
            client.snapshot_download(name, revision=revision, allow_patterns=patterns, **options)
        )
    except Exception as error:  # includes errors of the client's HTTP library
        raise CheckpointError(_explain(name, revision, error)) from error


def _explain(name: str, revision: str | None, error: Exception) -> str:
    kind = type(error).__name__
    what = f"{name!r} is not a local path and could not be fetched from the Hugging Face hub"
    if kind == "GatedRepoError":
        return f"{what}: access is restricted; accept its terms and log in with `hf auth login`"
    if kind == "RepositoryNotFoundError":
        return f"{what}: no such model; check the spelling (log in if it is private)"
    if kind == "RevisionNotFoundError":
        return f"{what}: it has no revision {revision!r}; give a branch, tag or commit of it"
    lines = str(error).strip().splitlines()
    detail = f"{kind}: {lines[0]}" if lines else kind
    return f"{what} ({detail}); check the network, or download it and pass the directory"
