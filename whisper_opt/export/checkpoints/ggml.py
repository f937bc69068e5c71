"""whisper.cpp's model files, ``ggml-*.bin``.

Layout (whisper.cpp, models/convert-pt-to-ggml.py and ``whisper_model_load``), little-endian: a
magic number, eleven integers, mel filters, tokens in the order of their ids, and tensors under
openai-whisper's names, with their axes reversed and without those of length 1. The filters are
checked against Whisper's. The tokens are checked against OpenAI's by their hash and then give the
tokenizer.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO, Union

import numpy as np

from whisper_opt.audio.features import mel_filters
from whisper_opt.core.dims import N_FFT, ModelDims
from whisper_opt.core.errors import CheckpointError
from whisper_opt.export.checkpoints.blob import Blob, make_source
from whisper_opt.export.checkpoints.checkpoint import Checkpoint, check_window, expected_shapes
from whisper_opt.export.checkpoints.quantized import BLOCK_ITEMS, BlockBlob, report_rounding
from whisper_opt.export.checkpoints.tokenizer import find_tokenizer, tokenizer_of_bytes
from whisper_opt.export.checkpoints.vocabulary import is_multilingual, without_padding_rows

__all__ = ["GGML_MAGIC", "load_ggml"]

GGML_MAGIC = b"lmgg"
"""First bytes: 0x67676d6c, little-endian."""
_HEADER = (
    *("n_vocab", "n_audio_ctx", "n_audio_state", "n_audio_head", "n_audio_layer"),
    *("n_text_ctx", "n_text_state", "n_text_head", "n_text_layer", "n_mels", "ftype"),
)
_VERSION_FACTOR, _BLOCK_VERSION = 1000, 2
"""``ftype`` is the version of the block layouts times 1000 plus a type."""
_FLOATS = {0: "float32", 1: "float16", 30: "bfloat16"}
_BLOCKS = {2: "q4_0", 3: "q4_1", 6: "q5_0", 7: "q5_1", 8: "q8_0"}
_OTHERS: Mapping[int, str] = MappingProxyType(
    {10: "q2_k", 11: "q3_k", 12: "q4_k", 13: "q5_k", 14: "q6_k", 15: "q8_k"}
)
_MAX_TOKEN_BYTES, _MAX_NAME_BYTES, _MAX_AXES, _MAX_MELS = 256, 128, 4, 1024
_FILTER_TOLERANCE = 1e-6
"""Published filters differ by 4e-9 from those computed here; their largest value is 0.04."""
_END_OF_TEXT = b"<|endoftext|>"
_VOCABULARIES = {
    "7cff19521369c7f5f5ed77ed7b730e7491800afb47d01d341e12b3ca740d8543": "English-only",
    "7a1796f07fce01ae84cc2f83b9a72da17dc652ddc339cb113edcc4c60094f418": "multilingual",
}
"""SHA-256 of OpenAI's tokens, each after its length as 32 bits, and what they are of."""

_Array = Union[Blob, BlockBlob]


def load_ggml(path: Path, *, tokenizer: Path | None = None) -> Checkpoint:
    """Open a model file of whisper.cpp; weights are read later, tensor by tensor.

    Args:
        path: the file.
        tokenizer: ``tokenizer.json``, directory or ``.tiktoken`` file; by default a
            ``tokenizer.json`` beside the file, else the file's own tokens, if they are OpenAI's.

    Raises:
        CheckpointError: the file is damaged, is not a Whisper model, or has weights of another
            type or another vocabulary than OpenAI's.
    """
    dims, tokens, arrays = _read(path)
    beside = path.parent / "tokenizer.json"
    if tokenizer is not None or beside.is_file():
        text = find_tokenizer(tokenizer or beside, dims)
    else:
        _check_tokens(tokens, dims, path.name)
        text = tokenizer_of_bytes(tokens, dims, path.name)
    dims, blobs = without_padding_rows(text, dims, arrays)
    report_rounding(path.name, blobs.values())
    return Checkpoint(
        dims=dims,
        tensors={name: blob.tensor() for name, blob in blobs.items()},
        tokenizer_json=text,
        alignment_heads=None,
        suppress_tokens=None,
        begin_suppress_tokens=None,
        source=make_source("ggml", path.name, (blob.dtype for blob in blobs.values()), [path]),
        multilingual=is_multilingual(text, None),
    )


def _read(path: Path) -> tuple[ModelDims, list[bytes], dict[str, _Array]]:
    """Dimensions, tokens and unread tensors."""
    try:
        with path.open("rb") as file:
            reader = _Reader(file, path)
            dims = reader.dims()
            reader.check_filters(dims)
            tokens = reader.tokens(dims)
            return dims, tokens, reader.arrays(dims)
    except OSError as error:
        raise CheckpointError(f"cannot read {path.name}: {error.strerror}") from error


def _check_tokens(tokens: list[bytes], dims: ModelDims, name: str) -> None:
    """Raise CheckpointError unless the tokens are those of OpenAI's model of this kind."""
    digest = hashlib.sha256()
    for token in tokens:
        digest.update(struct.pack("<I", len(token)) + token)
    found = _VOCABULARIES.get(digest.hexdigest())
    if found is None:
        raise CheckpointError(
            f"{name} has a vocabulary of {len(tokens)} tokens, which are not those of OpenAI's"
            " models; pass the model's tokenizer.json as tokenizer="
        )
    wanted = "multilingual" if dims.is_multilingual else "English-only"
    if found != wanted:
        raise CheckpointError(
            f"{name} has OpenAI's {found} tokens, but {dims.n_vocab} token rows, as {wanted} models"
            " have; it was converted wrongly: convert it again"
        )


