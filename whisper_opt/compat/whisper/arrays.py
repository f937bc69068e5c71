"""Numpy arrays where the original has tensors."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["Array", "as_array"]


class Array(np.ndarray):
    """A numpy array with the methods of tensors that move them, so that such lines keep working.

    There is one memory and one precision: ``to``, ``cpu``, ``cuda``, ``half`` and ``float`` return
    the array itself.
    """

    def to(self, *args: Any, **kwargs: Any) -> Array:
        """The array itself."""
        return self

    cpu = cuda = half = float = detach = to

    def numpy(self) -> np.ndarray[Any, Any]:
        """The same values as a plain array."""
        return self.view(np.ndarray)

    def unsqueeze(self, dim: int) -> Array:
        """A view with another axis of length 1."""
        return np.expand_dims(self, dim).view(Array)


def as_array(values: Any) -> np.ndarray[Any, Any]:
    """An array of an array or a tensor on any device; float16 becomes float32."""
    for method in ("detach", "cpu", "numpy"):
        if hasattr(values, method):
            values = getattr(values, method)()
    array = np.asarray(values)
    return array.astype(np.float32) if array.dtype == np.float16 else array
