"""``load_checkpoint``: recognise the format of a source and call its loader."""

from __future__ import annotations

from pathlib import Path

from whisper_opt.core.errors import CheckpointError
from whisper_opt.export.checkpoints.checkpoint import Checkpoint
from whisper_opt.export.checkpoints.ctranslate2 import load_ctranslate2
from whisper_opt.export.checkpoints.ggml import GGML_MAGIC, load_ggml
from whisper_opt.export.checkpoints.hub import download, is_hub_id
from whisper_opt.export.checkpoints.huggingface import HUGGINGFACE_WEIGHTS, load_huggingface
from whisper_opt.export.checkpoints.openai import load_openai
from whisper_opt.export.checkpoints.torch_pickle import is_torch_file

__all__ = ["load_checkpoint"]

_EXPECTED = (
    "a Hugging Face directory (config.json with model.safetensors, pytorch_model.bin or"
    " flax_model.msgpack), an OpenAI .pt file, a whisper.cpp ggml-*.bin file, or a CTranslate2"
    " directory (model.bin)"
)
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
    source: str | Path, *, tokenizer: str | Path | None = None, revision: str | None = None
) -> Checkpoint:
    """Open a Whisper checkpoint of any supported format.

    Only indexes are kept in memory; tensors are read on demand. The weight files are read once to
    record their SHA-256.

    Args:
        source: a Hugging Face directory, an OpenAI ``.pt`` file, a ``ggml-*.bin`` file of
            whisper.cpp, a CTranslate2 directory, or a Hugging Face hub id such as
            ``openai/whisper-tiny.en``, which is fetched into the client's cache. An existing path
            takes precedence over a hub id.
        tokenizer: a ``tokenizer.json``, a directory that holds one, or a ``.tiktoken`` file; by
            default the checkpoint's own.
        revision: branch, tag or commit, for a hub id.

    Raises:
        CheckpointError: the source does not exist, is damaged, or is not a Whisper model in one of
            these formats; or its tokenizer is missing or belongs to another model.
        BackendUnavailable: a hub id was given and huggingface_hub is not installed.
    """
    words = None if tokenizer is None else Path(tokenizer)
    if words is not None and not words.exists():
        raise CheckpointError(
            f"tokenizer= names {str(tokenizer)!r}, which does not exist; expected a tokenizer.json,"
            " a directory that holds one, or a .tiktoken file"
        )
    path = Path(source)
    if path.exists():
        if revision is not None:
            raise CheckpointError(
                f"revision {revision!r} was given, but {path.name!r} is a local path; a revision"
                " belongs to a hub id"
            )
        return _load_directory(path, words, None) if path.is_dir() else _load_file(path, words)
    if isinstance(source, str) and is_hub_id(source):
        name = source if revision is None else f"{source}@{revision}"
        return _load_directory(download(source, revision), words, name)
    raise CheckpointError(
        f"{str(source)!r} is neither an existing path nor a Hugging Face hub id"
        f" (organisation/model); expected {_EXPECTED}"
    )


def _load_directory(directory: Path, tokenizer: Path | None, name: str | None) -> Checkpoint:
    if any((directory / file).is_file() for file in HUGGINGFACE_WEIGHTS):
        return load_huggingface(directory, tokenizer=tokenizer, name=name)
    if (directory / "model.bin").is_file():
        return load_ctranslate2(directory, tokenizer=tokenizer, name=name)
    if (directory / "adapter_config.json").is_file():
        raise CheckpointError(
            f"{directory.name!r} holds only an adapter; merge it into its base model first"
            " (PEFT: merge_and_unload, then save_pretrained)"
        )
    if (directory / "tf_model.h5").is_file():
        return _load_file(directory / "tf_model.h5", tokenizer)
    raise CheckpointError(
        f"{directory.name!r} holds no Whisper weights: looked for"
        f" {', '.join(HUGGINGFACE_WEIGHTS)} and model.bin; expected {_EXPECTED}"
    )


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
