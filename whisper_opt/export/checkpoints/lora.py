"""LoRA adapters of PEFT, merged into their base model while tensors are read.

The merged weights are those of PEFT's ``merge_and_unload``: W + s B A for linear and convolutional
layers and embeddings (Hu et al. 2021, arXiv:2106.09685), scaled to the stored magnitudes for DoRA
(Liu et al. 2024, arXiv:2402.09353). The adapter's file may also replace biases
(``bias="all"|"lora_only"``), whole modules (``modules_to_save``) and rows of the embedding
(``trainable_token_indices``).
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import numpy as np

from whisper_opt.core.arrays import F32
from whisper_opt.core.errors import CheckpointError
from whisper_opt.export.checkpoints.blob import Blob, Stored, make_source, same_values
from whisper_opt.export.checkpoints.checkpoint import (
    EMBEDDING,
    OUTPUT_HEAD,
    Checkpoint,
    Source,
    Tensor,
    expected_shapes,
)
from whisper_opt.export.checkpoints.huggingface import huggingface_name, read_state
from whisper_opt.export.checkpoints.lora_config import (
    ADAPTER_CONFIG,
    LoraSettings,
    read_lora_settings,
)
from whisper_opt.export.checkpoints.tokenizer import find_tokenizer, has_tokenizer
from whisper_opt.export.checkpoints.vocabulary import check_token_ids, without_padding_rows

__all__ = ["ADAPTER_WEIGHTS", "Adapter", "read_adapter"]

ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
"""Weight files of an adapter in order of preference."""

_NAME = re.compile(
    r"(?:_orig_mod\.|module\.)*(?:base_model\.model\.)?(?P<module>[\w.]+?)\."
    r"(?P<part>lora_A\.weight|lora_B\.(?:weight|bias)|lora_embedding_[AB]"
    r"|lora_magnitude_vector(?:\.weight)?|token_adapter\.trainable_tokens_delta"
    r"|(?:base_layer|modules_to_save|original_module)\.(?:weight|bias)|weight|bias)"
)
_MAX_NAME = 300
"""Longest name of a tensor; matching takes quadratic time."""
_PAIRS = {"lora_A.weight": "lora_B.weight", "lora_embedding_A": "lora_embedding_B"}


@dataclasses.dataclass(frozen=True)
class _Merged:
    """A tensor computed when it is read, and otherwise like one in a file."""

    dtype: str
    base: Tensor
    steps: tuple[_Step, ...] = ()
    n_rows: int | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        n_rows = self.base.shape[0] if self.n_rows is None else self.n_rows
        return (n_rows, *self.base.shape[1:])

    def rows(self, start: int, stop: int) -> _Merged:
        if start:
            raise ValueError("only first rows can be taken of a merged tensor")
        return dataclasses.replace(self, n_rows=stop)

    def read(self) -> F32:
        values = self.base.read()
        for step in self.steps:
            values = step.apply(values)
        return np.ascontiguousarray(values[: self.shape[0]])

    def tensor(self) -> Tensor:
        return Tensor(shape=self.shape, read=self.read)


@dataclasses.dataclass(frozen=True)
class _Step:
    """A change of one tensor.

    Attributes:
        parts: unread arrays by their names in the adapter's file.
        scaling: factor of the product.
        ids: rows that are replaced.
    """

    parts: Mapping[str, Stored]
    scaling: float = 0.0
    ids: tuple[int, ...] = ()

    def apply(self, values: F32) -> F32:
        """The changed values; ``values`` may be changed in place."""
        if self.ids:
            (rows,) = self.parts.values()
            values[list(self.ids)] = rows.read()
            return values
        if "lora_B.bias" in self.parts:
            return cast(F32, values + self.parts["lora_B.bias"].read() * np.float32(self.scaling))
        embedding = "lora_embedding_A" in self.parts
        first = "lora_embedding_A" if embedding else "lora_A.weight"
        a, b = self.parts[first].read(), self.parts[_PAIRS[first]].read()
        product = b.reshape(len(b), -1) @ a.reshape(len(a), -1)
        product *= np.float32(self.scaling)
        delta = product.T if embedding else product.reshape(-1, *a.shape[1:])
        values += delta[: len(values)]
        magnitude = self.parts.get("lora_magnitude_vector")
        if magnitude is not None:
            axes = (0,) if embedding else tuple(range(1, values.ndim))
            norm = np.sqrt(np.square(values).sum(axis=axes, keepdims=True))
            values *= magnitude.read().reshape(norm.shape) / norm
        return values


class Adapter:
    """An opened adapter: its settings and its unread tensors."""

    def __init__(self, directory: Path, name: str | None) -> None:
        self.settings: LoraSettings = read_lora_settings(directory)
        self._directory = directory
        self._name = name or directory.resolve().name
        files = [directory / file for file in ADAPTER_WEIGHTS if (directory / file).is_file()]
        if not files:
            raise CheckpointError(
                f"the adapter {self._name!r} has no weights; expected"
                f" {' or '.join(ADAPTER_WEIGHTS)}"
            )
        self._file = files[0]
        self._parts: dict[str, dict[str, Blob]] = {}
        for key, blob in read_state(self._file).items():
            found = _NAME.fullmatch(key) if len(key) <= _MAX_NAME else None
            if found is None:
                raise CheckpointError(
                    f"{self._file.name} has tensor {key!r:.120}; expected those of a LoRA adapter"
                    " as PEFT saves it"
                )
            part = found["part"].replace("magnitude_vector.weight", "magnitude_vector")
            if part.startswith("original_module"):
                continue  # of a module in modules_to_save, which replaces it
            self._parts.setdefault(found["module"], {})[part] = blob

    @property
    def tokenizer(self) -> Path | None:
        """The adapter's directory if it holds a tokenizer."""
        return self._directory if has_tokenizer(self._directory) else None

    @property
    def resizes_vocabulary(self) -> bool:
        """Whether the adapter holds a whole token embedding, perhaps of another size."""
        return any(_whole(parts, "weight") for _, parts in self._token_modules())

    def _token_modules(self) -> list[tuple[str, Mapping[str, Blob]]]:
        ends = ("embed_tokens", "proj_out")
        return [(module, parts) for module, parts in self._parts.items() if module.endswith(ends)]

    def merged(self, base: Checkpoint, tokenizer: Path | None) -> Checkpoint:
        """The base with the adapter merged into it; tensors are computed when they are read.

        Args:
            base: the base model.
            tokenizer: file or directory of the result's tokenizer; the base's if None.

        Raises:
            CheckpointError: the adapter does not fit the base, or the tokenizer does not fit.
        """
        arrays = self._merged_arrays(base)
        dims = dataclasses.replace(base.dims, n_vocab=arrays[EMBEDDING].shape[0])
        text = base.tokenizer_json
        if tokenizer is not None:
            text = find_tokenizer(tokenizer, dims)
        elif dims != base.dims:
            check_token_ids(json.loads(text), base.source.name, dims)
        dims, cut = without_padding_rows(text, dims, arrays)
        return dataclasses.replace(
            base,
            dims=dims,
            tensors={name: array.tensor() for name, array in cut.items()},
            tokenizer_json=text,
            source=self._source(base.source),
        )

    def _merged_arrays(self, base: Checkpoint) -> dict[str, Stored]:
        arrays: dict[str, Stored] = {
            name: _Merged(base.source.dtype, tensor) for name, tensor in base.tensors.items()
        }
        replaced: dict[str, Blob] = {}
        changes: list[tuple[str, _Step]] = []
        known = {huggingface_name(name): name for name in expected_shapes(base.dims)}
        known["proj_out.weight"] = OUTPUT_HEAD
        for module, parts in self._parts.items():
            short = module[6:] if module.startswith("model.") else module
            names = {kind: known.get(f"{short}.{kind}") for kind in ("weight", "bias")}
            for kind, name in names.items():
                whole = _whole(parts, kind)
                if whole is not None:
                    replaced[_known(name, module, kind)] = whole
            changes += self._steps(module, parts, names)
        tied = OUTPUT_HEAD not in arrays and not self._unties(replaced)
        if not tied:
            arrays.setdefault(OUTPUT_HEAD, arrays[EMBEDDING])
        for name, blob in replaced.items():
            arrays[_place(name, tied)] = blob
        # PEFT merges in the order of modules: the embedding before the output head
        for name, step in sorted(changes, key=lambda change: change[0] == OUTPUT_HEAD):
            place = _place(name, tied)
            arrays[place] = _changed(arrays[place], step, name)
        return arrays

    def _unties(self, replaced: Mapping[str, Blob]) -> bool:
        """Whether embedding and output head, shared in the base, become different tensors."""
        for module, parts in self._token_modules():
            if _whole(parts, "weight") and self.settings.replaces(module):
                return True
        both = [replaced[name] for name in (EMBEDDING, OUTPUT_HEAD) if name in replaced]
        return len(both) == 2 and not same_values(*both)

    def _steps(
        self, module: str, parts: Mapping[str, Blob], names: Mapping[str, str | None]
    ) -> list[tuple[str, _Step]]:
        """The changes of a module's tensors by canonical name."""
        found = []
        lora = {key: blob for key, blob in parts.items() if key.startswith("lora_")}
        bias = lora.pop("lora_B.bias", None)
        if lora:
            _check_factors(module, lora, self.settings.rank(module))
            step = _Step(lora, self.settings.scaling(module))
            found.append((_known(names["weight"], module, "weight"), step))
        if bias is not None:
            step = _Step({"lora_B.bias": bias}, self.settings.scaling(module))
            found.append((_known(names["bias"], module, "bias"), step))
        rows = parts.get("token_adapter.trainable_tokens_delta")
        if rows is not None:
            ids = [v for k, v in self.settings.trainable_tokens.items() if module.endswith(k)]
            if not ids or not ids[0]:
                raise CheckpointError(
                    f"the adapter has rows of {module!r}, but {ADAPTER_CONFIG} has no"
                    " trainable_token_indices for it"
                )
            step = _Step({"rows": rows}, ids=ids[0])
            found.append((_known(names["weight"], module, "weight"), step))
        return found

    def _source(self, base: Source) -> Source:
        files = [self._directory / ADAPTER_CONFIG, self._file]
        own = make_source("lora", self._name, [], files)
        beneath = {f"base/{name}": digest for name, digest in base.sha256.items()}
        return Source(
            format=f"{base.format}+lora",
            name=self._name,
            dtype=base.dtype,
            sha256={**own.sha256, **beneath},
        )


