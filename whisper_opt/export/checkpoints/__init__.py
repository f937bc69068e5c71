"""Readers of checkpoints of every format, all as one ``Checkpoint``."""

from __future__ import annotations

from whisper_opt.export.checkpoints.checkpoint import Checkpoint, Source, Tensor, expected_shapes
from whisper_opt.export.checkpoints.load import load_checkpoint

__all__ = ["Checkpoint", "Source", "Tensor", "expected_shapes", "load_checkpoint"]