class _Reader:
    """Reader of the file's parts in their order; data of tensors is stepped over."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file = file
        self._path = path
        self._size = os.fstat(file.fileno()).st_size
        self._block_version = _BLOCK_VERSION

    def dims(self) -> ModelDims:
        """Dimensions of the model."""
        if self._bytes(len(GGML_MAGIC)) != GGML_MAGIC:
            raise self._damaged("does not start as a ggml file does")
        values = dict(zip(_HEADER, self._integers(len(_HEADER))))
        self._block_version = values.pop("ftype") // _VERSION_FACTOR
        try:
            dims = ModelDims(**values)
        except CheckpointError as error:
            raise CheckpointError(
                f"{self._path.name} is a ggml file, but not of a Whisper model: {error}"
            ) from error
        check_window(dims)
        return dims

    def check_filters(self, dims: ModelDims) -> None:
        """Compare the mel filters with Whisper's."""
        n_mels, n_bins = self._integers(2)
        if (n_mels, n_bins) != (dims.n_mels, N_FFT // 2 + 1) or n_mels > _MAX_MELS:
            raise self._damaged(
                f"has mel filters [{n_mels}, {n_bins}] for a model of {dims.n_mels} mels"
            )
        found = np.frombuffer(self._bytes(4 * n_mels * n_bins), "<f4").reshape(n_mels, n_bins)
        if not np.allclose(found, mel_filters(n_mels), rtol=0, atol=_FILTER_TOLERANCE):
            raise CheckpointError(
                f"{self._path.name} has other mel filters than Whisper's, which are computed here;"
                " the model was trained on other features and cannot be exported"
            )

    def tokens(self, dims: ModelDims) -> list[bytes]:
        """Tokens in the order of their ids, without the end of text, which some files list."""
        (n,) = self._integers(1)
        if not 0 <= n <= dims.n_vocab:
            raise self._damaged(f"has {n} tokens for a vocabulary of {dims.n_vocab}")
        found = [self._text(self._integers(1)[0], _MAX_TOKEN_BYTES, "token") for _ in range(n)]
        return found[:-1] if found[-1:] == [_END_OF_TEXT] else found

    def arrays(self, dims: ModelDims) -> dict[str, _Array]:
        """Unread tensors by name."""
        expected = expected_shapes(dims)
        found: dict[str, _Array] = {}
        while self._file.tell() < self._size:
            n_axes, n_name, kind = self._integers(3)
            if not 0 <= n_axes <= _MAX_AXES:
                raise self._damaged(f"has a tensor of {n_axes} axes")
            axes = self._integers(n_axes)
            name = self._text(n_name, _MAX_NAME_BYTES, "name").decode("utf-8", "replace")
            if name not in expected or name in found:
                raise self._damaged(
                    f"has tensor {name!r:.80} twice, or a Whisper model of these dimensions has"
                    " none of that name"
                )
            shape = expected[name]
            if [n for n in axes[::-1] if n != 1] != [n for n in shape if n != 1]:
                raise self._damaged(
                    f"has tensor {name!r} of shape {list(axes[::-1])}; the model's dimensions"
                    f" require {list(shape)}"
                )
            found[name] = self._array(name, kind, shape)
        return found

    def _array(self, name: str, kind: int, shape: tuple[int, ...]) -> _Array:
        offset = self._file.tell()
        array: _Array
        if kind in _FLOATS:
            array = Blob(self._path, offset, _FLOATS[kind], shape)
        elif kind in _BLOCKS:
            array = self._blocks(name, _BLOCKS[kind], shape, offset)
        else:
            expected = ", ".join([*_FLOATS.values(), *_BLOCKS.values()])
            raise CheckpointError(
                f"{self._path.name} stores {name!r} as {_OTHERS.get(kind, f'type {kind}')}, whose"
                f" blocks are not among those read here: {expected}; quantize the model again as"
                " q5_0 or q8_0, or load the original checkpoint"
            )
        if offset + array.n_bytes > self._size:
            raise self._damaged(f"has {self._size} bytes, {name!r} needs {offset + array.n_bytes}")
        self._file.seek(array.n_bytes, os.SEEK_CUR)
        return array

    def _blocks(self, name: str, kind: str, shape: tuple[int, ...], offset: int) -> BlockBlob:
        if self._block_version != _BLOCK_VERSION:
            raise CheckpointError(
                f"{self._path.name} has version {self._block_version} of ggml's quantized types,"
                f" from before May 2023; expected {_BLOCK_VERSION}: quantize the model again"
            )
        if shape[-1] % BLOCK_ITEMS:
            raise self._damaged(
                f"stores {name!r} of shape {list(shape)} as {kind}, whose blocks have"
                f" {BLOCK_ITEMS} values"
            )
        return BlockBlob(self._path, offset, kind, shape)

    def _text(self, n: int, most: int, what: str) -> bytes:
        if not 0 <= n <= most:
            raise self._damaged(f"has a {what} of {n} bytes")
        return self._bytes(n)

    def _integers(self, n: int) -> tuple[int, ...]:
        return struct.unpack(f"<{n}i", self._bytes(4 * n))

    def _bytes(self, n: int) -> bytes:
        raw = self._file.read(n)
        if len(raw) != n:
            raise self._damaged("ends inside its index")
        return raw

    def _damaged(self, what: str) -> CheckpointError:
        return CheckpointError(
            f"{self._path.name} {what}; it is incomplete or damaged: fetch it again"
        )
