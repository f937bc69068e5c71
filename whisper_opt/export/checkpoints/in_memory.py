"""Models in memory: those of transformers and of openai-whisper.

A model is recognized by the names of its classes, and its tensors are read by their own methods:
neither torch nor transformers is imported here. Each tensor is copied to the CPU as float32 when it
is read, and nothing is kept.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Callable, Protocol

import numpy as np

from whisper_opt.core.arrays import F32
from whisper_opt.core.errors import BackendUnavailable, CheckpointError
from whisper_opt.core.model_names import is_hub_id
from whisper_opt.export.checkpoints import huggingface, openai
from whisper_opt.export.checkpoints.checkpoint import Checkpoint, Source, Tensor
from whisper_opt.export.checkpoints.hub import download_tokenizer
from whisper_opt.export.checkpoints.tokenizer import has_tokenizer

__all__ = ["TorchArray", "load_in_memory"]

_FLOATS = ("float16", "bfloat16", "float32", "float64")
_WRAPPERS = {
    "OptimizedModule": "_orig_mod",
    "DataParallel": "module",
    "DistributedDataParallel": "module",
}
"""Classes of torch around a model, and the attribute that holds it."""


@dataclasses.dataclass(frozen=True, eq=False)
class TorchArray:
    """A ``torch.Tensor``, copied when it is read.

    Attributes:
        values: the tensor, on any device.
    """

    values: Any

    @property
    def dtype(self) -> str:
        """Storage type."""
        return str(self.values.dtype).rpartition(".")[2]

    @property
    def shape(self) -> tuple[int, ...]:
        """Dimensions."""
        return tuple(int(n) for n in self.values.shape)

    def rows(self, start: int, stop: int) -> TorchArray:
        """The sub-array ``[start:stop]`` of the first axis, not copied."""
        return TorchArray(self.values[start:stop])

    def read(self) -> F32:
        """A C-contiguous float32 copy on the CPU; float64 is rounded."""
        return np.array(self.values.detach().to("cpu").float().numpy(), np.float32, order="C")

    def tensor(self) -> Tensor:
        """The canonical lazy tensor."""
        return Tensor(shape=self.shape, read=self.read)

    def __eq__(self, other: object) -> bool:
        """Whether both are the same memory, as tied weights are."""
        return isinstance(other, TorchArray) and self._place() == other._place()

    __hash__ = None  # type: ignore[assignment]  # arrays are no keys

    def _place(self) -> tuple[Any, ...]:
        values = self.values
        return (values.data_ptr(), str(values.device), self.shape, values.stride(), self.dtype)


class _Loader(Protocol):
    def __call__(self, model: Any, tokenizer: Path | None) -> Checkpoint: ...


def load_in_memory(model: Any, *, tokenizer: Path | None = None) -> Checkpoint:
    """Open a model that is in memory; it must not be changed until the checkpoint was exported.

    Args:
        model: a ``WhisperForConditionalGeneration`` or ``WhisperModel`` of transformers, or a
            ``whisper.Whisper`` of openai-whisper, in any floating-point type, on any device.
        tokenizer: file or directory of the tokenizer. By default, for transformers, that of the
            directory or hub id that the model was loaded from; for openai-whisper, its own.

    Raises:
        CheckpointError: the model is of another class, its weights are not in memory or are
            quantized, or there is no tokenizer.
        BackendUnavailable: the tokenizer is on the hub and huggingface_hub is not installed.
    """
    while type(model).__name__ in _WRAPPERS:
        model = getattr(model, _WRAPPERS[type(model).__name__])
    kinds = [(kind.__module__.partition(".")[0], kind.__name__) for kind in type(model).__mro__]
    loader = next((_LOADERS[kind] for kind in kinds if kind in _LOADERS), None)
    if loader is not None:
        return loader(model, tokenizer)
    if any(package == "peft" for package, _ in kinds):
        raise CheckpointError(
            f"the model is a {type(model).__name__}, whose adapter is not merged; pass"
            " model.merge_and_unload(), or the adapter's directory"
        )
    raise CheckpointError(
        f"a {type(model).__module__}.{type(model).__name__} is not a Whisper model; expected a path"
        " or hub id, a WhisperForConditionalGeneration or WhisperModel of transformers, or a"
        " whisper.Whisper of openai-whisper"
    )


def _from_transformers(model: Any, tokenizer: Path | None) -> Checkpoint:
    config = _plain(model.config)
    generation = getattr(model, "generation_config", None)
    origin = str(getattr(model.config, "_name_or_path", None) or "")
    if tokenizer is None:
        tokenizer = _tokenizer_of(origin, getattr(model.config, "_commit_hash", None))
    name = origin if is_hub_id(origin) and not Path(origin).exists() else Path(origin).name
    checkpoint = huggingface.assemble(
        config,
        config if generation is None else _plain(generation),
        _arrays(model),
        tokenizer,
        _source("huggingface", name or type(model).__name__),
    )
    return _with_digests(checkpoint)


def _tokenizer_of(origin: str, commit: str | None) -> Path:
    """Where the tokenizer of a model is that was loaded from ``origin``."""
    why = f"the model was loaded from {Path(origin).name!r}" if origin else "it has no origin"
    if origin and has_tokenizer(Path(origin)):
        return Path(origin)
    if is_hub_id(origin) and not Path(origin).exists():
        try:
            folder = download_tokenizer(origin, commit)
        except (BackendUnavailable, CheckpointError) as error:
            raise type(error)(f"{error}; or pass the model's tokenizer as tokenizer=") from error
        if has_tokenizer(folder):
            return folder
    raise CheckpointError(
        f"a model in memory has no tokenizer, and {why}, where none is found; pass tokenizer= (a"
        " WhisperProcessor, a tokenizer of transformers, or a path)"
    )


def _from_openai(model: Any, tokenizer: Path | None) -> Checkpoint:
    heads = getattr(model, "alignment_heads", None)
    pairs = None
    if heads is not None:
        found = np.argwhere(heads.detach().to("cpu").to_dense().numpy())
        pairs = tuple((int(layer), int(head)) for layer, head in found)
    checkpoint = openai.assemble(
        vars(model.dims),
        _arrays(model),
        tokenizer,
        _source("openai", f"whisper.{type(model).__name__}"),
        alignment_heads=pairs or None,
    )
    return _with_digests(checkpoint)


_LOADERS: Mapping[tuple[str, str], _Loader] = {
    ("transformers", "WhisperForConditionalGeneration"): _from_transformers,
    ("transformers", "WhisperModel"): _from_transformers,
    ("whisper", "Whisper"): _from_openai,
}
"""Package and class of a model -> its loader."""


def _plain(config: Any) -> dict[str, Any]:
    """A configuration of transformers as its JSON file would say."""
    plain: dict[str, Any] = json.loads(json.dumps(config.to_dict(), default=str))
    return plain


def _arrays(model: Any) -> dict[str, TorchArray]:
    arrays = {name: TorchArray(values) for name, values in model.state_dict().items()}
    for name, array in arrays.items():
        if str(array.values.device) == "meta":
            raise CheckpointError(
                f"tensor {name!r} of the model is not in memory (device meta); load the model"
                " without offloading, or pass its directory"
            )
        if array.dtype not in _FLOATS:
            raise CheckpointError(
                f"tensor {name!r} of the model is {array.dtype}; expected"
                f" {', '.join(_FLOATS)}: load the model without quantization"
            )
    return arrays


def _source(kind: str, name: str) -> Callable[[Iterable[str]], Source]:
    def make(dtypes: Iterable[str]) -> Source:
        return Source(kind, name, "+".join(sorted(set(dtypes))), {})

    return make


def _with_digests(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with digests of all that an engine depends on, whatever the storage type."""
    weights = hashlib.sha256()
    for name, tensor in sorted(checkpoint.tensors.items()):
        weights.update(f"{name} {tensor.shape}\n".encode())
        weights.update(tensor.read().data)
    digests = {
        "weights": weights.hexdigest(),
        "configuration": checkpoint.configuration_sha256(),
    }
    return dataclasses.replace(
        checkpoint, source=dataclasses.replace(checkpoint.source, sha256=digests)
    )
