"""Random LoRA adapters of every supported kind, for tests and their goldens.

Made by ``tools/goldens/make_lora_golden.py``. Weights are not stored: base and adapter are made
again from seeds. ``lora.json.gz`` has what PEFT wrote and computed: per case ``config`` (its
adapter_config.json), ``shapes`` (of the tensors in its file, by name) and ``logits`` (of the merged
model).
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.models import random_dims
from whisper_opt.core.arrays import F32

__all__ = ["CASES", "COLUMNS", "DIMS", "GOLDEN", "RESIZED", "TOKENS", "adapter_values", "mel"]

GOLDEN = Path(__file__).parents[1] / "data" / "lora" / "lora.json.gz"
DIMS = random_dims(n_vocab=2000, n_audio_state=64, n_text_state=64)
RESIZED = random_dims(n_vocab=2008, n_audio_state=64, n_text_state=64)
TOKENS = [3, 700, 1500, 12]
"""The decoder's input; logits of all its positions are compared."""
COLUMNS = slice(0, None, 40)
"""Which logits are compared."""

_QV = ["q_proj", "v_proj"]
CASES: dict[str, dict[str, Any]] = {
    "plain": {"target_modules": _QV},
    "alpha": {"target_modules": _QV, "r": 3, "lora_alpha": 7},
    "rslora": {"target_modules": _QV, "r": 4, "lora_alpha": 8, "use_rslora": True},
    "patterns": {
        "target_modules": [*_QV, "fc1"],
        "rank_pattern": {"v_proj": 4, "model.decoder.layers.0.self_attn.q_proj": 1},
        "alpha_pattern": {r"encoder.layers.\d+.fc1": 20, r".*attn\.(q|v)_proj": 3, "fc1": 1},
    },
    "regular-expression": {"target_modules": r".*decoder.*(self_attn|encoder_attn).*(q|v)_proj$"},
    "all-linear": {"target_modules": "all-linear"},
    "layers": {"target_modules": ["fc2", "k_proj"], "layers_to_transform": [1]},
    "excluded": {"target_modules": _QV, "exclude_modules": r".*encoder\.layers.*"},
    "fan-in-fan-out": {"target_modules": _QV, "fan_in_fan_out": True},
    "bias-all": {"target_modules": _QV, "bias": "all"},
    "bias-lora-only": {"target_modules": _QV, "bias": "lora_only"},
    "lora-bias": {"target_modules": ["q_proj", "fc1", "conv2"], "lora_bias": True},
    "saved-modules": {
        "target_modules": _QV,
        "modules_to_save": ["conv1", "decoder.layer_norm", "layers.1.fc1"],
    },
    "saved-modules-and-biases": {
        "target_modules": [*_QV, "fc1"],
        "modules_to_save": ["decoder.layer_norm", "out_proj"],
        "bias": "all",
    },
    "saved-head": {"target_modules": _QV, "modules_to_save": ["proj_out"]},
    "saved-embedding": {"target_modules": _QV, "modules_to_save": ["embed_tokens"]},
    "convolutions": {"target_modules": ["conv1", "conv2"]},
    "embeddings": {"target_modules": ["embed_tokens", "encoder.embed_positions"]},
    "head": {"target_modules": ["q_proj", "proj_out"]},
    "embedding-and-head": {"target_modules": ["embed_tokens", "proj_out"]},
    "tokens": {"target_modules": _QV, "trainable_token_indices": [5, 40, 1999]},
    "resized": {"target_modules": _QV},
    "dora": {"target_modules": [*_QV, "fc1"], "use_dora": True},
    "dora-rslora-patterns": {
        "target_modules": _QV,
        "use_dora": True,
        "use_rslora": True,
        "rank_pattern": {"q_proj": 3},
    },
    "dora-convolutions": {"target_modules": ["conv1", "conv2"], "use_dora": True},
    "dora-embedding": {"target_modules": ["embed_tokens"], "use_dora": True},
}
"""Name -> arguments of ``peft.LoraConfig``; ``resized`` has the vocabulary of :data:`RESIZED`."""


def mel() -> F32:
    """A random log-mel spectrogram [80, 3000]."""
    return np.random.default_rng(1).standard_normal((80, 3000), dtype=np.float32)


def adapter_values(name: str, shape: list[int]) -> F32:
    """Values of a tensor of an adapter; large enough to change the logits.

    A whole embedding and a whole output head are the same, as PEFT writes them if they are tied.
    """
    if "lora" not in name and name.endswith("weight") and shape[0] >= DIMS.n_vocab:
        name = "embed_tokens"
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    noise: F32 = rng.standard_normal(shape, dtype=np.float32)
    if "magnitude" in name or "norm.weight" in name:
        noise = np.abs(noise) * np.float32(0.2) + np.float32(1)
    else:
        noise *= np.float32(0.3 if "lora" in name else 0.1)
    return noise
