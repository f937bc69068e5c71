"""Projections with integer weights, each fused with what is around it into one operator."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from whisper_opt.core.arrays import NDArray
from whisper_opt.export.graphs.linear import Gelu, Linear
from whisper_opt.export.graphs.operators import Linears, Operator

__all__ = ["FusedLinear"]


class FusedLinear(Linear, abc.ABC):
    """Projections as :class:`~whisper_opt.export.graphs.linear.Linear`, by :attr:`operators`.

    A subclass declares the weights.
    """

    operators: ClassVar[Linears]

    def __call__(self, value: str, name: str, *, bias: bool = True) -> str:
        """As of :class:`Linear`."""
        return self._product(self.operators.plain, [value], name, [name], bias=bias)

    def norm_linear(self, value: str, norm: str, name: str) -> str:
        """As of :class:`Linear`."""
        return self._product(self.operators.norm, [value, *self.norm(norm)], name, [name])

    def norm_qkv(self, value: str, norm: str, name: str) -> str:
        """As of :class:`Linear`."""
        parts = [f"{name}.{part}" for part in ("query", "key", "value")]
        return self._product(self.operators.norm, [value, *self.norm(norm)], f"{name}.qkv", parts)

    def linear_add(self, value: str, inner: str, name: str) -> str:
        """As of :class:`Linear`."""
        return self._product(self.operators.add, [inner], name, [name], [value])

    def gelu_linear_add(self, value: str, inner: str, name: str, gelu: Gelu) -> str:
        """As of :class:`Linear`."""
        return self._product(self.operators.gelu_add, [inner], name, [name], [value])

    def _product(
        self,
        operator: Operator,
        first: Sequence[str],
        name: str,
        parts: Sequence[str],
        last: Sequence[str] = (),
        *,
        bias: bool = True,
    ) -> str:
        """The projections ``parts`` side by side, by one operator.

        ``first`` and ``last`` are the operator's inputs before and after the weights.
        """
        shapes = [self.tensors[f"{part}.weight"].shape for part in parts]
        shape = shapes[0][1], sum(shape[0] for shape in shapes)
        weights = self._declare_weights(name, parts, shape)

        def offset() -> NDArray:
            whole = [self._offset(part, bias=bias) for part in parts]
            return np.concatenate(whole).astype(np.float32)

        offsets = self.builder.weight(f"{name}.bias", shape[1:], offset)
        attributes = self._attributes(shape)
        return operator(self.builder, *first, *weights, offsets, *last, **attributes)

    @abc.abstractmethod
    def _declare_weights(
        self, name: str, parts: Sequence[str], shape: tuple[int, int]
    ) -> Sequence[str]:
        """The weights [n_in, n_out] of ``shape`` and their scales, as values of the graph."""

    def _attributes(self, shape: tuple[int, int]) -> Mapping[str, int]:
        """Attributes of the operator of a product of ``shape`` [n_in, n_out]."""
        return {}

    def _offset(self, part: str, *, bias: bool) -> NDArray:
        """What is added to a product, [n_out]: its bias, if it has one (keys have none)."""
        own = self.tensors.get(f"{part}.bias")
        if bias and own is not None:
            return own.read()
        return np.zeros(self.tensors[f"{part}.weight"].shape[0])
