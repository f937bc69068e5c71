"""Write a checkpoint as Flax weights of transformers, in MessagePack written byte by byte."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.models_write import encode, huggingface_names, write_huggingface
from whisper_opt.core.arrays import F32
from whisper_opt.export.checkpoints.checkpoint import Checkpoint

__all__ = ["flax_array", "flax_arrays", "pack", "write_flax"]


def pack(value: Any, dtype: str = "float16") -> bytes:
    """MessagePack of nested maps of arrays, integers and text."""
    if isinstance(value, dict):
        n = len(value)
        head = bytes([0x80 | n]) if n < 16 else b"\xde" + struct.pack(">H", n)
        return head + b"".join(pack(key) + pack(item, dtype) for key, item in value.items())
    if isinstance(value, str):
        raw = value.encode()
        return (bytes([0xA0 | len(raw)]) if len(raw) < 32 else b"\xd9" + bytes([len(raw)])) + raw
    if isinstance(value, bool):
        return b"\xc3" if value else b"\xc2"
    if isinstance(value, int):
        if value < 0x80:
            return bytes([value])
        size = next(i for i in range(4) if value < 1 << (8 << i))
        return bytes([0xCC + size]) + value.to_bytes(1 << size, "big")
    return flax_array(value, dtype)


def flax_array(values: F32, dtype: str, kind: int = 1) -> bytes:
    """An extension of a kind: shape, type and data."""
    raw = encode(values, dtype)
    shape = bytes([0x90 | values.ndim]) + b"".join(map(pack, values.shape))
    payload = b"\x93" + shape + pack(dtype) + b"\xc6" + struct.pack(">I", len(raw)) + raw
    return b"\xc9" + struct.pack(">Ib", len(payload), kind) + payload


def flax_arrays(checkpoint: Checkpoint) -> dict[str, F32]:
    """Flax's names, with slashes, and layouts."""
    arrays = {name: tensor.read() for name, tensor in checkpoint.tensors.items()}
    found = {}
    for name, theirs in huggingface_names(list(arrays)).items():
        values, (*path, last) = arrays[name], theirs.split(".")
        if last == "weight":
            last = "embedding" if "embed" in path[-1] else "kernel"
            last = "scale" if "layer_norm" in path[-1] else last
        if last == "kernel":
            values = np.ascontiguousarray(values.T)
        found["/".join([*path, last])] = values
    return found


def nested(arrays: dict[str, F32]) -> dict[str, Any]:
    """Names with slashes as nested maps."""
    tree: dict[str, Any] = {}
    for name, values in arrays.items():
        *path, last = name.split("/")
        here = tree
        for key in path:
            here = here.setdefault(key, {})
        here[last] = values
    return tree


def write_flax(
    checkpoint: Checkpoint, directory: Path, *, dtype: str = "float16", shards: int = 1
) -> Path:
    """Write a Hugging Face directory with Flax weights. Returns it."""
    write_huggingface(checkpoint, directory)
    (directory / "model.safetensors").unlink()
    arrays = flax_arrays(checkpoint)
    if shards == 1:
        (directory / "flax_model.msgpack").write_bytes(pack(nested(arrays), dtype))
        return directory
    weight_map = {}
    for i in range(shards):
        part = dict(list(arrays.items())[i::shards])
        file = f"flax_model-{i + 1:05}-of-{shards:05}.msgpack"
        (directory / file).write_bytes(pack(nested(part), dtype))
        weight_map.update(dict.fromkeys(part, file))
    index = json.dumps({"weight_map": weight_map})
    (directory / "flax_model.msgpack.index.json").write_text(index, encoding="utf-8")
    return directory
