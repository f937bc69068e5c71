"""Groups of matrix products that are quantized, or kept at higher precision, together.

All products that read one layer normalization are one group, because its smoothing scales apply to
all of them.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable

from whisper_opt.core.dims import ModelDims

__all__ = ["CROSS", "HEAD", "group_of", "groups_of", "matches", "products_of"]

HEAD = "decoder.head"
"""The output head and the embedding, which are one matrix in most models."""
CROSS = "encoder.cross"
"""Cross-attention keys and values of all decoder layers: the encoder graph's last products."""
_QKV = ("query", "key", "value")


def group_of(product: str) -> str:
    """The group of a product (``encoder.blocks.0.attn.query``), or of a layer normalization."""
    block, _, part = product.rpartition(".")
    if product == "encoder.ln_post":
        return CROSS
    if block.endswith(".cross_attn") and part in ("key", "value"):
        return CROSS
    if block.endswith(".attn") and part in _QKV:
        return f"{block}.qkv"
    reads = {"attn_ln": "attn.qkv", "cross_attn_ln": "cross_attn.query", "mlp_ln": "mlp.0"}
    return f"{block}.{reads[part]}" if part in reads else product


def groups_of(dims: ModelDims) -> list[str]:
    """All groups, in the order of the model."""
    found = [
        f"encoder.blocks.{i}.{part}"
        for i in range(dims.n_audio_layer)
        for part in ("attn.qkv", "attn.out", "mlp.0", "mlp.2")
    ]
    parts = ("attn.qkv", "attn.out", "cross_attn.query", "cross_attn.out", "mlp.0", "mlp.2")
    found.append(CROSS)
    found += [f"decoder.blocks.{i}.{part}" for i in range(dims.n_text_layer) for part in parts]
    return [*found, HEAD]


def matches(group: str, patterns: Iterable[str]) -> bool:
    """Whether a group matches one of ``patterns`` (``*`` matches any text)."""
    return any(fnmatch.fnmatchcase(group, pattern) for pattern in patterns)


def products_of(group: str, dims: ModelDims) -> list[str]:
    """Checkpoint names of a group's matrices, without ``.weight``."""
    if group == HEAD:
        return ["decoder.token_embedding"]
    if group == CROSS:
        layers = range(dims.n_text_layer)
        return [f"decoder.blocks.{i}.cross_attn.{part}" for i in layers for part in _QKV[1:]]
    if group.endswith(".attn.qkv"):
        return [f"{group[:-4]}.{part}" for part in _QKV]
    return [group]
