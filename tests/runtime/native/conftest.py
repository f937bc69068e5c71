"""Fixtures of the tests of compiled kernels."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from whisper_opt.runtime.native import (
    VARIABLE,
    VARIANTS,
    select_variant,
    supported_variants,
    why_no_kernels,
)


@pytest.fixture
def library() -> None:
    """Skips tests if the compiled kernels cannot be used."""
    reason = why_no_kernels()
    if reason:
        pytest.skip(f"not tested: {reason}")


@pytest.fixture(params=VARIANTS)
def kernels(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every variant of the kernels; skips those that this processor does not support."""
    name: str = request.param
    if name not in supported_variants():
        reason = why_no_kernels() if not supported_variants() else None
        pytest.skip(f"not tested: {reason or f'this processor has no {VARIANTS[name]}'}")
    select_variant(name)
    yield name
    select_variant(os.environ.get(VARIABLE, ""))
