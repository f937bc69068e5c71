"""Projections of two precisions in one graph."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from whisper_opt.export.graphs.groups import group_of, matches
from whisper_opt.export.graphs.linear import Gelu, Linear

__all__ = ["MixedLinear"]


class MixedLinear(Linear):
    """Projections by one of two other :class:`~whisper_opt.export.graphs.linear.Linear`."""

    def __init__(self, low: Linear, high: Linear, high_groups: Collection[str]) -> None:
        """Use ``high`` for the groups that match ``high_groups``, and ``low`` for all others."""
        super().__init__(low.builder, low.tensors, low.types)
        self._low = low
        self._high = high
        self._high_groups = high_groups

    def _of(self, name: str) -> Linear:
        return self._high if matches(group_of(name), self._high_groups) else self._low

    def vector(self, name: str, dtype: Any = None) -> str:
        """As of :class:`Linear`."""
        return self._low.vector(name, dtype)

    def norm(self, name: str) -> tuple[str, str]:
        """As of :class:`Linear`: with the smoothing of its products, if these are in 8 bits."""
        return self._of(name).norm(name)

    def __call__(self, value: str, name: str, *, bias: bool = True) -> str:
        """As of :class:`Linear`."""
        return self._of(name)(value, name, bias=bias)

    def norm_linear(self, value: str, norm: str, name: str) -> str:
        """As of :class:`Linear`."""
        return self._of(name).norm_linear(value, norm, name)

    def norm_qkv(self, value: str, norm: str, name: str) -> str:
        """As of :class:`Linear`."""
        return self._of(f"{name}.query").norm_qkv(value, norm, name)

    def linear_add(self, value: str, inner: str, name: str) -> str:
        """As of :class:`Linear`."""
        return self._of(name).linear_add(value, inner, name)

    def gelu_linear_add(self, value: str, inner: str, name: str, gelu: Gelu) -> str:
        """As of :class:`Linear`."""
        return self._of(name).gelu_linear_add(value, inner, name, gelu)
