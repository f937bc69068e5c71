"""Regenerate tests/data/lora/lora.json.gz from PEFT's own merged models.

Run from the repository root, in an environment with transformers and peft:

    PYTHONPATH=. python tools/goldens/make_lora_golden.py

Made with peft 0.21.2, transformers 5.24.0 and torch 2.13.0. For every case of
``tests/support/lora_cases.py``, PEFT writes an adapter, whose values are replaced by seeded ones;
it is loaded and merged (``PeftModel.from_pretrained``, ``merge_and_unload``), and the logits of the
merged model are stored.
"""

from __future__ import annotations

import gzip
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import WhisperConfig, WhisperForConditionalGeneration

from tests.support.lora_cases import (
    CASES,
    COLUMNS,
    DIMS,
    GOLDEN,
    RESIZED,
    TOKENS,
    adapter_values,
    mel,
)
from tests.support.models import random_tensors
from tests.support.models_write import huggingface_names


def base_model(*, resized: bool) -> Any:
    """The random base model."""
    config = WhisperConfig(
        vocab_size=DIMS.n_vocab,
        d_model=DIMS.n_text_state,
        encoder_layers=DIMS.n_audio_layer,
        decoder_layers=DIMS.n_text_layer,
        encoder_attention_heads=DIMS.n_audio_head,
        decoder_attention_heads=DIMS.n_text_head,
        encoder_ffn_dim=4 * DIMS.n_audio_state,
        decoder_ffn_dim=4 * DIMS.n_text_state,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=0,
        decoder_start_token_id=1,
    )
    arrays = random_tensors(DIMS)
    names = huggingface_names(list(arrays))
    state = {names[name]: torch.from_numpy(values) for name, values in arrays.items()}
    state["proj_out.weight"] = state["model.decoder.embed_tokens.weight"]
    model = WhisperForConditionalGeneration(config).eval()
    model.load_state_dict(state)
    if resized:
        model.resize_token_embeddings(RESIZED.n_vocab)
    return model


def logits(model: Any) -> Any:
    """Logits [token, column] of the fixed input."""
    with torch.no_grad():
        found = model(
            input_features=torch.from_numpy(mel())[None],
            decoder_input_ids=torch.tensor([TOKENS]),
        )
    return found.logits[0, :, COLUMNS].numpy().round(6).tolist()


def case(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """One entry of the file."""
    resized = name == "resized"
    with tempfile.TemporaryDirectory() as folder:
        config = LoraConfig(**{"r": 2, **arguments})
        model = get_peft_model(base_model(resized=resized), config)
        model.save_pretrained(folder, save_embedding_layers=True if resized else "auto")
        file = Path(folder) / "adapter_model.safetensors"
        with safe_open(file, "pt") as stored:
            keys = stored.keys()
            shapes = {key: list(stored.get_slice(key).get_shape()) for key in keys}
        values = {key: torch.from_numpy(adapter_values(key, s)) for key, s in shapes.items()}
        save_file({key: value.clone() for key, value in values.items()}, file)
        loaded = PeftModel.from_pretrained(base_model(resized=resized), folder)
        found = logits(loaded.merge_and_unload().eval())
        config_json = json.loads((Path(folder) / "adapter_config.json").read_text())
    return {"config": config_json, "shapes": shapes, "logits": found}


def main() -> None:
    """Write the file."""
    golden = {name: case(name, arguments) for name, arguments in CASES.items()}
    text = json.dumps({"base": logits(base_model(resized=False)), "cases": golden})
    GOLDEN.parent.mkdir(parents=True, exist_ok=True)
    GOLDEN.write_bytes(gzip.compress(text.encode(), mtime=0))


if __name__ == "__main__":
    main()
