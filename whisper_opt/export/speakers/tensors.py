"""Weights of the speaker networks by name, with their shapes checked as they are read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from whisper_opt.core.arrays import F32
from whisper_opt.core.errors import CheckpointError
from whisper_opt.export.graphs.builder import GraphBuilder

__all__ = ["EPSILON", "IR_VERSION", "OPSET", "State", "folded", "stored"]

OPSET = 17
IR_VERSION = 8
EPSILON = 1e-5
"""Of all normalizations, as in PyTorch."""


class State:
    """The tensors of a ``state_dict``."""

    def __init__(self, tensors: Mapping[str, Any], name: str) -> None:
        """``name`` of the file, for messages."""
        self._tensors = tensors
        self.name = name

    def __contains__(self, key: str) -> bool:
        return key in self._tensors

    def count(self, pattern: str, first: int = 0) -> int:
        """How many of the keys ``pattern % first``, ``pattern % (first + 1)``, ... there are."""
        n = first
        while pattern % n in self._tensors:
            n += 1
        return n - first

    def shape(self, key: str) -> tuple[int, ...]:
        """The shape of a tensor; raises CheckpointError as :meth:`read`."""
        return tuple(self._tensor(key).shape)

    def read(self, key: str, *shape: int) -> F32:
        """The values of a tensor, F32.

        Args:
            key: its name.
            shape: the sizes that it must have; -1 is any. None are given: any shape.

        Raises:
            CheckpointError: there is no such tensor, or its shape or a value is impossible.
        """
        tensor = self._tensor(key)
        found = tuple(tensor.shape)
        if shape and not (
            len(found) == len(shape) and all(n in (-1, size) for n, size in zip(shape, found))
        ):
            raise CheckpointError(
                f"{self.name} has {key} of shape {list(found)}; expected {list(shape)}, as in the"
                " published network"
            )
        values: F32 = np.array(tensor.read(), np.float32)
        if not np.isfinite(values).all():
            raise CheckpointError(f"{self.name} has NaN or infinity in {key}; fetch it again")
        return values

    def _tensor(self, key: str) -> Any:
        tensor = self._tensors.get(key)
        if tensor is None or not hasattr(tensor, "read"):
            raise CheckpointError(
                f"{self.name} has no tensor {key}; expected the checkpoint of the published network"
            )
        return tensor

    def affine(self, key: str, size: int) -> tuple[F32, F32]:
        """Factor and summand [size] that a batch normalization amounts to."""
        mean = self.read(f"{key}.running_mean", size)
        variance = self.read(f"{key}.running_var", size)
        if (variance < 0).any():
            raise CheckpointError(f"{self.name} has a negative variance in {key}; fetch it again")
        factor = 1 / np.sqrt(variance + np.float32(EPSILON))
        if f"{key}.weight" not in self:
            return factor, -mean * factor
        factor = factor * self.read(f"{key}.weight", size)
        return factor, self.read(f"{key}.bias", size) - mean * factor


def folded(state: State, convolution: str, norm: str) -> tuple[F32, F32]:
    """Kernel and bias of a convolution without bias and the batch normalization after it."""
    kernel = state.read(f"{convolution}.weight")
    factor, summand = state.affine(norm, len(kernel))
    return kernel * factor.reshape(-1, *[1] * (kernel.ndim - 1)), summand


def stored(graph: GraphBuilder, name: str, values: F32) -> str:
    """Store values in the data file of a graph."""
    return graph.weight(name, values.shape, lambda: values)
