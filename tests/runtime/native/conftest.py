"""Fixtures of the tests of compiled kernels."""

from __future__ import annotations

import pytest

from whisper_opt.runtime.native import why_no_kernels


@pytest.fixture
def kernels() -> None:
    """Skips tests if the compiled kernels cannot be used."""
    reason = why_no_kernels()
    if reason:
        pytest.skip(f"not tested: {reason}")
