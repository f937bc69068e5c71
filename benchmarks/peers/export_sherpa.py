"""Export the two graphs of sherpa-onnx for Whisper, in fp32 and int8.

Called by convert.py, in the environment ``optimum`` (PyTorch, onnx, ONNX Runtime)::

    python export_sherpa.py openai.pt metadata.json FOLDER

The interface is that of the published sherpa-onnx models: an encoder that also projects the keys
and values of cross-attention, and a decoder over a cache of full length with an ``offset``; int8 is
ONNX Runtime's dynamic quantization of the products.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import onnx
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from torch.nn import functional

OPSET = 17
WIDTH = 64
"""Size of an attention head in every Whisper model."""


class Blocks(torch.nn.Module):  # type: ignore[misc,unused-ignore]  # untyped where absent
    """Weights by openai-whisper's names, and the blocks of both graphs."""

    def __init__(self, dims: dict[str, int], weights: dict[str, Any], side: str) -> None:
        super().__init__()
        self.names = {name: name.replace(".", "_") for name in weights}
        for name, value in weights.items():
            self.register_buffer(self.names[name], value.float())
        self.n_head = dims[f"n_{side}_head"]
        self.n_layer = dims[f"n_{side}_layer"]

    def weight(self, name: str) -> Any:
        return getattr(self, self.names[name])

    def linear(self, x: Any, name: str) -> Any:
        bias = self.weight(f"{name}.bias") if f"{name}.bias" in self.names else None
        product = torch.matmul(x, self.weight(f"{name}.weight").t())
        return product if bias is None else product + bias

    def norm(self, x: Any, name: str) -> Any:
        weight, bias = self.weight(f"{name}.weight"), self.weight(f"{name}.bias")
        return functional.layer_norm(x, weight.shape, weight, bias)

    def attend(self, q: Any, k: Any, v: Any, mask: Any = None) -> Any:
        q, k, v = (x.unflatten(-1, (self.n_head, WIDTH)) for x in (q, k, v))
        scores = torch.matmul(q.transpose(1, 2), k.permute(0, 2, 3, 1)) * WIDTH**-0.5
        if mask is not None:
            scores = scores + mask
        attended = torch.matmul(torch.softmax(scores, dim=-1), v.transpose(1, 2))
        return attended.transpose(1, 2).flatten(2)

    def feed_forward(self, x: Any, block: str) -> Any:
        hidden = functional.gelu(self.linear(self.norm(x, f"{block}.mlp_ln"), f"{block}.mlp.0"))
        return x + self.linear(hidden, f"{block}.mlp.2")

    def projected(self, x: Any, name: str) -> tuple[Any, Any, Any]:
        q, k, v = (self.linear(x, f"{name}.{part}") for part in ("query", "key", "value"))
        return q, k, v


