"""The backends that must agree, on one random model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tests.engines import random_engine
from tests.models import random_dims
from whisper_opt.arrays import F32, Int
from whisper_opt.backends.cpu_executor import CpuExecutor
from whisper_opt.backends.device_backend import DeviceBackend
from whisper_opt.backends.fake import FakeBackend
from whisper_opt.backends.ort import OrtBackend
from whisper_opt.protocol import Backend

__all__ = ["BACKENDS", "DIMS", "N_CTX", "TOLERANCE", "make_backend", "mels", "pad"]

DIMS = random_dims(n_vocab=2000)
N_CTX = DIMS.n_text_ctx
TOLERANCE = 1e-4
BACKENDS = ("fake", "contrib", "standard", "device")
"""``device``: the session of a GPU, its executor replaced by the one for the CPU."""


def make_backend(name: str, folder: Path) -> Backend:
    """One of ``BACKENDS``; skips where the installed ONNX Runtime cannot run it."""
    if name == "fake":
        return FakeBackend(DIMS)
    if name == "device":
        return DeviceBackend(CpuExecutor(random_engine(folder, DIMS, "standard"), threads=1), DIMS)
    return OrtBackend(random_engine(folder, DIMS, name), threads=1)


def mels(n_audio: int, n_frames: int = 160) -> F32:
    rng = np.random.default_rng(n_audio)
    drawn = rng.standard_normal((n_audio, DIMS.n_mels, n_frames), np.float32)
    scaled: F32 = drawn * np.float32(0.5)
    return scaled


def pad(sequences: Sequence[Int]) -> tuple[Int, Int]:
    """Right-padded [n_seq, n_new] and the lengths; the padding is no token to be seen."""
    lengths = np.array([len(sequence) for sequence in sequences], np.int64)
    tokens = np.full((len(sequences), int(lengths.max())), DIMS.n_vocab - 1, np.int64)
    for row, sequence in zip(tokens, sequences):
        row[: len(sequence)] = sequence
    return tokens, lengths
