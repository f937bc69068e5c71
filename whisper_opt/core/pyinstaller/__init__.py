"""PyInstaller hooks of this package; the entry point ``pyinstaller40`` is :func:`hooks`."""

from __future__ import annotations

import os

__all__ = ["hooks"]


def hooks() -> list[str]:
    """Directories that contain hooks."""
    return [os.path.dirname(__file__)]