def _whole(parts: Mapping[str, Blob], kind: str) -> Blob | None:
    """The tensor of a module that replaces the base's."""
    names = (kind, f"base_layer.{kind}", f"modules_to_save.{kind}")
    return next((parts[name] for name in names if name in parts), None)


def _known(name: str | None, module: str, kind: str) -> str:
    if name is None:
        raise CheckpointError(
            f"the adapter changes the {kind} of {module!r:.120}, which the base model does not"
            " have: it belongs to another model, pass that as base="
        )
    return name


def _place(name: str, tied: bool) -> str:
    return EMBEDDING if tied and name == OUTPUT_HEAD else name


def _check_factors(module: str, parts: Mapping[str, Blob], rank: int) -> None:
    """Raise :class:`CheckpointError` unless there are two matrices of this rank."""
    for first, second in _PAIRS.items():
        if first in parts and second in parts:
            a, b = parts[first].shape, parts[second].shape
            if len(a) < 2 or len(b) < 2 or a[0] != rank or b[1] != rank:
                raise CheckpointError(
                    f"the adapter's matrices of {module!r:.120} have shapes {list(a)} and"
                    f" {list(b)}; {ADAPTER_CONFIG} says rank {rank}"
                )
            return
    raise CheckpointError(
        f"the adapter lacks one of the two matrices of {module!r:.120}; the file is incomplete"
    )


