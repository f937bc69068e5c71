"""Projections of two kinds in one graph: most rounded, some kept a step more exact."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from whisper_opt.export.graphs.groups import group_of, matches
from whisper_opt.export.graphs.linear import Gelu, Linear

__all__ = ["MixedLinear"]


class MixedLinear(Linear):
    """Projections as :class:`~whisper_opt.export.graphs.linear.Linear`, by one of two others."""

    def __init__(self, most: Linear, kept: Linear, groups: Collection[str]) -> None:
        """``kept`` has the products of ``groups``: :func:`whisper_opt.export.graphs.groups.matches`."""
        super().__init__(most.builder, most.tensors, most.types)
        self._most = most
        self._kept = kept
        self._groups = groups

    def _of(self, name: str) -> Linear:
        return self._kept if matches(group_of(name), self._groups) else self._most

    def vector(self, name: str, dtype: Any = None) -> str:
        """As of :class:`Linear`."""
        return self._most.vector(name, dtype)

    def norm(self, name: str) -> tuple[str, str]:
        """As of :class:`Linear`: with what its products want folded into it."""
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
