"""Fixtures of the tests of compiled kernels."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from whisper_opt.runtime.native import (
    VARIABLE,
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


@pytest.fixture(params=supported_variants() or [""])
def kernels(request: pytest.FixtureRequest, library: None) -> Iterator[str]:
    """Every variant of the kernels that this processor supports."""
    name: str = request.param
    select_variant(name)
    yield name
    select_variant(os.environ.get(VARIABLE, ""))
