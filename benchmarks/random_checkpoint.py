"""Write a checkpoint with random weights in the shapes of a released model.

    python scripts/get_model.py base       # its vocabulary
    python benchmarks/random_checkpoint.py large-v3 build/checkpoints/large-v3

For speed and memory of models whose weights are not at hand; the words mean nothing. The result is
a Hugging Face directory in float16, which every converter reads. Tensors are written one at a time.

A decoder with random weights never ends by itself. Here the position embedding grows along one
direction, which is that of the end-of-text token: answers end after about ``--tokens`` tokens.
"""

from __future__ import annotations

import argparse
import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from whisper_opt.core.arrays import F32
from whisper_opt.core.dims import ModelDims
from whisper_opt.export.checkpoints.checkpoint import expected_shapes
from whisper_opt.export.checkpoints.huggingface import huggingface_name

EOT = 50257
"""End of text in all multilingual vocabularies."""


def _dims(n_mels: int, state: int, heads: int, layers: tuple[int, int], n_vocab: int) -> ModelDims:
    return ModelDims(
        n_mels=n_mels,
        n_audio_ctx=1500,
        n_audio_state=state,
        n_audio_head=heads,
        n_audio_layer=layers[0],
        n_vocab=n_vocab,
        n_text_ctx=448,
        n_text_state=state,
        n_text_head=heads,
        n_text_layer=layers[1],
    )


SHAPES: Mapping[str, ModelDims] = {
    "tiny": _dims(80, 384, 6, (4, 4), 51865),
    "base": _dims(80, 512, 8, (6, 6), 51865),
    "small": _dims(80, 768, 12, (12, 12), 51865),
    "medium": _dims(80, 1024, 16, (24, 24), 51865),
    "large-v3": _dims(128, 1280, 20, (32, 32), 51866),
    "large-v3-turbo": _dims(128, 1280, 20, (32, 4), 51866),
}


def values(
    name: str, shape: tuple[int, ...], dims: ModelDims, rng: np.random.Generator, tokens: int
) -> F32:
    """Random values of one tensor, float32, scaled like those of a fresh model."""
    if name == "encoder.positional_embedding":
        steps = np.exp(-math.log(10000) / (shape[1] // 2 - 1) * np.arange(shape[1] // 2))
        angles = np.arange(shape[0])[:, None] * steps
        both: F32 = np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)
        return both
    noise = rng.standard_normal(shape, dtype=np.float32)
    if "ln" in name.split(".")[-2]:
        noise *= np.float32(0.1)
        noise += np.float32(name.endswith("weight"))
        return noise
    if name.endswith("bias") or "embedding" in name:
        noise *= np.float32(0.02)
    else:
        noise *= np.float32(math.prod(shape[1:]) ** -0.5)
    if name == "decoder.token_embedding.weight":
        noise[EOT] = direction(shape[1])
    elif name == "decoder.positional_embedding":
        spread = math.sqrt(3 * dims.n_text_layer + 1)  # of a residual stream, about
        ramp = np.arange(shape[0], dtype=np.float32) * np.float32(4 * spread / tokens)
        noise += ramp[:, None] * direction(shape[1])
    return noise


def direction(width: int) -> F32:
    """A unit vector [width], the same for every tensor."""
    vector = np.random.default_rng(0).standard_normal(width).astype(np.float32)
    unit: F32 = vector / np.linalg.norm(vector)
    return unit


def write_safetensors(file: Path, dims: ModelDims, seed: int, tokens: int) -> None:
    """Write all tensors in float16, one at a time."""
    rng = np.random.default_rng(seed)
    shapes = expected_shapes(dims)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in shapes.items():
        end = offset + 2 * math.prod(shape)
        entry = {"dtype": "F16", "shape": shape, "data_offsets": [offset, end]}
        header[f"model.{huggingface_name(name)}"] = entry
        offset = end
    text = json.dumps(header).encode()
    with file.open("wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for name, shape in shapes.items():
            out.write(values(name, shape, dims, rng, tokens).astype("<f2").tobytes())


def write_configuration(folder: Path, dims: ModelDims, vocabulary: Path) -> None:
    """Write config.json, generation_config.json and a tokenizer for ``dims.n_vocab`` tokens."""
    tokenizer = json.loads((vocabulary / "tokenizer.json").read_text("utf-8"))
    if dims.n_vocab == 51866:
        _add_cantonese(tokenizer)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), "utf-8")
    config = {
        "architectures": ["WhisperForConditionalGeneration"],
        "model_type": "whisper",
        "activation_function": "gelu",
        "d_model": dims.n_audio_state,
        "num_mel_bins": dims.n_mels,
        "max_source_positions": dims.n_audio_ctx,
        "max_target_positions": dims.n_text_ctx,
        "encoder_layers": dims.n_audio_layer,
        "encoder_attention_heads": dims.n_audio_head,
        "encoder_ffn_dim": 4 * dims.n_audio_state,
        "decoder_layers": dims.n_text_layer,
        "decoder_attention_heads": dims.n_text_head,
        "decoder_ffn_dim": 4 * dims.n_text_state,
        "vocab_size": dims.n_vocab,
        "bos_token_id": EOT,
        "eos_token_id": EOT,
        "pad_token_id": EOT,
        "decoder_start_token_id": EOT + 1,
        "torch_dtype": "float16",
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1), "utf-8")
    generation = {"suppress_tokens": [], "begin_suppress_tokens": [220, EOT]}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=1), "utf-8")


def _add_cantonese(tokenizer: dict[str, Any]) -> None:
    """Insert <|yue|> after <|su|>, as in the vocabulary of large-v3."""
    added = tokenizer["added_tokens"]
    (before,) = (token["id"] for token in added if token["content"] == "<|su|>")
    for token in added:
        token["id"] += token["id"] > before
    added.append({**added[-1], "id": before + 1, "content": "<|yue|>"})
    added.sort(key=lambda token: int(token["id"]))
    tokenizer["post_processor"] = None


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--vocabulary", type=Path, default=Path("models/base"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tokens", type=int, default=60, help="length of answers, about")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    write_configuration(args.folder, SHAPES[args.shape], args.vocabulary)
    file = args.folder / "model.safetensors"
    write_safetensors(file, SHAPES[args.shape], args.seed, args.tokens)
    print(f"{args.folder}: {file.stat().st_size / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
