"""Engines of tiny random models, and which dialects the installed ONNX Runtime can run."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from tests.support.models import as_tensor, random_checkpoint
from whisper_opt.core.dims import ModelDims
from whisper_opt.export import export
from whisper_opt.export.checkpoints import Checkpoint
from whisper_opt.runtime.engine import Engine

__all__ = ["DIALECTS", "random_engine", "require", "runs", "sharp_checkpoint"]

DIALECTS = ("contrib", "standard")


def runs(dialect: str) -> bool:
    """Whether the installed ONNX Runtime can run ``dialect``."""
    major, minor = (int(part) for part in onnxruntime.__version__.split(".")[:2])
    return dialect == "contrib" or (major, minor) >= (1, 24)


def require(dialect: str) -> None:
    """Skip the test if the installed ONNX Runtime cannot run ``dialect``."""
    if not runs(dialect):
        pytest.skip(
            f"not tested: the {dialect} dialect needs ONNX Runtime 1.24 or later,"
            f" found {onnxruntime.__version__}"
        )


def sharp_checkpoint(dims: ModelDims, seed: int = 0) -> Checkpoint:
    """A random checkpoint with sharp attention, so that different inputs give different results.

    Attention of plainly random weights is close to a mean over all positions: one audio, or one
    past, would give nearly the scores of another.
    """
    plain = random_checkpoint(dims, seed)
    tensors = dict(plain.tensors)
    for name, tensor in plain.tensors.items():
        if name.endswith("attn.query.weight"):
            tensors[name] = as_tensor(tensor.read() * np.float32(8))
        elif name.endswith("attn.out.weight"):
            tensors[name] = as_tensor(tensor.read() * np.float32(2))
    return dataclasses.replace(plain, tensors=tensors)


def random_engine(folder: Path, dims: ModelDims, dialect: str = "contrib") -> Engine:
    """A verified engine of :func:`sharp_checkpoint`; skips if it cannot run."""
    require(dialect)
    return export(sharp_checkpoint(dims), folder, dialect=dialect)