class Encoder(Blocks):
    """mel [n, n_mels, n_frames] -> keys and values [n_layer, n, n_frames / 2, n_state]."""

    def __init__(self, dims: dict[str, int], weights: dict[str, Any]) -> None:
        super().__init__(dims, weights, "audio")
        self.n_text_layer = dims["n_text_layer"]

    def forward(self, mel: Any) -> tuple[Any, Any]:
        x = mel
        for conv, stride in (("encoder.conv1", 1), ("encoder.conv2", 2)):
            weight, bias = self.weight(f"{conv}.weight"), self.weight(f"{conv}.bias")
            x = functional.gelu(functional.conv1d(x, weight, bias, stride=stride, padding=1))
        positions = self.weight("encoder.positional_embedding")
        x = x.transpose(1, 2) + positions[: (mel.shape[2] + 1) // 2]
        for i in range(self.n_layer):
            block = f"encoder.blocks.{i}"
            q, k, v = self.projected(self.norm(x, f"{block}.attn_ln"), f"{block}.attn")
            x = x + self.linear(self.attend(q, k, v), f"{block}.attn.out")
            x = self.feed_forward(x, block)
        x = self.norm(x, "encoder.ln_post")
        cross = [f"decoder.blocks.{i}.cross_attn" for i in range(self.n_text_layer)]
        keys = torch.stack([self.linear(x, f"{name}.key") for name in cross])
        values = torch.stack([self.linear(x, f"{name}.value") for name in cross])
        return keys, values


class Decoder(Blocks):
    """Tokens [n, n_new] at ``offset`` [1] of the cache [n_layer, n, n_text_ctx, n_state]."""

    def __init__(self, dims: dict[str, int], weights: dict[str, Any]) -> None:
        super().__init__(dims, weights, "text")
        ctx = dims["n_text_ctx"]
        self.register_buffer("mask", torch.full((ctx, ctx), float("-inf")).triu(1))

    def forward(
        self, tokens: Any, k_cache: Any, v_cache: Any, cross_k: Any, cross_v: Any, offset: Any
    ) -> tuple[Any, Any, Any]:
        begin, end = offset[0], offset[0] + tokens.shape[1]
        embedding = self.weight("decoder.token_embedding.weight")
        positions = self.weight("decoder.positional_embedding")[begin:end]
        x = functional.embedding(tokens, embedding) + positions
        mask = self.mask[begin:end, :end]
        keys, values = [], []
        for i in range(self.n_layer):
            block = f"decoder.blocks.{i}"
            q, k, v = self.projected(self.norm(x, f"{block}.attn_ln"), f"{block}.attn")
            k = torch.cat([k_cache[i, :, :begin], k], dim=1)
            v = torch.cat([v_cache[i, :, :begin], v], dim=1)
            keys.append(torch.cat([k, k_cache[i, :, end:]], dim=1))
            values.append(torch.cat([v, v_cache[i, :, end:]], dim=1))
            x = x + self.linear(self.attend(q, k, v, mask), f"{block}.attn.out")
            q = self.linear(self.norm(x, f"{block}.cross_attn_ln"), f"{block}.cross_attn.query")
            attended = self.attend(q, cross_k[i], cross_v[i])
            x = self.feed_forward(x + self.linear(attended, f"{block}.cross_attn.out"), block)
        logits = torch.matmul(self.norm(x, "decoder.ln"), embedding.t())
        return logits, torch.stack(keys), torch.stack(values)


CACHE = ("n_layer_self_k_cache", "n_layer_self_v_cache")
CROSS = ("n_layer_cross_k", "n_layer_cross_v")


def export(weights: Path, metadata: dict[str, Any], folder: Path) -> None:
    """Write ``encoder.onnx``, ``decoder.onnx`` and their int8 versions."""
    checkpoint = torch.load(weights, weights_only=True)
    dims, state = checkpoint["dims"], checkpoint["model_state_dict"]
    cross = {n: w for n, w in state.items() if ".cross_attn.key" in n or ".cross_attn.value" in n}
    audio = {n: w for n, w in state.items() if n.startswith("encoder.")}
    text = {n: w for n, w in state.items() if n.startswith("decoder.") and n not in cross}
    mel = torch.zeros(1, dims["n_mels"], 3000)
    shape = (dims["n_text_layer"], 1)
    cache = torch.zeros(*shape, dims["n_text_ctx"], dims["n_text_state"])
    keys = torch.zeros(*shape, dims["n_audio_ctx"], dims["n_text_state"])
    tokens, offset = torch.zeros(1, 3, dtype=torch.int64), torch.ones(1, dtype=torch.int64)
    _write(
        Encoder(dims, {**audio, **cross}),
        (mel,),
        folder / "encoder.onnx",
        ("mel",),
        CROSS,
        {"mel": {0: "n_audio", 2: "n_frames"}},
        metadata,
    )
    _write(
        Decoder(dims, text),
        (tokens, cache, cache, keys, keys, offset),
        folder / "decoder.onnx",
        ("tokens", *(f"in_{name}" for name in CACHE), *CROSS, "offset"),
        ("logits", *(f"out_{name}" for name in CACHE)),
        {"tokens": {0: "n_audio", 1: "n_tokens"}},
        {},
    )
    for name in ("encoder", "decoder"):
        source, target = (str(folder / f"{name}{kind}.onnx") for kind in ("", ".int8"))
        quantize_dynamic(
            source, target, op_types_to_quantize=["MatMul"], weight_type=QuantType.QInt8
        )


def _write(
    module: Any,
    inputs: tuple[Any, ...],
    path: Path,
    names: tuple[str, ...],
    outputs: tuple[str, ...],
    dynamic: dict[str, dict[int, str]],
    metadata: dict[str, Any],
) -> None:
    cached = [name for name in (*names, *outputs) if name.startswith(("n_", "in_", "out_"))]
    axes = {name: {1: "n_audio"} for name in cached}
    axes.update({name: {1: "n_audio", 2: "n_audio_ctx"} for name in CROSS if name in axes})
    torch.onnx.export(
        module.eval(),
        inputs,
        str(path),
        opset_version=OPSET,
        input_names=list(names),
        output_names=list(outputs),
        dynamic_axes={**axes, **dynamic},
        dynamo=False,
    )
    model = onnx.load(str(path))
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=str(value))
    onnx.save(model, str(path))


def main() -> int:
    """Export the model that the arguments name."""
    weights, metadata, folder = map(Path, sys.argv[1:])
    folder.mkdir()
    export(weights, json.loads(metadata.read_text(encoding="utf-8")), folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
