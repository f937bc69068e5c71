"""Write a checkpoint as whisper.cpp's ``ggml-*.bin``, block by block, as its layout is described.

Independent of the reader: blocks are packed byte by byte, values are computed in Python.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from whisper_opt.audio.features import mel_filters
from whisper_opt.core.arrays import F32
from whisper_opt.core.dims import ModelDims
from whisper_opt.export.checkpoints.checkpoint import Checkpoint

__all__ = ["GGML_TYPES", "QUANTIZED", "ggml_header", "ggml_tensor", "stored_values", "write_ggml"]

GGML_TYPES = {"float32": 0, "float16": 1, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8}
QUANTIZED = ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0")
_FILE_TYPES = {"float32": 0, "float16": 1, "q8_0": 7, "q5_0": 8, "q5_1": 9, "q4_0": 2, "q4_1": 3}
_BITS = {"q4_0": 4, "q4_1": 4, "q5_0": 5, "q5_1": 5, "q8_0": 8}
_KEPT = ("encoder.positional_embedding", "decoder.positional_embedding")
_BLOCK = 32


def _quantized(block: F32, kind: str) -> tuple[list[int], float, float]:
    """Integers from 0 up, the scale and the least value of a block of 32."""
    bits = _BITS[kind]
    if kind.endswith("_1"):
        least = float(np.float16(block.min()))
        scale = float(np.float16((float(block.max()) - least) / (2**bits - 1)))
    else:
        scale = float(np.float16(float(np.abs(block).max()) / (2 ** (bits - 1) - 1)))
        least = -scale * 2 ** (bits - 1)
    found = np.clip(np.rint((block - least) / (scale or 1.0)), 0, 2**bits - 1)
    return [int(value) for value in found], scale, least


def _packed(integers: Sequence[int], scale: float, least: float, kind: str) -> bytes:
    raw = struct.pack("<e", scale)
    if kind.endswith("_1"):
        raw += struct.pack("<e", least)
    if kind == "q8_0":
        return raw + struct.pack("<32b", *(value - 128 for value in integers))
    if _BITS[kind] == 5:
        raw += struct.pack("<I", sum((value >> 4) << i for i, value in enumerate(integers)))
    half = _BLOCK // 2
    return raw + bytes(integers[i] & 15 | (integers[i + half] & 15) << 4 for i in range(half))


def _blocks(values: F32) -> list[F32]:
    return list(np.ascontiguousarray(values).reshape(-1, _BLOCK))


def _is_quantized(name: str, values: F32, kind: str) -> bool:
    return kind in QUANTIZED and values.ndim == 2 and name not in _KEPT


def _kind(name: str, values: F32, kind: str) -> str:
    """The type in which a tensor is stored in a file of a kind."""
    if _is_quantized(name, values, kind):
        return kind
    if values.ndim < 2 or name in _KEPT or kind == "float32":
        return "float32"
    return "float16"


def stored_values(name: str, values: F32, kind: str) -> F32:
    """What a tensor is after storage in a file of a kind."""
    stored = _kind(name, values, kind)
    if stored in QUANTIZED:
        rows = []
        for block in _blocks(values):
            integers, scale, least = _quantized(block, stored)
            rows.append([np.float32(integer * scale + least) for integer in integers])
        return np.array(rows, np.float32).reshape(values.shape)
    return values.astype(stored).astype(np.float32)


def ggml_tensor(name: str, shape: Sequence[int], code: int, data: bytes) -> bytes:
    """One entry; ``shape`` in the order of numpy."""
    text = name.encode()
    axes = struct.pack(f"<{len(shape)}i", *reversed(shape))
    return struct.pack("<3i", len(shape), len(text), code) + axes + text + data


def ggml_header(
    dims: ModelDims, kind: str, tokens: Sequence[bytes] = (), version: int = 2
) -> bytes:
    """Everything before the tensors."""
    numbers = (
        *(dims.n_vocab, dims.n_audio_ctx, dims.n_audio_state, dims.n_audio_head),
        *(dims.n_audio_layer, dims.n_text_ctx, dims.n_text_state, dims.n_text_head),
        *(dims.n_text_layer, dims.n_mels, 1000 * version + _FILE_TYPES[kind]),
    )
    filters = mel_filters(dims.n_mels).astype("<f4")
    words = b"".join(struct.pack("<i", len(token)) + token for token in tokens)
    return (
        struct.pack("<12i", 0x67676D6C, *numbers)
        + struct.pack("<2i", *filters.shape)
        + filters.tobytes()
        + struct.pack("<i", len(tokens))
        + words
    )


def write_ggml(
    checkpoint: Checkpoint,
    file: Path,
    kind: str = "float16",
    *,
    tokens: Sequence[bytes] = (),
    version: int = 2,
) -> Path:
    """Write the file, and ``tokenizer.json`` beside it if there are no tokens. Returns the file."""
    parts = [ggml_header(checkpoint.dims, kind, tokens, version)]
    for name, tensor in checkpoint.tensors.items():
        values = tensor.read()
        stored = _kind(name, values, kind)
        if stored in QUANTIZED:
            raw = b"".join(_packed(*_quantized(block, stored), stored) for block in _blocks(values))
        else:
            raw = values.astype({"float32": "<f4", "float16": "<f2"}[stored]).tobytes()
        shape = [n for n in values.shape if n != 1] or [1]
        if name in ("encoder.conv1.bias", "encoder.conv2.bias"):
            shape.append(1)
        parts.append(ggml_tensor(name, shape, GGML_TYPES[stored], raw))
    file.write_bytes(b"".join(parts))
    if not tokens:
        words = file.with_name("tokenizer.json")
        words.write_text(checkpoint.tokenizer_json, encoding="utf-8")
    return file
