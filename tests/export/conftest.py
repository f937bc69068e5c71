"""Fixtures of the tests of exports."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.engines import sharp_checkpoint
from tests.support.exports import SMALL
from whisper_opt.export.checkpoints import Checkpoint


@pytest.fixture(scope="module")
def small() -> Checkpoint:
    return sharp_checkpoint(SMALL)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """An empty directory for one engine."""
    path = tmp_path / "engines"
    path.mkdir()
    return path
