"""Scores of openai-whisper itself, a second reference if it is installed."""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Sequence

from whisper_opt.core.arrays import F32, Int
from whisper_opt.export.checkpoints.checkpoint import OUTPUT_HEAD, Checkpoint

__all__ = ["MAX_BYTES", "openai_logits"]

MAX_BYTES = 2 << 30
"""Largest fp32 model that is also built in torch, as a copy must fit in memory."""


def openai_logits(checkpoint: Checkpoint, mel: F32, sequences: Sequence[Int]) -> list[F32] | None:
    """Teacher-forced scores of openai-whisper in fp32 on the same weights.

    Args:
        checkpoint: the weights.
        mel: float32 [n_mels, 3000].
        sequences: int64 [n] tokens each.

    Returns:
        Scores [n, n_vocab] of each sequence, or None if openai-whisper or torch is not installed,
        the model is larger than :data:`MAX_BYTES`, or it has a separate output head, which
        openai-whisper does not support.
    """
    if OUTPUT_HEAD in checkpoint.tensors:
        return None
    size = sum(4 * math.prod(tensor.shape) for tensor in checkpoint.tensors.values())
    if size > MAX_BYTES or not all(map(importlib.util.find_spec, ("torch", "whisper"))):
        return None
    torch = importlib.import_module("torch")
    whisper = importlib.import_module("whisper.model")
    model = whisper.Whisper(whisper.ModelDimensions(**checkpoint.dims.to_dict()))
    model.eval()
    state = model.state_dict()
    with torch.no_grad():
        for name, tensor in checkpoint.tensors.items():  # one at a time: memory
            state[name].copy_(torch.from_numpy(tensor.read()))
        audio = model.encoder(torch.from_numpy(mel)[None])
        return [
            model.decoder(torch.from_numpy(tokens)[None], audio)[0].numpy() for tokens in sequences
        ]
