"""Engines of tiny random models, and which dialects the installed ONNX Runtime can run."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from tests.support.models import as_tensor, random_checkpoint, random_dims
from whisper_opt.core.dims import ModelDims
from whisper_opt.core.locks import file_lock
from whisper_opt.export import export
from whisper_opt.export.checkpoints import Checkpoint
from whisper_opt.runtime.engine import Engine, read_engine

__all__ = [
    "DIALECTS",
    "SHARED",
    "random_engine",
    "require",
    "runs",
    "shared_engine",
    "sharp_checkpoint",
    "tiny_dims",
]

DIALECTS = ("contrib", "standard")
SHARED = "WHISPER_OPT_TEST_ENGINES"
"""Environment variable: the folder of the engines of a run, for all its processes (conftest.py)."""


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


def shared_engine(name: str, make: Callable[[Path], Engine]) -> Engine:
    """An engine that is made once per run, by the process that needs it first. Do not change it.

    Args:
        name: of its directory.
        make: exports it to a path.
    """
    path = Path(os.environ[SHARED]) / name
    with file_lock(path.with_name(f"{name}.lock")):
        if not path.exists():  # an export appears complete or not at all
            make(path)
    return read_engine(path)


def random_engine(folder: Path, dims: ModelDims, dialect: str = "contrib") -> Engine:
    """A verified engine of :func:`sharp_checkpoint`; skips if it cannot run.

    The directory is a copy, so that a test may change it: each model is exported once per run.
    """
    require(dialect)
    key = hashlib.sha256(repr(dims).encode()).hexdigest()[:16]
    made = shared_engine(
        f"random-{key}-{dialect}",
        lambda path: export(sharp_checkpoint(dims), path, dialect=dialect),
    )
    shutil.copytree(made.path, folder)
    return read_engine(folder)


def tiny_dims() -> ModelDims:
    """Of the smallest multilingual model, whose windows have at most 20 tokens."""
    return random_dims(n_audio_layer=1, n_text_layer=1, n_text_ctx=40)
