"""What the tests of compiled kernels share."""

from __future__ import annotations

import pytest

from whisper_opt.runtime.native import why_no_kernels


@pytest.fixture
def kernels() -> None:
    """Skips where the compiled kernels cannot be used."""
    reason = why_no_kernels()
    if reason:
        pytest.skip(f"not tested: {reason}")