def _changed(array: Stored, step: _Step, name: str) -> _Merged:
    """An array with a further change, whose shape is checked."""
    before = array if isinstance(array, _Merged) else _Merged(array.dtype, array.tensor())
    if not _fits(step, before.shape, name in (EMBEDDING, OUTPUT_HEAD)):
        shapes = ", ".join(f"{key} {list(part.shape)}" for key, part in step.parts.items())
        raise CheckpointError(
            f"the adapter's {shapes} do not fit {name!r} of the base model, which has shape"
            f" {list(before.shape)}: it belongs to another model, pass that as base="
        )
    return dataclasses.replace(before, steps=(*before.steps, step))


def _fits(step: _Step, shape: Sequence[int], has_token_rows: bool) -> bool:
    parts = {key: part.shape for key, part in step.parts.items()}
    if step.ids:
        return parts["rows"] == (len(step.ids), *shape[1:]) and max(step.ids) < shape[0]
    if "lora_B.bias" in parts:
        return parts["lora_B.bias"] == tuple(shape)
    if "lora_embedding_A" in parts:
        a, b = parts["lora_embedding_A"], parts["lora_embedding_B"]
        delta, width = (a[1:] + b[:1]), b[0]
        exact = len(b) == 2
    else:
        a, b = parts["lora_A.weight"], parts["lora_B.weight"]
        delta, width = (b[:1] + a[1:]), b[0]
        exact = all(n == 1 for n in b[2:])
    magnitude = step.parts.get("lora_magnitude_vector")
    if magnitude is not None:
        exact = exact and isinstance(magnitude, Blob) and magnitude.n_items == width
        return exact and delta == tuple(shape)
    more = delta[0] - shape[0]  # rows of padding, which the base was read without
    return exact and delta[1:] == tuple(shape[1:]) and (more == 0 or (has_token_rows and more > 0))


def read_adapter(directory: Path, name: str | None = None) -> Adapter:
    """Open an adapter; its tensors are read later.

    Args:
        directory: holds ``adapter_config.json`` and one of :data:`ADAPTER_WEIGHTS`.
        name: name for the provenance; the directory's by default.

    Raises:
        CheckpointError: a file is missing or damaged, or the adapter is of a kind that is not
            merged here.
    """
    return Adapter(directory, name)
