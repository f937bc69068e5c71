"""Models in memory as torch, transformers and openai-whisper have them, on numpy arrays.

The classes have the names, modules and attributes that the library reads, and no more.
"""

from __future__ import annotations

import types
from typing import Any

import numpy as np

from tests.support.models_write import huggingface_config, huggingface_names, rounded
from whisper_opt.core.arrays import F32
from whisper_opt.export.checkpoints import Checkpoint

__all__ = ["FakeTensor", "openai_model", "transformers_model", "wrapped"]


class FakeTensor:
    """A ``torch.Tensor``; ``numpy`` works for float32 on the CPU alone, as torch's does."""

    def __init__(self, values: Any, dtype: str = "float32", device: str = "cpu") -> None:
        self._values = values
        self.dtype, self.device = f"torch.{dtype}", device
        self.reads = 0

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self._values.shape)

    def __getitem__(self, rows: slice) -> FakeTensor:
        return FakeTensor(self._values[rows], self.dtype[6:], self.device)

    def detach(self) -> FakeTensor:
        self.reads += 1
        return self

    def to(self, device: str) -> FakeTensor:
        return FakeTensor(self._values, self.dtype[6:], device)

    def float(self) -> FakeTensor:
        return FakeTensor(self._values, "float32", self.device)

    def to_dense(self) -> FakeTensor:
        return FakeTensor(self._values, self.dtype[6:], self.device)

    def numpy(self) -> Any:
        if self.device != "cpu" or self.dtype not in ("torch.float32", "torch.bool"):
            raise TypeError(f"a {self.dtype} on {self.device} has no numpy array")
        return self._values

    def data_ptr(self) -> int:
        return int(self._values.__array_interface__["data"][0])

    def stride(self) -> tuple[int, ...]:
        return tuple(step // self._values.itemsize for step in self._values.strides)


class _Module:
    """A ``torch.nn.Module``."""

    def __init__(self, state: dict[str, FakeTensor], **attributes: Any) -> None:
        self._state = state
        vars(self).update(attributes)

    def state_dict(self) -> dict[str, FakeTensor]:
        return dict(self._state)


class _Config:
    """A configuration of transformers."""

    def __init__(self, values: dict[str, Any], origin: str = "") -> None:
        self._values, self._name_or_path, self._commit_hash = values, origin, None

    def to_dict(self) -> dict[str, Any]:
        return dict(self._values)


def _class(name: str, module: str, base: type[Any] = _Module) -> type[Any]:
    return type(name, (base,), {"__module__": module})


def tensors(arrays: dict[str, F32], dtype: str, device: str) -> dict[str, FakeTensor]:
    return {
        name: FakeTensor(rounded(np.array(values), dtype), dtype, device)
        for name, values in arrays.items()
    }


def transformers_model(
    checkpoint: Checkpoint,
    *,
    dtype: str = "float32",
    device: str = "cpu",
    kind: str = "WhisperForConditionalGeneration",
    origin: str = "",
    subclass: bool = False,
    generation: bool = True,
) -> Any:
    """A model of transformers with a checkpoint's weights."""
    arrays = {name: tensor.read() for name, tensor in checkpoint.tensors.items()}
    has_head = kind != "WhisperModel"
    names = huggingface_names(list(arrays), "model." if has_head else "")
    state = tensors({names[name]: values for name, values in arrays.items()}, dtype, device)
    if has_head:
        state["proj_out.weight"] = state["model.decoder.embed_tokens.weight"]
    lists = {
        "alignment_heads": [list(pair) for pair in checkpoint.alignment_heads or ()],
        "suppress_tokens": list(checkpoint.suppress_tokens or ()),
        "begin_suppress_tokens": checkpoint.begin_suppress_tokens,
    }
    found = _class(kind, "transformers.models.whisper.modeling_whisper")
    if subclass:
        found = _class("MyWhisper", "mine", found)
    config = _Config(huggingface_config(checkpoint.dims), origin)
    return found(state, config=config, generation_config=_Config(lists) if generation else None)


def openai_model(
    checkpoint: Checkpoint, *, dtype: str = "float32", device: str = "cpu", heads: bool = True
) -> Any:
    """A ``whisper.model.Whisper`` with a checkpoint's weights."""
    arrays = {name: tensor.read() for name, tensor in checkpoint.tensors.items()}
    dims = checkpoint.dims
    mask = np.zeros((dims.n_text_layer, dims.n_text_head), np.bool_)
    for pair in checkpoint.alignment_heads or ():
        mask[pair] = True
    return _class("Whisper", "whisper.model")(
        tensors(arrays, dtype, device),
        dims=types.SimpleNamespace(**dims.to_dict()),
        alignment_heads=FakeTensor(mask, "bool", device) if heads else None,
    )


def wrapped(model: Any, name: str, attribute: str) -> Any:
    """A model inside a wrapper of torch."""
    return _class(name, "torch")({}, **{attribute: model})
