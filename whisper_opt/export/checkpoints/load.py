"""``load_checkpoint``: recognise the format of a source and call its loader."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from whisper_opt.core.errors import CheckpointError, OptionError
from whisper_opt.core.model_names import find_name, is_hub_id
from whisper_opt.export.checkpoints.checkpoint import Checkpoint
from whisper_opt.export.checkpoints.ctranslate2 import load_ctranslate2
from whisper_opt.export.checkpoints.ggml import GGML_MAGIC, load_ggml
from whisper_opt.export.checkpoints.hub import HubModel, find
from whisper_opt.export.checkpoints.huggingface import HUGGINGFACE_WEIGHTS, load_huggingface
from whisper_opt.export.checkpoints.in_memory import load_in_memory
from whisper_opt.export.checkpoints.lora import Adapter, read_adapter
from whisper_opt.export.checkpoints.lora_config import ADAPTER_CONFIG
from whisper_opt.export.checkpoints.openai import load_openai
from whisper_opt.export.checkpoints.tokenizer import tokenizer_path
from whisper_opt.export.checkpoints.torch_pickle import is_torch_file

__all__ = ["load_checkpoint", "load_from_hub"]

_EXPECTED = (
    "a Hugging Face directory (config.json with model.safetensors, pytorch_model.bin or"
    " flax_model.msgpack), an OpenAI .pt file, a whisper.cpp ggml-*.bin file, a CTranslate2"
    " directory (model.bin), a LoRA adapter (adapter_config.json), or a model in memory"
)
_OTHER_FILES = ("model.bin", ADAPTER_CONFIG, "tf_model.h5")
_REFUSED = {
    b"GGUF": "a GGUF file; whisper.cpp and this program read its older ggml format: convert the"
    " model with whisper.cpp's models/convert-h5-to-ggml.py, or load the original checkpoint",
    b"tjgg": "a ggjt file of llama.cpp, which holds no Whisper model",
    b"fmgg": "a ggmf file of llama.cpp, which holds no Whisper model",
    b"\x89HDF\r\n\x1a\n": "an HDF5 file of TensorFlow, which cannot be read; convert it:"
    " WhisperForConditionalGeneration.from_pretrained(directory, from_tf=True).save_pretrained(...)"
    " with transformers 4 and TensorFlow",
}
"""First bytes of files that are recognized only to say what they are."""


def load_checkpoint(
    source: Any,
    *,
    tokenizer: Any = None,
    revision: str | None = None,
    base: Any = None,
    local_files_only: bool = False,
) -> Checkpoint:
    """Open a Whisper checkpoint of any supported form.

    Only indexes are kept in memory; tensors are read on demand. Weights are read once to record
    their SHA-256.

    Args:
        source: a Hugging Face directory, a directory with a LoRA adapter of PEFT, an OpenAI ``.pt``
            file, a ``ggml-*.bin`` file of whisper.cpp, a CTranslate2 directory, or a Hugging Face
            hub id such as ``openai/whisper-tiny.en``, or its short name ``tiny.en``: it is fetched
            into the client's cache. An existing path takes precedence over a name. Or a model
            in memory: a ``WhisperForConditionalGeneration`` or ``WhisperModel`` of transformers or
            a ``whisper.Whisper`` of openai-whisper.
        tokenizer: a ``tokenizer.json``, a directory that holds one, or a ``.tiktoken`` file; or a
            tokenizer or processor of transformers. By default the checkpoint's own.
        revision: branch, tag or commit, for a hub id.
        base: base model of a LoRA adapter, as any ``source`` or as a :class:`Checkpoint`; by
            default the one that ``adapter_config.json`` names.
        local_files_only: look for a hub id in the client's cache, and use no network.

    Raises:
        CheckpointError: the source does not exist, is damaged, or is not a Whisper model in one of
            these forms; or its tokenizer is missing or belongs to another model.
        OptionError: ``base`` was given and the source is no adapter.
        BackendUnavailable: a hub id was given and huggingface_hub is not installed.
    """
    known = find_name(source) if isinstance(source, str) and not Path(source).exists() else None
    if known is not None:
        source, revision = known.hub_id, revision or known.revision
    with tokenizer_path(tokenizer) as words:
        if not isinstance(source, (str, os.PathLike)):
            _refuse_base(base, type(source).__name__)
            _refuse_revision(revision, f"a {type(source).__name__} in memory")
            return load_in_memory(source, tokenizer=words)
        path = Path(source)
        if path.exists():
            _refuse_revision(revision, f"{path.name!r}, a local path")
            if path.is_dir():
                return _load_directory(path, words, None, base, local_files_only)
            _refuse_base(base, path.name)
            return _load_file(path, words)
        if isinstance(source, str) and is_hub_id(source):
            model = find(source, revision, local_files_only=local_files_only)
            name = source if revision is None else f"{source}@{revision}"
            return _load_directory(model.checkpoint(), words, name, base, local_files_only)
    raise CheckpointError(
        f"{str(source)!r} is neither an existing path nor a Hugging Face hub id"
        f" (organisation/model); expected {_EXPECTED}"
    )


def load_from_hub(model: HubModel, *, local_files_only: bool = False) -> Checkpoint:
    """Open the checkpoint of a model of the hub, which is fetched if need be.

    Its name is ``hub id@commit``. Raises as :func:`load_checkpoint` does.
    """
    name = f"{model.name}@{model.commit}"
    return _load_directory(model.checkpoint(), None, name, None, local_files_only)


def _refuse_revision(revision: str | None, what: str) -> None:
    if revision is not None:
        raise CheckpointError(
            f"revision {revision!r} was given with {what}; a revision belongs to a hub id"
        )


def _refuse_base(base: Any, name: str) -> None:
    if base is not None:
        raise OptionError(
            f"base= was given, but {name!r} is no adapter: it has all its weights; leave base out,"
            f" or pass a directory with {ADAPTER_CONFIG}"
        )


def _load_directory(
    directory: Path, tokenizer: Path | None, name: str | None, base: Any, local_files_only: bool
) -> Checkpoint:
    has = {file: (directory / file).is_file() for file in (*HUGGINGFACE_WEIGHTS, *_OTHER_FILES)}
    if any(has[file] for file in HUGGINGFACE_WEIGHTS):
        _refuse_base(base, name or directory.name)
        return load_huggingface(directory, tokenizer=tokenizer, name=name)
    if has["model.bin"]:
        _refuse_base(base, name or directory.name)
        return load_ctranslate2(directory, tokenizer=tokenizer, name=name)
    if has[ADAPTER_CONFIG]:
        return _load_adapter(directory, tokenizer, name, base, local_files_only)
    if has["tf_model.h5"]:
        return _load_file(directory / "tf_model.h5", tokenizer)
    raise CheckpointError(
        f"{directory.name!r} holds no Whisper weights: looked for"
        f" {', '.join(HUGGINGFACE_WEIGHTS)}, model.bin and {ADAPTER_CONFIG}; expected {_EXPECTED}"
    )


def _load_adapter(
    directory: Path, tokenizer: Path | None, name: str | None, base: Any, local_files_only: bool
) -> Checkpoint:
    adapter = read_adapter(directory, name)
    tokenizer = tokenizer or adapter.tokenizer
    if not isinstance(base, Checkpoint):
        fits_base = None if adapter.resizes_vocabulary else tokenizer
        base = _load_base(adapter, name, base, fits_base, local_files_only)
    return adapter.merged(base, tokenizer)


def _load_base(
    adapter: Adapter,
    name: str | None,
    base: Any,
    tokenizer: Path | None,
    local_files_only: bool,
) -> Checkpoint:
    """The base model of an adapter; ``name``: hub id of the adapter, if it comes from there."""
    settings = adapter.settings
    revision = None
    if base is None:
        base, revision = settings.base, settings.revision
        if base is None or (name is not None and not is_hub_id(base)):
            raise CheckpointError(
                f"{ADAPTER_CONFIG} names {base!r} as base model; expected a hub id"
                f"{' or a local path' if name is None else ''}: pass the base model as base="
            )
        if Path(base).exists():
            revision = None
    if isinstance(base, (str, os.PathLike)) and (Path(base) / ADAPTER_CONFIG).is_file():
        raise CheckpointError(
            f"the base model {str(base)!r} is an adapter itself; merge it into its own base first"
            " (PEFT: merge_and_unload, then save_pretrained)"
        )
    try:
        return load_checkpoint(
            base, tokenizer=tokenizer, revision=revision, local_files_only=local_files_only
        )
    except CheckpointError as error:
        raise CheckpointError(
            f"the base model of the adapter cannot be read: {error}; another copy of it can be"
            " passed as base="
        ) from error


def _load_file(path: Path, tokenizer: Path | None) -> Checkpoint:
    if path.name in {*HUGGINGFACE_WEIGHTS, "model.bin"}:
        raise CheckpointError(f"{path.name} is one file of a model; pass the directory it is in")
    try:
        with path.open("rb") as file:
            start = file.read(max(map(len, _REFUSED)))
    except OSError as error:
        raise CheckpointError(f"cannot read {path.name}: {error.strerror}") from error
    for magic, what in _REFUSED.items():
        if start.startswith(magic):
            raise CheckpointError(f"{path.name} is {what}")
    if start.startswith(GGML_MAGIC):
        return load_ggml(path, tokenizer=tokenizer)
    if is_torch_file(path):
        return load_openai(path, tokenizer=tokenizer)
    raise CheckpointError(
        f"{path.name} is not a checkpoint of a known format; expected {_EXPECTED}"
    )
