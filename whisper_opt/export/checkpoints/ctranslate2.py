"""CTranslate2 directories, as faster-whisper uses them (all types of its converters).

``model.bin`` is a flat list of named arrays; the layout and the names are those of CTranslate2's
``model_spec.ModelSpec`` (binary version 6) and ``whisper_spec.WhisperSpec`` (revision 3).
CTranslate2 stacks query, key and value projections into one matrix. They are split by rows here, so
each is still one range of bytes. The query is not pre-scaled in the file.

Quantized matrices are int8 with one scale per row, or int16 with one scale; ``NAME_scale`` holds
the scales, and a value is integer / scale. Convolutions and the token embedding are quantized too,
vectors and positions are not.
"""

from __future__ import annotations

import dataclasses
import math
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from whisper_opt.core.dims import ModelDims
from whisper_opt.core.errors import CheckpointError
from whisper_opt.export.checkpoints.blob import ITEM_BYTES, Blob, Stored, make_source, same_values
from whisper_opt.export.checkpoints.checkpoint import (
    EMBEDDING,
    OUTPUT_HEAD,
    Checkpoint,
    check_window,
)
from whisper_opt.export.checkpoints.quantized import ScaledBlob, report_rounding
from whisper_opt.export.checkpoints.sidecar import alignment_heads, read_json, token_ids
from whisper_opt.export.checkpoints.tokenizer import find_tokenizer
from whisper_opt.export.checkpoints.vocabulary import is_multilingual, without_padding_rows

__all__ = ["load_ctranslate2"]

_BINARY_VERSION = 6
_SPEC = ("WhisperSpec", 3)
_TYPES = ("float32", "int8", "int16", "int32", "float16", "bfloat16")
_QUANTIZED = ("int8", "int16")
_TYPE_BYTES = {**ITEM_BYTES, "int8": 1, "int16": 2, "int32": 4}
# Values of the decoder's flags in Whisper models; other values change the computation.
_FLAGS = {
    "decoder/activation": 3,  # exact GELU
    "decoder/pre_norm": 1,
    "decoder/scale_embeddings": 0,
    "decoder/alibi": 0,
}


@dataclasses.dataclass(frozen=True)
class _Contents:
    """Index of a ``model.bin``: arrays and integer scalars by name."""

    arrays: Mapping[str, Stored]
    scalars: Mapping[str, int]

    def blob(self, name: str) -> Stored:
        if name not in self.arrays:
            raise CheckpointError(
                f"model.bin has no variable {name!r}; it is incomplete or not a Whisper model"
            )
        return self.arrays[name]

    def shape(self, name: str, rank: int) -> tuple[int, ...]:
        shape = self.blob(name).shape
        if len(shape) != rank:
            raise CheckpointError(
                f"variable {name!r} of model.bin has shape {list(shape)}; expected {rank} axes"
            )
        return shape


class _Reader:
    """Reader of ``model.bin`` whose errors say what is damaged."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file = file
        self._path = path
        self._size = os.fstat(file.fileno()).st_size

    def bytes(self, n: int) -> bytes:
        raw = self._file.read(n)
        if len(raw) != n:
            raise self.damaged("ends inside its index")
        return raw

    def number(self, code: str) -> int:
        value: int = struct.unpack(f"<{code}", self.bytes(struct.calcsize(f"<{code}")))[0]
        return value

    def string(self) -> str:
        raw = self.bytes(self.number("H"))
        try:
            return raw.rstrip(b"\0").decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.damaged("has a name that is not text") from error

    def skip(self, n: int) -> int:
        """Step over ``n`` bytes of data and return their offset."""
        offset = self._file.tell()
        if offset + n > self._size:
            raise self.damaged(f"has {self._size} bytes, data up to byte {offset + n} is declared")
        self._file.seek(n, os.SEEK_CUR)
        return offset

    def at_end(self) -> bool:
        return self._file.tell() == self._size

    def damaged(self, what: str) -> CheckpointError:
        return CheckpointError(
            f"{self._path.name} {what}; the copy is incomplete or damaged: fetch it again"
        )


def _read_variable(
    reader: _Reader, path: Path, arrays: dict[str, Blob], scalars: dict[str, int]
) -> None:
    name = reader.string()
    shape = tuple(reader.number("I") for _ in range(reader.number("B")))
    code, n_bytes = reader.number("B"), reader.number("I")
    if code >= len(_TYPES):
        raise reader.damaged(f"gives {name!r} the unknown type {code}")
    dtype = _TYPES[code]
    if math.prod(shape) * _TYPE_BYTES[dtype] != n_bytes:
        raise reader.damaged(f"gives {name!r} {n_bytes} bytes for {dtype} {list(shape)}")
    if shape == () and dtype not in ITEM_BYTES:
        scalars[name] = int.from_bytes(reader.bytes(n_bytes), "little", signed=True)
        return
    offset = reader.skip(n_bytes)
    if dtype in ITEM_BYTES or (dtype in _QUANTIZED and name.endswith("weight")):
        arrays[name] = Blob(path, offset, dtype, shape)


def _dequantized(arrays: Mapping[str, Blob], file: str) -> dict[str, Stored]:
    """Arrays with quantized ones joined to their scales."""
    found: dict[str, Stored] = {}
    for name, blob in arrays.items():
        found[name] = blob
        if blob.dtype not in _QUANTIZED:
            continue
        scales = arrays.get(f"{name}_scale")
        if scales is None or scales.dtype in _QUANTIZED:
            raise CheckpointError(
                f"{file} stores {name!r} as {blob.dtype} without its {name.split('/')[-1]}_scale;"
                " the file is damaged or of another kind: convert the model again"
            )
        if scales.shape not in ((), blob.shape[:1]):
            raise CheckpointError(
                f"{file} has scales {list(scales.shape)} for {name!r} of shape {list(blob.shape)};"
                " expected one for each row, or one"
            )
        found[name] = ScaledBlob(blob, scales)
    return found


def _read_index(path: Path) -> _Contents:
    arrays: dict[str, Blob] = {}
    scalars: dict[str, int] = {}
    try:
        with path.open("rb") as file:
            reader = _Reader(file, path)
            version = reader.number("I")
            if version != _BINARY_VERSION:
                raise CheckpointError(
                    f"{path.name} has binary version {version}; expected {_BINARY_VERSION}: convert"
                    " the model again with a current ct2-transformers-converter"
                )
            spec = reader.string(), reader.number("I")
            if spec != _SPEC:
                raise CheckpointError(
                    f"{path.name} holds a {spec[0]} of revision {spec[1]}; expected {_SPEC[0]} of"
                    f" revision {_SPEC[1]}: convert a Whisper model with a current"
                    " ct2-transformers-converter"
                )
            for _ in range(reader.number("I")):
                _read_variable(reader, path, arrays, scalars)
            found = _dequantized(arrays, path.name)
            for _ in range(reader.number("I")):
                alias, name = reader.string(), reader.string()
                if name in found:
                    found[alias] = found[name]
            if not reader.at_end():
                raise reader.damaged("goes on after its last entry")
    except OSError as error:
        raise CheckpointError(f"cannot read {path.name}: {error.strerror}") from error
    return _Contents(found, scalars)


def _n_layers(contents: _Contents, side: str) -> int:
    n = 0
    while f"{side}/layer_{n}/ffn/linear_0/weight" in contents.arrays:
        n += 1
    if n == 0:
        raise CheckpointError(f"model.bin has no {side} layers; it is not a Whisper model")
    return n


def _dims(contents: _Contents) -> ModelDims:
    for flag, wanted in _FLAGS.items():
        if contents.scalars.get(flag, wanted) != wanted:
            raise CheckpointError(
                f"model.bin has {flag} = {contents.scalars[flag]}; Whisper models have {wanted}"
            )
    for name in ("encoder/num_heads", "decoder/num_heads"):
        if name not in contents.scalars:
            raise CheckpointError(f"model.bin has no {name}; it is not a Whisper model")
    audio_state, n_mels, _ = contents.shape("encoder/conv1/weight", 3)
    n_vocab, text_state = contents.shape("decoder/embeddings/weight", 2)
    return ModelDims(
        n_mels=n_mels,
        n_audio_ctx=contents.shape("encoder/position_encodings/encodings", 2)[0],
        n_audio_state=audio_state,
        n_audio_head=contents.scalars["encoder/num_heads"],
        n_audio_layer=_n_layers(contents, "encoder"),
        n_vocab=n_vocab,
        n_text_ctx=contents.shape("decoder/position_encodings/encodings", 2)[0],
        n_text_state=text_state,
        n_text_head=contents.scalars["decoder/num_heads"],
        n_text_layer=_n_layers(contents, "decoder"),
    )


def _linear(contents: _Contents, theirs: str, ours: str) -> dict[str, Stored]:
    return {f"{ours}.{kind}": contents.blob(f"{theirs}/{kind}") for kind in ("weight", "bias")}


def _norm(contents: _Contents, theirs: str, ours: str) -> dict[str, Stored]:
    return {
        f"{ours}.weight": contents.blob(f"{theirs}/gamma"),
        f"{ours}.bias": contents.blob(f"{theirs}/beta"),
    }


def _fused(
    contents: _Contents, theirs: str, ours: str, parts: tuple[str, ...]
) -> dict[str, Stored]:
    """Split a stacked projection; the bias of the key must be zero, as Whisper has none."""
    weight, bias = contents.blob(f"{theirs}/weight"), contents.blob(f"{theirs}/bias")
    n_rows = weight.shape[0] if weight.shape else 0
    if n_rows % len(parts) or bias.shape != (n_rows,):
        raise CheckpointError(
            f"{theirs!r} of model.bin has weight {list(weight.shape)} and bias {list(bias.shape)};"
            f" expected {', '.join(parts)} stacked by rows"
        )
    size = n_rows // len(parts)
    found: dict[str, Stored] = {}
    for i, part in enumerate(parts):
        rows = i * size, (i + 1) * size
        found[f"{ours}.{part}.weight"] = weight.rows(*rows)
        if part != "key":
            found[f"{ours}.{part}.bias"] = bias.rows(*rows)
        elif bias.rows(*rows).read().any():
            raise CheckpointError(
                f"{theirs!r} of model.bin has a key bias that is not zero; Whisper's key projection"
                " has no bias, so this model computes something else"
            )
    return found


def _layer(contents: _Contents, theirs: str, ours: str, *, cross: bool) -> dict[str, Stored]:
    attention = f"{theirs}/self_attention"
    found = {
        **_fused(contents, f"{attention}/linear_0", f"{ours}.attn", ("query", "key", "value")),
        **_linear(contents, f"{attention}/linear_1", f"{ours}.attn.out"),
        **_norm(contents, f"{attention}/layer_norm", f"{ours}.attn_ln"),
        **_linear(contents, f"{theirs}/ffn/linear_0", f"{ours}.mlp.0"),
        **_linear(contents, f"{theirs}/ffn/linear_1", f"{ours}.mlp.2"),
        **_norm(contents, f"{theirs}/ffn/layer_norm", f"{ours}.mlp_ln"),
    }
    if cross:
        attention = f"{theirs}/attention"
        found.update(_linear(contents, f"{attention}/linear_0", f"{ours}.cross_attn.query"))
        found.update(
            _fused(contents, f"{attention}/linear_1", f"{ours}.cross_attn", ("key", "value"))
        )
        found.update(_linear(contents, f"{attention}/linear_2", f"{ours}.cross_attn.out"))
        found.update(_norm(contents, f"{attention}/layer_norm", f"{ours}.cross_attn_ln"))
    return found


def _blobs(contents: _Contents, dims: ModelDims) -> dict[str, Stored]:
    found = {
        **_linear(contents, "encoder/conv1", "encoder.conv1"),
        **_linear(contents, "encoder/conv2", "encoder.conv2"),
        "encoder.positional_embedding": contents.blob("encoder/position_encodings/encodings"),
        **_norm(contents, "encoder/layer_norm", "encoder.ln_post"),
        EMBEDDING: contents.blob("decoder/embeddings/weight"),
        "decoder.positional_embedding": contents.blob("decoder/position_encodings/encodings"),
        **_norm(contents, "decoder/layer_norm", "decoder.ln"),
    }
    for side, n_layers in (("encoder", dims.n_audio_layer), ("decoder", dims.n_text_layer)):
        for i in range(n_layers):
            theirs, ours = f"{side}/layer_{i}", f"{side}.blocks.{i}"
            found.update(_layer(contents, theirs, ours, cross=side == "decoder"))
    head = contents.arrays.get("decoder/projection/weight")
    if head is not None and not same_values(head, found[EMBEDDING]):
        found[OUTPUT_HEAD] = head
    return found


def load_ctranslate2(
    directory: Path, *, tokenizer: Path | None = None, name: str | None = None
) -> Checkpoint:
    """Open a CTranslate2 Whisper directory; weights are read later, tensor by tensor.

    Args:
        directory: holds ``model.bin``, ``config.json`` and, unless given, ``tokenizer.json``.
        tokenizer: file or directory of another tokenizer.
        name: name for the provenance; the directory's by default.

    Raises:
        CheckpointError: a file is missing or damaged, or the model is not a Whisper model of a
            known layout.
    """
    weights = directory / "model.bin"
    config = read_json(directory / "config.json")
    contents = _read_index(weights)
    dims = _dims(contents)
    check_window(dims)
    text = find_tokenizer(tokenizer or directory, dims)
    dims, blobs = without_padding_rows(text, dims, _blobs(contents, dims))
    name = name or directory.resolve().name
    report_rounding(name, blobs.values())
    return Checkpoint(
        dims=dims,
        tensors={key: blob.tensor() for key, blob in blobs.items()},
        tokenizer_json=text,
        alignment_heads=alignment_heads(config, dims),
        suppress_tokens=token_ids(config, "suppress_ids", dims.n_vocab),
        begin_suppress_tokens=token_ids(config, "suppress_ids_begin", dims.n_vocab),
        source=make_source(
            "ctranslate2",
            name,
            (blob.dtype for blob in blobs.values()),
            [weights],
        ),
        multilingual=is_multilingual(text, None),
    )
